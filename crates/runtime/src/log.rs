//! Where log lines go and which of them: one subscriber on standard error, whose filter can be changed while it runs.

mod lines;

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;

use tracing::Subscriber;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, reload};

use lines::Writing;

/// How a log line is written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Format {
    /// One line for a person.
    #[default]
    Text,
    /// One JSON object a line, event fields at the top level.
    Json,
}

impl FromStr for Format {
    type Err = LogError;

    fn from_str(text: &str) -> Result<Self, LogError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(LogError::Format(other.to_owned())),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Text => "text",
            Self::Json => "json",
        })
    }
}

/// Why logging could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The format is neither `text` nor `json`.
    #[error("unknown log format {0:?}; use text or json")]
    Format(String),
    /// One directive has no meaning.
    #[error(
        "log filter directive {directive:?} is not understood; write a level (trace, debug, info, warn, error, off) or target=level"
    )]
    Directive {
        /// The directive as given.
        directive: String,
        /// What the parser said, when it said something.
        #[source]
        source: Option<tracing_subscriber::filter::ParseError>,
    },
    /// A subscriber exists already in this process.
    #[error("logging is already set up in this process")]
    AlreadySet(#[source] tracing_subscriber::util::TryInitError),
    /// The thread that writes lines cannot be started.
    #[error("cannot start the thread that writes log lines")]
    Thread(#[source] io::Error),
    /// The subscriber behind the handle is gone.
    #[error("the log subscriber no longer exists")]
    Gone(#[source] reload::Error),
}

/// Shows and changes the filter of the running subscriber.
#[derive(Clone)]
pub struct LogHandle {
    filter: reload::Handle<EnvFilter, Registry>,
    /// Writes what is left when the last handle goes.
    writer: Option<Arc<Writing>>,
}

impl LogHandle {
    /// Lines that were dropped because they came faster than they could be written.
    #[must_use]
    pub fn lost_lines(&self) -> u64 {
        self.writer.as_ref().map_or(0, |writer| writer.lost())
    }

    /// Replaces the filter; lines are judged by the new one from now on.
    ///
    /// # Errors
    /// [`LogError::Directive`] leaves the filter as it was.
    pub fn set(&self, filter: &str) -> Result<(), LogError> {
        self.filter.reload(parse(filter)?).map_err(LogError::Gone)
    }

    /// The filter in force, in the syntax that [`LogHandle::set`] takes.
    #[must_use]
    pub fn current(&self) -> String {
        self.filter
            .with_current(ToString::to_string)
            .unwrap_or_else(|_| "off".to_owned())
    }
}

impl fmt::Debug for LogHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogHandle")
            .field("filter", &self.current())
            .field("own_thread", &self.writer.is_some())
            .finish_non_exhaustive()
    }
}

/// Installs the process-wide subscriber on standard error.
///
/// Lines are written by a thread of their own, so that who logs does not wait for who reads the log:
/// a line per connection is a measurable part of a short connection otherwise. Keep the handle for
/// as long as the program runs.
///
/// # Errors
/// A filter that cannot be read, or a subscriber that is installed already.
pub fn init(format: Format, filter: &str) -> Result<LogHandle, LogError> {
    let (lines, writing) = lines::start(WAITING_LINES, io::stderr()).map_err(LogError::Thread)?;
    let (subscriber, handle) = subscriber(format, filter, lines)?;
    subscriber.try_init().map_err(LogError::AlreadySet)?;
    Ok(LogHandle {
        writer: Some(Arc::new(writing)),
        ..handle
    })
}

/// Builds the subscriber without installing it, for tests and for programs that bring their own writer.
///
/// # Errors
/// A filter that cannot be read.
pub fn subscriber<W>(
    format: Format,
    filter: &str,
    writer: W,
) -> Result<(impl Subscriber + Send + Sync + use<W>, LogHandle), LogError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let lines = match format {
        Format::Text => tracing_subscriber::fmt::layer()
            .with_writer(writer)
            .with_ansi(false)
            .boxed(),
        Format::Json => tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .with_writer(writer)
            .boxed(),
    };
    let subscriber = Registry::default().with(filter).with(lines);
    let handle = LogHandle {
        filter: handle,
        writer: None,
    };
    Ok((subscriber, handle))
}

/// Lines that may wait to be written; more are dropped and counted.
const WAITING_LINES: usize = 32 << 10;

/// A bare word that is no level would be read as a target name and silence everything else, so it is refused here.
fn parse(filter: &str) -> Result<EnvFilter, LogError> {
    for directive in filter.split(',').map(str::trim) {
        if !directive.contains(['=', '[']) && !is_level(directive) {
            return Err(LogError::Directive {
                directive: directive.to_owned(),
                source: None,
            });
        }
    }
    EnvFilter::try_new(filter).map_err(|source| LogError::Directive {
        directive: filter.to_owned(),
        source: Some(source),
    })
}

fn is_level(word: &str) -> bool {
    ["trace", "debug", "info", "warn", "error", "off"]
        .iter()
        .any(|level| word.eq_ignore_ascii_case(level))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Sink {
        fn take(&self) -> String {
            String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
        }
    }

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_filter_changes_while_the_subscriber_runs() {
        let sink = Sink::default();
        let writer = sink.clone();
        let (subscriber, handle) =
            subscriber(Format::Json, "info", move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!("hidden");
            handle.set("debug,h2=warn").unwrap();
            tracing::debug!(port = 15008, "shown");
        });
        let text = sink.take();
        let line: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
        assert_eq!(line["message"], "shown");
        assert_eq!(line["port"], 15008);
        assert!(handle.set("info").is_err(), "the subscriber is gone");
    }

    #[test]
    fn a_filter_that_means_nothing_is_refused_and_changes_nothing() {
        let (_keep, handle) = subscriber(Format::Text, "info", io::sink).unwrap();
        for bad in ["", "verbose", "info,,", "tls=loud"] {
            assert!(handle.set(bad).is_err(), "{bad:?}");
        }
        assert_eq!(handle.current(), "info");
    }
}

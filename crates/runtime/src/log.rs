//! Where log lines go and which of them: one subscriber on standard error, whose filter can be changed while it runs.

mod access;
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

use access::{Only, Template, Which};
use lines::Writing;

/// How a log line is written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Format {
    /// One line for a person.
    #[default]
    Text,
    /// One JSON object a line, event fields at the top level.
    Json,
    /// Lines of the access log by a template, others as named: `text:{method} {path} {status}`, `json:...`.
    Access(Chosen),
}

/// How lines of the access log look, and whether the others are JSON.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Chosen {
    is_json: bool,
    /// For as long as the program runs, which has one.
    template: &'static Template,
}

impl Format {
    fn is_json(self) -> bool {
        match self {
            Self::Text => false,
            Self::Json => true,
            Self::Access(chosen) => chosen.is_json,
        }
    }
}

impl FromStr for Format {
    type Err = LogError;

    fn from_str(text: &str) -> Result<Self, LogError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => {
                let (others, template) = other
                    .split_once(':')
                    .filter(|(others, _)| matches!(*others, "text" | "json"))
                    .ok_or_else(|| LogError::Format(other.to_owned()))?;
                let template = Template::read(template).map_err(LogError::Template)?;
                Ok(Self::Access(Chosen {
                    is_json: others == "json",
                    template: Box::leak(Box::new(template)),
                }))
            }
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_json() { "json" } else { "text" })?;
        match self {
            Self::Access(chosen) => write!(f, ":{}", chosen.template),
            Self::Text | Self::Json => Ok(()),
        }
    }
}

/// Why logging could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The format is neither `text` nor `json` nor begins so.
    #[error(
        "unknown log format {0:?}; use text or json, or text:TEMPLATE or json:TEMPLATE for lines of the access log"
    )]
    Format(String),
    /// What comes behind `text:` or `json:`.
    #[error("the template of the access log is not understood: {0}")]
    Template(String),
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
    only: Only,
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
        let (filter, errors) = parse(filter)?;
        self.filter.reload(filter).map_err(LogError::Gone)?;
        self.only.set(errors);
        Ok(())
    }

    /// The filter in force, in the syntax that [`LogHandle::set`] takes.
    #[must_use]
    pub fn current(&self) -> String {
        let filter = self.filter.with_current(ToString::to_string);
        let filter = filter.unwrap_or_else(|_| "off".to_owned());
        if self.only.is_set() {
            filter.replace(access::ALL, access::ERRORS)
        } else {
            filter
        }
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
    W: for<'a> MakeWriter<'a> + Clone + Send + Sync + 'static,
{
    let (filter, errors) = parse(filter)?;
    let (filter, handle) = reload::Layer::new(filter);
    let only = Only::default();
    only.set(errors);
    let chosen = match format {
        Format::Access(chosen) => Some(access::Lines {
            template: chosen.template,
            only: only.clone(),
            writer: writer.clone(),
        }),
        Format::Text | Format::Json => None,
    };
    let which = Which {
        only: only.clone(),
        but_access: chosen.is_some(),
    };
    let lines = if format.is_json() {
        tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .with_writer(writer)
            .boxed()
    } else {
        tracing_subscriber::fmt::layer()
            .with_writer(writer)
            .with_ansi(false)
            .boxed()
    };
    let subscriber = Registry::default()
        .with(filter)
        .with(lines.with_filter(which))
        .with(chosen);
    let handle = LogHandle {
        filter: handle,
        only,
        writer: None,
    };
    Ok((subscriber, handle))
}

/// Lines that may wait to be written; more are dropped and counted.
const WAITING_LINES: usize = 32 << 10;

/// A bare word that is no level would be read as a target name and silence everything else, so it is refused here.
/// Says too whether only failures are wanted of the access log.
fn parse(filter: &str) -> Result<(EnvFilter, bool), LogError> {
    let errors = |directive: &str| directive == access::ERRORS;
    let only_errors = filter.split(',').map(str::trim).any(errors);
    let as_is = |directive| {
        if errors(directive) {
            access::ALL
        } else {
            directive
        }
    };
    let filter: Vec<&str> = filter.split(',').map(str::trim).map(as_is).collect();
    for directive in filter.iter().copied() {
        if !directive.contains(['=', '[']) && !is_level(directive) {
            return Err(LogError::Directive {
                directive: directive.to_owned(),
                source: None,
            });
        }
    }
    let filter = filter.join(",");
    match EnvFilter::try_new(&filter) {
        Ok(parsed) => Ok((parsed, only_errors)),
        Err(source) => Err(LogError::Directive {
            directive: filter,
            source: Some(source),
        }),
    }
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

    /// Some requests and connections, and a line that is none.
    fn tell() {
        let none: Option<&str> = None;
        tracing::info!(target: "access", status = 200_u16, path = "/good", error = none, "request");
        tracing::info!(target: "access", status = 200_u16, grpc_status = Some(14_u32), path = "/grpc", "request");
        tracing::info!(target: "access", status = 503_u16, path = "/a \"b\"\n", "request");
        tracing::info!(target: "access", pod = "shop/a", bytes_sent = 7_u64, "connection closed");
        tracing::info!(target: "access", pod = "shop/b", reason = "policy_deny", "connection refused");
        tracing::info!(status = 200_u16, "no line of the access log");
    }

    /// F113: a filter that shows what failed alone, live, and a format of one's own.
    #[test]
    fn the_access_log_shows_errors_alone_and_as_it_is_told() {
        let sink = Sink::default();
        let writer = sink.clone();
        let format: Format = "text:{status} \"{path}\" {pod} {reason}".parse().unwrap();
        let (subscriber, handle) = subscriber(format, "info", move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tell();
            let all = sink.take();
            let lines: Vec<&str> = all.lines().collect();
            let expected = [
                "200 \"/good\" - -",
                "200 \"/grpc\" - -",
                "503 \"/a \\\"b\\\"\\n\" - -",
                "- \"-\" shop/a -",
                "- \"-\" shop/b policy_deny",
            ];
            assert_eq!(lines[..5], expected, "{all}");
            assert!(
                lines[5].ends_with("no line of the access log status=200"),
                "{all}"
            );

            handle.set("info,access=errors").unwrap();
            assert_eq!(handle.current(), "access=errors,info");
            tell();
            let errors = sink.take();
            let lines: Vec<&str> = errors.lines().collect();
            assert_eq!(lines[..3], [expected[1], expected[2], expected[4]]);
            assert_eq!(lines.len(), 4, "{errors}");

            handle.set("info,access=off").unwrap();
            tell();
            assert_eq!(sink.take().lines().count(), 1);
        });
    }

    #[test]
    fn errors_alone_are_shown_as_objects_too() {
        let sink = Sink::default();
        let writer = sink.clone();
        let (subscriber, _handle) =
            subscriber(Format::Json, "info,access=errors", move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, tell);
        let text = sink.take();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        let lines: Vec<serde_json::Value> = lines.collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert_eq!(lines[1]["status"], 503);
    }

    #[test]
    fn a_format_is_written_as_it_was_read() {
        for text in ["text", "json", "text:{status}", "json:{{{path}}}"] {
            assert_eq!(text.parse::<Format>().unwrap().to_string(), text);
        }
        for wrong in ["xml", "xml:{status}", "text:", "json:{Status}"] {
            assert!(wrong.parse::<Format>().is_err(), "{wrong}");
        }
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

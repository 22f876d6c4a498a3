//! The access log by itself: which of its lines are written, and how they look.
//!
//! Its lines are events of the target `access`. Whether one tells of a failure stands in its fields, which a filter by target and
//! level does not see.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::layer::{Context, Filter, Layer};

/// What its events are of.
const TARGET: &str = "access";
/// In a filter: only what failed.
pub(super) const ERRORS: &str = "access=errors";
/// What the subscriber's own filter is told of that.
pub(super) const ALL: &str = "access=info";
/// The first status of HTTP that is a failure.
const FAILURE: u64 = 400;

fn is_access(metadata: &Metadata<'_>) -> bool {
    metadata.target() == TARGET
}

/// Whether only failures are written; shared by whoever changes it and who asks.
#[derive(Clone, Debug, Default)]
pub(super) struct Only(Arc<AtomicBool>);

impl Only {
    pub(super) fn set(&self, errors: bool) {
        self.0.store(errors, Ordering::Relaxed);
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn passes(&self, event: &Event<'_>) -> bool {
        if !self.is_set() || !is_access(event.metadata()) {
            return true;
        }
        let mut failure = Failure(false);
        event.record(&mut failure);
        failure.0
    }
}

/// Which lines a writer of lines gets.
#[derive(Debug)]
pub(super) struct Which {
    pub(super) only: Only,
    /// Whether those of the access log are written by somebody else.
    pub(super) but_access: bool,
}

impl<S> Filter<S> for Which {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        !(self.but_access && is_access(metadata))
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        self.only.passes(event)
    }
}

/// Whether an event tells of a request or a connection that failed.
struct Failure(bool);

impl Failure {
    fn text(&mut self, field: &Field, is_empty: bool) {
        self.0 |= matches!(field.name(), "error" | "reason") && !is_empty;
    }
}

impl Visit for Failure {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0 |= match field.name() {
            "status" => value >= FAILURE,
            "grpc_status" => value != 0,
            _ => false,
        };
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field, value.is_empty());
    }

    fn record_debug(&mut self, field: &Field, _: &dyn fmt::Debug) {
        self.text(field, false);
    }
}

/// A line of one's own: text with the names of fields in braces.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Template(Vec<Piece>);

#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Field(String),
}

impl Template {
    /// Reads `{status} {method}`; a brace itself is written twice.
    ///
    /// # Errors
    /// Says what is wrong.
    pub(super) fn read(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, from) = rest.split_at(at);
            plain.push_str(before);
            if let Some(after) = from.strip_prefix("{{") {
                plain.push('{');
                rest = after;
            } else if let Some(after) = from.strip_prefix("}}") {
                plain.push('}');
                rest = after;
            } else {
                let field = from.strip_prefix('{').and_then(|from| from.split_once('}'));
                let Some((name, after)) = field.filter(|(name, _)| is_name(name)) else {
                    return Err(format!(
                        "{from:?} begins with no {{field}}; write {{{{ and }}}} for braces"
                    ));
                };
                pieces.push(Piece::Text(std::mem::take(&mut plain)));
                pieces.push(Piece::Field(name.to_owned()));
                rest = after;
            }
        }
        plain.push_str(rest);
        pieces.push(Piece::Text(plain));
        pieces.retain(|piece| *piece != Piece::Text(String::new()));
        if !pieces.iter().any(|piece| matches!(piece, Piece::Field(_))) {
            return Err("it names no {field}".to_owned());
        }
        Ok(Self(pieces))
    }

    fn line(&self, event: &Event<'_>) -> String {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut line = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => line.push_str(text),
                Piece::Field(name) if name == "time" => {
                    // A clock that cannot be written leaves its place empty.
                    let _written = SystemTime.format_time(&mut Writer::new(&mut line)).is_ok();
                }
                Piece::Field(name) => match fields.0.get(name.as_str()) {
                    Some(value) => push(&mut line, value),
                    None => line.push('-'),
                },
            }
        }
        line.push('\n');
        line
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|piece| match piece {
            Piece::Text(text) => f.write_str(&text.replace('{', "{{").replace('}', "}}")),
            Piece::Field(name) => write!(f, "{{{name}}}"),
        })
    }
}

fn is_name(name: &str) -> bool {
    let letter = |c: char| c.is_ascii_lowercase() || matches!(c, '_' | '.');
    !name.is_empty() && name.chars().all(letter)
}

/// What a client has written ends no line and no quotation.
fn push(line: &mut String, value: &str) {
    for letter in value.chars() {
        match letter {
            '"' | '\\' => line.extend(['\\', letter]),
            letter if letter.is_control() => line.extend(letter.escape_default()),
            letter => line.push(letter),
        }
    }
}

#[derive(Default)]
struct Fields(BTreeMap<&'static str, String>);

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }
}

/// Writes the lines of the access log by a template.
#[derive(Debug)]
pub(super) struct Lines<W> {
    pub(super) template: &'static Template,
    pub(super) only: Only,
    pub(super) writer: W,
}

impl<S, W> Layer<S> for Lines<W>
where
    S: Subscriber,
    W: for<'a> MakeWriter<'a> + 'static,
{
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if !is_access(event.metadata()) || !self.only.passes(event) {
            return;
        }
        let line = self.template.line(event);
        let mut writer = self.writer.make_writer_for(event.metadata());
        // Nobody can be told that nobody reads.
        drop(writer.write_all(line.as_bytes()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_written_as_it_was_read() {
        for text in [
            "{status}",
            "{{\"s\": {status}, \"p\": \"{path}\"}}",
            "{src.addr} -> {dst.addr}!",
        ] {
            let template = Template::read(text).unwrap();
            assert_eq!(template.to_string(), text);
        }
        for wrong in [
            "",
            "status",
            "{status",
            "status}",
            "{}",
            "{Status}",
            "{a b}",
            "{{status}}",
        ] {
            assert!(Template::read(wrong).is_err(), "{wrong}");
        }
    }
}

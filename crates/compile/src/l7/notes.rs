//! What there is to say about fields, and the reading of values that several kinds of objects have.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use l7::route::Share;
use l7::text::Regex;
use manifest::Severity;

use crate::index::authorization::Note;

/// Notes on the fields of one object.
#[derive(Debug, Default)]
pub(crate) struct Notes(pub(crate) Vec<Note>);

impl Notes {
    pub(crate) fn error(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.push(Severity::Error, field, message);
    }

    pub(crate) fn warning(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.push(Severity::Warning, field, message);
    }

    fn push(&mut self, severity: Severity, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(Note {
            severity,
            field: field.into(),
            message: message.into(),
        });
    }

    /// How many errors there are so far.
    pub(crate) fn errors(&self) -> usize {
        let errors = self.0.iter();
        errors
            .filter(|note| note.severity == Severity::Error)
            .count()
    }

    pub(crate) fn duration(&mut self, field: &str, text: &str) -> Option<Duration> {
        let read = duration(text);
        if read.is_none() {
            self.error(
                field,
                format!("{text:?} is no duration; write for example 1.5s or 300ms"),
            );
        }
        read
    }

    pub(crate) fn optional_duration(
        &mut self,
        field: &str,
        text: Option<&str>,
    ) -> Option<Duration> {
        text.and_then(|text| self.duration(field, text))
    }

    pub(crate) fn regex(&mut self, field: &str, pattern: &str) -> Option<Regex> {
        match Regex::new(pattern) {
            Ok(regex) => Some(regex),
            Err(error) => {
                self.error(field, error.to_string());
                None
            }
        }
    }

    pub(crate) fn header_name(&mut self, field: &str, name: &str) -> Option<HeaderName> {
        let read = HeaderName::from_bytes(name.as_bytes()).ok();
        if read.is_none() {
            self.error(field, format!("{name:?} is no name of a header"));
        }
        read
    }

    pub(crate) fn header_value(&mut self, field: &str, value: &str) -> Option<HeaderValue> {
        let read = HeaderValue::from_str(value).ok();
        if read.is_none() {
            self.error(field, format!("{value:?} is no value of a header"));
        }
        read
    }

    pub(crate) fn percentage(&mut self, field: &str, percent: f64) -> Share {
        Share::percent(percent).unwrap_or_else(|| {
            self.error(field, format!("{percent} is no percentage from 0 to 100"));
            Share::default()
        })
    }
}

/// A duration as Go writes it, `1h30m`, `1.5s`, `300ms`; a bare 0 is one too.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(end);
        let number: f64 = number.parse().ok()?;
        let unit_end = after
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        total += number
            * match unit {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return None,
            };
        rest = next;
    }
    if text.is_empty() {
        return None;
    }
    // To the microsecond, so that 0.1 of something is what it was meant to be.
    Duration::try_from_secs_f64((total * 1e6).round() / 1e6).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        for (text, expected) in [
            ("5s", Some(5_000)),
            ("500ms", Some(500)),
            ("1.5s", Some(1_500)),
            ("1h30m", Some(5_400_000)),
            ("0s", Some(0)),
            ("0", Some(0)),
            ("", None),
            ("5", None),
            ("s", None),
            ("-1s", None),
            ("1d", None),
        ] {
            let expected = expected.map(Duration::from_millis);
            assert_eq!(duration(text), expected, "{text:?}");
        }
    }
}

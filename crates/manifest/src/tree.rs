//! A YAML document as a tree that knows the line of every key and value.
//!
//! Follows what `kubectl` accepts: the core schema of YAML 1.2, anchors and aliases, and merge keys (`<<`). It decides
//! nothing about objects.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput};

/// One value with the line it starts on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    /// 1-based line in the file.
    pub(crate) line: usize,
    /// What it holds.
    pub(crate) value: Value,
}

/// The shapes of a value.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Scalar(Scalar),
    Sequence(Vec<Node>),
    /// In the order of the document; a key may come twice.
    Mapping(Vec<Entry>),
}

/// A scalar after the core schema resolved its type.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Scalar {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
}

/// One `key: value` of a mapping.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) line: usize,
    pub(crate) value: Node,
}

/// Why a document is not a tree.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct SyntaxError {
    /// 1-based line in the file.
    pub(crate) line: usize,
    pub(crate) message: String,
}

impl Node {
    /// The value of `key`, the last one if it comes twice.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// The entry of `key`, the last one if it comes twice.
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().rev().find(|entry| entry.key == key)
    }

    /// The entries of a mapping; empty for anything else.
    pub(crate) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Mapping(entries) => entries,
            _ => &[],
        }
    }

    /// The items of a sequence; empty for anything else.
    pub(crate) fn items(&self) -> &[Self] {
        match &self.value {
            Value::Sequence(items) => items,
            _ => &[],
        }
    }

    /// The text of a string scalar.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Scalar(Scalar::Text(text)) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn is_null(&self) -> bool {
        self.value == Value::Scalar(Scalar::Null)
    }

    pub(crate) fn is_mapping(&self) -> bool {
        matches!(self.value, Value::Mapping(_))
    }

    /// What a person calls this shape.
    pub(crate) fn shape(&self) -> &'static str {
        match &self.value {
            Value::Mapping(_) => "a mapping",
            Value::Sequence(_) => "a list",
            Value::Scalar(Scalar::Null) => "nothing",
            Value::Scalar(Scalar::Bool(_)) => "a boolean",
            Value::Scalar(Scalar::Text(_)) => "a string",
            Value::Scalar(_) => "a number",
        }
    }
}

/// Parses the documents of `text`, whose first line is line `first_line` of its file.
///
/// # Errors
/// The first syntax error, with a hint where the cause is a common one.
pub(crate) fn parse(text: &str, first_line: usize) -> Result<Vec<Node>, SyntaxError> {
    let mut builder = Builder {
        parser: Parser::new_from_str(text),
        first_line,
        anchors: HashMap::new(),
        copied: 0,
        text,
    };
    let mut documents = Vec::new();
    while let Some((event, span)) = builder.next()? {
        match event {
            Event::StreamEnd => break,
            Event::StreamStart | Event::Nothing | Event::DocumentStart(_) | Event::DocumentEnd => {}
            event => documents.push(builder.node(event, span, 0)?),
        }
    }
    Ok(documents)
}

struct Builder<'t> {
    parser: Parser<'t, StrInput<'t>>,
    first_line: usize,
    anchors: HashMap<usize, Node>,
    /// Nodes made by following aliases, bounded against documents that double themselves.
    copied: usize,
    text: &'t str,
}

impl<'t> Builder<'t> {
    fn next(&mut self) -> Result<Option<(Event<'t>, Span)>, SyntaxError> {
        match self.parser.next_event() {
            None => Ok(None),
            Some(Ok(pair)) => Ok(Some(pair)),
            Some(Err(error)) => Err(self.explain(&error)),
        }
    }

    fn line(&self, span: Span) -> usize {
        self.first_line + span.start.line().saturating_sub(1)
    }

    fn error(&self, span: Span, message: impl Into<String>) -> SyntaxError {
        SyntaxError {
            line: self.line(span),
            message: message.into(),
        }
    }

    /// Adds to the parser's words what a person most likely wanted.
    fn explain(&self, error: &ScanError) -> SyntaxError {
        let at = error.marker().line().max(1);
        let source = self.text.lines().nth(at - 1).unwrap_or_default();
        let hint = if unquoted_alias(source) {
            "; a value that starts with `*` must be quoted, as in \"*.example.com\""
        } else if source.contains('\t') {
            "; indent with spaces, a tab is not allowed here"
        } else {
            ""
        };
        SyntaxError {
            line: self.first_line + at - 1,
            message: format!("not valid YAML: {}{hint}", error.info()),
        }
    }

    fn node(&mut self, event: Event<'t>, span: Span, depth: usize) -> Result<Node, SyntaxError> {
        if depth > MAX_DEPTH {
            return Err(self.error(span, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        let line = self.line(span);
        let (anchor, value) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain && tag.is_none();
                let scalar = if plain {
                    resolve(&text)
                } else {
                    Scalar::Text(text.into_owned())
                };
                (anchor, Value::Scalar(scalar))
            }
            Event::SequenceStart(anchor, _) => (anchor, self.sequence(depth)?),
            Event::MappingStart(anchor, _) => (anchor, self.mapping(depth)?),
            Event::Alias(anchor) => return self.alias(anchor, span),
            other => return Err(self.error(span, format!("unexpected {other:?}"))),
        };
        let node = Node { line, value };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn alias(&mut self, anchor: usize, span: Span) -> Result<Node, SyntaxError> {
        let Some(target) = self.anchors.get(&anchor).cloned() else {
            return Err(self.error(span, "an alias (`*name`) inside its own anchor (`&name`)"));
        };
        self.copied += size(&target);
        if self.copied > MAX_COPIED {
            return Err(self.error(
                span,
                format!("aliases expand to more than {MAX_COPIED} values"),
            ));
        }
        Ok(target)
    }

    fn sequence(&mut self, depth: usize) -> Result<Value, SyntaxError> {
        let mut items = Vec::new();
        while let Some((event, span)) = self.next()? {
            if event == Event::SequenceEnd {
                break;
            }
            items.push(self.node(event, span, depth + 1)?);
        }
        Ok(Value::Sequence(items))
    }

    fn mapping(&mut self, depth: usize) -> Result<Value, SyntaxError> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut merged: Vec<Entry> = Vec::new();
        while let Some((event, span)) = self.next()? {
            if event == Event::MappingEnd {
                break;
            }
            let line = self.line(span);
            let Event::Scalar(key, style, _, _) = event else {
                return Err(self.error(span, "a key must be a plain word, not a list or a mapping"));
            };
            let Some((event, value_span)) = self.next()? else {
                break;
            };
            let value = self.node(event, value_span, depth + 1)?;
            if key == "<<" && style == ScalarStyle::Plain {
                merge(&mut merged, &value);
            } else {
                entries.push(Entry {
                    key: key.into_owned(),
                    line,
                    value,
                });
            }
        }
        merged.retain(|entry| !entries.iter().any(|own| own.key == entry.key));
        entries.extend(merged);
        Ok(Value::Mapping(entries))
    }
}

/// Adds the entries of a merge key's value that are not there yet: earlier sources win.
fn merge(into: &mut Vec<Entry>, value: &Node) {
    let sources = match &value.value {
        Value::Sequence(items) => items.as_slice(),
        _ => std::slice::from_ref(value),
    };
    for entry in sources.iter().flat_map(Node::entries) {
        if !into.iter().any(|known| known.key == entry.key) {
            into.push(entry.clone());
        }
    }
}

fn size(node: &Node) -> usize {
    1 + node.items().iter().map(size).sum::<usize>()
        + node.entries().iter().map(|e| size(&e.value)).sum::<usize>()
}

/// Whether a line holds a value such as `*.foo.com` that YAML reads as an alias.
fn unquoted_alias(line: &str) -> bool {
    let after = |sep: &str| {
        line.split(sep)
            .skip(1)
            .any(|rest| rest.trim_start().starts_with('*'))
    };
    line.trim_start().starts_with('*') || after("- ") || after(": ") || after("[") || after(",")
}

/// Resolves a plain scalar as YAML 1.2's core schema does, and leading-zero octals as `kubectl` does.
fn resolve(text: &str) -> Scalar {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Scalar::Null,
        "true" | "True" | "TRUE" => return Scalar::Bool(true),
        "false" | "False" | "FALSE" => return Scalar::Bool(false),
        _ => {}
    }
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return Scalar::Text(text.to_owned());
    }
    integer(text, digits)
        .or_else(|| float(text, digits))
        .unwrap_or_else(|| Scalar::Text(text.to_owned()))
}

fn integer(text: &str, digits: &str) -> Option<Scalar> {
    let magnitude = if let Some(hex) = digits.strip_prefix("0x") {
        u64::from_str_radix(hex, 16).ok()?
    } else if let Some(octal) = digits.strip_prefix("0o") {
        u64::from_str_radix(octal, 8).ok()?
    } else if digits.len() > 1
        && digits.starts_with('0')
        && digits.bytes().all(|b| (b'0'..=b'7').contains(&b))
    {
        u64::from_str_radix(digits, 8).ok()?
    } else if digits.bytes().all(|b| b.is_ascii_digit()) {
        digits.parse().ok()?
    } else {
        return None;
    };
    if text.starts_with('-') {
        i64::try_from(magnitude)
            .ok()
            .map(|positive| Scalar::Signed(-positive))
    } else {
        Some(Scalar::Unsigned(magnitude))
    }
}

fn float(text: &str, digits: &str) -> Option<Scalar> {
    let shape = digits
        .bytes()
        .all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
    let is_float = shape && digits.bytes().any(|b| b.is_ascii_digit());
    is_float
        .then(|| text.parse().ok())
        .flatten()
        .map(Scalar::Float)
}

/// Deeper than any Kubernetes object, shallow enough for the stack.
const MAX_DEPTH: usize = 100;
/// Values that aliases may add to one document.
const MAX_COPIED: usize = 100_000;

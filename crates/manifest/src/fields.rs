//! A YAML tree read into a typed object: every error knows its line and field, and every field that the type does not
//! have is collected with the name its author most likely meant.

use std::cell::RefCell;
use std::fmt;

use serde::de::{self, DeserializeSeed, IntoDeserializer, Visitor};

use crate::suggest::closest;
use crate::tree::{Entry, Node, Scalar, Value};

/// A value that does not fit its field.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FieldError {
    /// 1-based line in the file; 0 until the error has met a node.
    pub(crate) line: usize,
    pub(crate) field: String,
    pub(crate) message: String,
}

/// A field that the type does not have, or that is written twice.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Surplus {
    pub(crate) line: usize,
    pub(crate) field: String,
    pub(crate) message: String,
}

/// Reads `node` with `decode`, a call of some type's `Deserialize`.
///
/// # Errors
/// The first value that does not fit. Surplus fields are no errors here; the caller weighs them.
pub(crate) fn read<'de, T>(
    node: &'de Node,
    decode: impl FnOnce(Fields<'de, '_>) -> Result<T, FieldError>,
) -> (Result<T, FieldError>, Vec<Surplus>) {
    let context = Context::default();
    let result = decode(Fields {
        node,
        context: &context,
    })
    .map_err(|error| context.locate(error, node));
    (result, context.surplus.into_inner())
}

#[derive(Default)]
struct Context {
    path: RefCell<Vec<Step>>,
    surplus: RefCell<Vec<Surplus>>,
}

enum Step {
    Key(String),
    Index(usize),
}

impl Context {
    /// Reads one value below the current path, and gives an error from inside its place.
    fn within<T>(
        &self,
        step: Step,
        node: &Node,
        read: impl FnOnce() -> Result<T, FieldError>,
    ) -> Result<T, FieldError> {
        self.path.borrow_mut().push(step);
        let result = read().map_err(|error| self.locate(error, node));
        self.path.borrow_mut().pop();
        result
    }

    fn locate(&self, mut error: FieldError, node: &Node) -> FieldError {
        if error.line == 0 {
            error.line = node.line;
            error.field = self.render(None);
            error.message = in_words(&error.message);
            let unquoted = matches!(&node.value, Value::Scalar(s) if !matches!(s, Scalar::Text(_) | Scalar::Null));
            if unquoted && error.message.contains("expected a string") {
                error.message.push_str("; put the value in quotes");
            }
        }
        error
    }

    fn render(&self, last: Option<&str>) -> String {
        let mut text = String::new();
        for step in self.path.borrow().iter() {
            match step {
                Step::Index(index) => text.push_str(&format!("[{index}]")),
                Step::Key(key) => push_key(&mut text, key),
            }
        }
        if let Some(key) = last {
            push_key(&mut text, key);
        }
        text
    }

    fn unknown(&self, entry: &Entry, known: &[&str]) {
        let field = self.render(Some(&entry.key));
        let message = match closest(&entry.key, known) {
            Some(name) => format!(
                "unknown field {field}, did you mean {}",
                self.render(Some(name))
            ),
            None => format!("unknown field {field}"),
        };
        let line = entry.line;
        self.surplus.borrow_mut().push(Surplus {
            line,
            field,
            message,
        });
    }

    fn twice(&self, entry: &Entry) {
        let field = self.render(Some(&entry.key));
        let message = format!("{field} is written twice; the last one counts");
        let line = entry.line;
        self.surplus.borrow_mut().push(Surplus {
            line,
            field,
            message,
        });
    }
}

/// Serde's words for shapes, replaced by those of people who write YAML.
fn in_words(message: &str) -> String {
    let message = message
        .replace("invalid type: map,", "invalid type: a mapping,")
        .replace("invalid type: sequence,", "invalid type: a list,")
        .replace("expected a sequence", "expected a list");
    match message.split_once("expected struct ") {
        Some((before, _)) => format!("{before}expected a mapping"),
        None => message,
    }
}

pub(crate) fn push_key(text: &mut String, key: &str) {
    if key.is_empty() || key.contains(['.', '/', '[']) {
        text.push_str(&format!("[{key:?}]"));
    } else {
        if !text.is_empty() {
            text.push('.');
        }
        text.push_str(key);
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for FieldError {}

impl de::Error for FieldError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self {
            line: 0,
            field: String::new(),
            message: message.to_string(),
        }
    }
}

/// The deserializer over one node.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'de, 'c> {
    node: &'de Node,
    context: &'c Context,
}

impl<'de, 'c> Fields<'de, 'c> {
    fn map<V: Visitor<'de>>(
        self,
        known: Option<&'static [&'static str]>,
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        visitor.visit_map(MapFields {
            entries: self.node.entries(),
            next: 0,
            known,
            context: self.context,
        })
    }

    fn seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        visitor.visit_seq(SeqFields {
            items: self.node.items(),
            next: 0,
            context: self.context,
        })
    }

    fn any<V: Visitor<'de>>(
        self,
        known: Option<&'static [&'static str]>,
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        match &self.node.value {
            Value::Mapping(_) => self.map(known, visitor),
            Value::Sequence(_) if known.is_some() => {
                Err(de::Error::invalid_type(de::Unexpected::Seq, &visitor))
            }
            Value::Sequence(_) => self.seq(visitor),
            Value::Scalar(Scalar::Null) => visitor.visit_unit(),
            Value::Scalar(Scalar::Bool(value)) => visitor.visit_bool(*value),
            Value::Scalar(Scalar::Unsigned(value)) => visitor.visit_u64(*value),
            Value::Scalar(Scalar::Signed(value)) => visitor.visit_i64(*value),
            Value::Scalar(Scalar::Float(value)) => visitor.visit_f64(*value),
            Value::Scalar(Scalar::Text(value)) => visitor.visit_borrowed_str(value),
        }
    }
}

impl<'de> de::Deserializer<'de> for Fields<'de, '_> {
    type Error = FieldError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        self.any(None, visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        if self.node.is_null() {
            visitor.visit_none()
        } else {
            visitor.visit_some(self)
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        self.any(Some(fields), visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct map enum identifier ignored_any
    }
}

struct SeqFields<'de, 'c> {
    items: &'de [Node],
    next: usize,
    context: &'c Context,
}

impl<'de> de::SeqAccess<'de> for SeqFields<'de, '_> {
    type Error = FieldError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, FieldError> {
        let Some(node) = self.items.get(self.next) else {
            return Ok(None);
        };
        let context = self.context;
        let read = || seed.deserialize(Fields { node, context });
        let result = context.within(Step::Index(self.next), node, read);
        self.next += 1;
        result.map(Some)
    }
}

struct MapFields<'de, 'c> {
    entries: &'de [Entry],
    next: usize,
    known: Option<&'static [&'static str]>,
    context: &'c Context,
}

impl<'de> de::MapAccess<'de> for MapFields<'de, '_> {
    type Error = FieldError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, FieldError> {
        while let Some((entry, later)) = self
            .entries
            .get(self.next..)
            .and_then(<[Entry]>::split_first)
        {
            if later.iter().any(|other| other.key == entry.key) {
                self.context.twice(entry);
            } else if let Some(known) = self
                .known
                .filter(|known| !known.contains(&entry.key.as_str()))
            {
                self.context.unknown(entry, known);
            } else {
                let read = || seed.deserialize(Key(&entry.key));
                return self
                    .context
                    .within(Step::Key(entry.key.clone()), &entry.value, read)
                    .map(Some);
            }
            self.next += 1;
        }
        Ok(None)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<T::Value, FieldError> {
        let Some(Entry {
            key, value: node, ..
        }) = self.entries.get(self.next)
        else {
            return Err(de::Error::custom("a value was read twice"));
        };
        self.next += 1;
        let context = self.context;
        context.within(Step::Key(key.clone()), node, || {
            seed.deserialize(Fields { node, context })
        })
    }
}

/// A mapping key: a string, or the number it spells where the type's keys are numbers (`portLevelMtls`).
struct Key<'de>(&'de str);

impl<'de> de::Deserializer<'de> for Key<'de> {
    type Error = FieldError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        visitor.visit_borrowed_str(self.0)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, FieldError> {
        match self.0.parse::<u16>() {
            Ok(number) => visitor.visit_u16(number),
            Err(_) => Err(de::Error::custom(format!(
                "the key {:?} is not a port number (1-65535)",
                self.0
            ))),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, FieldError> {
        visitor.visit_newtype_struct(self.0.into_deserializer())
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

//! Names made of two strings with a slash between them, and the sharing of strings that repeat.

use std::fmt::Display;
use std::str::FromStr;
use std::sync::Arc;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use thiserror::Error;

/// A name that should be `namespace/name` and is not.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{text:?} is not of the form {form}")]
pub struct NameError {
    /// What was given.
    pub text: String,
    /// What would be right.
    pub form: &'static str,
}

/// Splits at the first slash; both sides must have something in them.
pub(crate) fn split(text: &str, form: &'static str) -> Result<(Arc<str>, Arc<str>), NameError> {
    match text.split_once('/') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() => {
            Ok((left.into(), right.into()))
        }
        _ => Err(NameError {
            text: text.to_owned(),
            form,
        }),
    }
}

/// Reads what [`Display`] has written.
pub(crate) fn parse<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err: Display>,
{
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(D::Error::custom)
}

/// One copy of each string that many objects repeat.
///
/// Namespaces, nodes and trust domains are few; ten thousand workloads name them ten thousand
/// times.
#[derive(Clone, Debug, Default)]
pub struct Interner {
    /// A map, because the set does not hand out what it holds.
    known: imbl::HashMap<Arc<str>, ()>,
    sweep_at: usize,
}

impl Interner {
    /// Replaces `text` by the shared copy of the same string.
    pub fn share(&mut self, text: &mut Arc<str>) {
        if text.is_empty() {
            return;
        }
        if let Some((known, ())) = self.known.get_key_value(&**text) {
            *text = Arc::clone(known);
            return;
        }
        if self.known.len() >= self.sweep_at {
            self.sweep();
        }
        self.known.insert(Arc::clone(text), ());
    }

    /// Forgets what nobody else holds. Doubling the next threshold keeps this amortised.
    fn sweep(&mut self) {
        // Counted before anything is removed: removing copies nodes, and copies count.
        let unused = |text: &&Arc<str>| Arc::strong_count(text) == 1;
        let unused: Vec<_> = self.known.keys().filter(unused).cloned().collect();
        for text in unused {
            self.known.remove(&text);
        }
        self.sweep_at = (2 * self.known.len()).max(SMALLEST_SWEEP);
    }
}

const SMALLEST_SWEEP: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_strings_become_one() {
        let mut interner = Interner::default();
        let (mut a, mut b): (Arc<str>, Arc<str>) = ("node-1".into(), "node-1".into());
        assert!(!Arc::ptr_eq(&a, &b));
        interner.share(&mut a);
        interner.share(&mut b);
        assert!(Arc::ptr_eq(&a, &b));
    }

    #[test]
    fn strings_that_nobody_holds_are_forgotten() {
        let mut interner = Interner::default();
        for i in 0..100_000 {
            interner.share(&mut format!("short-lived-{i}").into());
        }
        assert!(interner.known.len() <= SMALLEST_SWEEP);
    }

    #[test]
    fn a_name_has_two_parts() {
        assert!(split("shop/a", "namespace/name").is_ok());
        for bad in ["", "shop", "/a", "shop/"] {
            assert!(split(bad, "namespace/name").is_err(), "{bad:?}");
        }
    }
}

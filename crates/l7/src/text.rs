//! Conditions on text.

use std::sync::Arc;

use thiserror::Error;

/// A condition on text.
#[derive(Clone, Debug, PartialEq)]
pub enum TextMatch {
    /// It is this.
    Exact(Arc<str>),
    /// It is this, whatever the case of ASCII letters.
    ExactIgnoringCase(Arc<str>),
    /// It begins with this.
    Prefix(Arc<str>),
    /// It begins with this, whatever the case of ASCII letters.
    PrefixIgnoringCase(Arc<str>),
    /// It ends with this.
    Suffix(Arc<str>),
    /// The whole of it matches.
    Regex(Regex),
    /// There is some, even an empty one.
    Present,
}

/// A regular expression that the whole of a text has to match. Matching takes linear time, and its size is bounded.
#[derive(Clone, Debug)]
pub struct Regex(Arc<Compiled>);

#[derive(Debug)]
struct Compiled {
    pattern: Arc<str>,
    compiled: regex::Regex,
}

/// A pattern that is none, or that is too large.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("is not a regular expression that can be used: {0}")]
pub struct RegexError(String);

impl TextMatch {
    /// Whether the condition holds.
    pub fn holds(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text == &**exact,
            Self::ExactIgnoringCase(exact) => text.eq_ignore_ascii_case(exact),
            Self::Prefix(prefix) => text.starts_with(&**prefix),
            Self::PrefixIgnoringCase(prefix) => text
                .as_bytes()
                .get(..prefix.len())
                .is_some_and(|head| head.eq_ignore_ascii_case(prefix.as_bytes())),
            Self::Suffix(suffix) => text.ends_with(&**suffix),
            Self::Regex(regex) => regex.matches(text),
            Self::Present => true,
        }
    }
}

impl Regex {
    /// Compiles a pattern (RE2's syntax, but for what the `regex` crate leaves out).
    ///
    /// # Errors
    /// It is no pattern, or it compiles to more than [`REGEX_LIMIT`].
    pub fn new(pattern: &str) -> Result<Self, RegexError> {
        // Compiled alone first: a pattern such as `a)|(b` must not become one by the anchors.
        build(pattern)?;
        let compiled = build(&format!("^(?:{pattern})$"))?;
        let pattern = pattern.into();
        Ok(Self(Arc::new(Compiled { pattern, compiled })))
    }

    /// Whether the whole text matches.
    pub fn matches(&self, text: &str) -> bool {
        self.0.compiled.is_match(text)
    }

    /// The pattern as it was written.
    pub fn pattern(&self) -> &Arc<str> {
        &self.0.pattern
    }
}

impl PartialEq for Regex {
    fn eq(&self, other: &Self) -> bool {
        self.0.pattern == other.0.pattern
    }
}

/// Compiles a pattern without anchors, for substitutions.
pub(crate) fn build(pattern: &str) -> Result<regex::Regex, RegexError> {
    regex::RegexBuilder::new(pattern)
        .size_limit(REGEX_LIMIT)
        .dfa_size_limit(REGEX_LIMIT)
        .build()
        .map_err(|error| RegexError(error.to_string()))
}

/// The largest compiled size of one pattern, in bytes.
pub const REGEX_LIMIT: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_for_the_whole_text() {
        let regex = Regex::new(r"/foo/\d+:myCustomMethod").unwrap();
        assert!(regex.matches("/foo/132:myCustomMethod"));
        assert!(!regex.matches("/foo/132:myCustomMethod/x") && !regex.matches("x/foo/1:my"));
        assert!(Regex::new("a|b").unwrap().matches("b"));
        assert!(!Regex::new("a|b").unwrap().matches("ab"));
    }

    #[test]
    fn what_is_no_pattern_or_too_large_is_refused() {
        for bad in ["(", "a)|(b", r"\C", "(a{1000}){1000}", "a{99999999}"] {
            assert!(Regex::new(bad).is_err(), "{bad}");
        }
    }
}

//! Conditions on text.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use thiserror::Error;

/// A condition on text.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
    size: usize,
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
        let (compiled, size) = build(&format!("^(?:{pattern})$"))?;
        let pattern = pattern.into();
        Ok(Self(Arc::new(Compiled {
            pattern,
            compiled,
            size,
        })))
    }

    /// What it takes of [`REGEX_TOTAL`].
    pub fn size(&self) -> usize {
        self.0.size
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

impl Eq for Regex {}

impl Hash for Regex {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.pattern.hash(state);
    }
}

/// Compiles a pattern without anchors, and says which of the sizes it fits in.
pub(crate) fn build(pattern: &str) -> Result<(regex::Regex, usize), RegexError> {
    let mut size = REGEX_SMALLEST;
    loop {
        let built = regex::RegexBuilder::new(pattern)
            .size_limit(size)
            // What matching remembers has a bound as well, for each thread.
            .dfa_size_limit((4 * size).min(REGEX_LIMIT))
            .build();
        match built {
            Ok(compiled) => return Ok((compiled, size)),
            Err(regex::Error::CompiledTooBig(_)) if size < REGEX_LIMIT => size *= 2,
            Err(error) => return Err(RegexError(error.to_string())),
        }
    }
}

/// The largest compiled size of one pattern, in bytes.
pub const REGEX_LIMIT: usize = 256 * 1024;
/// What all patterns of one waypoint may take, in sizes that they fit in: 8,192 small ones, or 128 of the largest.
pub const REGEX_TOTAL: usize = 32 * 1024 * 1024;
/// The size that a small pattern counts as.
const REGEX_SMALLEST: usize = 4 * 1024;

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
    fn a_pattern_counts_as_the_size_that_it_fits_in() {
        let size = |pattern: &str| Regex::new(pattern).map(|regex| regex.size());
        assert_eq!(size("/cart/v[0-9]+"), Ok(REGEX_SMALLEST));
        let mut last = 0;
        for count in [1, 100, 400, 1600] {
            let now = size(&format!("[a-z]{{{count}}}")).unwrap();
            assert!(
                now.is_power_of_two() && now <= REGEX_LIMIT && now >= last,
                "{count}: {now}"
            );
            last = now;
        }
        assert!(last > 8 * REGEX_SMALLEST, "{last}");
    }

    #[test]
    fn what_is_no_pattern_or_too_large_is_refused() {
        for bad in ["(", "a)|(b", r"\C", "(a{1000}){1000}", "a{99999999}"] {
            assert!(Regex::new(bad).is_err(), "{bad}");
        }
    }
}

//! The path of a request, in the one form by which routes and policies judge it.
//!
//! The normal form of a path is made in this order:
//! 1. Fragment and query are cut off.
//! 2. Escapes of unreserved characters (RFC 3986: letters, digits, `-`, `.`, `_`, `~`) are decoded, other escapes get
//!    capital digits. `%2F`, `%5C` and `\` become `/`: an application that decodes before it looks must not see another
//!    path than policy. Nothing is decoded twice: `%252e` stays.
//! 3. Slashes that follow each other become one.
//! 4. Dot segments are resolved; `..` at the root stays at the root.
//!
//! [`Path::forwarded`] is what goes on: what was received, but where dot segments or `\` had to be resolved the normal
//! form, because an application that does not resolve them would see another path than policy.

use std::borrow::Cow;

use thiserror::Error;

/// A request target, taken apart once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path<'a> {
    received: &'a str,
    normal: Cow<'a, str>,
    resolved: bool,
    query: Option<&'a str>,
}

/// A target that no rule can judge; it is answered with 400.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum PathError {
    /// It does not begin with a slash and is not `*`.
    #[error("a path begins with a slash")]
    NoSlash,
    /// It has a NUL or another control character, written or escaped.
    #[error("a path has no control characters")]
    Control,
}

impl<'a> Path<'a> {
    /// Takes a request target in origin form (`/path?query`, or `*`) apart.
    ///
    /// # Errors
    /// No rule can judge it.
    pub fn new(target: &'a str) -> Result<Self, PathError> {
        let target = target.split('#').next().unwrap_or_default();
        let (received, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        if received != "*" && !received.starts_with(['/', '\\']) {
            return Err(PathError::NoSlash);
        }
        let (normal, resolved) = normalize(received)?;
        Ok(Self {
            received,
            normal,
            resolved,
            query,
        })
    }

    /// The path by which routes and policies judge.
    pub fn normal(&self) -> &str {
        &self.normal
    }

    /// What is forwarded when no rule rewrites it, without the query.
    pub fn forwarded(&self) -> &str {
        if self.resolved {
            &self.normal
        } else {
            self.received
        }
    }

    /// The query, without the question mark.
    pub fn query(&self) -> Option<&'a str> {
        self.query
    }
}

/// The normal form, and whether dot segments or backslashes had to be resolved for it.
fn normalize(received: &str) -> Result<(Cow<'_, str>, bool), PathError> {
    if is_normal(received) {
        return Ok((Cow::Borrowed(received), false));
    }
    let (decoded, mut resolved) = decode(received)?;
    let mut out = String::with_capacity(decoded.len());
    let mut segments = decoded.split('/').filter(|s| !s.is_empty()).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none() && !decoded.ends_with('/');
        match segment {
            "." => resolved = true,
            ".." => {
                resolved = true;
                out.truncate(out.rfind('/').unwrap_or(0));
            }
            segment => {
                out.push('/');
                out.push_str(segment);
                if last {
                    return Ok((Cow::Owned(out), resolved));
                }
            }
        }
    }
    // It ended with a slash, or with a dot segment, which means the same.
    out.push('/');
    Ok((Cow::Owned(out), resolved))
}

/// Whether the path is its own normal form, in one pass without allocation.
fn is_normal(path: &str) -> bool {
    let mut previous = 0;
    for byte in path.bytes() {
        let suspect = match byte {
            b'%' | b'\\' => true,
            b'/' | b'.' => previous == b'/',
            byte => byte.is_ascii_control(),
        };
        if suspect {
            return false;
        }
        previous = byte;
    }
    true
}

/// Decodes what has to be, and says whether there was a backslash.
fn decode(path: &str) -> Result<(String, bool), PathError> {
    let mut out = String::with_capacity(path.len());
    let mut backslash = false;
    let mut rest = path;
    while let Some(c) = rest.chars().next() {
        let (_, after) = rest.split_at(c.len_utf8());
        rest = after;
        match c {
            '%' => match after.get(..2).and_then(escaped) {
                Some(byte) if byte.is_ascii_control() => return Err(PathError::Control),
                Some(b'/' | b'\\') => out.push('/'),
                Some(byte) if is_unreserved(byte) => out.push(char::from(byte)),
                Some(byte) => {
                    out.push('%');
                    out.push(digit(byte >> 4));
                    out.push(digit(byte & 15));
                }
                None => {
                    out.push('%');
                    continue;
                }
            },
            '\\' => {
                backslash = true;
                out.push('/');
                continue;
            }
            c if c.is_ascii_control() => return Err(PathError::Control),
            c => {
                out.push(c);
                continue;
            }
        }
        rest = after.get(2..).unwrap_or_default();
    }
    Ok((out, backslash))
}

fn escaped(digits: &str) -> Option<u8> {
    // `from_str_radix` would take a sign.
    let hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
    hex.then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn digit(value: u8) -> char {
    char::from_digit(value.into(), 16).map_or('0', |c| c.to_ascii_uppercase())
}

#[cfg(test)]
mod tests;

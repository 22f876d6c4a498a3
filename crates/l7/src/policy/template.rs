//! Istio's path templates: `{*}` is for one segment, `{**}` for any number of them, also none.

use std::sync::Arc;

use thiserror::Error;

/// A path template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: Arc<str>,
    /// Before `{**}`, or all of it.
    head: Vec<Segment>,
    /// After `{**}`; `None` if there is none.
    tail: Option<Vec<Segment>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    /// This one.
    Literal(Arc<str>),
    /// Any one that is not empty.
    Any,
}

/// A template that is none.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TemplateError {
    /// It does not begin with a slash.
    #[error("{0:?} is no path template: it has to begin with a slash")]
    NoSlash(String),
    /// An operator is no segment of its own, or is unknown.
    #[error("{0:?} is no path template: {{*}} and {{**}} have to be whole segments")]
    Operator(String),
    /// After `{**}` there is another operator.
    #[error("{0:?} is no path template: {{**}} has to be the last operator")]
    NotLast(String),
}

impl Template {
    /// Whether a path in a policy is a template: it has an operator.
    pub fn is_one(text: &str) -> bool {
        text.contains("{*}") || text.contains("{**}")
    }

    /// Reads a template.
    ///
    /// # Errors
    /// It is none.
    pub fn new(text: &str) -> Result<Self, TemplateError> {
        let rest = text
            .strip_prefix('/')
            .ok_or_else(|| TemplateError::NoSlash(text.to_owned()))?;
        let (mut head, mut tail) = (Vec::new(), None);
        for segment in rest.split('/') {
            let segment = match segment {
                "{**}" if tail.is_none() => {
                    tail = Some(Vec::new());
                    continue;
                }
                "{*}" | "{**}" if tail.is_some() => {
                    return Err(TemplateError::NotLast(text.to_owned()));
                }
                "{*}" => Segment::Any,
                other if other.contains(['{', '}']) => {
                    return Err(TemplateError::Operator(text.to_owned()));
                }
                other => Segment::Literal(other.into()),
            };
            tail.as_mut().unwrap_or(&mut head).push(segment);
        }
        Ok(Self {
            text: text.into(),
            head,
            tail,
        })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether a path in normal form fulfils it.
    pub fn holds(&self, path: &str) -> bool {
        let Some(rest) = path.strip_prefix('/') else {
            return false;
        };
        let mut segments = rest.split('/');
        let head = self
            .head
            .iter()
            .all(|wanted| segments.next().is_some_and(|s| wanted.holds(s)));
        let Some(tail) = &self.tail else {
            return head && segments.next().is_none();
        };
        head && tail
            .iter()
            .rev()
            .all(|wanted| segments.next_back().is_some_and(|s| wanted.holds(s)))
    }
}

impl Segment {
    fn holds(&self, segment: &str) -> bool {
        match self {
            Self::Literal(literal) => segment == &**literal,
            Self::Any => !segment.is_empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    #[test_case("/foo/{*}/bar", "/foo/x/bar", true)]
    #[test_case("/foo/{*}/bar", "/foo/x/y/bar", false)]
    #[test_case("/foo/{*}/bar", "/foo//bar", false; "a segment has something in it")]
    #[test_case("/foo/{**}", "/foo/x/y", true)]
    #[test_case("/foo/{**}", "/foo/", true; "none with a slash")]
    #[test_case("/foo/{**}", "/foo", true; "none")]
    #[test_case("/foo/{**}", "/foobar", false)]
    #[test_case("/foo/{**}/bar", "/foo/x/y/bar", true)]
    #[test_case("/foo/{**}/bar", "/foo/bar", true; "none between")]
    #[test_case("/foo/{**}/bar", "/foo/bar/x", false)]
    #[test_case("/{*}/{**}/z", "/a/z", true; "both")]
    #[test_case("/{*}/{**}/z", "/z", false; "both need one")]
    fn a_template_holds(template: &str, path: &str, expected: bool) {
        assert_eq!(Template::new(template).unwrap().holds(path), expected);
    }

    #[test]
    fn what_is_no_template_is_refused() {
        for bad in [
            "foo/{*}",
            "/a{*}",
            "/{*}b/{*}",
            "/{**}/{*}",
            "/{**}/{**}",
            "/{x}/{*}",
        ] {
            assert!(Template::new(bad).is_err(), "{bad}");
        }
        assert!(!Template::is_one("/a/{b}"));
    }
}

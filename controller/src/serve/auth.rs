//! Who a caller is: by bootstrap tokens from a file, or by Kubernetes' TokenReview.

mod token_review;

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use model::Identity;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tonic::Status;
use tonic::codegen::http::Extensions;
use tonic::metadata::MetadataMap;

pub use self::token_review::TokenReviews;
use super::visitor::Visitor;

/// An authenticated caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subscriber {
    /// The agent of the node of this name. It speaks for all pods of the node, and is none of them.
    Node(Arc<str>),
    /// One workload that speaks for itself, such as a proxy that brings its own token.
    Workload {
        /// The node that it runs on.
        node: Arc<str>,
        /// Who it is. It gets certificates for this identity and no other.
        identity: Identity,
    },
}

/// Why a caller is not let in. The caller is told no more than this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unauthenticated {
    /// No `authorization` metadata.
    #[error("no token: send metadata `authorization: Bearer <token>`")]
    Missing,
    /// Another scheme.
    #[error("the authorization metadata is not a bearer token")]
    Scheme,
    /// Nobody has this token.
    #[error("the token is not valid")]
    Unknown,
    /// Whoever knows the tokens cannot be asked. The caller may be somebody, and should come again.
    #[error("whose the token is cannot be told now; try again")]
    CannotTell,
}

impl Unauthenticated {
    /// A fixed word for metrics and logs.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Missing | Self::Scheme | Self::Unknown => "unauthenticated",
            Self::CannotTell => "cannot_authenticate_now",
        }
    }

    /// The status with `text`: a caller that is nobody gives up, one that cannot be known now tries again.
    pub(super) fn status(self, text: impl Into<String>) -> Status {
        match self {
            Self::Missing | Self::Scheme | Self::Unknown => Status::unauthenticated(text),
            Self::CannotTell => Status::unavailable(text),
        }
    }
}

impl From<Unauthenticated> for Status {
    fn from(error: Unauthenticated) -> Self {
        error.status(error.to_string())
    }
}

/// The answer of an [`Authenticator`].
pub type Authenticating<'a> =
    Pin<Box<dyn Future<Output = Result<Subscriber, Unauthenticated>> + Send + 'a>>;

/// Decides who a bearer token belongs to.
pub trait Authenticator: Send + Sync + 'static {
    /// The owner of `token`.
    fn authenticate<'a>(&'a self, token: &'a str) -> Authenticating<'a>;
}

/// Who sent these metadata. From then on its connection is one of a known caller.
///
/// # Errors
/// Nobody that is known.
pub(super) async fn caller(
    authenticator: &dyn Authenticator,
    metadata: &MetadataMap,
    extensions: &Extensions,
) -> Result<Subscriber, Unauthenticated> {
    let visitor = Visitor::of(extensions).cloned();
    let caller = authenticate(authenticator, metadata).await?;
    if let Some(visitor) = visitor {
        visitor.is_known();
    }
    Ok(caller)
}

/// Where a request comes from, for logs.
pub(super) fn peer(extensions: &Extensions) -> Option<SocketAddr> {
    Visitor::of(extensions).map(Visitor::peer)
}

async fn authenticate(
    authenticator: &dyn Authenticator,
    metadata: &MetadataMap,
) -> Result<Subscriber, Unauthenticated> {
    let value = metadata
        .get("authorization")
        .ok_or(Unauthenticated::Missing)?;
    let text = value
        .to_str()
        .map_err(|_not_text| Unauthenticated::Scheme)?;
    let (scheme, token) = text.split_once(' ').ok_or(Unauthenticated::Scheme)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(Unauthenticated::Scheme);
    }
    authenticator.authenticate(token.trim()).await
}

/// Tokens from a file of lines `<token> <node>` or `<token> <node> <identity>`. The file is read again when it changed and a token is not known.
pub struct NodeTokens {
    path: PathBuf,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    modified: Option<SystemTime>,
    /// Digests, so that comparing takes the same time wherever two tokens differ.
    tokens: Vec<([u8; 32], Subscriber)>,
}

/// Why a token file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error(
        "cannot read the node tokens {path}; --node-tokens must name a file with lines `<token> <node>`"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A line is not a token and a node.
    #[error("{path}:{line}: expected `<token> <node>` or `<token> <node> <identity>`")]
    Line {
        /// The file.
        path: PathBuf,
        /// 1-based.
        line: usize,
    },
    /// What follows the node is no identity.
    #[error("{path}:{line}: the third word has to be the identity of the caller")]
    Identity {
        /// The file.
        path: PathBuf,
        /// 1-based.
        line: usize,
        /// What is wrong with it.
        #[source]
        source: model::identity::IdentityError,
    },
    /// Two lines have the same token.
    #[error("{path}:{line}: the token is also on line {first}; each node needs its own")]
    Twice {
        /// The file.
        path: PathBuf,
        /// 1-based.
        line: usize,
        /// 1-based.
        first: usize,
    },
}

impl NodeTokens {
    /// Reads the file.
    ///
    /// # Errors
    /// A file that cannot be read, or a line that means nothing.
    pub fn read(path: &Path) -> Result<Self, TokenError> {
        let known = load(path)?;
        Ok(Self {
            path: path.to_owned(),
            known: Mutex::new(known),
        })
    }

    /// The owner of a token. A token that is not among those last read may be in the file that cannot be read now.
    fn find(&self, token: &str) -> Result<Subscriber, Unauthenticated> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let mut known = self.known.lock();
        if let Some(caller) = known.find(&digest) {
            return Ok(caller);
        }
        let modified = fs::metadata(&self.path)
            .and_then(|meta| meta.modified())
            .ok();
        if modified.is_some() && modified == known.modified {
            return Err(Unauthenticated::Unknown);
        }
        *known = load(&self.path).map_err(|error| {
            tracing::error!(%error, "keeping the node tokens as they were");
            Unauthenticated::CannotTell
        })?;
        known.find(&digest).ok_or(Unauthenticated::Unknown)
    }
}

impl Authenticator for NodeTokens {
    fn authenticate<'a>(&'a self, token: &'a str) -> Authenticating<'a> {
        Box::pin(async move { self.find(token) })
    }
}

impl Known {
    fn find(&self, digest: &[u8; 32]) -> Option<Subscriber> {
        let mut found = None;
        for (known, caller) in &self.tokens {
            let difference = known
                .iter()
                .zip(digest)
                .fold(0, |all, (a, b)| all | (a ^ b));
            if difference == 0 {
                found = Some(caller);
            }
        }
        found.cloned()
    }
}

fn load(path: &Path) -> Result<Known, TokenError> {
    let read = |source| TokenError::Read {
        path: path.to_owned(),
        source,
    };
    let modified = fs::metadata(path).and_then(|meta| meta.modified()).ok();
    let text = fs::read_to_string(path).map_err(read)?;
    let mut tokens = Vec::new();
    let mut first_line = HashMap::new();
    for (index, line) in text.lines().enumerate() {
        let (path, line_number) = (path.to_owned(), index + 1);
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let words: Vec<_> = line.split_whitespace().collect();
        let (token, node, identity) = match words.as_slice() {
            [token, node] => (token, node, None),
            [token, node, identity] => (token, node, Some(identity)),
            _ => {
                return Err(TokenError::Line {
                    path,
                    line: line_number,
                });
            }
        };
        let identity = identity.map(|identity| identity.parse()).transpose();
        let identity = identity.map_err(|source| TokenError::Identity {
            path: path.clone(),
            line: line_number,
            source,
        })?;
        let digest: [u8; 32] = Sha256::digest(token).into();
        if let Some(first) = first_line.insert(digest, line_number) {
            return Err(TokenError::Twice {
                path,
                line: line_number,
                first,
            });
        }
        let node = Arc::from(*node);
        let subscriber = match identity {
            None => Subscriber::Node(node),
            Some(identity) => Subscriber::Workload { node, identity },
        };
        tokens.push((digest, subscriber));
    }
    Ok(Known { modified, tokens })
}

impl fmt::Debug for NodeTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeTokens")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_is_not_known_while_the_file_cannot_be_read_may_be_somebodys() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("tokens");
        let minute = std::time::Duration::from_secs(60);
        let write = |text: &str, age: u32| {
            fs::write(&path, text).expect("writes");
            let file = fs::File::options().write(true).open(&path).expect("opens");
            file.set_modified(SystemTime::now() - minute * age)
                .expect("sets the time");
        };
        write("one n1\n", 9);
        let tokens = NodeTokens::read(&path).expect("reads");
        let node = |token: &str| tokens.find(token);
        let of = |node: &str| Ok(Subscriber::Node(node.into()));
        assert_eq!(
            (node("one"), node("two")),
            (of("n1"), Err(Unauthenticated::Unknown))
        );

        write("one n1 and more words than there should be\ntwo n2\n", 8);
        assert_eq!(
            (node("one"), node("two")),
            (of("n1"), Err(Unauthenticated::CannotTell))
        );
        fs::remove_file(&path).expect("removes");
        assert_eq!(
            (node("one"), node("two")),
            (of("n1"), Err(Unauthenticated::CannotTell))
        );

        write("two n2\n", 7);
        assert_eq!(
            (node("two"), node("one")),
            (of("n2"), Err(Unauthenticated::Unknown))
        );
    }
}

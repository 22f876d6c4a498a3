//! Who a caller is. Bootstrap tokens from a file now; Kubernetes' TokenReview will be another [`Authenticator`].

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tonic::Status;
use tonic::metadata::MetadataMap;

/// An authenticated caller: the agent of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The node's name.
    pub node: Arc<str>,
}

/// Why a caller is nobody. The caller is told no more than this.
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
}

impl From<Unauthenticated> for Status {
    fn from(error: Unauthenticated) -> Self {
        Self::unauthenticated(error.to_string())
    }
}

/// The answer of an [`Authenticator`].
pub type Authenticating<'a> =
    Pin<Box<dyn Future<Output = Result<Caller, Unauthenticated>> + Send + 'a>>;

/// Decides who a bearer token belongs to.
pub trait Authenticator: Send + Sync + 'static {
    /// The owner of `token`.
    fn authenticate<'a>(&'a self, token: &'a str) -> Authenticating<'a>;
}

/// Who sent these metadata.
///
/// # Errors
/// Nobody that is known.
pub async fn caller(
    authenticator: &dyn Authenticator,
    metadata: &MetadataMap,
) -> Result<Caller, Unauthenticated> {
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

/// Tokens from a file of lines `<token> <node>`. The file is read again when it changed and a token is not known.
pub struct NodeTokens {
    path: PathBuf,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    modified: Option<SystemTime>,
    /// Digests, so that comparing takes the same time wherever two tokens differ.
    tokens: Vec<([u8; 32], Arc<str>)>,
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
    #[error("{path}:{line}: expected `<token> <node>`")]
    Line {
        /// The file.
        path: PathBuf,
        /// 1-based.
        line: usize,
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

    fn find(&self, token: &str) -> Option<Arc<str>> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let mut known = self.known.lock();
        if let Some(node) = known.find(&digest) {
            return Some(node);
        }
        let modified = fs::metadata(&self.path)
            .and_then(|meta| meta.modified())
            .ok();
        if modified.is_none() || modified == known.modified {
            return None;
        }
        *known = load(&self.path)
            .inspect_err(|error| tracing::error!(%error, "keeping the node tokens as they were"))
            .ok()?;
        known.find(&digest)
    }
}

impl Authenticator for NodeTokens {
    fn authenticate<'a>(&'a self, token: &'a str) -> Authenticating<'a> {
        Box::pin(async move {
            self.find(token)
                .map(|node| Caller { node })
                .ok_or(Unauthenticated::Unknown)
        })
    }
}

impl Known {
    fn find(&self, digest: &[u8; 32]) -> Option<Arc<str>> {
        let mut found = None;
        for (known, node) in &self.tokens {
            let difference = known
                .iter()
                .zip(digest)
                .fold(0, |all, (a, b)| all | (a ^ b));
            if difference == 0 {
                found = Some(node);
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
        let [token, node] = words.as_slice() else {
            return Err(TokenError::Line {
                path,
                line: line_number,
            });
        };
        let digest: [u8; 32] = Sha256::digest(token).into();
        if let Some(first) = first_line.insert(digest, line_number) {
            return Err(TokenError::Twice {
                path,
                line: line_number,
                first,
            });
        }
        tokens.push((digest, Arc::from(*node)));
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

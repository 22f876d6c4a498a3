//! The last good configuration in one file: written as a whole, checked as a whole, never a reason to fail.
//!
//! Format, version 1. Integers are big-endian; a text is its length in bytes (u32) and its UTF-8 bytes.
//! ```text
//! "KEELSNAP"            magic, 8 bytes
//! u32                   format version
//! text                  name of the node that it is for
//! u32                   number of types, then each of them:
//!   text                  type URL
//!   u32                   number of resources, then each of them:
//!     text                  name
//!     u8, text              1 and the version; or 0 and an empty text: not to be named to the controller
//!     u32, bytes            length and content
//! 32 bytes              SHA-256 of everything before
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use runtime::file::{self, WriteError};
use sha2::{Digest, Sha256};

/// Resources by type URL and name.
pub type Held = BTreeMap<String, BTreeMap<String, Stored>>;

/// The last good content of a resource.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Stored {
    /// Its version; `None` if a newer version of it was rejected.
    pub version: Option<String>,
    /// The encoded message.
    pub bytes: Bytes,
}

/// Why a snapshot is not used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file cannot be read.
    #[error("cannot read the snapshot {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The content is not a snapshot of ours; it will be replaced by the next configuration.
    #[error("the snapshot {} is ignored", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: ContentError,
    },
}

/// What is wrong with the content of a snapshot.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ContentError {
    /// It does not begin with the magic bytes.
    #[error("it is not a snapshot of a Keelson configuration")]
    Magic,
    /// Another program version wrote it.
    #[error("its format version is {0}, and only version {FORMAT} is read")]
    Format(u32),
    /// Bytes are missing or were changed.
    #[error("its checksum does not match: it is cut off or damaged")]
    Checksum,
    /// The checksum is right, but the structure is not.
    #[error("its structure is damaged")]
    Structure,
    /// It was written on another node.
    #[error("it belongs to the node {0:?}")]
    Node(String),
}

/// Reads the snapshot of `node`; none if there is no file.
///
/// # Errors
/// A file that cannot be used, and why.
pub fn read(path: &Path, node: &str) -> Result<Option<Held>, SnapshotError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => Bytes::from(bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            let path = path.to_owned();
            return Err(SnapshotError::Read { path, source });
        }
    };
    decode(bytes, node)
        .map(Some)
        .map_err(|source| SnapshotError::Content {
            path: path.to_owned(),
            source,
        })
}

/// Replaces the snapshot; makes its directory if that is missing.
///
/// # Errors
/// The file system says no; the old file is still there.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), WriteError> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(|source| WriteError {
            path: path.to_owned(),
            step: "make the directory",
            source,
        })?;
    }
    file::atomic_write_mode(path, bytes, file::PRIVATE)
}

/// The bytes of a snapshot, piece by piece.
#[derive(Debug)]
pub struct Encoder(BytesMut);

impl Encoder {
    /// A snapshot of `node` with that many types.
    #[must_use]
    pub fn new(node: &str, types: usize) -> Self {
        let mut out = BytesMut::new();
        out.put_slice(MAGIC);
        out.put_u32(FORMAT);
        put(&mut out, node.as_bytes());
        put_length(&mut out, types);
        Self(out)
    }

    /// The next type, with that many resources.
    pub fn begin(&mut self, type_url: &str, resources: usize) {
        put(&mut self.0, type_url.as_bytes());
        put_length(&mut self.0, resources);
    }

    /// The next resource of the type; says where its content begins.
    pub fn resource(&mut self, name: &str, version: Option<&str>, content: &[u8]) -> u64 {
        let out = &mut self.0;
        put(out, name.as_bytes());
        out.put_u8(u8::from(version.is_some()));
        put(out, version.unwrap_or_default().as_bytes());
        put(out, content);
        (out.len() - content.len()) as u64
    }

    /// All of it, with its checksum.
    #[must_use]
    pub fn finish(mut self) -> Bytes {
        let sum = Sha256::digest(&self.0);
        self.0.put_slice(&sum);
        self.0.freeze()
    }
}

/// Reads the bytes of a snapshot that belongs to `node`. Contents are slices of `bytes`, not copies.
///
/// # Errors
/// What is wrong with it. Any input is fine: nothing here panics or allocates by a length that it only claims.
pub fn decode(mut bytes: Bytes, node: &str) -> Result<Held, ContentError> {
    if !bytes.starts_with(MAGIC) {
        return Err(ContentError::Magic);
    }
    let end = bytes
        .len()
        .checked_sub(SUM)
        .filter(|end| *end >= MAGIC.len())
        .ok_or(ContentError::Checksum)?;
    let sum = bytes.split_off(end);
    let whole = Sha256::digest(&bytes);
    bytes.advance(MAGIC.len());
    // The version comes first: a later format may end in another way.
    let format = bytes
        .try_get_u32()
        .map_err(|_short| ContentError::Checksum)?;
    if format != FORMAT {
        return Err(ContentError::Format(format));
    }
    if whole.as_slice() != sum.as_ref() {
        return Err(ContentError::Checksum);
    }
    let owner = text(&mut bytes)?;
    if owner != node {
        return Err(ContentError::Node(owner));
    }
    let mut held = Held::new();
    for _ in 0..length(&mut bytes)? {
        let type_url = text(&mut bytes)?;
        let resources = held.entry(type_url).or_default();
        for _ in 0..length(&mut bytes)? {
            let (name, stored) = resource(&mut bytes)?;
            resources.insert(name, stored);
        }
    }
    if bytes.has_remaining() {
        return Err(ContentError::Structure);
    }
    Ok(held)
}

fn resource(bytes: &mut Bytes) -> Result<(String, Stored), ContentError> {
    let name = text(bytes)?;
    let known = bytes
        .try_get_u8()
        .map_err(|_short| ContentError::Structure)?;
    let version = text(bytes)?;
    let stored = Stored {
        version: (known == 1).then_some(version),
        bytes: take(bytes)?,
    };
    Ok((name, stored))
}

/// Everything here is smaller than a response, which is limited to far less than 4 GiB; if it ever were not, the
/// length would not fit and the snapshot would be refused as damaged.
fn put_length(out: &mut BytesMut, length: usize) {
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
}

fn put(out: &mut BytesMut, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.put_slice(bytes);
}

fn length(bytes: &mut Bytes) -> Result<usize, ContentError> {
    let length = bytes
        .try_get_u32()
        .map_err(|_short| ContentError::Structure)?;
    usize::try_from(length).map_err(|_wide| ContentError::Structure)
}

fn take(bytes: &mut Bytes) -> Result<Bytes, ContentError> {
    let length = length(bytes)?;
    if bytes.len() < length {
        return Err(ContentError::Structure);
    }
    Ok(bytes.split_to(length))
}

fn text(bytes: &mut Bytes) -> Result<String, ContentError> {
    String::from_utf8(take(bytes)?.to_vec()).map_err(|_not_utf8| ContentError::Structure)
}

const MAGIC: &[u8; 8] = b"KEELSNAP";
const FORMAT: u32 = 1;
const SUM: usize = 32;

#[cfg(test)]
mod tests;

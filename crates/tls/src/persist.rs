//! How SVIDs outlive the process without touching a disk: files on a memory file system that only we can read.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model::identity::Identity;
use nix::sys::statfs::{self, FsType, TMPFS_MAGIC};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;

use crate::roots::{self, Roots};
use crate::svid::{Svid, SvidError};

/// A directory for keys: on tmpfs or ramfs, ours, closed to everybody else.
#[derive(Clone, Debug)]
pub struct PrivateDir {
    path: PathBuf,
}

/// Why keys are not kept, or not read back.
#[derive(Debug, thiserror::Error)]
pub enum PersistError {
    /// It is on a disk.
    #[error("{} is not on a memory file system (tmpfs, ramfs); private keys are never written to a disk, so use a directory under /run or /dev/shm", .0.display())]
    NotMemory(PathBuf),
    /// Others could read it.
    #[error("{} is open to others (mode {mode:04o}, owner {owner}); private keys need a directory of mode 0700 that belongs to this process's user {us}", path.display())]
    Open {
        /// The directory.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
        /// Its owner's user id.
        owner: u32,
        /// Our user id.
        us: u32,
    },
    /// A file operation failed.
    #[error("cannot {step} {}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was attempted.
        step: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file is not what we wrote.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// In what way.
        reason: String,
    },
    /// A file holds a certificate that is of no use any more.
    #[error("the certificate in {} cannot be used", path.display())]
    Useless {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: SvidError,
    },
}

impl PrivateDir {
    /// Opens the directory; makes it (mode 0700) if it is missing.
    ///
    /// # Errors
    /// [`PersistError::NotMemory`] and [`PersistError::Open`] say what a safe directory is.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, PersistError> {
        let path = path.into();
        if !path.exists() {
            let parent = match path.parent() {
                Some(parent) if parent != Path::new("") => parent,
                _ => Path::new("."),
            };
            in_memory(parent, &path)?;
            DirBuilder::new()
                .mode(0o700)
                .create(&path)
                .map_err(at(&path, "create"))?;
        }
        in_memory(&path, &path)?;
        let meta = fs::metadata(&path).map_err(at(&path, "look at"))?;
        let us = nix::unistd::geteuid().as_raw();
        if meta.mode() & 0o077 != 0 || meta.uid() != us {
            return Err(PersistError::Open {
                path,
                mode: meta.mode() & 0o7777,
                owner: meta.uid(),
                us,
            });
        }
        Ok(Self { path })
    }

    /// The identities that have a file here; whether it can be used is [`PrivateDir::load`]'s answer.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn identities(&self) -> Result<Vec<Identity>, PersistError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(at(&self.path, "list"))? {
            let entry = entry.map_err(at(&self.path, "list"))?;
            if let Some(identity) = entry.file_name().to_str().and_then(identity_of) {
                found.push(identity);
            }
        }
        found.sort();
        Ok(found)
    }

    /// Writes an SVID (mode 0600), replacing an older one as a whole.
    ///
    /// # Errors
    /// The file system says no.
    pub fn save(&self, svid: &Svid) -> Result<(), PersistError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let path = self.file(&svid.identity);
        let temporary = self
            .path
            // Two agents share the directory while one takes over from the other.
            .join(format!(
                ".{}-{}.tmp",
                std::process::id(),
                NEXT.fetch_add(1, Ordering::Relaxed)
            ));
        drop(fs::remove_file(&temporary));
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .and_then(|mut file| file.write_all(encode(svid).as_bytes()))
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(at(&path, "write"))
    }

    /// Reads the SVID of `identity`; none if there is no file.
    ///
    /// # Errors
    /// A damaged file, or a certificate that a peer would not accept at the time `now`.
    pub fn load(&self, identity: &Identity, now: SystemTime) -> Result<Option<Svid>, PersistError> {
        let path = self.file(identity);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(at(&path, "read")(error)),
        };
        let parts = decode(&text).map_err(|reason| PersistError::Damaged {
            path: path.clone(),
            reason,
        })?;
        let obtained = parts.obtained.min(now);
        let mut svid = Svid::new(identity.clone(), parts.chain, parts.key, parts.roots, now)
            .map_err(|source| PersistError::Useless { path, source })?;
        svid.obtained = obtained;
        Ok(Some(svid))
    }

    /// Deletes the SVID of `identity`, if there is one.
    ///
    /// # Errors
    /// The file system says no.
    pub fn remove(&self, identity: &Identity) -> Result<(), PersistError> {
        let path = self.file(identity);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(at(&path, "delete")(error))
            }
            _ => Ok(()),
        }
    }

    fn file(&self, identity: &Identity) -> PathBuf {
        self.path.join(file_name(identity))
    }
}

struct Parts {
    obtained: SystemTime,
    chain: Vec<rustls_pki_types::CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Roots,
}

/// A line that tells how many certificates are the chain and when it was obtained, then PEM: key, chain, roots.
fn encode(svid: &Svid) -> String {
    let obtained = svid
        .obtained
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_millis();
    let label = match &svid.key {
        PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
        PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
        _ => "PRIVATE KEY",
    };
    let mut text = format!("{HEADER} {} {obtained}\n", svid.chain.len());
    text.push_str(&roots::pem_block(label, svid.key.secret_der()));
    text.extend(svid.chain.iter().map(roots::to_pem));
    text.push_str(&svid.roots.to_pem());
    text
}

fn decode(text: &str) -> Result<Parts, String> {
    let numbers = text
        .lines()
        .next()
        .and_then(|line| line.strip_prefix(HEADER))
        .and_then(|rest| rest.trim().split_once(' '))
        .and_then(|(chain, obtained)| Some((chain.parse().ok()?, obtained.parse().ok()?)));
    let Some((length, obtained)) = numbers else {
        return Err(format!(
            "its first line is not \"{HEADER} <number> <milliseconds>\""
        ));
    };
    let mut chain = roots::certificates(text)?;
    if length == 0 || length >= chain.len() {
        return Err("it lacks certificates".to_owned());
    }
    let roots = chain.split_off(length);
    Ok(Parts {
        obtained: UNIX_EPOCH + Duration::from_millis(obtained),
        chain,
        key: PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| error.to_string())?,
        roots: Roots::new(roots).map_err(|error| error.to_string())?,
    })
}

/// `/` cannot occur in a part of an identity, and `~` neither.
fn file_name(identity: &Identity) -> String {
    format!(
        "{}~{}~{}{SUFFIX}",
        identity.trust_domain, identity.namespace, identity.service_account
    )
    .replace('/', "%")
}

fn identity_of(file_name: &str) -> Option<Identity> {
    let mut parts = file_name.strip_suffix(SUFFIX)?.split('~');
    let (domain, namespace, account) = (parts.next()?, parts.next()?, parts.next()?);
    format!("spiffe://{domain}/ns/{namespace}/sa/{account}")
        .parse()
        .ok()
}

fn in_memory(path: &Path, wanted: &Path) -> Result<(), PersistError> {
    let kind = statfs::statfs(path)
        .map_err(io::Error::from)
        .map_err(at(path, "look at the file system of"))?
        .filesystem_type();
    if kind == TMPFS_MAGIC || kind == RAMFS_MAGIC {
        Ok(())
    } else {
        Err(PersistError::NotMemory(wanted.to_owned()))
    }
}

fn at(path: &Path, step: &'static str) -> impl FnOnce(io::Error) -> PersistError + use<> {
    let path = path.to_owned();
    move |source| PersistError::Io { path, step, source }
}

const HEADER: &str = "keelson-svid-1";
const SUFFIX: &str = ".svid.pem";
/// linux/magic.h; nix has no name for it.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

#[cfg(test)]
mod tests;

//! Network namespaces of pods: opened once, entered for as long as it takes to make a socket.
//!
//! An open [`Netns`] keeps the namespace alive, interfaces included, after the pod is gone: whoever
//! holds one lets go when the pod is deleted.

#![expect(unsafe_code, reason = "the namespace cookie has no safe accessor")]

use std::{
    fs::File,
    io,
    net::{Ipv4Addr, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::Path,
    sync::{Arc, OnceLock},
};

use nix::sched::{CloneFlags, setns};

/// `SO_NETNS_COOKIE`, include/uapi/asm-generic/socket.h (Linux 5.14).
const SO_NETNS_COOKIE: libc::c_int = 71;

/// A network namespace, held open.
#[derive(Clone, Debug)]
pub struct Netns {
    file: Arc<File>,
    cookie: u64,
    inode: u32,
}

impl Netns {
    /// Opens the namespace at `path`, such as `/run/netns/x` or `/proc/PID/ns/net`.
    ///
    /// # Errors
    /// When there is no network namespace at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let cookie = within(&file, cookie)??;
        let inode = u32::try_from(file.metadata()?.ino()).map_err(io::Error::other)?;
        Ok(Self {
            file: Arc::new(file),
            cookie,
            inode,
        })
    }

    /// The number by which the kernel's hooks know the namespace; never reused while it runs.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The number by which links name the namespace; another one may get it when this one is gone.
    #[must_use]
    pub fn inode(&self) -> u32 {
        self.inode
    }

    /// Runs `f` on this thread inside the namespace. `f` must not wait: the thread's other work
    /// would wait in the wrong namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn with<T>(&self, f: impl FnOnce() -> T) -> io::Result<T> {
        within(&self.file, f)
    }

    /// Runs `f` on a thread of its own inside the namespace and waits for it: for work that waits.
    ///
    /// # Errors
    /// When there can be no thread, the namespace cannot be entered or `f` panics.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().spawn_scoped(scope, || {
                enter(&self.file)?;
                Ok(f())
            })?;
            thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a task in the pod's namespace panicked")))
        })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Keeps the namespace that the agent runs in. Called once, before the first [`Netns::open`].
///
/// # Errors
/// When `/proc` is not mounted.
pub fn remember_home() -> io::Result<()> {
    let file = File::open("/proc/thread-self/ns/net")?;
    // A second call finds the same namespace.
    HOME.get_or_init(|| file);
    Ok(())
}

/// The namespace that the agent runs in, the node's.
///
/// # Errors
/// When it is not known yet.
pub fn home() -> io::Result<&'static File> {
    HOME.get()
        .ok_or_else(|| io::Error::other("the agent's own namespace is not known yet"))
}

static HOME: OnceLock<File> = OnceLock::new();

fn within<T>(file: &File, f: impl FnOnce() -> T) -> io::Result<T> {
    let back = Back(home()?);
    enter(file)?;
    let result = f();
    drop(back);
    Ok(result)
}

/// Returns to the agent's namespace, also when the work inside panics.
struct Back(&'static File);

impl Drop for Back {
    fn drop(&mut self) {
        if let Err(error) = enter(self.0) {
            // This thread would make the next pod's sockets in the wrong namespace.
            tracing::error!(%error, "cannot return to the agent's own network namespace; stopping");
            std::process::abort();
        }
    }
}

fn enter(file: &File) -> io::Result<()> {
    setns(file, CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
}

fn cookie() -> io::Result<u64> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let mut cookie = 0_u64;
    let mut size: libc::socklen_t = 8;
    // SAFETY: `cookie` and `size` live on this frame and are as large as they claim.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut size,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

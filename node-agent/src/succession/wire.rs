//! What the two agents say to each other: one JSON line each, on a Unix socket that is root's alone.

use std::io;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// Changes when an older agent could misunderstand a newer one.
pub(super) const PROTOCOL: u32 = 1;

/// An agent, as it introduces itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Who {
    /// Which conversation it can hold.
    pub protocol: u32,
    /// Its version.
    pub version: String,
    /// Version of its kernel contract.
    pub abi: u32,
    /// Its process, as it sees itself.
    pub pid: u32,
    /// Its cgroup, whose connections are not captured.
    pub cgroup: u64,
    /// What it is an instance of; empty if it was not told.
    #[serde(default)]
    pub instance: String,
    /// Which part of `HEARTBEAT` its workers write to; its successor's write to the other.
    #[serde(default)]
    pub beats: u32,
}

impl Who {
    /// This process.
    #[must_use]
    pub fn new(abi: u32, cgroup: u64, instance: String) -> Self {
        Self {
            protocol: PROTOCOL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            abi,
            pid: std::process::id(),
            cgroup,
            instance,
            beats: 0,
        }
    }
}

/// What the successor says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ask {
    Hello(Who),
    Pause {},
    Drain {},
}

/// What the agent in charge says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Say {
    Hello(Who),
    No(String),
    Paused {},
    Draining {},
    Gone { finished: u64, cut: u64 },
}

/// A conversation.
pub(super) struct Talk {
    lines: Lines<BufReader<OwnedReadHalf>>,
    write: OwnedWriteHalf,
    peer: Option<i32>,
}

impl Talk {
    pub(super) fn new(stream: UnixStream) -> Self {
        let peer = stream.peer_cred().ok().and_then(|cred| cred.pid());
        let (read, write) = stream.into_split();
        Self {
            lines: BufReader::new(read).lines(),
            write,
            // Zero is a process that cannot be seen from here.
            peer: peer.filter(|pid| *pid > 0),
        }
    }

    /// The process at the other end, as the kernel says.
    pub(super) fn peer(&self) -> Option<i32> {
        self.peer
    }

    pub(super) async fn say(&mut self, message: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.write.write_all(&line).await
    }

    /// The next message; none when the other end has gone. Nothing is lost when the future is dropped.
    pub(super) async fn hear<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        match self.lines.next_line().await {
            Ok(Some(line)) => Ok(Some(serde_json::from_str(&line)?)),
            Ok(None) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Kills a process that hangs, so that it cannot write what is not its own any more when it wakes up.
///
/// # Errors
/// When there is no such process or it cannot be killed.
pub(super) fn kill(pid: i32) -> io::Result<()> {
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).map_err(io::Error::from)
}

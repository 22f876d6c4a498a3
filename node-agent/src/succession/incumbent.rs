//! The side of the agent in charge.

use std::{
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{UnixListener, UnixStream},
    sync::{oneshot, watch},
};

use super::wire::{Ask, PROTOCOL, Say, Talk, Who, kill};
use crate::{
    bpf::Kernel,
    carry::thread::Drained,
    direct::DirectHandle,
    enrol::{Command, EnrolHandle},
};

/// How long a successor may take to say who it is.
const HELLO_WITHIN: Duration = Duration::from_secs(10);

/// Where the agent in charge stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Nobody wants to succeed it.
    Alone,
    /// A successor gets ready.
    Awaited,
    /// A successor takes over.
    Paused,
    /// It has been succeeded.
    Succeeded,
}

/// What the agent in charge has to hand over.
pub struct Incumbent {
    /// Who it is.
    pub own: Who,
    /// Where the exemption of the successor's connections is noted.
    pub kernel: Arc<Kernel>,
    /// Writes maps and namespaces.
    pub enrol: EnrolHandle,
    /// Writes the tables of the same-node path.
    pub direct: DirectHandle,
    /// Whether the controller is told what is captured.
    pub reporting: watch::Sender<bool>,
    /// How long a successor may take from pause to drain.
    pub patience: Duration,
    /// What to do when the successor gives up after the pause, besides going on.
    pub restore: Box<dyn Fn()>,
}

/// Listens for a successor.
///
/// # Errors
/// When the path cannot be used.
pub fn bind(dir: &Path) -> io::Result<UnixListener> {
    let path = socket(dir);
    // Bound under another name and moved, so that nobody finds a socket that nobody listens on.
    let fresh = path.with_extension(format!("new-{}", std::process::id()));
    let _absent = std::fs::remove_file(&fresh).is_err();
    let listener = UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, &path)?;
    Ok(listener)
}

pub(super) fn socket(dir: &Path) -> PathBuf {
    dir.join("succession.sock")
}

/// Serves successors, one after another, until one of them has succeeded; tells it in the end how our
/// connections ended.
pub async fn serve(
    listener: UnixListener,
    incumbent: Incumbent,
    stage: watch::Sender<Stage>,
    drained: oneshot::Receiver<Drained>,
) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a successor");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if let Some(mut talk) = converse(stream, &incumbent, &stage).await {
            let Ok(Drained { finished, cut }) = drained.await else {
                return;
            };
            // A successor that has gone needs no farewell.
            drop(talk.say(&Say::Gone { finished, cut }).await);
            return;
        }
    }
}

/// Talks to one successor; gives the conversation back once it has succeeded us.
async fn converse(
    stream: UnixStream,
    incumbent: &Incumbent,
    stage: &watch::Sender<Stage>,
) -> Option<Talk> {
    let mut talk = Talk::new(stream);
    let successor = match greet(&mut talk, incumbent).await {
        Ok(successor) => successor,
        Err(error) => {
            tracing::warn!(%error, "a process that wanted to succeed this agent is turned away");
            return None;
        }
    };
    tracing::info!(
        pid = successor.pid,
        version = successor.version,
        abi = successor.abi,
        "another agent gets ready to succeed this one"
    );
    stage.send_replace(Stage::Awaited);
    loop {
        let paused = *stage.borrow() == Stage::Paused;
        let heard = if paused {
            tokio::time::timeout(incumbent.patience, talk.hear()).await
        } else {
            Ok(talk.hear().await)
        };
        let Ok(heard) = heard else {
            tracing::error!(pid = successor.pid, patience = ?incumbent.patience, "the successor hangs; killing it and going on");
            if let Some(Err(error)) = talk.peer().map(kill) {
                tracing::error!(%error, "cannot kill the successor");
            }
            give_up(incumbent, stage).await;
            return None;
        };
        let answered = match heard {
            Ok(Some(Ask::Pause {})) if !paused => {
                pause(incumbent).await;
                tracing::info!(pid = successor.pid, "paused: the successor takes over");
                stage.send_replace(Stage::Paused);
                talk.say(&Say::Paused {}).await
            }
            Ok(Some(Ask::Drain {})) if paused => {
                // It has everything: that it cannot hear us changes nothing.
                drop(talk.say(&Say::Draining {}).await);
                stage.send_replace(Stage::Succeeded);
                return Some(talk);
            }
            Ok(Some(other)) => Err(io::Error::other(format!("not what comes next: {other:?}"))),
            Ok(None) => Err(io::Error::other("it ended")),
            Err(error) => Err(error),
        };
        if let Err(error) = answered {
            tracing::warn!(pid = successor.pid, %error, "the successor gave up; this agent stays in charge");
            give_up(incumbent, stage).await;
            return None;
        }
    }
}

async fn greet(talk: &mut Talk, incumbent: &Incumbent) -> io::Result<Who> {
    let hello = tokio::time::timeout(HELLO_WITHIN, talk.hear()).await??;
    let Some(Ask::Hello(successor)) = hello else {
        return Err(io::Error::other("it did not say who it is"));
    };
    if successor.protocol != PROTOCOL {
        let text = format!(
            "agent {} (pid {}) is in charge and speaks version {PROTOCOL} of the succession protocol, not {}; stop it first",
            incumbent.own.version, incumbent.own.pid, successor.protocol
        );
        talk.say(&Say::No(text.clone())).await?;
        return Err(io::Error::other(text));
    }
    // Its connections inside pods must not be captured by our programs, which are attached until it
    // has replaced them.
    if let Err(error) = incumbent.kernel.add_agent(successor.cgroup) {
        let text = crate::host::describe(&error);
        talk.say(&Say::No(text.clone())).await?;
        return Err(io::Error::other(text));
    }
    talk.say(&Say::Hello(incumbent.own.clone())).await?;
    Ok(successor)
}

async fn pause(incumbent: &Incumbent) {
    incumbent.reporting.send_replace(false);
    let (paused, wait) = oneshot::channel();
    incumbent.enrol.send(Command::Pause(paused));
    // A thread that is gone writes nothing.
    drop(wait.await);
    let direct = incumbent.direct.clone();
    drop(tokio::task::spawn_blocking(move || direct.pause()).await);
}

async fn give_up(incumbent: &Incumbent, stage: &watch::Sender<Stage>) {
    if stage.send_replace(Stage::Alone) == Stage::Paused {
        incumbent.enrol.send(Command::Resume);
        (incumbent.restore)();
        incumbent.reporting.send_replace(true);
    }
}

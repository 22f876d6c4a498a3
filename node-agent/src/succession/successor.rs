//! The side of the agent that takes over.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use tokio::{net::UnixStream, sync::watch};

use super::{
    incumbent::socket,
    lock::{Lock, Post},
    wire::{Ask, Say, Talk, Who, kill},
};
use crate::enrol::Awaited;

/// How often a lock that is about to become free is tried.
const LOOK: Duration = Duration::from_millis(20);
/// How often the place behind the one in charge is tried.
const LOOKS: u32 = 3;
/// Instances that have been succeeded and are remembered.
const REMEMBERED: usize = 32;

/// What an agent finds when it starts.
pub enum Predecessor {
    /// Nobody is in charge: it is, with this lock.
    Nobody(Lock),
    /// This one is.
    Running(Box<Running>),
}

/// A predecessor that runs, and our place behind it.
pub struct Running {
    talk: Talk,
    /// Who it is.
    pub who: Who,
    dir: PathBuf,
    timeout: Duration,
    _next: Lock,
}

/// Finds out who is in charge. An instance that has been succeeded waits until nobody is.
///
/// # Errors
/// When another agent is about to take over already, or the one in charge refuses.
pub async fn apply(dir: &Path, own: &Who, timeout: Duration) -> anyhow::Result<Predecessor> {
    if let Some(lock) = Lock::try_take_vacant(dir)? {
        return Ok(Predecessor::Nobody(lock));
    }
    if is_succeeded(dir, &own.instance) {
        tracing::info!(
            instance = own.instance,
            in_charge = Lock::holder(dir, Post::InCharge),
            "this instance has been succeeded; standing by until no agent is in charge"
        );
        loop {
            if let Some(lock) = Lock::try_take_vacant(dir)? {
                return Ok(Predecessor::Nobody(lock));
            }
            tokio::time::sleep(LOOK).await;
        }
    }
    let Some(next) = next_in_line(dir).await? else {
        let text = |pid: Option<u32>| pid.map_or_else(|| "?".to_owned(), |pid| pid.to_string());
        bail!(
            "agent {} is already about to take over from agent {}: wait until it has, or stop it",
            text(Lock::holder(dir, Post::Next)),
            text(Lock::holder(dir, Post::InCharge)),
        );
    };
    let deadline = Instant::now() + timeout;
    let talk = loop {
        match UnixStream::connect(socket(dir)).await {
            Ok(stream) => break Talk::new(stream),
            // It has just started, or is about to end.
            Err(error) if Instant::now() >= deadline => {
                return Err(error).with_context(|| {
                    format!(
                        "agent {:?} is in charge and cannot be reached at {}; stop it",
                        Lock::holder(dir, Post::InCharge),
                        socket(dir).display()
                    )
                });
            }
            Err(_) => tokio::time::sleep(LOOK).await,
        }
        if let Some(lock) = Lock::try_take(dir, Post::InCharge)? {
            return Ok(Predecessor::Nobody(lock));
        }
    };
    greet(talk, dir, own, timeout, next).await
}

async fn greet(
    mut talk: Talk,
    dir: &Path,
    own: &Who,
    timeout: Duration,
    next: Lock,
) -> anyhow::Result<Predecessor> {
    // One that has gone shows in its silence.
    drop(talk.say(&Ask::Hello(own.clone())).await);
    match answer(&mut talk, dir, timeout).await? {
        Some(Say::Hello(who)) => {
            tracing::info!(
                pid = who.pid,
                version = who.version,
                abi = who.abi,
                "getting ready to succeed the agent in charge"
            );
            Ok(Predecessor::Running(Box::new(Running {
                talk,
                who,
                dir: dir.to_owned(),
                timeout,
                _next: next,
            })))
        }
        Some(Say::No(reason)) => bail!("the agent in charge refuses: {reason}"),
        Some(other) => bail!("the agent in charge answers hello with {other:?}"),
        None => Ok(Predecessor::Nobody(wait_for_lock(dir, timeout).await?)),
    }
}

/// What the predecessor says next; none when it has ended. One that hangs is killed.
async fn answer(talk: &mut Talk, dir: &Path, timeout: Duration) -> anyhow::Result<Option<Say>> {
    if let Ok(heard) = tokio::time::timeout(timeout, talk.hear()).await {
        return Ok(heard.unwrap_or_else(|error| {
            tracing::warn!(%error, "the agent in charge cannot be understood any more");
            None
        }));
    }
    end_hung(talk, dir, timeout)?;
    Ok(None)
}

fn end_hung(talk: &Talk, dir: &Path, timeout: Duration) -> anyhow::Result<()> {
    let Some(pid) = talk.peer() else {
        bail!(
            "the agent in charge does not answer within {timeout:?} and its process {:?} cannot be seen from here: stop it, or run agents in the node's process namespace",
            Lock::holder(dir, Post::InCharge)
        );
    };
    tracing::error!(
        pid,
        ?timeout,
        "the agent in charge hangs; killing it: what it carries ends, new connections are refused until this agent is in charge"
    );
    kill(pid).with_context(|| format!("the agent in charge (pid {pid}) hangs"))
}

/// The place behind the one in charge, if nobody has it. Who only looks has it for a moment.
async fn next_in_line(dir: &Path) -> anyhow::Result<Option<Lock>> {
    for _ in 0..LOOKS {
        if let Some(next) = Lock::try_take(dir, Post::Next)? {
            return Ok(Some(next));
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(None)
}

/// For who is next.
async fn wait_for_lock(dir: &Path, timeout: Duration) -> anyhow::Result<Lock> {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(lock) = Lock::try_take(dir, Post::InCharge)? {
            return Ok(lock);
        }
        if Instant::now() >= deadline {
            bail!(
                "agent {:?} does not give up {}/agent.lock",
                Lock::holder(dir, Post::InCharge),
                dir.display()
            );
        }
        tokio::time::sleep(LOOK).await;
    }
}

impl Running {
    /// Waits until this agent has what it needs to be in charge: configuration and, for every
    /// captured pod, certificate and listeners. A predecessor that ends is waited for no longer.
    ///
    /// # Errors
    /// When it takes longer than `--takeover-timeout`; the error names what is missing.
    pub async fn until_ready(
        &mut self,
        mut configured: watch::Receiver<bool>,
        mut awaited: watch::Receiver<Awaited>,
    ) -> anyhow::Result<()> {
        let ready = async {
            let known = configured.wait_for(|known| *known).await.is_ok();
            let done = |awaited: &Awaited| awaited.as_ref().is_some_and(Vec::is_empty);
            known && awaited.wait_for(done).await.is_ok()
        };
        let waited = tokio::select! {
            waited = tokio::time::timeout(self.timeout, ready) => waited,
            // It says nothing before it is asked.
            _ended = self.talk.hear::<Say>() => return Ok(()),
        };
        match waited {
            Ok(true) => Ok(()),
            Ok(false) => bail!("this agent is stopping"),
            Err(_) => {
                let missing = match (*configured.borrow(), &*awaited.borrow()) {
                    (false, _) | (true, None) => "configuration from the controller".to_owned(),
                    (true, Some(missing)) => missing.join(", "),
                };
                bail!(
                    "not ready to take over within {:?}; missing: {missing}. Agent {} stays in charge",
                    self.timeout,
                    self.who.pid
                )
            }
        }
    }

    /// Asks the predecessor to write nothing more.
    ///
    /// # Errors
    /// When it hangs and cannot be killed.
    pub async fn pause(&mut self) -> anyhow::Result<()> {
        drop(self.talk.say(&Ask::Pause {}).await);
        match answer(&mut self.talk, &self.dir, self.timeout).await? {
            // One that has ended writes nothing either.
            Some(Say::Paused {}) | None => Ok(()),
            Some(other) => bail!("the agent in charge answers pause with {other:?}"),
        }
    }

    /// Tells the predecessor to drain and takes its lock. Gives back the rest of the conversation, for
    /// [`farewell`].
    ///
    /// # Errors
    /// When it does not give the lock up and cannot be killed.
    pub async fn drain(mut self) -> anyhow::Result<(Lock, Farewell)> {
        drop(self.talk.say(&Ask::Drain {}).await);
        answer(&mut self.talk, &self.dir, self.timeout).await?;
        remember(&self.dir, &self.who.instance);
        let lock = match wait_for_lock(&self.dir, self.timeout).await {
            Ok(lock) => lock,
            Err(_) => {
                end_hung(&self.talk, &self.dir, self.timeout)?;
                wait_for_lock(&self.dir, self.timeout).await?
            }
        };
        Ok((lock, Farewell(self.talk, self.who)))
    }
}

/// A predecessor that drains.
pub struct Farewell(Talk, Who);

impl Farewell {
    /// Waits for its end and tells how its connections ended.
    pub async fn wait(mut self) {
        match self.0.hear::<Say>().await {
            Ok(Some(Say::Gone { finished, cut })) => tracing::info!(
                pid = self.1.pid,
                finished,
                cut,
                "the predecessor has drained; cut connections outlived its drain deadline"
            ),
            other => tracing::warn!(
                pid = self.1.pid,
                ?other,
                "the predecessor ended without having drained: connections that it carried were reset"
            ),
        }
    }
}

fn list(dir: &Path) -> PathBuf {
    dir.join("succeeded")
}

fn is_succeeded(dir: &Path, instance: &str) -> bool {
    let text = std::fs::read_to_string(list(dir)).unwrap_or_default();
    !instance.is_empty() && text.lines().any(|line| line == instance)
}

fn remember(dir: &Path, instance: &str) {
    if instance.is_empty() || is_succeeded(dir, instance) {
        return;
    }
    let text = std::fs::read_to_string(list(dir)).unwrap_or_default();
    let lines: Vec<&str> = text.lines().chain([instance]).collect();
    let newest = lines.len().saturating_sub(REMEMBERED);
    let write = || -> io::Result<()> {
        let mut bytes = Vec::new();
        for line in lines.iter().skip(newest) {
            writeln!(bytes, "{line}")?;
        }
        runtime::file::atomic_write(&list(dir), &bytes).map_err(io::Error::other)
    };
    if let Err(error) = write() {
        tracing::warn!(%error, "a succeeded agent that is restarted may take over again");
    }
}

#[cfg(test)]
mod tests {
    use super::{REMEMBERED, is_succeeded, remember};

    #[test]
    fn the_newest_succeeded_instances_are_remembered_and_nameless_ones_never() {
        let dir = std::env::temp_dir().join(format!("keelson-succeeded-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        remember(&dir, "");
        assert!(!is_succeeded(&dir, ""));
        for number in 0..=REMEMBERED {
            remember(&dir, &format!("pod-{number}"));
        }
        assert!(!is_succeeded(&dir, "pod-0"));
        assert!(is_succeeded(&dir, "pod-1"));
        assert!(is_succeeded(&dir, &format!("pod-{REMEMBERED}")));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

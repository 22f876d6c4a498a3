//! The socket on which the CNI plugin says that a pod's sandbox exists, and waits until the pod may
//! start.
//!
//! One JSON line in, one JSON line out. `add` is called for every pod of the node before its
//! containers start; it answers when capture is complete or the pod is known to be exempt.

use std::{
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::{oneshot, watch},
};

use crate::{
    enrol::{Added, Command, EnrolHandle, Listed},
    pod::{PodName, Sandbox},
    succession::Stage,
};

/// A request is a few hundred bytes; a longer line is not one.
const LINE_LIMIT: u64 = 64 << 10;
/// How long a caller may take to say what it wants.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);

#[derive(Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
enum Request {
    Add(Sandbox),
    Del {
        #[serde(flatten)]
        pod: PodName,
        #[serde(default)]
        uid: String,
    },
    List {},
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Reply {
    Ok(Answer),
    Error(String),
}

#[derive(Serialize)]
#[serde(untagged)]
enum Answer {
    Added(Added),
    Deleted {},
    Pods { pods: Vec<Listed> },
}

/// Binds the socket; only root may use it. A socket that an earlier agent left is replaced.
///
/// # Errors
/// When the path cannot be used.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    // Bound under another name and moved, so that the CNI never finds a socket nobody listens on.
    let fresh = path.with_extension(format!("new-{}", std::process::id()));
    let _absent = std::fs::remove_file(&fresh).is_err();
    let listener = UnixListener::bind(&fresh)?;
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&fresh, path)?;
    Ok(listener)
}

/// Who answers requests.
#[derive(Clone)]
pub struct CniService {
    /// Does what they ask.
    pub enrol: EnrolHandle,
    /// Whether a successor does it instead.
    pub stage: watch::Receiver<Stage>,
    /// Where a successor listens: it has replaced our socket by its own.
    pub path: PathBuf,
}

/// Serves until the future is dropped.
pub async fn serve(listener: UnixListener, service: CniService) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let service = service.clone();
                tokio::task::spawn_local(async move {
                    if let Err(error) = answer(stream, &service).await {
                        tracing::debug!(%error, "a CNI request was not completed");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a CNI request");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(stream: UnixStream, service: &CniService) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(read.take(LINE_LIMIT));
    tokio::time::timeout(REQUEST_WITHIN, reader.read_line(&mut line)).await??;
    let reply = match serde_json::from_str(&line) {
        Ok(request) => perform(request, &service.enrol).await,
        Err(error) => Some(Reply::Error(format!("not a request: {error}"))),
    };
    let mut text = match reply {
        Some(reply) => serde_json::to_vec(&reply)?,
        None if *service.stage.borrow() == Stage::Succeeded => {
            forward(&line, &service.path).await?
        }
        None => serde_json::to_vec(&Reply::Error("the agent is stopping; try again".to_owned()))?,
    };
    if text.last() != Some(&b'\n') {
        text.push(b'\n');
    }
    write.write_all(&text).await
}

/// Reads a request as a fuzzer writes it.
#[cfg(fuzzing)]
pub fn fuzz(line: &str) {
    let _request = serde_json::from_str::<Request>(line);
}

/// Hands a request to the successor, whose answer it gets.
async fn forward(line: &str, path: &Path) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(line.as_bytes()).await?;
    let mut text = Vec::new();
    let mut reader = BufReader::new(stream.take(LINE_LIMIT));
    reader.read_until(b'\n', &mut text).await?;
    Ok(text)
}

/// Does what is asked; nothing if enrolment has ended meanwhile.
async fn perform(request: Request, enrol: &EnrolHandle) -> Option<Reply> {
    match request {
        Request::Add(sandbox) => {
            let (reply, answer) = oneshot::channel();
            enrol.send(Command::Add(sandbox, reply));
            match answer.await.ok()? {
                Ok(added) => Some(Reply::Ok(Answer::Added(added))),
                Err(error) => Some(Reply::Error(error)),
            }
        }
        Request::Del { pod, uid } => {
            let (reply, answer) = oneshot::channel();
            enrol.send(Command::Delete(pod, uid, reply));
            answer.await.ok()?;
            Some(Reply::Ok(Answer::Deleted {}))
        }
        Request::List {} => {
            let (reply, answer) = oneshot::channel();
            enrol.send(Command::List(reply));
            let pods = answer.await.ok()?;
            Some(Reply::Ok(Answer::Pods { pods }))
        }
    }
}

//! The conversation with the agent of the node: one JSON line each way over a Unix socket.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Silence {
    /// Nobody listens on the socket: no agent runs on this node.
    Absent(io::Error),
    /// The agent took the question and did not answer.
    Broken(io::Error),
    /// The agent says why not.
    Refused(String),
}

/// Asks the agent that listens on `socket`. An agent that is just being replaced is waited for.
pub(crate) fn ask(socket: &Path, question: &Value, wait: Duration) -> Result<Value, Silence> {
    let mut stream = connect(socket, wait).map_err(Silence::Absent)?;
    let answer = exchange(&mut stream, question).map_err(Silence::Broken)?;
    let mut answer: Value = serde_json::from_str(&answer)
        .map_err(|error| Silence::Broken(io::Error::new(io::ErrorKind::InvalidData, error)))?;
    if let Some(ok) = answer.get_mut("ok") {
        return Ok(ok.take());
    }
    let why = answer.get("error").and_then(Value::as_str);
    Err(Silence::Refused(
        why.unwrap_or("it does not say why").to_owned(),
    ))
}

fn connect(socket: &Path, wait: Duration) -> io::Result<UnixStream> {
    let end = Instant::now() + wait;
    loop {
        match UnixStream::connect(socket) {
            Err(error) if is_absent(&error) && Instant::now() < end => {
                std::thread::sleep(AGAIN);
            }
            connected => return connected,
        }
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

fn exchange(stream: &mut UnixStream, question: &Value) -> io::Result<String> {
    stream.set_read_timeout(Some(ANSWERS_WITHIN))?;
    stream.set_write_timeout(Some(ANSWERS_WITHIN))?;
    stream.write_all(format!("{question}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream.take(LONGEST_ANSWER)).read_line(&mut line)?;
    if line.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "the agent closed the connection",
        ));
    }
    Ok(line)
}

const AGAIN: Duration = Duration::from_millis(50);
/// The agent itself gives up after 10 s.
const ANSWERS_WITHIN: Duration = Duration::from_secs(15);
const LONGEST_ANSWER: u64 = 1 << 20;

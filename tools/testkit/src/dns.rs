//! A server of names (RFC 1035) that says what a test wants.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// These addresses, for so many seconds.
    There(Vec<Ipv4Addr>, u32),
    /// There is no such name.
    Nowhere,
    /// The server has failed.
    Failed,
}

/// It answers until it is dropped.
#[derive(Debug)]
pub struct Server {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Answers questions on a socket.
///
/// # Errors
/// The socket cannot be used.
pub fn serve(
    socket: UdpSocket,
    answer: impl Fn(&str) -> Answer + Send + 'static,
) -> io::Result<Server> {
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let over = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&over);
    let thread = std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while !seen.load(Ordering::Relaxed) {
            let Ok((length, from)) = socket.recv_from(&mut buffer) else {
                continue;
            };
            if let Some(reply) = buffer.get(..length).and_then(|asked| reply(asked, &answer)) {
                // Who is not there any more asks again or not.
                let _sent = socket.send_to(&reply, from);
            }
        }
    });
    Ok(Server {
        over,
        thread: Some(thread),
    })
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say.
            let _ended = thread.join();
        }
    }
}

/// The answer to one question; nothing for what is none.
fn reply(asked: &[u8], answer: &impl Fn(&str) -> Answer) -> Option<Vec<u8>> {
    let mut name = String::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*asked.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.push_str(std::str::from_utf8(asked.get(at..at + length)?).ok()?);
        at += length;
    }
    let kind = u16::from_be_bytes(asked.get(at..at + 2)?.try_into().ok()?);
    let question = asked.get(HEADER..at + 4)?;
    let (code, addresses, life) = match answer(&name.to_ascii_lowercase()) {
        Answer::There(addresses, life) if kind == TYPE_A => (0_u16, addresses, life),
        Answer::There(..) => (0, Vec::new(), 0),
        Answer::Nowhere => (3, Vec::new(), 0),
        Answer::Failed => (2, Vec::new(), 0),
    };
    let mut reply = asked.get(..2)?.to_vec();
    reply.extend((0x8180 | code).to_be_bytes());
    reply.extend(1_u16.to_be_bytes());
    reply.extend(u16::try_from(addresses.len()).ok()?.to_be_bytes());
    reply.extend([0; 4]);
    reply.extend(question);
    for address in addresses {
        // The name is that of the question.
        reply.extend([0xc0, 0x0c, 0, 1, 0, 1]);
        reply.extend(life.to_be_bytes());
        reply.extend([0, 4]);
        reply.extend(address.octets());
    }
    Some(reply)
}

const HEADER: usize = 12;
const TYPE_A: u16 = 1;

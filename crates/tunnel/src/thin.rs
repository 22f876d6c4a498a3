//! The framing between two agents of ours: what HBONE says, in fewer words.
//!
//! Two agents agree on it with ALPN (RFC 7301) as [`tls::THIN`]; with everybody else a tunnel is
//! HBONE. The TLS connection, the requests, the answers and the promises are the same. What is left
//! out is HTTP/2's generality, which cost half of an agent's own work per message: a connection's
//! bytes are read from the application's socket into the plaintext of the next record and written
//! to the other application's socket from where they were decrypted.
//!
//! A tunnel carries frames, each with a head of eight bytes: kind (1), length of the payload (3),
//! stream (4), big endian.
//!
//! | kind | payload | meaning |
//! |---|---|---|
//! | 1 open | [`message::Open`] | a request; streams are numbered by the client, each more than the last |
//! | 2 answer | [`message::Answer`] | 200, or why not; bytes flow after a 200 |
//! | 3 data | bytes | of the connection |
//! | 4 fin | none | no more bytes in this direction |
//! | 5 reset | code of RFC 9113 section 7 (4) | the stream is over, in both directions |
//! | 6 credit | bytes (4) | so many more may be sent |
//! | 7 away | none | open no more streams; those that are open go on |
//! | 8 ping, 9 pong | any | is anybody there |
//!
//! Each side may send as many bytes of a stream as the other has given credit for: the window in
//! the request or the answer, and what was added since. The server resets what it will not look at
//! with REFUSED_STREAM, so that it may be asked for elsewhere.
//!
//! A ping follows away. What is opened before the answer to it was on its way and is served; what is
//! opened afterwards is refused, and the server closes the tunnel when nothing is open in it.

mod copy;
mod driver;
mod frame;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod message;
mod mux;
mod stream;

pub(crate) use copy::bidirectional;
pub(crate) use driver::{Driver, Opened};
pub(crate) use message::{Answer, Open};
pub(crate) use mux::Handle;
pub(crate) use stream::{Gone, ThinStream};

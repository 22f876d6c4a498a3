//! Which limits and timeouts a tunnel lives by.

use std::time::Duration;

/// Bytes a peer may send on one stream before we have written them to the application.
///
/// Fills a path of 10 Gbit/s and 0.8 ms, or 1 Gbit/s and 8 ms. This is what one reader that has
/// stopped costs in memory.
pub const STREAM_WINDOW: u32 = 1 << 20;

/// Bytes a peer may send on one tunnel before we have written them to the applications.
///
/// More than all streams of a tunnel may have outstanding ([`MAX_STREAMS_PER_TUNNEL`] times
/// [`STREAM_WINDOW`]): readers that stop hold up their own streams and nobody else's.
pub const CONNECTION_WINDOW: u32 = 128 << 20;

/// Largest HTTP/2 frame we accept, in bytes. Bulk needs few frame heads.
pub const MAX_FRAME: u32 = 1 << 20;

/// Largest header list a server takes, in bytes.
pub const SERVER_HEADER_LIST: u32 = 64 << 10;

/// Largest header list a client takes, in bytes. An answer has a status and a reason.
pub const CLIENT_HEADER_LIST: u32 = 16 << 10;

/// Bytes of one stream that may wait for the tunnel's socket.
///
/// Two of the largest reads: one is being encrypted while the next is read. More would only be
/// memory.
pub const SEND_BUFFER: usize = 512 << 10;

/// Streams a server lets a peer open at once.
pub const MAX_CONCURRENT_STREAMS: u32 = 200;

/// Streams a client opens on one tunnel, if the peer allows that many.
///
/// Half of what a server of ours allows: streams that are being reset still count there.
pub const MAX_STREAMS_PER_TUNNEL: usize = 100;

/// Resets that a peer may send for streams we have not looked at yet. More is a flood.
pub const MAX_PENDING_RESETS: usize = 64;

/// How old a tunnel becomes before another takes its place. Streams that are open in it go on.
///
/// Well under the life of a certificate: what a peer has proved is asked for again that often.
pub const MAX_AGE: Duration = Duration::from_secs(3600);

/// Who makes the TLS records of a tunnel in the thinner framing. The peer cannot tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RecordLayer {
    /// rustls, which is reviewed by many.
    #[default]
    Rustls,
    /// This crate, with keys that rustls hands over: a tenth less work in bulk.
    Own,
}

/// The limits and timeouts of one tunnel. [`Settings::default`] is right unless a test wants less.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Whether agents of ours are offered the thinner framing. Others always get HBONE.
    pub thin: bool,
    /// Who makes the records where it is the thinner framing.
    pub records: RecordLayer,
    /// See [`STREAM_WINDOW`].
    pub stream_window: u32,
    /// See [`CONNECTION_WINDOW`].
    pub connection_window: u32,
    /// See [`MAX_FRAME`]; at least 16 KiB and below 16 MiB (RFC 9113 section 6.5.2).
    pub max_frame: u32,
    /// See [`SEND_BUFFER`].
    pub send_buffer: usize,
    /// See [`MAX_CONCURRENT_STREAMS`]; read by the server.
    pub max_concurrent_streams: u32,
    /// See [`MAX_STREAMS_PER_TUNNEL`]; read by the client.
    pub max_streams_per_tunnel: usize,
    /// How long a tunnel is left alone before the peer is asked whether it lives.
    pub keepalive_interval: Duration,
    /// How long the peer may take to answer that. Afterwards the tunnel is dead and every
    /// connection in it is reset.
    pub keepalive_timeout: Duration,
    /// See [`MAX_AGE`].
    pub max_age: Duration,
    /// How long the TLS and HTTP/2 handshake may take together.
    pub handshake_timeout: Duration,
    /// How long a peer may take to answer a CONNECT. It connects to the application meanwhile,
    /// so this is longer than its connect timeout (10 s).
    pub open_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            thin: true,
            records: RecordLayer::default(),
            stream_window: STREAM_WINDOW,
            connection_window: CONNECTION_WINDOW,
            max_frame: MAX_FRAME,
            send_buffer: SEND_BUFFER,
            max_concurrent_streams: MAX_CONCURRENT_STREAMS,
            max_streams_per_tunnel: MAX_STREAMS_PER_TUNNEL,
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(20),
            max_age: MAX_AGE,
            handshake_timeout: Duration::from_secs(10),
            open_timeout: Duration::from_secs(12),
        }
    }
}

impl Settings {
    pub(crate) fn client_builder(&self) -> h2::client::Builder {
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(self.stream_window)
            .initial_connection_window_size(self.connection_window)
            .max_frame_size(self.max_frame)
            .max_header_list_size(CLIENT_HEADER_LIST)
            .max_send_buffer_size(self.send_buffer)
            .initial_max_send_streams(self.max_streams_per_tunnel)
            .enable_push(false);
        builder
    }

    pub(crate) fn server_builder(&self) -> h2::server::Builder {
        let mut builder = h2::server::Builder::new();
        builder
            .initial_window_size(self.stream_window)
            .initial_connection_window_size(self.connection_window)
            .max_frame_size(self.max_frame)
            .max_header_list_size(SERVER_HEADER_LIST)
            .max_send_buffer_size(self.send_buffer)
            .max_concurrent_streams(self.max_concurrent_streams)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS);
        builder
    }
}

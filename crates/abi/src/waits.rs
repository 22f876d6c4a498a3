//! How long an application waits for a peer that says nothing.

/// Value of `WAITS`: what the application of a carried connection has set on its own socket, whose peer is the
/// agent and always answers. Times and counts are within what the kernel takes (`tcp(7)`).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct Waits {
    /// `TCP_USER_TIMEOUT` in milliseconds: how long bytes may stay unacknowledged. Zero is the kernel's default,
    /// as many retransmissions as `tcp_retries2` says.
    pub user_timeout: u32,
    /// `TCP_KEEPIDLE` in seconds, or zero where `SO_KEEPALIVE` is off.
    pub idle: u32,
    /// `TCP_KEEPINTVL` in seconds.
    pub interval: u32,
    /// `TCP_KEEPCNT`.
    pub probes: u32,
}

const _: () = assert!(size_of::<Waits>() == 16 && align_of::<Waits>() == 4);

impl Waits {
    /// Whether the application waits as long as the kernel does by default.
    #[inline(always)]
    #[must_use]
    pub const fn is_default(&self) -> bool {
        self.user_timeout == 0 && self.idle == 0
    }
}

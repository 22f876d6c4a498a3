//! How the lookup hook finds the socket that a connection is handed to.

/// Key of `LISTENERS`: one listening socket of the live agent inside one pod's namespace.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(C)]
pub struct ListenerKey {
    /// [`crate::Pod::id`].
    pub pod: u32,
    /// A [`ListenerKind`] as a number.
    pub kind: u16,
    /// The worker thread that accepts from it, `0..NodeConfig::workers`.
    pub worker: u16,
}

const _: () = assert!(size_of::<ListenerKey>() == 8 && align_of::<ListenerKey>() == 4);

/// What a listener of the agent is for. All are dual stack.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u16)]
pub enum ListenerKind {
    /// Connections that the pod's applications make.
    Outbound = 1,
    /// Plaintext connections from outside to the pod's applications.
    Inbound = 2,
    /// HBONE tunnels from peers.
    Hbone = 3,
}

//! The endpoints that clients of services with session affinity keep: one memory for the kernel, which
//! leads directly, and for the agent, which carries the rest.

use abi::{Endpoint, Session, SessionKey, maps};
use aya::{
    Ebpf,
    maps::{HashMap, MapData},
};

use super::{
    Kernel, KernelError,
    node::{Raw, typed},
};

#[expect(
    unsafe_code,
    reason = "aya asks for a promise about the types of crate `abi`"
)]
mod plain {
    use super::{Raw, Session, SessionKey};
    use aya::Pod as Plain;
    // SAFETY: `repr(C)`, words only, no padding (sizes are asserted in `abi`): any bytes are a value.
    unsafe impl Plain for Raw<SessionKey> {}
    // SAFETY: as above.
    unsafe impl Plain for Raw<Session> {}
}

/// The map of sessions.
pub(super) struct Sessions(HashMap<MapData, Raw<SessionKey>, Raw<Session>>);

impl Sessions {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        typed(ebpf, maps::SESSIONS).map(Self)
    }
}

impl Kernel {
    /// What is known of a client's session, fresh or not.
    #[must_use]
    pub fn session(&self, key: SessionKey) -> Option<Session> {
        let sessions = self.sessions().lock();
        sessions.0.get(&Raw(key), 0).ok().map(|session| session.0)
    }

    /// Notes that a client opens a connection to an endpoint, and keeps it. Where that fails, the next
    /// connection is drawn anew.
    pub fn keep_session(&self, key: SessionKey, endpoint: Endpoint, now: u64) {
        let session = Raw(Session::new(endpoint, now));
        drop(self.sessions().lock().0.insert(Raw(key), session, 0));
    }
}

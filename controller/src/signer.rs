//! Which authority signs now. It becomes another one while the mesh's root is rotated, and everybody asks here each time.

use std::sync::Arc;

use tls::ca::Authority;
use tokio::sync::watch;

/// The authority in use; clones share it.
#[derive(Clone, Debug)]
pub struct Signer {
    current: Arc<watch::Sender<Arc<Authority>>>,
}

impl Signer {
    /// Begins with `authority`.
    pub fn new(authority: Authority) -> Self {
        Self {
            current: Arc::new(watch::Sender::new(Arc::new(authority))),
        }
    }

    /// The one that signs now.
    pub fn now(&self) -> Arc<Authority> {
        Arc::clone(&self.current.borrow())
    }

    /// Is told when another one signs, or trusts others.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Authority>> {
        self.current.subscribe()
    }

    /// Whether `authority` signs by another certificate or trusts other roots than the one that signs now.
    pub(crate) fn would_become(&self, authority: &Authority) -> bool {
        let current = self.current.borrow();
        current.roots() != authority.roots()
            || current.to_pem().certificate != authority.to_pem().certificate
    }

    /// Signs by `authority` from now on.
    pub(crate) fn becomes(&self, authority: Authority) {
        self.current.send_replace(Arc::new(authority));
    }
}

//! A proxy between a client and a real API server of Kubernetes. It ends watches in the middle of an event, forgets where they
//! stood (410), refuses (429, 5xx), answers lists late, and brings events late or twice: as often as a [`Plan`] says.
//!
//! It invents no object: what passes is what the server has said. What a client may do is the server's to decide: credentials
//! are handed on, and the proxy has none. Only HTTP/1.1, and nothing that upgrades a connection.

mod answer;
mod plan;
mod serve;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::runtime::{Builder, Runtime};

use self::plan::Faults;
pub use self::plan::{Counts, Plan};
pub use self::serve::{Identity, Upstream};

/// A proxy that serves until it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    faults: Arc<Faults>,
    runtime: Option<Runtime>,
}

impl Proxy {
    /// Serves what connects to `listener`, by TLS if it has an `identity`, without faults until [`Proxy::set`] says otherwise.
    /// `seed` decides which answers are hit.
    ///
    /// # Errors
    /// The listener or the certificates cannot be used.
    pub fn start(
        listener: TcpListener,
        identity: Option<Identity>,
        upstream: Upstream,
        seed: u64,
    ) -> Result<Self> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let faults = Arc::new(Faults::new(seed));
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .context("starting the proxy")?;
        let listener = {
            let _entered = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let server = serve::Server::new(identity, upstream, Arc::clone(&faults))?;
        runtime.spawn(server.run(listener));
        Ok(Self {
            address,
            faults,
            runtime: Some(runtime),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on these faults, until others are set.
    pub fn set(&self, plan: Plan) {
        self.faults.set(plan);
    }

    /// Ends every watch that is open now, without a last word.
    pub fn cut_watches(&self) {
        self.faults.cut();
    }

    /// What has been done to answers so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.faults.counts()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Connections may wait for a server that answers late.
            runtime.shutdown_background();
        }
    }
}

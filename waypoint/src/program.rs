//! The whole program: configuration in, workers, admin pages, and an orderly end.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use runtime::drain::{Drain, DrainEnd};
use runtime::metrics::Metrics;
use tokio::sync::watch;

use crate::accept;
use crate::active::Newest;
use crate::balance::state::Registry;
use crate::telemetry::Telemetry;
use crate::trace::{MayTrace, Tracer};
use crate::worker::{self, Limits, Shared, Stage};

/// What the workers, the admin pages and whoever feeds the configuration have in common.
#[derive(Clone, Debug)]
pub struct Core {
    /// Where the newest configuration is put.
    pub newest: Arc<Newest>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) pod: Arc<str>,
    pub(crate) tracer: MayTrace,
}

impl Core {
    /// Of the waypoint's pod `pod`, `namespace/name`, which counts in these metrics.
    #[must_use]
    pub fn new(pod: &str, metrics: &Metrics) -> Self {
        Self {
            newest: Arc::default(),
            registry: Arc::default(),
            telemetry: Arc::new(Telemetry::register(metrics)),
            pod: pod.into(),
            tracer: None,
        }
    }

    /// The same, which makes spans of requests.
    #[must_use]
    pub fn traced_by(self, tracer: Arc<Tracer>) -> Self {
        Self {
            tracer: Some(tracer),
            ..self
        }
    }

    /// The endpoints that are left alone now.
    #[must_use]
    pub fn ejections(&self) -> serde_json::Value {
        serde_json::json!(self.registry.ejections())
    }
}

/// Workers that serve.
#[derive(Debug)]
pub struct Serving {
    shared: Arc<Shared>,
    drain: Drain,
    stage: watch::Sender<Stage>,
    threads: Vec<JoinHandle<()>>,
    address: SocketAddr,
}

impl Serving {
    /// Starts so many workers, which decide with the newest configuration.
    ///
    /// # Errors
    /// The address cannot be listened on, or a thread cannot be started.
    pub fn start(
        address: SocketAddr,
        workers: usize,
        core: Core,
        limits: Limits,
    ) -> io::Result<Self> {
        let first = accept::listen(address)?;
        // Port 0 has become another one.
        let address = first.local_addr()?;
        let mut listeners = vec![first];
        for _ in 1..workers.max(1) {
            listeners.push(accept::listen(address)?);
        }
        let drain = Drain::new();
        let (stage, seen) = watch::channel(Stage::Open);
        let shared = Arc::new(Shared {
            newest: core.newest,
            registry: core.registry,
            telemetry: core.telemetry,
            pod: core.pod,
            tracer: core.tracer,
            limits,
            doors: Arc::default(),
            drain: drain.signal(),
            stage: seen,
        });
        let threads = worker::start(&shared, listeners)?;
        Ok(Self {
            shared,
            drain,
            stage,
            threads,
            address,
        })
    }

    /// Where agents connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends in order. For a while clients are asked to go elsewhere, by GOAWAY and `Connection: close`, and connections
    /// are still taken: those who open them may not have heard. Then none is taken any more, what is idle is closed, and
    /// what is open has until the deadline.
    pub async fn finish(self, deadline: Duration) -> DrainEnd {
        let Self {
            drain,
            stage,
            threads,
            shared,
            ..
        } = self;
        let polite = deadline.mul_f64(POLITE).min(POLITE_AT_MOST);
        let close = stage.clone();
        // A task of the drain, which so lasts at least as long.
        let closing = shared.drain.spawn("close", async move {
            tokio::time::sleep(polite).await;
            close.send_replace(Stage::Closed);
        });
        let end = drain.finish(deadline).await;
        drop(closing.await);
        stage.send_replace(Stage::Over);
        let joined = tokio::task::spawn_blocking(move || {
            threads.into_iter().all(|thread| thread.join().is_ok())
        });
        if !matches!(
            tokio::time::timeout(JOIN_WITHIN, joined).await,
            Ok(Ok(true))
        ) {
            tracing::warn!("a worker did not end");
        }
        end
    }
}

/// Part of the deadline in which connections are still taken.
const POLITE: f64 = 0.2;
const POLITE_AT_MOST: Duration = Duration::from_secs(5);
const JOIN_WITHIN: Duration = Duration::from_secs(2);

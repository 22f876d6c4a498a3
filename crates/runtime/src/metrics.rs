//! One registry of metrics for a program, shared by its modules, written out in the OpenMetrics text format.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

/// The media type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A handle on the program's registry; clones share it.
///
/// The lock is held while metrics are registered and while a page is written, never while a metric counts.
#[derive(Clone, Default)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
}

impl Metrics {
    /// An empty registry.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets one module register its metrics; what the closure returns (usually the metrics) is handed back.
    pub fn register<T>(&self, module: impl FnOnce(&mut Registry) -> T) -> T {
        module(&mut self.lock())
    }

    /// Every metric as OpenMetrics text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut page = String::new();
        match text::encode(&mut page, &self.lock()) {
            Ok(()) => page,
            // Only an encoder of a metric can fail; a page without an end mark tells the scraper so.
            Err(fmt::Error) => page,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Metrics")
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[test]
    fn modules_share_one_page() {
        let metrics = Metrics::new();
        let opened: Counter = metrics.clone().register(|registry| {
            let opened = Counter::default();
            registry.register("connections_opened", "Connections opened", opened.clone());
            opened
        });
        opened.inc_by(3);
        let page = metrics.encode();
        assert!(page.contains("connections_opened_total 3"), "{page}");
        assert!(page.ends_with("# EOF\n"), "{page}");
    }
}

//! The certificates of this node's pods, as connections use them.

use std::{
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use tls::WorkloadCert;
use tokio::sync::watch;

/// How long a connection waits for the pod's first certificate.
const WAIT: Duration = Duration::from_secs(10);

/// The pod's certificate; waits for the first one, bounded.
pub(crate) async fn current(
    cert: &watch::Receiver<Option<Arc<WorkloadCert>>>,
) -> Option<Arc<WorkloadCert>> {
    if let Some(cert) = cert.borrow().as_ref() {
        return Some(Arc::clone(cert));
    }
    let mut cert = cert.clone();
    let waited = tokio::time::timeout(WAIT, cert.wait_for(Option::is_some)).await;
    match waited {
        Ok(Ok(cert)) => cert.clone(),
        // Forgotten, or none in time.
        Ok(Err(_)) | Err(_) => None,
    }
}

/// A number that grows with each renewal: tunnels of an older certificate take no new connections.
pub(crate) fn generation(cert: &WorkloadCert) -> u64 {
    let age = cert
        .info()
        .not_after
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(age.as_millis()).unwrap_or(u64::MAX)
}

//! Addresses whose captured workload is gone from the configuration, and of which nobody has said that its node
//! let go.
//!
//! An address that is not known goes on as it is, in plain. One that was a captured workload's a moment ago may
//! still be held by the node that captured it, so it is not "not known": a connection to it is refused.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

use crate::workload::WorkloadUid;

/// Addresses that were a captured workload's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tombstone {
    /// Its name among workloads: the fields `group` and `kind` say that it is a tombstone.
    pub uid: WorkloadUid,
    /// Namespace of the workload that had the addresses.
    pub namespace: Arc<str>,
    /// Name of that workload.
    pub name: Arc<str>,
    /// The network of the addresses.
    pub network: Arc<str>,
    /// The addresses.
    pub addresses: Vec<IpAddr>,
}

impl Tombstone {
    /// The uid of the tombstone of one address.
    pub fn uid(cluster: &str, namespace: &str, name: &str, address: IpAddr) -> WorkloadUid {
        format!("{cluster}/{TOMBSTONE}/{namespace}/{name}/{address}").into()
    }

    /// Whether a uid is that of a tombstone. To whoever does not know them it is a workload that is reached by
    /// tunnel only, and that nothing answers for.
    pub fn is_uid(uid: &str) -> bool {
        uid.split_once('/')
            .and_then(|(_cluster, rest)| rest.strip_prefix(TOMBSTONE))
            .is_some_and(|rest| rest.starts_with('/'))
    }
}

/// Group and kind in the uid of a tombstone.
const TOMBSTONE: &str = "keelson.io/Tombstone";

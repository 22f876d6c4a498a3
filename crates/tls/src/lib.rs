//! Who is at the other end of a connection, and how we prove who we are: SPIFFE X.509 SVIDs over TLS 1.3.
//!
//! Nothing here opens a socket. A certificate comes from a [`source::SvidSource`], is kept and renewed by a
//! [`store::SvidStore`], and is used through the two rustls configurations of a [`cert::WorkloadCert`].
//!
//! Facts of the wire follow Istio's ambient mode: TLS 1.3 only, ALPN `h2` (after `keelson/1`, which is ours), no SNI, P-256 keys, one URI SAN.

pub mod ca;
pub mod cert;
pub mod clock;
pub mod csr;
pub mod peer;
pub mod persist;
pub mod refusal;
pub mod roots;
pub mod source;
pub mod store;
pub mod svid;
mod verifier;

pub use cert::{HBONE, THIN, TlsOptions, WorkloadCert, server_name};
pub use clock::{Clock, SystemClock, TokioClock};
pub use peer::{PeerError, peer_identity, valid_until, verify_expected};
pub use refusal::{PeerRefusal, TlsFailure, classify, classify_io};
pub use roots::{Roots, RootsError};
pub use source::{IssueError, SvidSource};
pub use store::{RotationPolicy, SvidStore};
pub use svid::{Svid, SvidError, SvidInfo};

pub use rustls_pki_types::CertificateDer;

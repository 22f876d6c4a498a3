//! How one connection is named where two hooks must recognise it.

use crate::Addr;

/// Key of `PROBES` and others: a connection as the side that opened it sees it; in `PLAIN_FLOWS` as the
/// captured pod sees it, whoever opened it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(C)]
pub struct Flow {
    /// Source address.
    pub source: Addr,
    /// Destination address.
    pub destination: Addr,
    /// Source port, host byte order.
    pub source_port: u16,
    /// Destination port, host byte order.
    pub destination_port: u16,
}

const _: () = assert!(size_of::<Flow>() == 36 && align_of::<Flow>() == 4);

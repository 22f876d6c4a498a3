//! Whether an application of a captured pod may set a socket option that decides where TCP goes.
//!
//! The mesh leads a connection by its socket's mark and by its destination. An option that undoes either
//! after the fact must not: it has no effect, as has the device that a socket was bound to before it was
//! dialled, or it is refused, where no application of the mesh could mean it.

use abi::Waits;

/// What an option decides about a TCP connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Nothing about where it goes.
    Other,
    /// By which interface it leaves, or by which rule it is routed.
    Path,
    /// A routing header, or ancillary data that can hold one.
    RoutingHeader,
    /// Options of IPv4, which can hold a source route.
    Options,
    /// An IPsec policy of the socket's own, which can hold a tunnel.
    Policy,
    /// Nothing about where it goes, but how long its application waits for a silent peer.
    Wait,
}

/// What the decision may ask.
pub trait Facts {
    /// Whether the mesh carries the socket's connection.
    fn carried(&self) -> bool;
    /// A byte of the value; nothing where it ends before.
    fn byte(&self, at: usize) -> Option<u8>;
}

/// What becomes of the call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// The kernel does as asked.
    Pass,
    /// It succeeds and changes nothing.
    Ignore,
    /// It fails with `EPERM`.
    Refuse,
}

const SOL_IP: i32 = 0;
const SOL_SOCKET: i32 = 1;
const SOL_TCP: i32 = 6;
const SOL_IPV6: i32 = 41;

/// Whether a quiet peer is probed (`socket(7)`).
pub const SO_KEEPALIVE: i32 = 9;
/// Seconds of quiet before the first probe (`tcp(7)`).
pub const TCP_KEEPIDLE: i32 = 4;
/// Seconds between probes (`tcp(7)`).
pub const TCP_KEEPINTVL: i32 = 5;
/// Probes that may go unanswered (`tcp(7)`).
pub const TCP_KEEPCNT: i32 = 6;
/// Milliseconds that bytes may stay unacknowledged (`tcp(7)`).
pub const TCP_USER_TIMEOUT: i32 = 18;

/// The longest options that an IPv4 header holds.
const LONGEST: usize = 40;

/// What the option decides. The options that are [`Kind::Other`] although their names sound otherwise are
/// in the test's table, with the reason.
#[inline(always)]
#[must_use]
pub const fn kind(level: i32, name: i32) -> Kind {
    const SO_BINDTODEVICE: i32 = 25;
    const SO_MARK: i32 = 36;
    const SO_BINDTOIFINDEX: i32 = 62;
    const IP_OPTIONS: i32 = 4;
    const IP_IPSEC_POLICY: i32 = 16;
    const IP_XFRM_POLICY: i32 = 17;
    const IPV6_2292PKTOPTIONS: i32 = 6;
    const IPV6_IPSEC_POLICY: i32 = 34;
    const IPV6_XFRM_POLICY: i32 = 35;
    const IPV6_RTHDR: i32 = 57;
    match (level, name) {
        (SOL_SOCKET, SO_BINDTODEVICE | SO_BINDTOIFINDEX | SO_MARK) => Kind::Path,
        (SOL_IP, IP_OPTIONS) => Kind::Options,
        (SOL_IPV6, IPV6_RTHDR | IPV6_2292PKTOPTIONS) => Kind::RoutingHeader,
        (SOL_IP, IP_IPSEC_POLICY | IP_XFRM_POLICY)
        | (SOL_IPV6, IPV6_IPSEC_POLICY | IPV6_XFRM_POLICY) => Kind::Policy,
        (SOL_SOCKET, SO_KEEPALIVE)
        | (SOL_TCP, TCP_KEEPIDLE | TCP_KEEPINTVL | TCP_KEEPCNT | TCP_USER_TIMEOUT) => Kind::Wait,
        _ => Kind::Other,
    }
}

/// Options of [`Kind::Wait`] as a socket has them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Set {
    /// `SO_KEEPALIVE`.
    pub keepalive: i32,
    /// `TCP_KEEPIDLE`.
    pub idle: i32,
    /// `TCP_KEEPINTVL`.
    pub interval: i32,
    /// `TCP_KEEPCNT`.
    pub probes: i32,
    /// `TCP_USER_TIMEOUT`.
    pub user_timeout: i32,
}

impl Set {
    /// What they are after one is set to a value; nothing where the kernel does not take it (`tcp(7)`;
    /// `do_tcp_setsockopt`).
    #[inline(always)]
    #[must_use]
    pub const fn with(mut self, level: i32, name: i32, value: i32) -> Option<Self> {
        const LONGEST: i32 = 32767;
        const MOST: i32 = 127;
        let lowest = match (level, name) {
            (SOL_TCP, TCP_USER_TIMEOUT) => 0,
            (SOL_TCP, _) => 1,
            _ => i32::MIN,
        };
        let highest = match (level, name) {
            (SOL_TCP, TCP_KEEPIDLE | TCP_KEEPINTVL) => LONGEST,
            (SOL_TCP, TCP_KEEPCNT) => MOST,
            _ => i32::MAX,
        };
        if value < lowest || value > highest {
            return None;
        }
        match (level, name) {
            (SOL_SOCKET, SO_KEEPALIVE) => self.keepalive = value,
            (SOL_TCP, TCP_KEEPIDLE) => self.idle = value,
            (SOL_TCP, TCP_KEEPINTVL) => self.interval = value,
            (SOL_TCP, TCP_KEEPCNT) => self.probes = value,
            (SOL_TCP, TCP_USER_TIMEOUT) => self.user_timeout = value,
            _ => return None,
        }
        Some(self)
    }

    /// What is noted of them.
    #[inline(always)]
    #[must_use]
    pub const fn waits(&self) -> Waits {
        let on = self.keepalive != 0;
        Waits {
            user_timeout: self.user_timeout.cast_unsigned(),
            idle: if on { self.idle.cast_unsigned() } else { 0 },
            interval: if on { self.interval.cast_unsigned() } else { 0 },
            probes: if on { self.probes.cast_unsigned() } else { 0 },
        }
    }
}

/// Decides one `setsockopt` on a TCP socket of a captured pod.
#[inline(always)]
pub fn decide(kind: Kind, facts: &impl Facts) -> Verdict {
    match kind {
        Kind::Other | Kind::Wait => Verdict::Pass,
        // Before it is dialled a socket may be bound and marked as its application likes: the hook at
        // connect has the last word.
        Kind::Path if facts.carried() => Verdict::Ignore,
        Kind::Path => Verdict::Pass,
        // An empty value removes what there is.
        Kind::RoutingHeader if is_blank(facts) => Verdict::Pass,
        Kind::RoutingHeader | Kind::Policy => Verdict::Refuse,
        Kind::Options if has_source_route(facts) => Verdict::Refuse,
        Kind::Options => Verdict::Pass,
    }
}

/// Whether the value says nothing: the kernel shows a program zeros where there is none, and a header or
/// control message that begins so is none that it takes.
#[inline(always)]
fn is_blank(facts: &impl Facts) -> bool {
    (0..8).all(|at| matches!(facts.byte(at), None | Some(0)))
}

/// Whether options of IPv4 hold a source route (RFC 791, 3.1), or cannot be read.
#[inline(always)]
fn has_source_route(facts: &impl Facts) -> bool {
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    const LOOSE: u8 = 131;
    const STRICT: u8 = 137;
    let mut at = 0;
    for _ in 0..LONGEST {
        // The kernel takes no more.
        if at >= LONGEST {
            return false;
        }
        match facts.byte(at) {
            None | Some(END) => return false,
            Some(NOTHING) => at += 1,
            Some(LOOSE | STRICT) => return true,
            Some(_) => match facts.byte(at + 1) {
                // The kernel refuses an option without a length.
                None | Some(0 | 1) => return false,
                Some(length) => at += length as usize,
            },
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use abi::Waits;

    use super::{Facts, Kind, Set, Verdict, decide, kind};

    struct Call<'a>(bool, &'a [u8]);

    impl Facts for Call<'_> {
        fn carried(&self) -> bool {
            self.0
        }
        fn byte(&self, at: usize) -> Option<u8> {
            self.1.get(at).copied()
        }
    }

    /// Every option that could be thought to change where TCP goes: level, name, number, what it decides.
    const OPTIONS: [(i32, &str, i32, Kind); 27] = [
        (1, "SO_BINDTODEVICE", 25, Kind::Path),
        (1, "SO_BINDTOIFINDEX", 62, Kind::Path),
        (1, "SO_MARK", 36, Kind::Path),
        (41, "IPV6_RTHDR", 57, Kind::RoutingHeader),
        (41, "IPV6_2292PKTOPTIONS", 6, Kind::RoutingHeader),
        (0, "IP_OPTIONS", 4, Kind::Options),
        (0, "IP_IPSEC_POLICY", 16, Kind::Policy),
        (0, "IP_XFRM_POLICY", 17, Kind::Policy),
        (41, "IPV6_IPSEC_POLICY", 34, Kind::Policy),
        (41, "IPV6_XFRM_POLICY", 35, Kind::Policy),
        // Links only: the mesh's routes are of a nearer scope still.
        (1, "SO_DONTROUTE", 5, Kind::Other),
        // Chooses a queue, not a route.
        (1, "SO_PRIORITY", 12, Kind::Other),
        // Rules may look at it; the mesh's rule comes before them and does not.
        (0, "IP_TOS", 1, Kind::Other),
        (41, "IPV6_TCLASS", 67, Kind::Other),
        // Source addresses only; who uses a foreign one is not answered.
        (0, "IP_FREEBIND", 15, Kind::Other),
        (0, "IP_TRANSPARENT", 19, Kind::Other),
        (41, "IPV6_FREEBIND", 78, Kind::Other),
        (41, "IPV6_TRANSPARENT", 75, Kind::Other),
        // Datagrams only.
        (0, "IP_UNICAST_IF", 50, Kind::Other),
        (0, "IP_MULTICAST_IF", 32, Kind::Other),
        (41, "IPV6_UNICAST_IF", 76, Kind::Other),
        (41, "IPV6_PKTINFO", 50, Kind::Other),
        (41, "IPV6_FLOWLABEL_MGR", 32, Kind::Other),
        // Headers that nobody routes by.
        (41, "IPV6_HOPOPTS", 54, Kind::Other),
        (41, "IPV6_RTHDRDSTOPTS", 55, Kind::Other),
        (41, "IPV6_DSTOPTS", 59, Kind::Other),
        // Makes an IPv4 socket of one with a mapped address, mark and all.
        (41, "IPV6_ADDRFORM", 1, Kind::Other),
    ];

    #[test]
    fn every_option_that_changes_where_tcp_goes_is_known() {
        for (level, name, number, expected) in OPTIONS {
            assert_eq!(kind(level, number), expected, "{name}");
            // The same number at another level is another option.
            assert_eq!(kind(7, number), Kind::Other, "{name}");
        }
    }

    #[test]
    fn how_long_an_application_waits_is_what_the_kernel_takes() {
        let unset = Set {
            keepalive: 0,
            idle: 7200,
            interval: 75,
            probes: 9,
            user_timeout: 0,
        };
        assert!(unset.waits().is_default());
        for (level, name, value, right) in [
            (1, 9, 1, true),
            (1, 9, -1, true),
            (6, 4, 0, false),
            (6, 4, 1, true),
            (6, 4, 32768, false),
            (6, 5, 32767, true),
            (6, 6, 127, true),
            (6, 6, 128, false),
            (6, 18, 0, true),
            (6, 18, -1, false),
            (6, 18, i32::MAX, true),
            (6, 13, 1, false),
        ] {
            let taken = unset.with(level, name, value);
            assert_eq!(taken.is_some(), right, "{level} {name} {value}");
            assert!(!right || matches!(kind(level, name), Kind::Wait));
        }
        let set = [(6, 18, 3000), (6, 4, 5), (6, 5, 2), (6, 6, 3)];
        let set = set.iter().fold(unset, |set, (level, name, value)| {
            set.with(*level, *name, *value).unwrap()
        });
        let off = Waits {
            user_timeout: 3000,
            idle: 0,
            interval: 0,
            probes: 0,
        };
        assert_eq!(set.waits(), off);
        let on = Waits {
            idle: 5,
            interval: 2,
            probes: 3,
            ..off
        };
        assert_eq!(set.with(1, 9, 1).unwrap().waits(), on);
    }

    #[test]
    fn what_would_undo_the_mesh_has_no_effect_or_is_refused() {
        use Verdict::{Ignore, Pass, Refuse};
        let value = &[0, 2, 4, 1][..];
        for (kind, carried, value, expected) in [
            (Kind::Other, true, value, Pass),
            (Kind::Path, false, value, Pass),
            (Kind::Path, true, value, Ignore),
            (Kind::Path, true, &[], Ignore),
            (Kind::RoutingHeader, false, value, Refuse),
            (Kind::RoutingHeader, true, value, Refuse),
            (Kind::RoutingHeader, true, &[], Pass),
            (Kind::RoutingHeader, true, &[0; 16], Pass),
            (Kind::Policy, false, value, Refuse),
            // Removing them, record route, router alert and padding.
            (Kind::Options, true, &[], Pass),
            (Kind::Options, true, &[7, 7, 4, 0, 0, 0, 0, 0], Pass),
            (Kind::Options, true, &[1, 1, 148, 4, 0, 0, 0, 0], Pass),
            // Loose and strict, behind others too; a number in another option's value is none.
            (Kind::Options, false, &[131, 7, 4, 10, 0, 0, 1, 0], Refuse),
            (Kind::Options, false, &[1, 137, 7, 4, 10, 0, 0, 1], Refuse),
            (
                Kind::Options,
                false,
                &[148, 4, 0, 0, 131, 7, 4, 10, 0, 0, 1, 0],
                Refuse,
            ),
            (
                Kind::Options,
                false,
                &[7, 7, 4, 131, 137, 131, 137, 0],
                Pass,
            ),
            (Kind::Options, false, &[0, 131, 7, 4, 10, 0, 0, 1], Pass),
        ] {
            let call = Call(carried, value);
            assert_eq!(
                decide(kind, &call),
                expected,
                "{kind:?} {carried} {value:?}"
            );
        }
    }
}

//! Records of our own against those of rustls, as a fuzzer has them say things to each other.

use std::io::{Read as _, Write as _};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::{ClientConnection, Connection, Error, ServerConnection};
use tls::ca::Authority;
use tls::{SystemClock, TlsOptions, WorkloadCert, server_name};

use super::protection::Protection;
use super::records::{OVERHEAD, Outgoing, Records, Session};

/// Things that are said in one connection.
const MOST: usize = 64;

/// Ours on one side, rustls' buffered API on the other.
struct Pair {
    ours: Protection,
    outgoing: Outgoing,
    theirs: Connection,
}

/// Does what the bytes say: the first chooses our side, and each three of the others are a deed and a length.
pub fn records(data: &[u8]) {
    let Some((side, deeds)) = data.split_first() else {
        return;
    };
    let Some(mut pair) = Pair::new(side & 1 == 0) else {
        return;
    };
    let (deeds, rest) = deeds.as_chunks::<3>();
    for (index, [deed, high, low]) in deeds.iter().enumerate().take(MOST) {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        match deed % 8 {
            0 | 1 => pair.write(&pattern(length)),
            2 | 3 => pair.read(&pattern(length)),
            4 => {
                assert!(pair.theirs.refresh_traffic_keys().is_ok());
                // New keys without data may come so many times only.
                pair.read(&pattern(length.max(1)));
                // They asked for ours.
                assert!(pair.ours.answer(&mut pair.outgoing).is_ok());
                pair.write(&pattern(1));
            }
            5 => {
                assert!(pair.ours.change_keys(&mut pair.outgoing).is_ok());
                pair.write(&pattern(length.max(1)));
            }
            6 => return pair.tamper(index, length),
            _ => return pair.babble(deeds.as_flattened(), rest),
        }
    }
    pair.close();
}

impl Pair {
    fn new(is_client: bool) -> Option<Self> {
        let cert = cert()?;
        if is_client {
            let theirs = ServerConnection::new(cert.server()).ok()?;
            let ours =
                UnbufferedClientConnection::new(cert.client_with_keys(), server_name()).ok()?;
            Self::shake(Records::new(ours), theirs.into())
        } else {
            let theirs = ClientConnection::new(cert.client(), server_name()).ok()?;
            let ours = UnbufferedServerConnection::new(cert.server_with_keys()).ok()?;
            Self::shake(Records::new(ours), theirs.into())
        }
    }

    fn shake<S: Session>(mut ours: Records<S>, mut theirs: Connection) -> Option<Self> {
        let mut incoming = Vec::new();
        while ours.session.common().is_handshaking() || theirs.is_handshaking() {
            incoming.extend(said(&mut theirs));
            let used = ours.take(&mut incoming, &mut |_| {}).ok()?;
            incoming.drain(..used);
            tell(&mut theirs, &ours.outgoing.take_all()).ok()?;
        }
        Some(Self {
            ours: ours.session.into_protection().ok()?,
            outgoing: Outgoing::default(),
            theirs,
        })
    }

    /// They read what we write.
    fn write(&mut self, plain: &[u8]) {
        assert!(self.ours.seal(plain, &mut self.outgoing).is_ok());
        let heard = tell(&mut self.theirs, &self.outgoing.take_all());
        assert_eq!(heard.as_deref(), Ok(plain));
    }

    /// We read what they write.
    fn read(&mut self, plain: &[u8]) {
        let mut wire = self.theirs_say(plain);
        let (heard, left) = self.open(&mut wire);
        assert_eq!((heard.as_deref(), left), (Some(plain), 0));
    }

    fn theirs_say(&mut self, plain: &[u8]) -> Vec<u8> {
        let mut wire = said(&mut self.theirs);
        for part in plain.chunks(16 << 10) {
            assert!(self.theirs.writer().write_all(part).is_ok());
            wire.extend(said(&mut self.theirs));
        }
        wire
    }

    /// What we make of this, and how many bytes are left.
    fn open(&mut self, wire: &mut [u8]) -> (Option<Vec<u8>>, usize) {
        let (mut plain, mut used) = (Vec::new(), 0);
        loop {
            let rest = wire.get_mut(used..).unwrap_or_default();
            match self.ours.open(rest, &mut self.outgoing) {
                Ok(Some(opened)) => {
                    plain.extend_from_slice(rest.get(opened.data).unwrap_or_default());
                    used += opened.length;
                }
                Ok(None) => return (Some(plain), wire.len() - used),
                Err(_refused) => return (None, wire.len() - used),
            }
        }
    }

    /// Whatever bit is turned, neither side takes the record.
    fn tamper(mut self, index: usize, at: usize) {
        let plain = pattern(100);
        let turn = |wire: &mut Vec<u8>| {
            let place = at % wire.len().max(1);
            if let Some(byte) = wire.get_mut(place) {
                *byte ^= 1 << (index % 8);
            }
            place
        };
        let mut wire = self.theirs_say(&plain);
        turn(&mut wire);
        let (heard, left) = self.open(&mut wire);
        // A length that has become longer waits for the rest.
        assert!(heard.is_none_or(|heard| heard.is_empty() && left > OVERHEAD));
        assert!(self.ours.seal(&plain, &mut self.outgoing).is_ok());
        let mut wire = self.outgoing.take_all();
        // An alert of ours may be in front. rustls does not look at the version (section 5.1), and seals it as it should be.
        let is_version = matches!(turn(&mut wire), 1 | 2);
        let heard = tell(&mut self.theirs, &wire);
        assert!(is_version || heard.as_deref() != Ok(&*plain));
    }

    /// Bytes that nobody has sealed are no data.
    fn babble(mut self, bytes: &[u8], more: &[u8]) {
        let mut wire = [bytes, more].concat();
        let (heard, _) = self.open(&mut wire);
        assert!(heard.is_none_or(|heard| heard.is_empty()));
    }

    fn close(mut self) {
        self.ours.close(&mut self.outgoing);
        self.theirs.send_close_notify();
        let mut wire = said(&mut self.theirs);
        assert_eq!(self.open(&mut wire), (Some(Vec::new()), 0));
        assert!(self.ours.closed);
        assert_eq!(
            tell(&mut self.theirs, &self.outgoing.take_all()),
            Ok(Vec::new())
        );
    }
}

/// One for both sides: making it takes longer than a handshake.
fn cert() -> Option<&'static WorkloadCert> {
    static CERT: OnceLock<Option<WorkloadCert>> = OnceLock::new();
    let make = || {
        let authority = Authority::generate("fuzz", Arc::new(SystemClock)).ok()?;
        let identity = "spiffe://cluster.local/ns/fuzz/sa/fuzz".parse().ok()?;
        let svid = authority
            .issue(&identity, Duration::from_secs(86_400))
            .ok()?;
        WorkloadCert::new(&svid, &TlsOptions::default()).ok()
    };
    CERT.get_or_init(make).as_ref()
}

fn said(theirs: &mut Connection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while theirs.wants_write() && theirs.write_tls(&mut bytes).is_ok() {}
    bytes
}

fn tell(theirs: &mut Connection, mut bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let mut plain = Vec::new();
    while !bytes.is_empty() && theirs.read_tls(&mut bytes).is_ok() {
        let state = theirs.process_new_packets()?;
        let mut chunk = vec![0; state.plaintext_bytes_to_read()];
        if theirs.reader().read_exact(&mut chunk).is_ok() {
            plain.append(&mut chunk);
        }
    }
    Ok(plain)
}

fn pattern(length: usize) -> Vec<u8> {
    (0_u8..251).cycle().take(length).collect()
}

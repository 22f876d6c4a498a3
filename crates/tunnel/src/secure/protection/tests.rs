//! Our records against rustls' own, in memory, and against every kind of peer that misbehaves.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use proptest::prelude::*;
use rustls::client::UnbufferedClientConnection;
use rustls::crypto::aws_lc_rs::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::{ClientConfig, Connection, ServerConfig};

use super::super::layer::{Layer, Own};
use super::super::records::{Records, Session};
use super::*;

const SUITES: [SupportedCipherSuite; 2] = [TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    Client,
    Server,
}

const SIDES: [Side; 2] = [Side::Client, Side::Server];

/// Ours on one side, rustls' buffered API on the other.
struct Pair {
    ours: Protection,
    outgoing: Outgoing,
    theirs: Connection,
}

fn configs(suite: SupportedCipherSuite) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let provider = Arc::new(rustls::crypto::CryptoProvider {
        cipher_suites: vec![suite],
        ..rustls::crypto::aws_lc_rs::default_provider()
    });
    let names = ["peer".to_owned()];
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(names).unwrap();
    let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
    let versions: &[_] = &[&rustls::version::TLS13];
    let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    server.enable_secret_extraction = true;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(cert.der().clone()).unwrap();
    let mut client = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.enable_secret_extraction = true;
    (Arc::new(client), Arc::new(server))
}

fn name() -> ServerName<'static> {
    ServerName::try_from("peer").unwrap()
}

fn pair(side: Side, suite: SupportedCipherSuite) -> Pair {
    let (client, server) = configs(suite);
    match side {
        Side::Client => {
            let theirs = rustls::ServerConnection::new(server).unwrap().into();
            let ours = UnbufferedClientConnection::new(client, name()).unwrap();
            shake(Records::new(ours), theirs)
        }
        Side::Server => {
            let theirs = rustls::ClientConnection::new(client, name()).unwrap();
            let ours = UnbufferedServerConnection::new(server).unwrap();
            shake(Records::new(ours), theirs.into())
        }
    }
}

fn shake<S: Session>(mut ours: Records<S>, mut theirs: Connection) -> Pair {
    let mut incoming = Vec::new();
    while ours.session.common().is_handshaking() || theirs.is_handshaking() {
        incoming.extend(said(&mut theirs));
        let used = ours.take(&mut incoming, &mut |_| {}).unwrap();
        incoming.drain(..used);
        tell(&mut theirs, &ours.outgoing.take_all()).unwrap();
    }
    // A server's tickets.
    incoming.extend(said(&mut theirs));
    let mut pair = Pair {
        ours: ours.session.into_protection().unwrap(),
        outgoing: Outgoing::default(),
        theirs,
    };
    assert_eq!(pair.open(&mut incoming).unwrap(), b"");
    pair
}

fn said(theirs: &mut Connection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while theirs.wants_write() {
        theirs.write_tls(&mut bytes).unwrap();
    }
    bytes
}

fn tell(theirs: &mut Connection, mut bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let mut plain = Vec::new();
    while !bytes.is_empty() {
        theirs.read_tls(&mut bytes).unwrap();
        theirs.process_new_packets()?;
        let mut chunk = vec![0; 1 << 20];
        if let Ok(read) = theirs.reader().read(&mut chunk) {
            plain.extend_from_slice(&chunk[..read]);
        }
    }
    Ok(plain)
}

/// Opens what is whole, takes it from `bytes` and gives the data in it.
fn open(
    ours: &mut Protection,
    outgoing: &mut Outgoing,
    bytes: &mut Vec<u8>,
) -> io::Result<Vec<u8>> {
    let mut plain = Vec::new();
    while let Some(opened) = ours.open(bytes, outgoing)? {
        plain.extend_from_slice(&bytes[opened.data]);
        bytes.drain(..opened.length);
    }
    Ok(plain)
}

fn reason(error: &io::Error) -> Error {
    let inner = error.get_ref().unwrap();
    inner.downcast_ref::<Error>().unwrap().clone()
}

impl Pair {
    fn open(&mut self, bytes: &mut Vec<u8>) -> io::Result<Vec<u8>> {
        open(&mut self.ours, &mut self.outgoing, bytes)
    }

    fn write(&mut self, plain: &[u8]) -> Vec<u8> {
        self.ours.seal(plain, &mut self.outgoing).unwrap();
        let bytes = self.outgoing.take_all();
        tell(&mut self.theirs, &bytes).unwrap()
    }

    fn read(&mut self, plain: &[u8]) -> Vec<u8> {
        let mut all = Vec::new();
        for part in plain.chunks(32 << 10) {
            self.theirs.writer().write_all(part).unwrap();
            all.extend(said(&mut self.theirs));
        }
        self.open(&mut all).unwrap()
    }

    /// What the peer hears when ours finds this behind everything before it.
    fn refuses(&mut self, bytes: &[u8]) -> (Error, Option<AlertDescription>) {
        let error = self.open(&mut bytes.to_vec()).unwrap_err();
        let heard = tell(&mut self.theirs, &self.outgoing.take_all());
        let heard = match heard {
            Err(Error::AlertReceived(alert)) => Some(alert),
            other => panic!("{other:?}"),
        };
        (reason(&error), heard)
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n * 31 % 251) as u8).collect()
}

#[test]
fn rustls_reads_what_we_write_and_we_read_what_it_writes() {
    for (side, suite) in SIDES
        .into_iter()
        .flat_map(|side| SUITES.map(|suite| (side, suite)))
    {
        let mut pair = pair(side, suite);
        for length in [0, 1, 100, RECORD - 1, RECORD, RECORD + 1, 200_000] {
            let sent = pattern(length);
            assert!(pair.write(&sent) == sent, "{side:?}, there, {length}");
            assert!(pair.read(&sent) == sent, "{side:?}, back, {length}");
        }
    }
}

#[test]
fn records_are_as_long_as_they_can_be() {
    let mut pair = pair(Side::Client, TLS13_AES_128_GCM_SHA256);
    pair.ours
        .seal(&pattern(4 * RECORD), &mut pair.outgoing)
        .unwrap();
    assert_eq!(pair.outgoing.waiting(), 4 * (RECORD + OVERHEAD));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn bytes_are_cut_anywhere(
        sizes in prop::collection::vec(1_usize..40_000, 1..6),
        cut in prop::collection::vec(1_usize..5000, 1..9),
    ) {
        let mut pair = pair(Side::Server, TLS13_AES_128_GCM_SHA256);
        let mut wire = Vec::new();
        let mut sent = Vec::new();
        for size in sizes {
            let part = pattern(size);
            pair.theirs.writer().write_all(&part).unwrap();
            wire.extend(said(&mut pair.theirs));
            sent.extend(part);
        }
        let (mut incoming, mut received) = (Vec::new(), Vec::new());
        let mut wire = &*wire;
        for size in cut.iter().cycle() {
            let (now, later) = wire.split_at((*size).min(wire.len()));
            incoming.extend_from_slice(now);
            received.extend(pair.open(&mut incoming).unwrap());
            wire = later;
            if wire.is_empty() {
                break;
            }
        }
        prop_assert!(received == sent);
        prop_assert!(incoming.is_empty());
    }

    /// Whatever bit is turned: nothing of that record is given away.
    #[test]
    fn nothing_that_was_tampered_with_is_taken(
        length in 1_usize..2000, at in any::<prop::sample::Index>(), bit in 0_u8..8,
    ) {
        let mut pair = pair(Side::Client, TLS13_AES_128_GCM_SHA256);
        pair.theirs.writer().write_all(&pattern(length)).unwrap();
        let mut wire = said(&mut pair.theirs);
        *at.get_mut(&mut wire) ^= 1 << bit;
        match pair.open(&mut wire) {
            // A length that has become longer waits for the rest.
            Ok(plain) => prop_assert!(plain.is_empty() && wire.len() == length + OVERHEAD),
            Err(_) => prop_assert!(pair.outgoing.waiting() > 0, "the peer is told"),
        }
    }

    #[test]
    fn any_bytes_are_an_error_or_the_beginning_of_a_record(
        mut bytes in prop::collection::vec(any::<u8>(), 0..100), head in any::<bool>(),
    ) {
        let mut pair = pair(Side::Server, TLS13_AES_128_GCM_SHA256);
        if head && let Some(front) = bytes.get_mut(..4) {
            front.copy_from_slice(&[23, 3, 3, 0]);
        }
        if let Ok(plain) = pair.open(&mut bytes) {
            prop_assert!(plain.is_empty());
        }
    }
}

#[test]
fn a_record_that_comes_twice_or_out_of_order_is_refused() {
    for swap in [false, true] {
        let mut pair = pair(Side::Client, TLS13_AES_128_GCM_SHA256);
        let mut records = Vec::new();
        for word in [b"one", b"two"] {
            pair.theirs.writer().write_all(word).unwrap();
            records.push(said(&mut pair.theirs));
        }
        if !swap {
            assert_eq!(pair.open(&mut records[0].clone()).unwrap(), b"one");
        }
        let wrong = records[usize::from(swap)].clone();
        let refused = pair.refuses(&wrong);
        assert_eq!(
            refused,
            (Error::DecryptError, Some(AlertDescription::BadRecordMac))
        );
    }
}

#[test]
fn the_clear_and_the_oversized_are_refused_by_their_heads() {
    let unexpected = AlertDescription::UnexpectedMessage;
    let content = Error::InvalidMessage(InvalidMessage::InvalidContentType);
    let cases = [
        (vec![21, 3, 3, 0, 2, 1, 0], content.clone(), unexpected),
        (vec![20, 3, 3, 0, 1, 1], content.clone(), unexpected),
        (b"GET / HTTP/1.1\r\n".to_vec(), content, unexpected),
        (
            vec![23, 3, 3, 0x41, 1],
            Error::PeerSentOversizedRecord,
            AlertDescription::RecordOverflow,
        ),
        (
            vec![23, 3, 3, 0, 3, 1, 2, 3],
            Error::DecryptError,
            AlertDescription::BadRecordMac,
        ),
    ];
    for (bytes, error, alert) in cases {
        let mut pair = pair(Side::Server, TLS13_AES_128_GCM_SHA256);
        assert_eq!(pair.refuses(&bytes), (error, Some(alert)), "{bytes:?}");
    }
}

#[test]
fn both_sides_can_say_that_nothing_follows() {
    for side in SIDES {
        let mut pair = pair(side, TLS13_AES_128_GCM_SHA256);
        pair.theirs.send_close_notify();
        let mut wire = said(&mut pair.theirs);
        assert_eq!(pair.open(&mut wire).unwrap(), b"");
        assert!(pair.ours.closed);
        pair.ours.close(&mut pair.outgoing);
        let wire = pair.outgoing.take_all();
        pair.theirs.read_tls(&mut &*wire).unwrap();
        assert!(pair.theirs.process_new_packets().unwrap().peer_has_closed());
    }
}

#[test]
fn new_keys_are_answered_once_however_often_they_are_asked_for() {
    for side in SIDES {
        let mut pair = pair(side, TLS13_AES_256_GCM_SHA384);
        for _ in 0..30 {
            pair.theirs.refresh_traffic_keys().unwrap();
            let mut wire = said(&mut pair.theirs);
            pair.open(&mut wire).unwrap();
        }
        assert_eq!(pair.outgoing.waiting(), 0);
        pair.ours.answer(&mut pair.outgoing).unwrap();
        assert_eq!(pair.outgoing.waiting(), KEY_UPDATE.len() + OVERHEAD);
        pair.ours.answer(&mut pair.outgoing).unwrap();
        assert_eq!(pair.outgoing.waiting(), KEY_UPDATE.len() + OVERHEAD);
        assert_eq!(pair.write(b"under new keys"), b"under new keys");
        assert_eq!(pair.read(b"and back"), b"and back");
    }
}

#[test]
fn nothing_follows_a_close() {
    let mut pair = pair(Side::Client, TLS13_AES_128_GCM_SHA256);
    pair.ours.close(&mut pair.outgoing);
    let before = pair.outgoing.waiting();
    pair.theirs.refresh_traffic_keys().unwrap();
    let mut wire = said(&mut pair.theirs);
    pair.open(&mut wire).unwrap();
    pair.ours.answer(&mut pair.outgoing).unwrap();
    assert_eq!(pair.outgoing.waiting(), before);
}

/// A suite whose keys may make only so many records.
fn short_lived(records: u64) -> SupportedCipherSuite {
    let suite = TLS13_AES_128_GCM_SHA256.tls13().unwrap();
    let common = rustls::crypto::CipherSuiteCommon {
        suite: suite.common.suite,
        hash_provider: suite.common.hash_provider,
        confidentiality_limit: records,
    };
    SupportedCipherSuite::Tls13(Box::leak(Box::new(rustls::Tls13CipherSuite {
        common,
        hkdf_provider: suite.hkdf_provider,
        aead_alg: suite.aead_alg,
        quic: None,
    })))
}

#[test]
fn keys_change_before_they_have_made_too_many_records() {
    for side in SIDES {
        let mut pair = pair(side, short_lived(20));
        for round in 0..100 {
            let sent = pattern(50_000);
            assert!(pair.write(&sent) == sent, "there, {round}");
            assert!(pair.ours.seal.sequence <= 20, "{}", pair.ours.seal.sequence);
            assert!(pair.read(&sent) == sent, "back, {round}");
        }
    }
}

#[test]
fn a_peer_may_not_change_its_keys_for_ever() {
    let mut pair = pair(Side::Server, TLS13_AES_128_GCM_SHA256);
    for _ in 0..KEY_CHANGES {
        pair.theirs.refresh_traffic_keys().unwrap();
        assert_eq!(pair.read(b"x"), b"x");
    }
    pair.theirs.refresh_traffic_keys().unwrap();
    let wire = said(&mut pair.theirs);
    let refused = pair.refuses(&wire);
    let error = PeerMisbehaved::TooManyKeyUpdateRequests.into();
    assert_eq!(refused, (error, Some(AlertDescription::UnexpectedMessage)));
}

/// Sessions that have made their handshake with each other.
fn shaken() -> (
    Records<UnbufferedClientConnection>,
    Records<UnbufferedServerConnection>,
) {
    let (client, server) = configs(TLS13_AES_128_GCM_SHA256);
    let mut client = Records::new(UnbufferedClientConnection::new(client, name()).unwrap());
    let mut server = Records::new(UnbufferedServerConnection::new(server).unwrap());
    let (mut there, mut back) = (Vec::new(), Vec::new());
    while client.session.common().is_handshaking() || server.session.common().is_handshaking() {
        let used = client.take(&mut back, &mut |_| {}).unwrap();
        back.drain(..used);
        there.extend(client.outgoing.take_all());
        let used = server.take(&mut there, &mut |_| {}).unwrap();
        there.drain(..used);
        back.extend(server.outgoing.take_all());
    }
    // The server's tickets.
    client.take(&mut back, &mut |_| {}).unwrap();
    (client, server)
}

#[test]
fn plaintext_does_not_stay_in_buffers() {
    let (client, server) = shaken();
    let (mut near, mut far) = (Own::new(client).unwrap(), Own::new(server).unwrap());
    let mut plain = pattern(40_000);
    near.seal(&mut plain, &mut Vec::new()).unwrap();
    assert!(plain.iter().all(|byte| *byte == 0));
    let mut wire = near.outgoing().take_all();
    let mut shown = Vec::new();
    let used = far.open(&mut wire, &mut |pieces| shown.extend(pieces.concat()));
    assert_eq!(used.unwrap(), wire.len());
    assert!(shown == pattern(40_000));
    assert!(
        !wire
            .windows(16)
            .any(|part| shown.windows(16).step_by(1000).any(|was| was == part))
    );
}

/// Both sides are ours, so that one of them can be made to say anything.
fn ours_and_hostile() -> (Pair, Protection) {
    let (hostile, ours) = shaken();
    let pair = Pair {
        ours: ours.session.into_protection().unwrap(),
        outgoing: Outgoing::default(),
        // Nobody's: what is refused is heard by the hostile one.
        theirs: rustls::ServerConnection::new(configs(TLS13_AES_128_GCM_SHA256).1)
            .unwrap()
            .into(),
    };
    (pair, hostile.session.into_protection().unwrap())
}

/// A record's type and content.
type Said<'a> = (u8, &'a [u8]);

/// Gives ours these records, each of a type and a content. A type of 0 is padding in front of which the
/// content brings its own.
fn say(records: &[Said<'_>]) -> Result<Vec<u8>, Box<(Error, Option<Error>)>> {
    let (mut pair, mut hostile) = ours_and_hostile();
    let mut wire = Outgoing::default();
    for (kind, content) in records {
        hostile
            .record(ContentType::from(*kind), content, &mut wire)
            .unwrap();
    }
    pair.open(&mut wire.take_all()).map_err(|error| {
        let mut answer = pair.outgoing.take_all();
        let heard = hostile.open(&mut answer, &mut Outgoing::default());
        Box::new((reason(&error), heard.err().map(|heard| reason(&heard))))
    })
}

#[test]
fn padding_is_taken_off() {
    assert_eq!(
        say(&[(0, b"data\x17\0\0\0"), (23, b" and more")]).unwrap(),
        b"data and more"
    );
}

#[test]
fn what_a_peer_may_not_say_ends_the_connection_and_the_peer_is_told_why() {
    use AlertDescription as Alert;
    let long = vec![0; RECORD + 1];
    let message = vec![11, 1, 0, 0];
    let endless = [vec![4, 2, 0, 0], vec![0; RECORD - 4]].concat();
    let endless: Vec<Said<'_>> = (0..20).map(|_| (22, &*endless)).collect();
    let empty: Vec<Said<'_>> = (0..40).map(|_| (23, &b""[..])).collect();
    let part = [vec![(22, &message[..])], vec![(22, &b"x"[..]); 40]].concat();
    let cancelled: Vec<Said<'_>> = vec![(21, b"\x01\x5a"); 40];
    let cases: [(&[Said<'_>], Alert); 17] = [
        (&part, Alert::UnexpectedMessage),
        (&cancelled, Alert::UnexpectedMessage),
        (&[(0, b"")], Alert::UnexpectedMessage),
        (&[(20, b"\x01")], Alert::UnexpectedMessage),
        (&[(99, b"what?")], Alert::UnexpectedMessage),
        (&[(23, &long)], Alert::RecordOverflow),
        (&empty, Alert::UnexpectedMessage),
        (&[(21, b"\x01")], Alert::DecodeError),
        (&[(21, b"\x01\x00\x01")], Alert::DecodeError),
        (&[(22, b"")], Alert::DecodeError),
        (&endless, Alert::DecodeError),
        (
            &[(22, &message), (23, b"between")],
            Alert::UnexpectedMessage,
        ),
        (&[(22, b"\x0d\0\0\0")], Alert::UnexpectedMessage),
        (&[(22, b"\x04\0\0\0")], Alert::UnexpectedMessage),
        (&[(22, b"\x18\0\0\x01\x02")], Alert::IllegalParameter),
        (&[(22, b"\x18\0\0\x00")], Alert::DecodeError),
        (
            &[(22, b"\x18\0\0\x01\0\x18\0\0\x01\0")],
            Alert::UnexpectedMessage,
        ),
    ];
    for (records, alert) in cases {
        let (error, heard) = *say(records).unwrap_err();
        assert_eq!(heard, Some(Error::AlertReceived(alert)), "{error}");
    }
}

#[test]
fn a_peers_alert_is_the_reason_and_is_not_answered() {
    for alert in [
        AlertDescription::CertificateRevoked,
        AlertDescription::Unknown(200),
    ] {
        let (error, heard) = *say(&[(23, b"data"), (21, &[2, alert.into()])]).unwrap_err();
        assert_eq!((error, heard), (Error::AlertReceived(alert), None));
    }
    assert_eq!(say(&[(21, &[1, 90]), (23, b"data")]).unwrap(), b"data");
}

/// A key update that is cut in two is one all the same.
#[test]
fn a_handshake_message_may_come_in_parts() {
    let (mut pair, mut hostile) = ours_and_hostile();
    let mut wire = Outgoing::default();
    for part in [&KEY_UPDATE[..3], &KEY_UPDATE[3..]] {
        hostile
            .record(ContentType::Handshake, part, &mut wire)
            .unwrap();
    }
    hostile.seal = Keys::new(hostile.schedule.next_to_seal().unwrap()).unwrap();
    hostile.seal(b"under new keys", &mut wire).unwrap();
    assert_eq!(pair.open(&mut wire.take_all()).unwrap(), b"under new keys");
    assert!(!pair.ours.update_due);
}

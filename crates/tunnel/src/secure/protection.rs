//! Record protection of TLS 1.3 (RFC 8446 section 5) for a session whose handshake rustls made.
//!
//! rustls hands the keys over for this ([`rustls::kernel`]) and keeps the key schedule. Its own records are copied
//! once more than these when they are sent, and twice more when they are received; between two agents that is a tenth of what
//! bulk costs. Security code that one team reviews is worth that only to who asks for it
//! ([`RecordLayer::Own`](crate::settings::RecordLayer)): otherwise rustls makes the records, see [`super::records`].
//!
//! Keys are wiped when they are replaced or the connection is gone: what rustls hands over and what AWS-LC makes of it by
//! those libraries, the rest here.

use std::io;
use std::ops::Range;

use aws_lc_rs::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustls::kernel::KernelConnection;
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, Error, ExtractedSecrets,
    HandshakeType, InvalidMessage, PeerMisbehaved, SupportedCipherSuite,
};

use zeroize::{Zeroize, Zeroizing};

use super::records::{OVERHEAD, Outgoing, RECORD, invalid};

/// A record's head: type, version and length (section 5.1).
const HEAD: usize = 5;
/// Bytes of a protected record behind its head (section 5.2).
const LONGEST: usize = RECORD + 256;
/// The head of a handshake message: type and length (section 4).
const MESSAGE_HEAD: usize = 4;
/// A session ticket has at most about this; nothing else is as long (section 4.6.1).
const LONGEST_MESSAGE: usize = MESSAGE_HEAD + (128 << 10);
/// Records without data that may follow one another: they cost work and bring nothing. The longest ticket has
/// nine.
const EMPTY_RECORDS: u8 = 32;
/// Times that a peer may change its keys. A key is good for 2^23 records, so these are good for 35 TB; more often is
/// work that it makes for us.
const KEY_CHANGES: u16 = 256;
/// `update_not_requested` in a `KeyUpdate` (section 4.6.3).
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

/// The key schedule, which stays with rustls.
pub(super) trait Schedule: Send {
    fn suite(&self) -> SupportedCipherSuite;
    fn next_to_seal(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error>;
    fn next_to_open(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error>;
    /// A server's ticket.
    fn ticket(&mut self, payload: &[u8]) -> Result<(), Error>;
}

impl Schedule for KernelConnection<rustls::client::ClientConnectionData> {
    fn suite(&self) -> SupportedCipherSuite {
        self.negotiated_cipher_suite()
    }

    fn next_to_seal(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        self.update_tx_secret()
    }

    fn next_to_open(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        self.update_rx_secret()
    }

    fn ticket(&mut self, payload: &[u8]) -> Result<(), Error> {
        self.handle_new_session_ticket(payload)
    }
}

impl Schedule for KernelConnection<rustls::server::ServerConnectionData> {
    fn suite(&self) -> SupportedCipherSuite {
        self.negotiated_cipher_suite()
    }

    fn next_to_seal(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        self.update_tx_secret()
    }

    fn next_to_open(&mut self) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        self.update_rx_secret()
    }

    fn ticket(&mut self, _payload: &[u8]) -> Result<(), Error> {
        Err(unexpected_handshake(HandshakeType::NewSessionTicket))
    }
}

/// The keys of one direction.
struct Keys {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    /// Of the next record.
    sequence: u64,
}

impl Drop for Keys {
    fn drop(&mut self) {
        self.iv.zeroize();
    }
}

impl Keys {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, Error> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&AES_256_GCM, key, iv),
            _ => return Err(Error::General("a suite that is never offered".to_owned())),
        };
        let unusable = || Error::General("keys of an unusable length".to_owned());
        let key = UnboundKey::new(algorithm, key.as_ref()).map_err(|_unspecified| unusable())?;
        Ok(Self {
            key: LessSafeKey::new(key),
            iv: iv.as_ref().try_into().map_err(|_length| unusable())?,
            sequence,
        })
    }

    /// Section 5.3: the sequence number, mixed with the vector. No number comes twice.
    fn nonce(&mut self) -> Result<Nonce, Error> {
        let mut nonce = self.iv;
        let number = nonce.iter_mut().rev().zip(self.sequence.to_le_bytes());
        number.for_each(|(byte, number)| *byte ^= number);
        let next = self.sequence.checked_add(1);
        self.sequence = next.ok_or(Error::EncryptError)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// Both directions of a session.
pub(super) struct Protection {
    schedule: Box<dyn Schedule>,
    seal: Keys,
    open: Keys,
    /// Records under one key: section 5.5 allows 2^24.5 for AES-GCM.
    per_key: u64,
    /// The beginning of a handshake message.
    message: Zeroizing<Vec<u8>>,
    empty: u8,
    /// Times that the peer has changed its keys.
    key_changes: u16,
    /// The peer has asked for new keys from us. However often it did, it gets them once.
    update_due: bool,
    /// We said that nothing follows.
    ended: bool,
    /// The peer said that nothing follows.
    pub(super) closed: bool,
}

/// A record that was opened.
pub(super) struct Opened {
    /// Its bytes, head included.
    pub(super) length: usize,
    /// Where in them the peer's data are; empty in a record of another kind.
    pub(super) data: Range<usize>,
}

impl Protection {
    /// Goes on with the keys of a session.
    pub(super) fn new(
        secrets: ExtractedSecrets,
        schedule: Box<dyn Schedule>,
    ) -> Result<Self, Error> {
        let suite = schedule.suite();
        let limit = suite
            .tls13()
            .map(|suite| suite.common.confidentiality_limit);
        Ok(Self {
            schedule,
            per_key: limit.ok_or(Error::HandshakeNotComplete)? / 2,
            seal: Keys::new(secrets.tx)?,
            open: Keys::new(secrets.rx)?,
            message: Zeroizing::default(),
            empty: 0,
            key_changes: 0,
            update_due: false,
            ended: false,
            closed: false,
        })
    }

    /// Makes records of `plain`.
    ///
    /// # Errors
    /// When the keys are used up and there are no new ones.
    pub(super) fn seal(&mut self, plain: &[u8], outgoing: &mut Outgoing) -> io::Result<()> {
        for content in plain.chunks(RECORD) {
            if self.update_due || self.seal.sequence >= self.per_key {
                self.update(outgoing)?;
            }
            self.record(ContentType::ApplicationData, content, outgoing)?;
        }
        Ok(())
    }

    /// Answers the peer's wish for new keys, if it had one.
    pub(super) fn answer(&mut self, outgoing: &mut Outgoing) -> io::Result<()> {
        if self.update_due && !self.ended {
            self.update(outgoing)?;
        }
        Ok(())
    }

    #[cfg(fuzzing)]
    pub(super) fn change_keys(&mut self, outgoing: &mut Outgoing) -> io::Result<()> {
        self.update(outgoing)
    }

    /// Says that nothing follows (section 6.1).
    pub(super) fn close(&mut self, outgoing: &mut Outgoing) {
        self.ended = true;
        // Without it the peer finds the connection closed, which is what it is.
        let _unsaid = self
            .alert(1, AlertDescription::CloseNotify, outgoing)
            .is_err();
    }

    fn alert(
        &mut self,
        level: u8,
        alert: AlertDescription,
        outgoing: &mut Outgoing,
    ) -> io::Result<()> {
        self.record(ContentType::Alert, &[level, alert.into()], outgoing)
    }

    /// Section 4.6.3: the message goes under the old keys, everything behind it under the new ones.
    fn update(&mut self, outgoing: &mut Outgoing) -> io::Result<()> {
        self.record(ContentType::Handshake, &KEY_UPDATE, outgoing)?;
        let secrets = self.schedule.next_to_seal().map_err(invalid)?;
        self.seal = Keys::new(secrets).map_err(invalid)?;
        self.update_due = false;
        Ok(())
    }

    /// Appends one record.
    fn record(
        &mut self,
        kind: ContentType,
        content: &[u8],
        outgoing: &mut Outgoing,
    ) -> io::Result<()> {
        let length = content.len() + OVERHEAD;
        let head = head(length - HEAD);
        let nonce = self.seal.nonce().map_err(invalid)?;
        outgoing.append(length, |room| {
            let (front, rest) = room.split_at_mut(HEAD);
            front.copy_from_slice(&head);
            let (sealed, end) = rest.split_at_mut(content.len());
            let (aad, kind) = (Aad::from(head), [kind.into()]);
            let key = &self.seal.key;
            key.seal_out_of_place_scatter(nonce, aad, content, sealed, &kind, end)
                .map_err(|_unspecified| invalid(Error::EncryptError))
        })
    }

    /// Opens the record at the front of `bytes`, in place; none if it is not there as a whole.
    ///
    /// # Errors
    /// What the peer did wrong, or the alert that it sent. The alert for the peer is in `outgoing`.
    pub(super) fn open(
        &mut self,
        bytes: &mut [u8],
        outgoing: &mut Outgoing,
    ) -> io::Result<Option<Opened>> {
        self.try_open(bytes).map_err(|failure| {
            if let Some(alert) = failure.alert {
                // The connection has failed already, and this is the lesser reason.
                let _unsaid = self.alert(2, alert, outgoing).is_err();
            }
            invalid(failure.error)
        })
    }

    fn try_open(&mut self, bytes: &mut [u8]) -> Result<Option<Opened>, Failure> {
        let Some((head, rest)) = bytes.split_first_chunk_mut::<HEAD>() else {
            return Ok(None);
        };
        let [kind, _major, _minor, high, low] = *head;
        // Nothing is sent in the clear behind a handshake.
        if ContentType::from(kind) != ContentType::ApplicationData {
            return Err(Failure::unexpected(InvalidMessage::InvalidContentType));
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > LONGEST {
            return Err(Failure::too_long());
        }
        let Some(sealed) = rest.get_mut(..length) else {
            return Ok(None);
        };
        let nonce = self.open.nonce().map_err(Failure::from)?;
        let inner = self.open.key.open_in_place(nonce, Aad::from(*head), sealed);
        let inner = inner.map_err(|_unspecified| Failure {
            alert: Some(AlertDescription::BadRecordMac),
            error: Error::DecryptError,
        })?;
        if inner.len() > RECORD + 1 {
            return Err(Failure::too_long());
        }
        // Section 5.4: the type is the last byte that is not zero.
        let Some(end) = inner.iter().rposition(|byte| *byte != 0) else {
            return Err(Failure::unexpected(InvalidMessage::InvalidContentType));
        };
        let (content, kind) = inner.split_at(end);
        let kind = ContentType::from(kind.first().copied().unwrap_or_default());
        let mut data = HEAD..HEAD;
        match kind {
            // Section 5.1: nothing comes between the parts of a handshake message.
            ContentType::ApplicationData if self.message.is_empty() => data.end += content.len(),
            ContentType::Alert if self.message.is_empty() => self.alerted(content)?,
            ContentType::Handshake => self.handshake(content)?,
            _ => return Err(Failure::unexpected(InvalidMessage::InvalidContentType)),
        }
        self.count_empty(data.len())?;
        Ok(Some(Opened {
            length: HEAD + length,
            data,
        }))
    }

    fn count_empty(&mut self, length: usize) -> Result<(), Failure> {
        self.empty = if length == 0 { self.empty + 1 } else { 0 };
        if self.empty > EMPTY_RECORDS {
            return Err(Failure {
                alert: Some(AlertDescription::UnexpectedMessage),
                error: PeerMisbehaved::TooManyEmptyFragments.into(),
            });
        }
        Ok(())
    }

    /// Section 6: every alert but these two ends the connection, whatever its level.
    fn alerted(&mut self, content: &[u8]) -> Result<(), Failure> {
        let &[_level, alert] = content else {
            return Err(Failure::garbled(InvalidMessage::MessageTooShort));
        };
        match AlertDescription::from(alert) {
            AlertDescription::CloseNotify => self.closed = true,
            // A close follows.
            AlertDescription::UserCanceled => {}
            alert => {
                return Err(Failure {
                    alert: None,
                    error: Error::AlertReceived(alert),
                });
            }
        }
        Ok(())
    }

    fn handshake(&mut self, content: &[u8]) -> Result<(), Failure> {
        if content.is_empty() || self.message.len() + content.len() > LONGEST_MESSAGE {
            return Err(Failure::garbled(InvalidMessage::MessageTooLarge));
        }
        let mut all = std::mem::take(&mut self.message);
        all.extend_from_slice(content);
        let mut rest = &**all;
        while let Some(([kind, high, middle, low], behind)) = rest.split_first_chunk() {
            let length = u32::from_be_bytes([0, *high, *middle, *low]);
            let Some((body, behind)) = behind.split_at_checked(length as usize) else {
                break;
            };
            self.take_message(HandshakeType::from(*kind), body, behind.is_empty())?;
            rest = behind;
        }
        let taken = all.len() - rest.len();
        all.drain(..taken);
        if !all.is_empty() {
            self.message = all;
        }
        Ok(())
    }

    /// What may come behind a handshake (section 4.6): tickets and new keys.
    fn take_message(
        &mut self,
        kind: HandshakeType,
        body: &[u8],
        last: bool,
    ) -> Result<(), Failure> {
        match kind {
            HandshakeType::NewSessionTicket => self.schedule.ticket(body).map_err(Failure::from),
            HandshakeType::KeyUpdate => {
                // Section 5.1: no message spans a change of keys.
                if !last {
                    return Err(Failure {
                        alert: Some(AlertDescription::UnexpectedMessage),
                        error: PeerMisbehaved::KeyEpochWithPendingFragment.into(),
                    });
                }
                let request = match body {
                    [request @ (0 | 1)] => *request,
                    [_] => {
                        return Err(Failure {
                            alert: Some(AlertDescription::IllegalParameter),
                            error: InvalidMessage::InvalidKeyUpdate.into(),
                        });
                    }
                    _ => return Err(Failure::garbled(InvalidMessage::InvalidKeyUpdate)),
                };
                self.key_changes += 1;
                if self.key_changes > KEY_CHANGES {
                    return Err(Failure {
                        alert: Some(AlertDescription::UnexpectedMessage),
                        error: PeerMisbehaved::TooManyKeyUpdateRequests.into(),
                    });
                }
                let secrets = self.schedule.next_to_open().map_err(Failure::from)?;
                self.open = Keys::new(secrets).map_err(Failure::from)?;
                self.update_due |= request == 1;
                Ok(())
            }
            kind => Err(Failure::from(unexpected_handshake(kind))),
        }
    }
}

/// Section 5.2: every protected record looks like this.
fn head(length: usize) -> [u8; HEAD] {
    // At most `LONGEST`.
    let [high, low] = u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
    [ContentType::ApplicationData.into(), 3, 3, high, low]
}

fn unexpected_handshake(got_type: HandshakeType) -> Error {
    Error::InappropriateHandshakeMessage {
        expect_types: vec![HandshakeType::NewSessionTicket, HandshakeType::KeyUpdate],
        got_type,
    }
}

/// What ends a connection, and what the peer is told.
struct Failure {
    alert: Option<AlertDescription>,
    error: Error,
}

impl Failure {
    fn unexpected(message: InvalidMessage) -> Self {
        Self {
            alert: Some(AlertDescription::UnexpectedMessage),
            error: message.into(),
        }
    }

    fn garbled(message: InvalidMessage) -> Self {
        Self {
            alert: Some(AlertDescription::DecodeError),
            error: message.into(),
        }
    }

    fn too_long() -> Self {
        Self {
            alert: Some(AlertDescription::RecordOverflow),
            error: Error::PeerSentOversizedRecord,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let alert = match &error {
            Error::InappropriateHandshakeMessage { .. } => AlertDescription::UnexpectedMessage,
            Error::InvalidMessage(_) => AlertDescription::DecodeError,
            _ => AlertDescription::InternalError,
        };
        Self {
            alert: Some(alert),
            error,
        }
    }
}

#[cfg(test)]
mod tests;

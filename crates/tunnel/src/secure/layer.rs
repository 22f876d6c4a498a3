//! Who makes the records of a [`Link`](super::link::Link): rustls, or [`super::protection`] with rustls' keys.

use std::cell::RefCell;
use std::io;
use std::ops::Range;

use zeroize::Zeroize;

use super::protection::Protection;
use super::records::{Outgoing, Records, Session};

/// Records content that is shown at once, where it was decrypted.
const PIECES: usize = 16;

thread_local! {
    /// What rustls has decrypted, so that all of it is shown at once.
    static PLAIN: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Makes and opens records.
pub(super) trait Layer {
    /// Makes records of `plain`, which may be wiped. `partial` is the beginning of a record that was received.
    ///
    /// # Errors
    /// When the session cannot send (any more).
    fn seal(&mut self, plain: &mut [u8], partial: &mut Vec<u8>) -> io::Result<()>;

    /// Opens the whole records at the front of `incoming`, shows what they carry, and returns how many bytes they
    /// are.
    ///
    /// # Errors
    /// What the peer did wrong, or the alert that it sent. The alert for the peer is in the outgoing records.
    fn open(&mut self, incoming: &mut [u8], show: &mut dyn FnMut(&[&[u8]])) -> io::Result<usize>;

    /// Answers the peer's wish for new keys, if it had one and nothing else is to be sent.
    ///
    /// # Errors
    /// When there are no new keys.
    fn answer(&mut self) -> io::Result<()>;

    /// Says that nothing follows.
    fn close(&mut self, partial: &mut [u8]);

    /// Whether the peer has said that nothing follows.
    fn is_closed(&self) -> bool;

    /// The records that wait for the socket.
    fn outgoing(&mut self) -> &mut Outgoing;
}

impl<S: Session> Layer for Records<S> {
    fn seal(&mut self, plain: &mut [u8], partial: &mut Vec<u8>) -> io::Result<()> {
        self.encrypt(plain, partial)
    }

    fn open(&mut self, incoming: &mut [u8], show: &mut dyn FnMut(&[&[u8]])) -> io::Result<usize> {
        PLAIN.with_borrow_mut(|all| {
            all.clear();
            let taken = self.take(incoming, &mut |plain| all.extend_from_slice(plain));
            if !all.is_empty() {
                show(&[all]);
            }
            taken
        })
    }

    /// rustls answers with what is sent next (RFC 8446 section 4.6.3 asks for no more).
    fn answer(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn close(&mut self, partial: &mut [u8]) {
        Self::close(self, partial);
    }

    fn is_closed(&self) -> bool {
        self.closed
    }

    fn outgoing(&mut self) -> &mut Outgoing {
        &mut self.outgoing
    }
}

/// Records of our own. Plaintext does not stay behind in the buffers.
pub(super) struct Own {
    protection: Protection,
    outgoing: Outgoing,
}

impl Own {
    /// Goes on with the keys of a session that has made its handshake.
    pub(super) fn new<S: Session>(records: Records<S>) -> Result<Self, rustls::Error> {
        let mut protection = records.session.into_protection()?;
        protection.closed = records.closed;
        Ok(Self {
            protection,
            outgoing: records.outgoing,
        })
    }
}

impl Layer for Own {
    fn seal(&mut self, plain: &mut [u8], _partial: &mut Vec<u8>) -> io::Result<()> {
        let sealed = self.protection.seal(plain, &mut self.outgoing);
        plain.zeroize();
        sealed
    }

    fn open(&mut self, incoming: &mut [u8], show: &mut dyn FnMut(&[&[u8]])) -> io::Result<usize> {
        let mut used = 0;
        loop {
            let mut places: [Range<usize>; PIECES] = Default::default();
            let mut count = 0;
            let mut result = Ok(());
            for place in &mut places {
                let rest = incoming.get_mut(used..).unwrap_or_default();
                match self.protection.open(rest, &mut self.outgoing) {
                    Ok(Some(opened)) => {
                        *place = used + opened.data.start..used + opened.data.end;
                        used += opened.length;
                        count += 1;
                    }
                    Ok(None) => break,
                    Err(error) => {
                        result = Err(error);
                        break;
                    }
                }
                if self.protection.closed {
                    // Section 6.1: what follows is ignored.
                    used = incoming.len();
                    break;
                }
            }
            let mut pieces = [&[][..]; PIECES];
            for (piece, place) in pieces.iter_mut().zip(&places).take(count) {
                *piece = incoming.get(place.clone()).unwrap_or_default();
            }
            if count > 0 {
                show(pieces.get(..count).unwrap_or_default());
            }
            for place in places.iter().take(count) {
                incoming
                    .get_mut(place.clone())
                    .unwrap_or_default()
                    .zeroize();
            }
            result?;
            if count < PIECES {
                return Ok(used);
            }
        }
    }

    fn answer(&mut self) -> io::Result<()> {
        self.protection.answer(&mut self.outgoing)
    }

    fn close(&mut self, _partial: &mut [u8]) {
        self.protection.close(&mut self.outgoing);
    }

    fn is_closed(&self) -> bool {
        self.protection.closed
    }

    fn outgoing(&mut self) -> &mut Outgoing {
        &mut self.outgoing
    }
}

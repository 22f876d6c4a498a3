//! Frames in a stream of bytes, and the bytes in frames.

/// Bytes of a frame's head.
pub(super) const HEAD: usize = 8;

/// The longest payload of a frame that is not data. A request has names in it.
const LONGEST: usize = 64 << 10;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Open = 1,
    Answer = 2,
    Data = 3,
    Fin = 4,
    Reset = 5,
    Credit = 6,
    Away = 7,
    Ping = 8,
    Pong = 9,
}

/// What a peer did that the protocol does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer broke the protocol: {0}")]
pub(super) struct Violation(pub(super) &'static str);

/// A part of what was received.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Part<'a, 'p> {
    /// Some bytes of a connection, not always all of a frame.
    Data { stream: u32, bytes: &'a [u8] },
    /// Any other frame, whole.
    Frame {
        kind: Kind,
        stream: u32,
        payload: &'p [u8],
    },
}

/// Finds the frames. They begin and end wherever they like in what is received.
#[derive(Debug, Default)]
pub(super) struct Parser {
    head: [u8; HEAD],
    /// Bytes of the head that are there.
    have: usize,
    /// Bytes of the payload that are still to come, once the head is there.
    left: usize,
    /// The payload so far of a frame that is not data.
    payload: Vec<u8>,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Open,
            2 => Self::Answer,
            3 => Self::Data,
            4 => Self::Fin,
            5 => Self::Reset,
            6 => Self::Credit,
            7 => Self::Away,
            8 => Self::Ping,
            9 => Self::Pong,
            _ => return None,
        })
    }
}

/// The head of a frame. Lengths are below 16 MiB.
pub(super) fn head(kind: Kind, length: usize, stream: u32) -> [u8; HEAD] {
    let [_, a, b, c] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    let [d, e, f, g] = stream.to_be_bytes();
    [kind as u8, a, b, c, d, e, f, g]
}

/// The number that is all of a payload.
pub(super) fn number(payload: &[u8]) -> Result<u32, Violation> {
    let bytes = payload.try_into();
    bytes
        .map(u32::from_be_bytes)
        .map_err(|_length| Violation("a frame with a number has no four bytes"))
}

impl Parser {
    /// Takes the next part off the front of `bytes`; `None` when there is no whole one.
    pub(super) fn next<'a: 'p, 'p>(
        &'p mut self,
        bytes: &mut &'a [u8],
    ) -> Result<Option<Part<'a, 'p>>, Violation> {
        if self.have < HEAD {
            let taken = take(bytes, HEAD - self.have);
            if let Some(room) = self.head.get_mut(self.have..self.have + taken.len()) {
                room.copy_from_slice(taken);
            }
            self.have += taken.len();
            if self.have < HEAD {
                return Ok(None);
            }
            let [_, a, b, c, ..] = self.head;
            self.left = u32::from_be_bytes([0, a, b, c]) as usize;
            self.payload.clear();
        }
        let [kind, _, _, _, d, e, f, g] = self.head;
        let kind = Kind::of(kind).ok_or(Violation("there is no such kind of frame"))?;
        let stream = u32::from_be_bytes([d, e, f, g]);
        if kind == Kind::Data {
            let bytes = take(bytes, self.left);
            self.left -= bytes.len();
            if self.left == 0 {
                self.have = 0;
            }
            // A frame without bytes is one, too.
            return Ok(
                (!bytes.is_empty() || self.left == 0).then_some(Part::Data { stream, bytes })
            );
        }
        if self.left + self.payload.len() > LONGEST {
            return Err(Violation("a frame is too long"));
        }
        let got = take(bytes, self.left);
        self.left -= got.len();
        let whole = self.left == 0;
        let payload = if whole && self.payload.is_empty() {
            got
        } else {
            self.payload.extend_from_slice(got);
            &self.payload
        };
        if !whole {
            return Ok(None);
        }
        self.have = 0;
        Ok(Some(Part::Frame {
            kind,
            stream,
            payload,
        }))
    }
}

fn take<'a>(bytes: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(bytes.len().min(most));
    *bytes = rest;
    taken
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What a parser finds, data of one frame joined.
    fn parse(chunks: &[&[u8]]) -> Result<Vec<(Kind, u32, Vec<u8>)>, Violation> {
        let mut parser = Parser::default();
        let mut found: Vec<(Kind, u32, Vec<u8>)> = Vec::new();
        let mut open = false;
        for chunk in chunks {
            let mut rest = *chunk;
            loop {
                let (kind, stream, payload) = match parser.next(&mut rest)? {
                    Some(Part::Data { stream, bytes }) => (Kind::Data, stream, bytes.to_vec()),
                    Some(Part::Frame {
                        kind,
                        stream,
                        payload,
                    }) => (kind, stream, payload.to_vec()),
                    None => break,
                };
                match found.last_mut() {
                    Some(last) if open && kind == Kind::Data => last.2.extend(payload),
                    _ => found.push((kind, stream, payload)),
                }
                open = kind == Kind::Data && parser.left > 0;
            }
        }
        Ok(found)
    }

    fn frames() -> impl Strategy<Value = Vec<(Kind, u32, Vec<u8>)>> {
        let kinds = (1_u8..=9).prop_map(|kind| Kind::of(kind).unwrap());
        let frame = (
            kinds,
            any::<u32>(),
            prop::collection::vec(any::<u8>(), 0..300),
        );
        prop::collection::vec(frame, 0..20)
    }

    proptest! {
        #[test]
        fn frames_are_found_however_they_are_cut(frames in frames(), cut in 1_usize..50) {
            let mut bytes = Vec::new();
            for (kind, stream, payload) in &frames {
                bytes.extend(head(*kind, payload.len(), *stream));
                bytes.extend(payload);
            }
            let chunks: Vec<&[u8]> = bytes.chunks(cut).collect();
            prop_assert_eq!(parse(&chunks).unwrap(), frames);
        }

        #[test]
        fn anything_may_come(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            let _fine_or_not = parse(&[&bytes]);
        }
    }

    #[test]
    fn what_is_no_frame_is_a_violation() {
        assert!(parse(&[&[77; HEAD]]).is_err());
        assert!(parse(&[&head(Kind::Open, LONGEST + 1, 1)]).is_err());
        assert!(parse(&[&head(Kind::Data, LONGEST + 1, 1)]).is_ok());
        assert!(number(&[1, 2, 3]).is_err());
        assert_eq!(number(&[0, 0, 1, 0]), Ok(256));
    }
}

//! Frames as a fuzzer writes them, for either end of a tunnel.

use std::rc::Rc;

use h2::Reason;

use super::driver::{Side, take};
use super::frame::{HEAD, Parser, Part};
use super::message::{Answer, Open};
use super::mux::{Handle, Mux};
use super::stream::ThinStream;
use crate::Authority;
use crate::client::Lost;
use crate::forwarded::Forwarded;

/// Streams that the server allows.
const MOST: u32 = 8;
/// Bytes that a peer may send in a stream.
const WINDOW: u32 = 4096;

/// Takes what a peer says. The first byte chooses the end and how the rest is cut.
pub fn frames(data: &[u8]) {
    let Some((choice, said)) = data.split_first() else {
        return;
    };
    let side = if choice & 1 == 0 {
        Side::Client
    } else {
        Side::Server
    };
    let mux = Mux::new(WINDOW);
    mux.most.set(MOST);
    let handle = Handle::new(&mux);
    let mut held = Vec::new();
    if side == Side::Client {
        held.extend((0..4).filter_map(|_| handle.open(Open::default())));
    }
    let mut parser = Parser::default();
    let mut answers = Parser::default();
    for chunk in said.chunks(usize::from(choice >> 1) + 1) {
        if take(&[chunk], &mut parser, &mux, side).is_err() {
            break;
        }
        serve(&mux, &mut held);
        assert!(mux.streams.borrow().len() <= MOST as usize);
        check(&mux, &mut answers);
        if chunk.len() % 3 == 0 {
            held.pop();
        }
    }
    mux.end(&Lost::Closed);
}

/// Answers every request.
fn serve(mux: &Rc<Mux>, held: &mut Vec<ThinStream>) {
    loop {
        let next = mux.requests.borrow_mut().pop_front();
        let Some((request, stream)) = next else {
            return;
        };
        let _target = request.authority.parse::<Authority>();
        let _client = Forwarded::from_headers(&request.headers());
        let stream = ThinStream::new(Rc::clone(mux), stream, Reason::CONNECT_ERROR);
        stream.answer(Answer {
            status: 200,
            ..Answer::default()
        });
        held.push(stream);
    }
}

/// What we say to it is whole frames.
fn check(mux: &Mux, parser: &mut Parser) {
    let said = mux.said();
    let (mut rest, mut length) = (&*said, 0);
    while let Some(part) = parser.next(&mut rest).unwrap_or(None) {
        length += HEAD
            + match part {
                Part::Data { bytes, .. } => bytes.len(),
                Part::Frame { payload, .. } => payload.len(),
            };
    }
    assert_eq!(length, said.len());
    mux.encrypted(said);
}

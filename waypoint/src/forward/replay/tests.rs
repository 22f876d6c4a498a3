use std::collections::VecDeque;

use http_body_util::BodyExt as _;

use super::*;

struct Pieces(VecDeque<Result<Frame<Bytes>, BodyError>>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Ready(self.0.pop_front())
    }
}

fn pieces(texts: &[&'static str]) -> Pieces {
    let data = texts
        .iter()
        .map(|text| Ok(Frame::data(Bytes::from_static(text.as_bytes()))));
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    Pieces(data.chain([Ok(Frame::trailers(trailers))]).collect())
}

#[tokio::test]
async fn a_small_body_is_sent_again_with_its_trailers() {
    let source = Source::new(pieces(&["one", "two"]), 16);
    let mut first = source.attempt();
    first.frame().await.unwrap().unwrap();
    for _ in 0..2 {
        assert!(source.is_replayable());
        let whole = source.attempt().collect().await.unwrap();
        assert_eq!(whole.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(whole.to_bytes(), "onetwo");
    }
    let late = first.frame().await.unwrap();
    assert!(matches!(late, Err(BodyError::Superseded)));
    assert_eq!(source.received().bytes(), 6);
}

#[tokio::test]
async fn a_large_body_passes_once() {
    let source = Source::new(pieces(&["one", "two", "three"]), 5);
    let whole = source.attempt().collect().await.unwrap();
    assert_eq!(whole.to_bytes(), "onetwothree");
    assert!(!source.is_replayable());
}

/// A client that has begun and says no more.
struct Silent;

impl Body for Silent {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Poll::Pending
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_waited_for_in_vain_is_given_up() {
    let idle = Duration::from_secs(300);
    let source = Source::new(Silent, 16);
    let day = Duration::from_secs(24 * 3600);
    let unread = tokio::time::timeout(day, source.stalled(idle)).await;
    assert!(unread.is_err(), "nobody has waited for it");
    let mut attempt = source.attempt();
    let began = Instant::now();
    let reading = tokio::time::timeout(Duration::from_secs(1), attempt.frame());
    assert!(reading.await.is_err());
    source.stalled(idle).await;
    assert_eq!(began.elapsed().as_secs(), 300);
    let never = tokio::time::timeout(day, source.stalled(Duration::ZERO)).await;
    assert!(never.is_err(), "0 is without end");
    source.weak().give_up_after(idle).await;
    let read = attempt.frame().await.unwrap();
    assert!(matches!(read, Err(BodyError::Client)), "{read:?}");
}

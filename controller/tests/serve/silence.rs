//! Callers that say nothing keep nobody out.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::support::*;

/// More than may wait from one address.
const SILENT: usize = 200;
/// How many may.
const PER_SOURCE: usize = 128;

fn dropped(page: &str, reason: &str) -> u64 {
    let name = format!("keelson_controller_visitors_dropped_total{{reason=\"{reason}\"}} ");
    let value = page.lines().find_map(|line| line.strip_prefix(&name));
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

/// How many of these connections the controller has not closed.
async fn open(silent: &mut [TcpStream]) -> usize {
    let mut open = 0;
    for stream in silent {
        let mut byte = [0];
        let read =
            tokio::time::timeout(std::time::Duration::from_millis(1), stream.read(&mut byte));
        open += usize::from(read.await.is_err());
    }
    open
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_connects_through_any_number_of_silent_connections() {
    let home = Home::new();
    home.write("mesh.yaml", MESH);
    let controller = home.start(&[]).await;
    let mut silent = Vec::new();
    for number in 0..SILENT {
        let mut stream = TcpStream::connect(controller.address())
            .await
            .expect("connects");
        // Half of them begin a record that never ends.
        if number % 2 == 0 {
            stream
                .write_all(&[0x16, 0x03, 0x01, 0x02])
                .await
                .expect("writes");
        }
        silent.push(stream);
    }
    let mut agent = controller.discovery("token-1").await;
    agent.subscribe(proto::type_url::ADDRESS).await;
    assert!(agent.take().await.contains(A));
    // It was served by making room, not by waiting until the silent ones had run out of time.
    let page = controller.page("/stats/prometheus").await;
    assert_eq!(dropped(&page, "handshake_timeout"), 0, "{page}");
    assert!(dropped(&page, "source_crowded") > 0, "{page}");
    while open(&mut silent).await > PER_SOURCE {}
    // Known callers are never told to leave.
    for _ in 0..2 * PER_SOURCE {
        silent.push(
            TcpStream::connect(controller.address())
                .await
                .expect("connects"),
        );
    }
    home.write("mesh.yaml", &MESH.replace("10.244.2.10", "10.244.2.11"));
    assert!(agent.take().await.contains(B));
    controller.stop().await;
}

/// A handshake costs a caller nothing to finish, so it shows nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_finish_the_handshake_and_say_nothing_are_bounded_too() {
    let home = Home::new();
    home.write("mesh.yaml", MESH);
    let controller = home.start(&[]).await;
    let mut silent = Vec::new();
    for _ in 0..PER_SOURCE + 50 {
        silent.push(controller.handshake().await);
    }
    let mut agent = controller.discovery("token-1").await;
    agent.subscribe(proto::type_url::ADDRESS).await;
    assert!(agent.take().await.contains(A));
    let page = controller.page("/stats/prometheus").await;
    assert!(dropped(&page, "source_crowded") >= 50, "{page}");
    let first = silent.first_mut().expect("one");
    // What was sent to it before comes first; then it has ended, one way or the other.
    let _sent = first.read_to_end(&mut Vec::new()).await;
    controller.stop().await;
}

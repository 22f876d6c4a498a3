//! The admin server over a real loopback socket.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::drain::{Drain, DrainEnd};
use crate::log::{self, Format};

async fn start() -> (SocketAddr, Drain, Condition, impl Send) {
    let (subscriber, handle) = log::subscriber(Format::Text, "info", io::sink).unwrap();
    let readiness = Readiness::new();
    let condition = readiness.condition("configuration");
    let drain = Drain::new();
    let server = Server::bind("127.0.0.1:0".parse().unwrap(), Exposure::Loopback)
        .await
        .unwrap()
        .with_log(handle)
        .with_metrics(Metrics::new())
        .with_readiness(readiness)
        .page("/config_dump", "configuration", |_| Reply::json(&[1, 2]));
    let address = server.local_addr();
    drain.signal().spawn("admin", server.run(drain.signal()));
    (address, drain, condition, subscriber)
}

async fn ask(address: SocketAddr, head: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{head} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn pages_answer_with_status_and_body() {
    let (address, _drain, _condition, _keep) = start().await;
    for (head, status, part) in [
        ("GET /help", "200", "/config_dump"),
        ("GET /config_dump", "200", "application/json"),
        ("HEAD /config_dump", "200", "application/json"),
        ("GET /stats/prometheus", "200", "# EOF"),
        ("GET /nothing", "404", "/stats/prometheus"),
        ("POST /config_dump", "405", "allow: GET"),
        ("GET /logging", "200", "info"),
        ("GET /logging?level=debug", "405", "POST"),
        ("HEAD /logging?level=debug", "405", ""),
        ("GET /logging", "200", "info"),
        ("POST /logging?level=debug", "200", "debug"),
        ("GET /logging", "200", "debug"),
        ("POST /logging?level=loud", "400", "not understood"),
    ] {
        let answer = ask(address, head).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{head}: {answer}"
        );
        assert!(answer.contains(part), "{head}: {answer}");
    }
}

#[tokio::test]
async fn readiness_names_what_is_awaited() {
    let (address, _drain, condition, _keep) = start().await;
    let answer = ask(address, "GET /healthz/ready").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("awaits: configuration"), "{answer}");
    condition.set(true);
    let answer = ask(address, "GET /healthz/ready").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn only_loopback_is_bound_unless_asked() {
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        let error = Server::bind(address.parse().unwrap(), Exposure::Loopback)
            .await
            .unwrap_err();
        assert!(
            matches!(error, AdminError::NotLoopback(_)),
            "{address}: {error}"
        );
    }
    Server::bind("0.0.0.0:0".parse().unwrap(), Exposure::AnyAddress)
        .await
        .unwrap();
}

#[tokio::test]
async fn idle_connections_do_not_hold_up_a_drain() {
    let (address, drain, _condition, _keep) = start().await;
    let _idle = TcpStream::connect(address).await.unwrap();
    ask(address, "GET /help").await;
    assert_eq!(
        drain.finish(Duration::from_secs(5)).await,
        DrainEnd::Complete
    );
}

/// What an unprivileged user of this host gets: its status line and body.
async fn ask_as_nobody(address: SocketAddr, head: &str) -> String {
    use std::os::unix::process::CommandExt;

    const NOBODY: u32 = 65534;
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{}; printf '{head} HTTP/1.1\\r\\nhost: 127.0.0.1\\r\\nconnection: close\\r\\n\\r\\n' >&3; cat <&3",
        address.port()
    );
    let mut command = std::process::Command::new("bash");
    command.args(["-c", &script]).uid(NOBODY).gid(NOBODY);
    let output = tokio::task::spawn_blocking(move || command.output());
    String::from_utf8(output.await.unwrap().unwrap().stdout).unwrap()
}

/// Needs root, as it becomes another user.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_user_of_the_host_gets_what_probes_and_scrapers_need_and_no_more() {
    let (address, _drain, condition, _keep) = start().await;
    condition.set(true);
    for (head, status) in [
        ("GET /healthz/ready", "200"),
        ("GET /stats/prometheus", "200"),
        ("GET /help", "200"),
        ("GET /config_dump", "403"),
        ("GET /logging", "403"),
        ("POST /logging?level=trace", "403"),
        ("GET /nothing", "404"),
    ] {
        let answer = ask_as_nobody(address, head).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{head}: {answer}"
        );
    }
    assert!(ask(address, "GET /logging").await.contains("info"));
}

#[tokio::test]
async fn a_browser_that_was_led_here_gets_nothing_and_changes_nothing() {
    let (address, _drain, _condition, _keep) = start().await;
    for (head, headers, status) in [
        ("GET /config_dump", "host: evil.example", "421"),
        ("GET /stats/prometheus", "host: evil.example", "421"),
        ("GET /config_dump", "x: y", "421"),
        (
            "POST /logging?level=trace",
            "host: 127.0.0.1\r\norigin: http://evil.example",
            "403",
        ),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{head} HTTP/1.1\r\n{headers}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{head} {headers}: {answer}"
        );
    }
    assert!(ask(address, "GET /logging").await.contains("info"));
}

#[tokio::test]
async fn idle_connections_do_not_keep_others_out() {
    let (address, _drain, condition, _keep) = start().await;
    condition.set(true);
    let mut idle = Vec::new();
    for _ in 0..3 * WAITING.total {
        idle.push(TcpStream::connect(address).await.unwrap());
    }
    // Half a request is as idle as none.
    for stream in &mut idle[2 * WAITING.total..] {
        stream.write_all(b"GET /help HT").await.unwrap();
    }
    let answer = ask(address, "GET /healthz/ready").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // The first to wait is the first to go.
    let mut first = idle.remove(0);
    assert_eq!(first.read(&mut [0]).await.unwrap_or(0), 0);
}

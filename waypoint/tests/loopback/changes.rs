//! Changes that come all the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use l7::route::Action;
use waypoint::Limits;

use crate::support::{Client, Mesh, Server, get, to};

/// Of the process, from statm(5).
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_changes_a_second_fail_no_request_and_leave_no_memory() {
    let servers = [Server::named("a").await, Server::named("b").await];
    let mut mesh = Mesh::with(Limits::default(), 2);
    for (name, server) in ["a", "b"].iter().zip(&servers) {
        mesh.endpoint(name, "v1", server.address);
    }
    let over = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicUsize::new(0));
    let mut clients = Vec::new();
    for number in 0..4 {
        let stream = mesh.dial().await;
        let (over, asked) = (Arc::clone(&over), Arc::clone(&asked));
        clients.push(tokio::spawn(async move {
            let mut client = match number % 2 {
                0 => Client::http1(stream).await,
                _ => Client::http2(stream).await,
            };
            let mut failed = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let request = match number % 2 {
                    0 => get("/"),
                    _ => get("http://cart/"),
                };
                match client.send(request).await {
                    Ok(answer) if answer.status == 200 => {}
                    other => failed.push(format!("{:?}", other.map(|answer| answer.status))),
                }
                asked.fetch_add(1, Ordering::Relaxed);
            }
            failed
        }));
    }
    let mut early = 0;
    for change in 0..600_u32 {
        match change % 3 {
            0 => mesh.route(change % 64, Vec::new(), |rule| {
                rule.action = Action::Forward(to(&[(None, 1)]));
            }),
            // One of the two is always there.
            1 => mesh.endpoint("a", "v1", servers[0].address),
            _ => mesh.endpoint(
                "b",
                if change % 2 == 0 { "v1" } else { "v2" },
                servers[1].address,
            ),
        }
        if change == 200 {
            early = resident();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let late = resident();
    over.store(true, Ordering::Relaxed);
    for client in clients {
        let failed = client.await.unwrap();
        assert!(failed.is_empty(), "{failed:?}");
    }
    let asked = asked.load(Ordering::Relaxed);
    assert!(asked > 1_000, "{asked} requests are too few to tell");
    let grown = late.saturating_sub(early);
    assert!(grown < 8 << 20, "{grown} bytes more after 400 changes");
}

//! A tunnel does not grow old: another takes its place, and nothing in the old one is cut.

use std::cell::Cell;
use std::future::pending;
use std::rc::Rc;
use std::time::Duration;

use crate::support::{
    copying, echo, local, read_all, read_exactly, request, serve, tcp_pair, tunnel_with, until,
};
use model::Identity;
use tokio::io::AsyncWriteExt;
use tunnel::Settings;
use tunnel::client::OpenError;
use tunnel::pool::{Config, Key, Pool};

fn short_lived() -> Settings {
    Settings {
        // Longer than a busy machine takes to open the first stream.
        max_age: Duration::from_secs(1),
        ..Settings::default()
    }
}

#[test]
fn a_server_asks_for_a_new_tunnel_when_one_is_old_and_cuts_nothing() {
    local(async {
        let (tunnel, server, driver) = tunnel_with(Settings::default(), short_lived()).await;
        let serving = serve(server, echo);
        let stream = tunnel.open(&request()).await.unwrap();
        let (mut client, leg) = tcp_pair().await;
        let copy = copying(leg, stream);
        until("the server says so", || tunnel.is_closed()).await;
        let refused = tunnel.open(&request()).await.unwrap_err();
        assert!(matches!(refused, OpenError::Unprocessed(_)), "{refused}");
        client.write_all(b"still here").await.unwrap();
        assert_eq!(read_exactly(&mut client, 10).await, b"still here");
        client.shutdown().await.unwrap();
        assert_eq!(read_all(&mut client).await, b"");
        assert_eq!(copy.end.await.unwrap().end, tunnel::copy::End::Clean);
        // With its last stream it is over, although the client holds on to it.
        assert!(serving.await.unwrap().is_empty());
        until("the client knows", || driver.is_finished()).await;
    });
}

#[test]
fn a_client_makes_another_tunnel_when_one_is_old_and_cuts_nothing() {
    local(async {
        let pool = Pool::new(Config::default());
        let identity: Identity = "spiffe://cluster.local/ns/shop/sa/a".parse().unwrap();
        let key = Key {
            source: identity.clone(),
            dial: ([10, 0, 0, 1], 1).into(),
            expected: [identity].into(),
        };
        let (made, over) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let connect = || {
            let (made, over) = (Rc::clone(&made), Rc::clone(&over));
            async move {
                made.set(made.get() + 1);
                let (tunnel, server, _) = tunnel_with(short_lived(), Settings::default()).await;
                let serving = serve(server, echo);
                tokio::task::spawn_local(async move {
                    assert!(serving.await.unwrap().is_empty());
                    over.set(over.get() + 1);
                });
                Ok(tunnel)
            }
        };
        let old = pool.open(&key, 1, &request(), connect).await.unwrap();
        let (mut client, leg) = tcp_pair().await;
        let copy = copying(leg, old);
        // As `until` does, with a connection each time.
        while made.get() == 1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            drop(pool.open(&key, 1, &request(), connect).await.unwrap());
        }
        client.write_all(b"still here").await.unwrap();
        assert_eq!(read_exactly(&mut client, 10).await, b"still here");
        assert_eq!(over.get(), 0);
        client.shutdown().await.unwrap();
        assert_eq!(copy.end.await.unwrap().end, tunnel::copy::End::Clean);
        until("the old tunnel is over", || over.get() == 1).await;
    });
}

#[test]
fn an_old_tunnel_that_nobody_uses_is_closed() {
    local(async {
        let pool = Pool::new(Config::default());
        let identity: Identity = "spiffe://cluster.local/ns/shop/sa/a".parse().unwrap();
        let key = Key {
            source: identity.clone(),
            dial: ([10, 0, 0, 1], 1).into(),
            expected: [identity].into(),
        };
        let connect = || async {
            let (tunnel, server, _) = tunnel_with(short_lived(), Settings::default()).await;
            serve(server, |_incoming| pending::<()>());
            Ok(tunnel)
        };
        pool.warm(&key, 1, connect).await.unwrap();
        assert_eq!(pool.stats().tunnels, 1);
        until("it is evicted", || {
            pool.evict_idle();
            pool.stats().tunnels == 0
        })
        .await;
    });
}

//! Tunnels are shared, made once, replaced when they die, and closed when nobody needs them.

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::support::{local, local_paused, request, serve, tunnel_with, until};
use futures::future::join_all;
use model::Identity;
use tokio::task::{AbortHandle, JoinHandle, spawn_local, yield_now};
use tunnel::client::{ConnectError, OpenError};
use tunnel::pool::{Config, Key, Pool, PoolError, Stats};
use tunnel::server::NextError;
use tunnel::{Settings, Tunnel};

fn key(port: u16) -> Key {
    let identity = |name: &str| -> Identity {
        format!("spiffe://cluster.local/ns/shop/sa/{name}")
            .parse()
            .unwrap()
    };
    Key {
        source: identity("a"),
        dial: ([10, 0, 0, 1], port).into(),
        expected: Arc::from([identity("b")]),
    }
}

/// Makes tunnels in memory, and counts and keeps their ends.
#[derive(Clone, Default)]
struct Peers {
    connects: Rc<Cell<usize>>,
    failing: Rc<Cell<bool>>,
    settings: Settings,
    servers: Rc<RefCell<Vec<JoinHandle<Vec<NextError>>>>>,
    drivers: Rc<RefCell<Vec<AbortHandle>>>,
}

impl Peers {
    fn connect(&self) -> impl Future<Output = Result<Tunnel, ConnectError>> + use<> {
        let peers = self.clone();
        async move {
            peers.connects.set(peers.connects.get() + 1);
            // A handshake takes a while.
            tokio::time::sleep(Duration::from_millis(1)).await;
            if peers.failing.get() {
                return Err(ConnectError::Timeout(Duration::from_secs(1)));
            }
            let (tunnel, server, driver) = tunnel_with(peers.settings, Settings::default()).await;
            peers.drivers.borrow_mut().push(driver);
            peers
                .servers
                .borrow_mut()
                .push(serve(server, |incoming| async {
                    let _stream = incoming.accept(None).unwrap();
                    pending::<()>().await;
                }));
            Ok(tunnel)
        }
    }

    async fn open(&self, pool: &Pool, generation: u64) -> Result<tunnel::TunnelStream, PoolError> {
        pool.open(&key(1), generation, &request(), || self.connect())
            .await
    }
}

fn stats(tunnels: usize, streams: usize) -> Stats {
    Stats {
        tunnels,
        streams,
        connecting: 0,
    }
}

#[test]
fn many_at_once_make_one_tunnel() {
    local(async {
        let (pool, peers) = (Pool::new(Config::default()), Peers::default());
        let opened = join_all((0..50).map(|_| peers.open(&pool, 1))).await;
        assert!(opened.iter().all(Result::is_ok));
        assert_eq!(peers.connects.get(), 1);
        assert_eq!(pool.stats(), stats(1, 50));
        drop(opened);
        assert_eq!(pool.stats(), stats(1, 0));
    });
}

#[test]
fn more_than_a_tunnel_carries_make_as_many_as_are_needed() {
    local(async {
        let (pool, peers) = (Pool::new(Config::default()), Peers::default());
        let opened = join_all((0..250).map(|_| peers.open(&pool, 1))).await;
        assert!(opened.iter().all(Result::is_ok));
        assert_eq!(peers.connects.get(), 3);
        assert_eq!(pool.stats(), stats(3, 250));
    });
}

#[test]
fn a_full_tunnel_is_joined_by_a_second() {
    local(async {
        let mut peers = Peers::default();
        peers.settings.max_streams_per_tunnel = 2;
        let pool = Pool::new(Config::default());
        let mut streams = Vec::new();
        for tunnels in [1, 1, 2, 2, 3] {
            streams.push(peers.open(&pool, 1).await.unwrap());
            assert_eq!(pool.stats(), stats(tunnels, streams.len()));
        }
        // Room is used again.
        streams.remove(0);
        streams.push(peers.open(&pool, 1).await.unwrap());
        assert_eq!(peers.connects.get(), 3);
    });
}

#[test]
fn different_keys_do_not_share() {
    local(async {
        let (pool, peers) = (Pool::new(Config::default()), Peers::default());
        let mut streams = Vec::new();
        for port in [1, 2, 1] {
            let stream = pool
                .open(&key(port), 1, &request(), || peers.connect())
                .await;
            streams.push(stream.unwrap());
        }
        assert_eq!(peers.connects.get(), 2);
    });
}

#[test]
fn a_failed_connect_is_tried_once_and_told_to_all() {
    local(async {
        let (pool, peers) = (Pool::new(Config::default()), Peers::default());
        peers.failing.set(true);
        let opened = join_all((0..20).map(|_| peers.open(&pool, 1))).await;
        let errors: Vec<_> = opened
            .into_iter()
            .map(|opened| match opened {
                Err(PoolError::Connect(error)) => error,
                other => panic!("{other:?}"),
            })
            .collect();
        assert!(errors.iter().all(|error| Arc::ptr_eq(error, &errors[0])));
        assert_eq!(peers.connects.get(), 1);
        assert_eq!(pool.stats(), stats(0, 0));
        // The next caller tries again.
        peers.failing.set(false);
        peers.open(&pool, 1).await.unwrap();
        assert_eq!(peers.connects.get(), 2);
    });
}

#[test]
fn the_first_caller_may_go_without_harm_to_the_others() {
    local(async {
        let (pool, peers) = (Pool::new(Config::default()), Peers::default());
        let (first_pool, first_peers) = (pool.clone(), peers.clone());
        let first = spawn_local(async move { first_peers.open(&first_pool, 1).await.map(drop) });
        until("it connects", || pool.stats().connecting == 1).await;
        let (second_pool, second_peers) = (pool.clone(), peers.clone());
        let second = spawn_local(async move { second_peers.open(&second_pool, 1).await.map(drop) });
        yield_now().await;
        first.abort();
        second.await.unwrap().unwrap();
        assert_eq!(peers.connects.get(), 1);
    });
}

#[test]
fn a_connect_that_everybody_left_is_not_waited_for() {
    local(async {
        let (pool, peers) = (Pool::new(Config::default()), Peers::default());
        let never = || pending::<Result<Tunnel, ConnectError>>();
        let (key, request) = (key(1), request());
        let left = pool.open(&key, 1, &request, never);
        let left = tokio::time::timeout(Duration::from_millis(5), left).await;
        assert!(left.is_err());
        assert_eq!(pool.stats().connecting, 0);
        peers.open(&pool, 1).await.unwrap();
    });
}

#[test]
fn a_dead_tunnel_is_replaced() {
    local(async {
        let (pool, peers) = (Pool::new(Config::default()), Peers::default());
        let mut stream = peers.open(&pool, 1).await.unwrap();
        peers.drivers.borrow()[0].abort();
        // Nobody has noticed yet: the stale tunnel is found out and the request goes elsewhere.
        let second = peers.open(&pool, 1).await.unwrap();
        assert_eq!(peers.connects.get(), 2);
        drop(std::mem::replace(&mut stream, second));
        assert_eq!(pool.stats(), stats(1, 1));
    });
}

#[test]
fn a_tunnel_whose_server_vanished_is_replaced() {
    local(async {
        let (pool, peers) = (Pool::new(Config::default()), Peers::default());
        let _stream = peers.open(&pool, 1).await.unwrap();
        peers.servers.borrow()[0].abort();
        yield_now().await;
        peers.open(&pool, 1).await.unwrap();
        assert_eq!(peers.connects.get(), 2);
    });
}

#[test]
fn a_new_certificate_takes_a_new_tunnel_and_breaks_no_old_one() {
    local(async {
        let (pool, peers) = (Pool::new(Config::default()), Peers::default());
        let old = peers.open(&pool, 1).await.unwrap();
        let new = peers.open(&pool, 2).await.unwrap();
        assert_eq!(peers.connects.get(), 2);
        // One who has not heard of it yet does not go back.
        let late = peers.open(&pool, 1).await.unwrap();
        assert_eq!(peers.connects.get(), 2);
        assert_eq!(pool.stats(), stats(1, 2));
        // The old tunnel closes with its last stream, not before.
        assert!(!peers.servers.borrow()[0].is_finished());
        drop(old);
        until("it closes", || peers.servers.borrow()[0].is_finished()).await;
        assert!(!peers.servers.borrow()[1].is_finished());
        drop((new, late));
    });
}

#[test]
fn a_certificate_that_changes_during_the_handshake_is_not_kept() {
    local(async {
        let (pool, peers) = (Pool::new(Config::default()), Peers::default());
        let (old, new) = tokio::join!(peers.open(&pool, 1), peers.open(&pool, 2));
        assert_eq!(peers.connects.get(), 2);
        let _live = (old.unwrap(), new.unwrap());
        // Only the new one takes further streams.
        assert_eq!(pool.stats(), stats(1, 1));
    });
}

#[test]
fn idle_tunnels_are_closed() {
    local_paused(async {
        let (pool, peers) = (Pool::new(Config::default()), Peers::default());
        spawn_local(pool.clone().maintain());
        let stream = peers.open(&pool, 1).await.unwrap();
        tokio::time::sleep(Duration::from_secs(2000)).await;
        assert_eq!(pool.stats(), stats(1, 1), "it is in use");
        drop(stream);
        tokio::time::sleep(Duration::from_secs(200)).await;
        assert_eq!(pool.stats(), stats(1, 0), "not yet");
        tokio::time::sleep(Duration::from_secs(200)).await;
        assert_eq!(pool.stats(), stats(0, 0));
        until("it closes", || peers.servers.borrow()[0].is_finished()).await;
    });
}

#[test]
fn draining_closes_what_is_idle_and_lets_the_rest_finish() {
    local(async {
        let (pool, peers) = (Pool::new(Config::default()), Peers::default());
        let busy = peers.open(&pool, 1).await.unwrap();
        pool.warm(&key(2), 1, || peers.connect()).await.unwrap();
        assert_eq!(pool.stats(), stats(2, 1));
        pool.drain();
        let error = peers.open(&pool, 1).await.unwrap_err();
        assert!(matches!(error, PoolError::Draining), "{error:?}");
        until("the idle one closes", || {
            peers.servers.borrow()[1].is_finished()
        })
        .await;
        assert!(!peers.servers.borrow()[0].is_finished());
        drop(busy);
        until("the other closes", || {
            peers.servers.borrow()[0].is_finished()
        })
        .await;
    });
}

#[test]
fn a_refusal_is_not_tried_again() {
    local(async {
        let pool = Pool::new(Config::default());
        let asked = Rc::new(Cell::new(0));
        let connect = || {
            let asked = Rc::clone(&asked);
            async move {
                let (tunnel, server, _driver) =
                    tunnel_with(Settings::default(), Settings::default()).await;
                serve(server, move |incoming| {
                    asked.set(asked.get() + 1);
                    let reason = tunnel::ProxyStatus::default();
                    incoming.refuse(http::StatusCode::UNAUTHORIZED, &reason);
                    async {}
                });
                Ok(tunnel)
            }
        };
        let error = pool
            .open(&key(1), 1, &request(), connect)
            .await
            .unwrap_err();
        assert!(
            matches!(error, PoolError::Open(OpenError::Refused { .. })),
            "{error:?}"
        );
        assert_eq!(asked.get(), 1);
    });
}

#[test]
fn a_peer_that_hangs_up_after_the_handshake_is_not_dialled_in_a_loop() {
    local(async {
        let pool = Pool::new(Config::default());
        let connects = Rc::new(Cell::new(0));
        let connect = || {
            connects.set(connects.get() + 1);
            async {
                let (tunnel, server, _driver) =
                    tunnel_with(Settings::default(), Settings::default()).await;
                drop(server);
                until("it is lost", || tunnel.lost().is_some()).await;
                Ok(tunnel)
            }
        };
        let opened = pool.open(&key(1), 1, &request(), connect).await;
        match opened {
            Err(PoolError::Open(error)) => assert!(error.is_lost(), "{error:?}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(connects.get(), 1);
    });
}

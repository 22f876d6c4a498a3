//! The store under paused time: tokio's clock is the wall clock of certificates, authority and handshakes alike.

use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::sleep;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::ca::Authority;
use crate::cert::server_name;
use crate::clock::{Clock, TokioClock};
use crate::source::Issuing;

const CLIENT: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const SERVER: &str = "spiffe://cluster.local/ns/shop/sa/db";
const HOUR: Duration = Duration::from_secs(3600);

fn id(text: &str) -> Identity {
    text.parse().unwrap()
}

#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Good,
    Down,
    Refusing,
    Silent,
    Confused,
}

/// An authority whose answers take a while and can be made to fail.
struct Source {
    authority: Authority,
    clock: Arc<dyn Clock>,
    ttl: Duration,
    delay: Duration,
    mood: Mutex<Mood>,
    asked: AtomicU64,
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Source {
    fn new(ttl: Duration) -> Arc<Self> {
        let clock: Arc<dyn Clock> = Arc::new(TokioClock::starting_at(SystemTime::now()));
        Arc::new(Self {
            authority: Authority::generate("cluster.local", Arc::clone(&clock)).unwrap(),
            clock,
            ttl,
            delay: Duration::from_millis(200),
            mood: Mutex::new(Mood::Good),
            asked: AtomicU64::new(0),
            now: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
        })
    }

    fn be(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }

    fn options(&self) -> TlsOptions {
        TlsOptions {
            clock: Arc::clone(&self.clock),
            ..TlsOptions::default()
        }
    }

    fn builder(self: &Arc<Self>) -> Builder {
        let source: Arc<Self> = Arc::clone(self);
        SvidStore::builder(source, RotationPolicy::default()).options(self.options())
    }
}

impl SvidSource for Source {
    fn issue<'a>(&'a self, identity: &'a Identity) -> Issuing<'a> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let now = self.now.fetch_add(1, Ordering::Relaxed) + 1;
            self.most.fetch_max(now, Ordering::Relaxed);
            sleep(self.delay).await;
            let mood = *self.mood.lock().unwrap();
            let answer = match mood {
                Mood::Good => self.authority.issue(identity, self.ttl),
                Mood::Down => Err(IssueError::Unreachable {
                    authority: "https://192.0.2.1:15012".to_owned(),
                    source: Arc::new(std::io::Error::from(std::io::ErrorKind::ConnectionRefused)),
                }),
                Mood::Refusing => Err(IssueError::Refused {
                    identity: identity.clone(),
                    reason: "not on this node".to_owned(),
                }),
                Mood::Silent => std::future::pending().await,
                Mood::Confused => self.authority.issue(&id(SERVER), self.ttl),
            };
            self.now.fetch_sub(1, Ordering::Relaxed);
            answer
        })
    }
}

#[derive(Default)]
struct Counts {
    issued: AtomicU64,
    failed: AtomicU64,
    expired: AtomicU64,
    forgotten: AtomicU64,
}

impl SvidEvents for Counts {
    fn issued(&self, _cert: &SvidInfo) {
        self.issued.fetch_add(1, Ordering::Relaxed);
    }
    fn failed(&self, _identity: &Identity, _error: &IssueError) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }
    fn expired(&self, _identity: &Identity) {
        self.expired.fetch_add(1, Ordering::Relaxed);
    }
    fn forgotten(&self, _identity: &Identity) {
        self.forgotten.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn many_users_of_one_identity_cause_one_request() {
    let source = Source::new(HOUR);
    let store = source.builder().build();
    let users = (0..100).map(|_| {
        let store = store.clone();
        tokio::spawn(async move { store.get(&id(CLIENT)).await.unwrap() })
    });
    let certs: Vec<_> = futures_all(users).await;
    assert_eq!(source.asked(), 1);
    assert!(certs.iter().all(|cert| Arc::ptr_eq(cert, &certs[0])));
}

async fn futures_all<T>(tasks: impl Iterator<Item = tokio::task::JoinHandle<T>>) -> Vec<T> {
    let tasks: Vec<_> = tasks.collect();
    let mut results = Vec::new();
    for task in tasks {
        results.push(task.await.unwrap());
    }
    results
}

#[tokio::test(start_paused = true)]
async fn certificates_of_seconds_rotate_under_load_without_one_failed_handshake() {
    for ttl in [2, 3] {
        let source = Source::new(Duration::from_secs(ttl));
        let store = source.builder().build();
        let (client, server) = (store.watch(&id(CLIENT)), store.watch(&id(SERVER)));
        store.get(&id(CLIENT)).await.unwrap();
        store.get(&id(SERVER)).await.unwrap();
        let mut serials = std::collections::BTreeSet::new();
        for _ in 0..600 {
            let near = client.borrow().clone().expect("a client certificate");
            let far = server.borrow().clone().expect("a server certificate");
            serials.insert(near.info().serial.clone());
            shake(&near, &far).await;
            sleep(Duration::from_millis(50)).await;
        }
        assert!(serials.len() > 10, "{} certificates in 30 s", serials.len());
    }
}

async fn shake(client: &WorkloadCert, server: &WorkloadCert) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let near = async {
        let connector = TlsConnector::from(client.client());
        let mut stream = connector.connect(server_name(), near).await.unwrap();
        stream.read_u8().await.unwrap();
    };
    let far = async {
        let acceptor = TlsAcceptor::from(server.server());
        let mut stream = acceptor.accept(far).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        stream.flush().await.unwrap();
    };
    tokio::join!(near, far);
}

#[tokio::test(start_paused = true)]
async fn renewal_waits_until_about_a_quarter_of_life_is_left() {
    let source = Source::new(24 * HOUR);
    let store = source.builder().build();
    let _user = store.watch(&id(CLIENT));
    let first = store.get(&id(CLIENT)).await.unwrap();
    sleep(24 * HOUR * 64 / 100).await;
    assert_eq!(source.asked(), 1, "not before 65 % of life");
    sleep(24 * HOUR * 12 / 100).await;
    assert_eq!(source.asked(), 2, "not after 75 % of life");
    let second = store.get(&id(CLIENT)).await.unwrap();
    assert_ne!(first.info().serial, second.info().serial);
}

#[tokio::test(start_paused = true)]
async fn the_old_certificate_serves_until_its_end_and_the_next_follows_recovery() {
    let source = Source::new(HOUR);
    let counts = Arc::new(Counts::default());
    let events: Arc<Counts> = Arc::clone(&counts);
    let store = source.builder().events(events).build();
    let user = store.watch(&id(CLIENT));
    store.get(&id(CLIENT)).await.unwrap();
    source.be(Mood::Down);
    sleep(HOUR - Duration::from_secs(2)).await;
    assert!(user.borrow().is_some(), "still valid");
    let status = store.snapshot().remove(0);
    assert_eq!(status.state, SvidState::Failing);
    assert!(status.failures > 10, "{}", status.failures);
    assert_eq!(status.last_error.unwrap().code(), "unreachable");
    assert!(status.cert.is_some());

    sleep(Duration::from_secs(4)).await;
    assert!(user.borrow().is_none(), "ended");
    assert_eq!(counts.expired.load(Ordering::Relaxed), 1);
    let error = store.get(&id(CLIENT)).await.unwrap_err();
    assert!(std::error::Error::source(&error).is_some(), "{error}");

    source.be(Mood::Good);
    sleep(Duration::from_secs(16)).await;
    assert!(user.borrow().is_some(), "back within the longest wait");
    let status = store.snapshot().remove(0);
    assert_eq!((status.state, status.failures), (SvidState::Valid, 0));
    assert!(status.last_error.is_none());
    assert_eq!(counts.issued.load(Ordering::Relaxed), 2);
    assert!(counts.failed.load(Ordering::Relaxed) > 10);
}

#[tokio::test(start_paused = true)]
async fn each_failure_has_its_reason_and_get_says_it() {
    for (mood, code, waited) in [
        (Mood::Refusing, "refused", Duration::from_millis(200)),
        (Mood::Down, "unreachable", Duration::from_secs(5)),
        (Mood::Confused, "unusable", Duration::from_secs(5)),
    ] {
        let source = Source::new(HOUR);
        source.be(mood);
        let store = source.builder().build();
        let start = tokio::time::Instant::now();
        let Err(GetError::None { source, .. }) = store.get(&id(CLIENT)).await else {
            panic!("{code}: a certificate");
        };
        assert_eq!(source.unwrap().code(), code);
        assert_eq!(start.elapsed().as_millis(), waited.as_millis(), "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_authority_that_never_answers_is_asked_again() {
    let source = Source::new(HOUR);
    source.be(Mood::Silent);
    let store = source.builder().build();
    let user = store.watch(&id(CLIENT));
    sleep(Duration::from_secs(11)).await;
    let status = store.snapshot().remove(0);
    assert_eq!(status.last_error.unwrap().code(), "timeout");
    source.be(Mood::Good);
    sleep(Duration::from_secs(11)).await;
    assert!(user.borrow().is_some());
}

#[tokio::test(start_paused = true)]
async fn an_identity_is_forgotten_some_time_after_its_last_user() {
    let source = Source::new(HOUR);
    let counts = Arc::new(Counts::default());
    let events: Arc<Counts> = Arc::clone(&counts);
    let store = source.builder().events(events).build();
    let (one, two) = (store.watch(&id(CLIENT)), store.watch(&id(CLIENT)));
    drop(one);
    sleep(HOUR / 2).await;
    assert_eq!(store.snapshot().len(), 1, "one user is left");
    drop(two);
    sleep(Duration::from_secs(50)).await;
    let back = store.watch(&id(CLIENT));
    assert!(back.borrow().is_some(), "the certificate is still there");
    drop(back);
    sleep(Duration::from_secs(181)).await;
    assert!(store.snapshot().is_empty());
    assert_eq!(counts.forgotten.load(Ordering::Relaxed), 1);
    assert_eq!(source.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_prefetched_identity_stays_until_it_is_forgotten() {
    let source = Source::new(HOUR);
    let store = source.builder().build();
    store.prefetch(&id(CLIENT));
    sleep(HOUR * 3).await;
    assert!(store.snapshot()[0].cert.is_some());
    assert!(source.asked() > 3, "renewed without users");
    let mut user = store.watch(&id(CLIENT));
    store.forget(&id(CLIENT));
    assert!(user.borrow_and_update().is_none());
    assert!(user.changed().await.is_err(), "closed");
    assert!(store.snapshot().is_empty());
    let asked = source.asked();
    sleep(HOUR * 3).await;
    assert_eq!(source.asked(), asked, "nobody asks any more");
}

#[tokio::test(start_paused = true)]
async fn requests_at_the_same_time_are_bounded() {
    let source = Source::new(HOUR);
    let store = source.builder().build();
    for number in 0..50 {
        store.prefetch(&id(&format!("spiffe://cluster.local/ns/shop/sa/n{number}")));
    }
    sleep(Duration::from_secs(3)).await;
    assert_eq!(source.asked(), 50);
    assert_eq!(source.most.load(Ordering::Relaxed), 8);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_store_ends_its_tasks() {
    let source = Source::new(HOUR);
    let store = source.builder().build();
    let mut user = store.watch(&id(CLIENT));
    store.get(&id(CLIENT)).await.unwrap();
    user.borrow_and_update();
    drop(store);
    assert!(user.changed().await.is_err());
    assert!(user.borrow().is_some(), "what was handed out stays usable");
}

#[tokio::test(start_paused = true)]
async fn a_restart_without_authority_uses_what_was_kept() {
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let kept = || PrivateDir::open(directory.path().join("certs")).unwrap();
    let source = Source::new(HOUR);
    let store = source.builder().directory(kept()).build();
    let first = store.get(&id(CLIENT)).await.unwrap();
    drop(store);

    source.be(Mood::Down);
    let store = source.builder().directory(kept()).build();
    let second = store.get(&id(CLIENT)).await.unwrap();
    assert_eq!(first.info().serial, second.info().serial);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(source.asked(), 1, "renewal is not due");
    drop(store);

    sleep(HOUR).await;
    let store = source.builder().directory(kept()).build();
    assert!(store.get(&id(CLIENT)).await.is_err(), "expired: not loaded");
    store.forget(&id(CLIENT));
    assert!(kept().identities().unwrap().is_empty(), "the key is gone");
}

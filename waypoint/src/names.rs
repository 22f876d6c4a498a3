//! Endpoints that have a name: it is looked up, and what it leads to are the endpoints.
//!
//! A name is asked for again when what was answered is over, between 5 s and 5 min after. Who cannot be asked changes
//! nothing: the last answer counts until there is another, since an address that worked is better than none. An answer that
//! there is nothing takes the endpoints away.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use l7::{Endpoint, Resource, ResourceName, Store};
use model::address::is_of_another;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

/// Endpoints with names, and what is known of the names.
#[derive(Debug, Default)]
pub(crate) struct Names {
    endpoints: BTreeMap<Arc<str>, Endpoint>,
    known: HashMap<Arc<str>, Vec<IpAddr>>,
    /// Endpoints that were made, by the one that they are made of.
    made: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// There is a name that was not there.
    pub(crate) news: Arc<Notify>,
}

impl Names {
    /// Takes an endpoint with a name in. Without one, says so.
    pub(crate) fn apply(&mut self, store: &mut Store, resource: Resource) {
        let Resource::Endpoint(endpoint) = resource else {
            return store.apply(resource);
        };
        let uid: Arc<str> = (&*endpoint.uid).into();
        if endpoint.hostname.is_none() {
            self.forget(store, &uid);
            return store.apply(Resource::Endpoint(endpoint));
        }
        store.remove(&ResourceName::Endpoint(Arc::clone(&uid)));
        self.endpoints.insert(Arc::clone(&uid), endpoint);
        self.make(store, &uid);
        self.news.notify_one();
    }

    /// Takes a resource away.
    pub(crate) fn remove(&mut self, store: &mut Store, name: &ResourceName) {
        if let ResourceName::Endpoint(uid) = name {
            self.forget(store, uid);
        }
        store.remove(name);
    }

    fn forget(&mut self, store: &mut Store, uid: &Arc<str>) {
        self.endpoints.remove(uid);
        for made in self.made.remove(uid).into_iter().flatten() {
            store.remove(&ResourceName::Endpoint(made));
        }
        let named = self.hostnames();
        self.known.retain(|name, _| named.contains(name));
    }

    /// Makes endpoints of what a name leads to.
    fn make(&mut self, store: &mut Store, uid: &Arc<str>) {
        let Some(endpoint) = self.endpoints.get(uid) else {
            return;
        };
        let addresses = endpoint
            .hostname
            .as_ref()
            .and_then(|name| self.known.get(name));
        let mut made = BTreeSet::new();
        for address in addresses.into_iter().flatten() {
            let uid = format!("{uid}/{address}");
            made.insert(Arc::from(uid.as_str()));
            store.apply(Resource::Endpoint(Endpoint {
                uid: uid.as_str().into(),
                addresses: vec![*address],
                ..endpoint.clone()
            }));
        }
        let before = self.made.insert(Arc::clone(uid), made).unwrap_or_default();
        let now = self.made.get(uid);
        let gone = before
            .into_iter()
            .filter(|old| !now.is_some_and(|now| now.contains(old)));
        for old in gone {
            store.remove(&ResourceName::Endpoint(old));
        }
    }

    /// The names that have to be looked up.
    pub(crate) fn hostnames(&self) -> BTreeSet<Arc<str>> {
        let named = self.endpoints.values();
        named.filter_map(|one| one.hostname.clone()).collect()
    }

    /// A name leads there. Says whether that is new.
    pub(crate) fn learn(
        &mut self,
        store: &mut Store,
        name: &Arc<str>,
        mut addresses: Vec<IpAddr>,
    ) -> bool {
        // Who owns a name may say that it leads to our own loopback.
        addresses.retain(|address| is_of_another(*address));
        addresses.sort_unstable();
        addresses.dedup();
        addresses.truncate(MOST_ADDRESSES);
        if self.known.get(name) == Some(&addresses) {
            return false;
        }
        self.known.insert(Arc::clone(name), addresses);
        let with = self.endpoints.iter();
        let with = with.filter(|(_, one)| one.hostname.as_ref() == Some(name));
        let with: Vec<Arc<str>> = with.map(|(uid, _)| Arc::clone(uid)).collect();
        for uid in &with {
            self.make(store, uid);
        }
        !with.is_empty()
    }
}

/// Asks these servers, or those of `/etc/resolv.conf`.
///
/// # Errors
/// That file cannot be read.
pub(crate) fn resolver(servers: &[SocketAddr]) -> Result<TokioResolver, NetError> {
    let provider = TokioRuntimeProvider::default();
    let mut builder = if servers.is_empty() {
        TokioResolver::builder(provider)?
    } else {
        let servers = servers.iter().map(|server| {
            let mut connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()];
            for connection in &mut connections {
                connection.port = server.port();
            }
            NameServerConfig::new(server.ip(), true, connections.to_vec())
        });
        let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
        TokioResolver::builder_with_config(config, provider)
    };
    let options = builder.options_mut();
    options.ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
    options.timeout = TIMEOUT;
    options.attempts = 2;
    // What is asked for is a whole name, and it is asked for when the last answer is over.
    options.ndots = 0;
    options.cache_size = 0;
    builder.build()
}

/// What became of a question.
#[derive(Debug)]
pub(crate) enum Told {
    /// It leads there, for so long.
    There(Vec<IpAddr>, Duration),
    /// It leads nowhere.
    Nowhere,
    /// Nobody could be asked.
    Silence(String),
}

async fn ask(resolver: TokioResolver, name: Arc<str>) -> (Arc<str>, Told) {
    // With a dot at its end no search list is tried.
    let whole = format!("{}.", name.trim_end_matches('.'));
    let asked = tokio::time::timeout(3 * TIMEOUT, resolver.lookup_ip(whole)).await;
    let told = match asked {
        Err(_elapsed) => Told::Silence("no answer in time".to_owned()),
        Ok(Ok(found)) => {
            let life = found
                .valid_until()
                .saturating_duration_since(Instant::now());
            Told::There(found.iter().collect(), life)
        }
        Ok(Err(NetError::Dns(DnsError::NoRecordsFound(_)))) => Told::Nowhere,
        Ok(Err(error)) => Told::Silence(error.to_string()),
    };
    (name, told)
}

/// When a name is asked for next.
#[derive(Debug)]
struct Due {
    at: Instant,
    failures: u32,
}

/// Keeps what is known of names up to date, for ever. `hostnames` says which there are, and `learn` is told what they lead to.
pub(crate) async fn follow(
    resolver: TokioResolver,
    news: Arc<Notify>,
    hostnames: impl Fn() -> BTreeSet<Arc<str>>,
    learn: impl Fn(&Arc<str>, Vec<IpAddr>),
) {
    let mut due: HashMap<Arc<str>, Due> = HashMap::new();
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut asking: JoinSet<(Arc<str>, Told)> = JoinSet::new();
    let mut asked: BTreeSet<Arc<str>> = BTreeSet::new();
    loop {
        let wanted = hostnames();
        due.retain(|name, _| wanted.contains(name));
        let now = Instant::now();
        for name in &wanted {
            let due = due.entry(Arc::clone(name)).or_insert(Due {
                at: now,
                failures: 0,
            });
            if due.at <= now && asked.insert(Arc::clone(name)) {
                let (resolver, name, room) =
                    (resolver.clone(), Arc::clone(name), Arc::clone(&room));
                asking.spawn(async move {
                    let _place = room.acquire().await;
                    ask(resolver, name).await
                });
            }
        }
        let waiting = due.iter().filter(|(name, _)| !asked.contains(*name));
        let next = waiting.map(|(_, due)| due.at).min();
        let sleep = next.map_or(LONGEST, |at| at.saturating_duration_since(Instant::now()));
        tokio::select! {
            () = news.notified() => {}
            () = tokio::time::sleep(sleep) => {}
            Some(answer) = asking.join_next() => {
                let Ok((name, told)) = answer else {
                    // Which one is not known: all are asked again.
                    asked.clear();
                    continue;
                };
                asked.remove(&name);
                let Some(due) = due.get_mut(&name) else {
                    continue;
                };
                due.at = Instant::now() + take(&name, told, due, &learn);
            }
        }
    }
}

/// Takes an answer, and says when to ask again.
fn take(
    name: &Arc<str>,
    told: Told,
    due: &mut Due,
    learn: impl Fn(&Arc<str>, Vec<IpAddr>),
) -> Duration {
    match told {
        Told::There(addresses, life) => {
            due.failures = 0;
            learn(name, addresses);
            life.clamp(SHORTEST, LONGEST)
        }
        Told::Nowhere => {
            due.failures = 0;
            tracing::warn!(%name, "the name of an endpoint leads nowhere");
            learn(name, Vec::new());
            SHORTEST
        }
        Told::Silence(error) => {
            let pause = FIRST_RETRY.saturating_mul(1 << due.failures.min(5));
            due.failures += 1;
            tracing::warn!(%name, error, "the name of an endpoint cannot be looked up; what it led to last counts");
            pause
        }
    }
}

/// Addresses of one name.
const MOST_ADDRESSES: usize = 64;
/// Names that are asked for at once.
const AT_ONCE: usize = 16;
/// For one server to answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// A name is asked for again after no less and no more.
const SHORTEST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(300);
/// After a failure; it doubles, up to 32 times.
const FIRST_RETRY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;

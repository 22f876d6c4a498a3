//! Reads configuration from a Kubernetes API server and follows it: a list of each kind, then a watch.
//!
//! While the server cannot be reached what was known stays. A list that is made anew, because the server has forgotten
//! where the watch stood, takes back what it no longer holds. Nothing is sent before every kind has been listed once.
//!
//! Secrets are no such kind: only those that gateways name are read, each by itself ([`named`]).

mod memory;
pub mod named;

use std::time::Duration;

use futures::{Stream, StreamExt};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt};
use manifest::Kind;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use self::memory::{Memory, Told};
use self::named::Named;
use super::{Batch, Source};

/// The objects of a cluster as a source.
pub struct Cluster {
    client: Client,
    root_namespace: String,
    kinds: Vec<Kind>,
    named: Option<Named>,
}

impl Cluster {
    /// The cluster behind `client`, for a mesh whose root namespace is `root_namespace`.
    pub fn new(client: Client, root_namespace: &str) -> Self {
        Self {
            client,
            root_namespace: root_namespace.to_owned(),
            kinds: KINDS.to_vec(),
            named: None,
        }
    }

    /// With the Secrets that are named there, and no others.
    #[must_use]
    pub fn with_secrets(mut self, named: Named) -> Self {
        self.named = Some(named);
        self
    }

    /// Only what decides which pods are captured.
    #[must_use]
    pub fn with_captures_only(mut self, only: bool) -> Self {
        if only {
            self.kinds = CAPTURE_KINDS.to_vec();
        }
        self
    }

    /// With `NetworkPolicy` objects, or without.
    #[must_use]
    pub fn with_network_policies(mut self, followed: bool) -> Self {
        if followed {
            self.kinds.push(Kind::NetworkPolicy);
        }
        self
    }
}

/// The kinds that say which pods are captured.
const CAPTURE_KINDS: [Kind; 3] = [Kind::Namespace, Kind::Node, Kind::Pod];

/// The kinds that are followed else. Nothing is compiled from service accounts.
const KINDS: [Kind; 19] = [
    Kind::Namespace,
    Kind::Node,
    Kind::PeerAuthentication,
    Kind::AuthorizationPolicy,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::Pod,
    Kind::ReferenceGrant,
    Kind::Gateway,
    Kind::IstioGateway,
    Kind::DestinationRule,
    Kind::VirtualService,
    Kind::HttpRoute,
    Kind::GrpcRoute,
    Kind::TlsRoute,
    Kind::TcpRoute,
    Kind::ServiceEntry,
    Kind::IngressClass,
    Kind::Ingress,
];

impl Source for Cluster {
    async fn run(self, batches: mpsc::Sender<Batch>) {
        let (tell, mut told) = mpsc::channel(QUEUE);
        let mut watches = JoinSet::new();
        for kind in &self.kinds {
            watches.spawn(follow(self.client.clone(), *kind, tell.clone()));
        }
        let mut answered = None;
        if let Some(Named {
            wanted,
            answered: tell_answered,
        }) = self.named
        {
            let following = named::follow(self.client.clone(), wanted, tell.clone());
            watches.spawn(following);
            answered = Some(tell_answered);
        }
        drop(tell);
        let mut memory = Memory::new(&self.root_namespace, &self.kinds);
        while let Some((kind, news)) = told.recv().await {
            memory.take(kind, news);
            settle(&mut memory, &mut told).await;
            if let Some(batch) = memory.batch()
                && batches.send(batch).await.is_err()
            {
                return;
            }
            if let Some(answered) = &answered {
                // After the batch that has them.
                answered.send_if_modified(|known| memory.tell_answered(known));
            }
        }
    }
}

/// Takes in what comes right behind: one deployment is many objects, and one batch.
async fn settle(memory: &mut Memory, told: &mut mpsc::Receiver<(Kind, Told)>) {
    let end = Instant::now() + SETTLE_AT_MOST;
    loop {
        let quiet = (Instant::now() + QUIET).min(end);
        match timeout_at(quiet, told.recv()).await {
            Ok(Some((kind, news))) => memory.take(kind, news),
            Ok(None) | Err(_) => return,
        }
        if Instant::now() >= end {
            return;
        }
    }
}

/// Tells of one kind until nobody listens.
async fn follow(client: Client, kind: Kind, tell: mpsc::Sender<(Kind, Told)>) {
    let resource = resource(kind);
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let stream = patient(watcher(api, watcher::Config::default()));
    let mut stream = std::pin::pin!(stream);
    let mut state = State::Unknown;
    while let Some(event) = stream.next().await {
        let news = match event {
            Ok(event) => {
                if let Some(news) = news(event) {
                    if matches!(news, Told::ListDone) {
                        state.becomes(State::Followed, kind);
                    }
                    vec![news]
                } else {
                    Vec::new()
                }
            }
            Err(error) if is_not_found(&error) => match is_defined(&client, &resource).await {
                Ok(false) => {
                    if state.becomes(State::NotDefined, kind) {
                        vec![Told::ListStarts, Told::ListDone]
                    } else {
                        Vec::new()
                    }
                }
                // The server has just started, or does not let us ask: what was known stays.
                Ok(true) | Err(_) => state.failed(kind, &error),
            },
            Err(error) => state.failed(kind, &error),
        };
        for news in news {
            if tell.send((kind, news)).await.is_err() {
                return;
            }
        }
    }
}

fn news(event: Event<DynamicObject>) -> Option<Told> {
    match event {
        Event::Init => Some(Told::ListStarts),
        Event::InitDone => Some(Told::ListDone),
        Event::InitApply(object) => json(object).map(Told::Listed),
        Event::Apply(object) => json(object).map(Told::Applied),
        Event::Delete(object) => Some(Told::Deleted {
            namespace: object.namespace().unwrap_or_default(),
            uid: object.uid().unwrap_or_default(),
            name: object.name_any(),
        }),
    }
}

/// The object without what its writers noted of themselves, which is the greater part of many.
fn json(mut object: DynamicObject) -> Option<serde_json::Value> {
    object.metadata.managed_fields = None;
    let converted = serde_json::to_value(object);
    // It was read from JSON.
    converted
        .inspect_err(|error| warn!(%error, "an object cannot be written as JSON"))
        .ok()
}

/// How a kind stands, so that each change is said once.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Unknown,
    Followed,
    NotDefined,
    Failing(String),
}

impl State {
    /// Whether it was another before.
    fn becomes(&mut self, new: Self, kind: Kind) -> bool {
        if *self == new {
            return false;
        }
        match &new {
            Self::NotDefined => {
                info!(
                    kind = kind.as_str(),
                    group = kind.group(),
                    "the cluster has no such kind; it is looked for again"
                )
            }
            Self::Followed if matches!(self, Self::Failing(_)) => {
                info!(kind = kind.as_str(), "followed again")
            }
            Self::Failing(error) => {
                warn!(
                    kind = kind.as_str(),
                    error, "cannot follow this kind; what is known of it stays"
                )
            }
            Self::Unknown | Self::Followed => {}
        }
        *self = new;
        true
    }

    fn failed(&mut self, kind: Kind, error: &watcher::Error) -> Vec<Told> {
        self.becomes(Self::Failing(whole(error)), kind);
        Vec::new()
    }
}

/// What an error says, with its causes.
pub(crate) fn whole(error: &watcher::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text = format!("{text}: {inner_text}");
        }
        cause = inner.source();
    }
    text
}

fn is_not_found(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 404,
        watcher::Error::WatchError(status) => status.code == 404,
        _ => false,
    }
}

/// Whether the cluster has a definition of the kind. Kubernetes' own kinds are always there; a server that starts answers
/// "not found" for others until it has read their definitions, and their objects must not be taken for gone.
async fn is_defined(client: &Client, resource: &ApiResource) -> kube::Result<bool> {
    let is_added =
        resource.group.ends_with(".istio.io") || resource.group == Kind::HttpRoute.group();
    if !is_added {
        return Ok(true);
    }
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = format!("{}.{}", resource.plural, resource.group);
    Ok(definitions.get_metadata_opt(&name).await?.is_some())
}

pub(crate) fn resource(kind: Kind) -> ApiResource {
    let (group, version) = (kind.group(), kind.versions()[0]);
    let api_version = match group {
        "" => version.to_owned(),
        group => format!("{group}/{version}"),
    };
    let plural = match kind {
        Kind::Namespace => "namespaces",
        Kind::Node => "nodes",
        Kind::ServiceAccount => "serviceaccounts",
        Kind::Pod => "pods",
        Kind::Service => "services",
        Kind::EndpointSlice => "endpointslices",
        Kind::NetworkPolicy => "networkpolicies",
        Kind::PeerAuthentication => "peerauthentications",
        Kind::AuthorizationPolicy => "authorizationpolicies",
        Kind::VirtualService => "virtualservices",
        Kind::DestinationRule => "destinationrules",
        Kind::Gateway => "gateways",
        Kind::HttpRoute => "httproutes",
        Kind::GrpcRoute => "grpcroutes",
        Kind::TlsRoute => "tlsroutes",
        Kind::TcpRoute => "tcproutes",
        Kind::ReferenceGrant => "referencegrants",
        Kind::IstioGateway => "gateways",
        Kind::Secret => "secrets",
        Kind::ServiceEntry => "serviceentries",
        Kind::IngressClass => "ingressclasses",
        Kind::Ingress => "ingresses",
    };
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version,
        kind: kind.as_str().to_owned(),
        plural: plural.to_owned(),
    }
}

/// What a watcher says, and after each error a pause before it asks again, which gets longer until something has come.
///
/// kube's own `backoff` takes any event for a success, also [`Event::Init`], which comes before each list: whatever cannot be
/// listed, such as a kind that the cluster has not, would be asked for ten times a second for ever.
pub(crate) fn patient<K>(
    stream: impl Stream<Item = watcher::Result<Event<K>>> + Send,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send
where
    K: Send,
{
    let start = (Box::pin(stream), Retry::default(), Duration::ZERO);
    futures::stream::unfold(start, |(mut stream, mut retry, pause)| async move {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let event = stream.next().await?;
        let pause = match &event {
            Ok(Event::Init) => Duration::ZERO,
            Ok(_) => {
                retry = Retry::default();
                Duration::ZERO
            }
            Err(_) => retry.pause(),
        };
        Some((event, (stream, retry, pause)))
    })
}

/// How long to wait before the server is asked again: 100 ms, twice as long each time, 5 s at most, and each time up to a
/// quarter less, so that not all kinds ask at once.
#[derive(Debug, Default)]
pub(crate) struct Retry {
    failures: u32,
}

impl Retry {
    pub(crate) fn pause(&mut self) -> Duration {
        let longest = FIRST_RETRY
            .saturating_mul(1 << self.failures.min(16))
            .min(LAST_RETRY);
        self.failures = self.failures.saturating_add(1);
        longest.mul_f64(rand::random_range(0.75..=1.0))
    }
}

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(5);
/// How long nothing must come before a batch is closed, and how long one may stay open.
const QUIET: Duration = Duration::from_millis(5);
const SETTLE_AT_MOST: Duration = Duration::from_millis(50);
/// How many events may wait; the watches then read no further.
const QUEUE: usize = 1024;

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn the_server_is_asked_again_soon_and_never_seldom() {
        let mut retry = Retry::default();
        let waits: Vec<Duration> = (0..40).map(|_| retry.pause()).collect();
        assert!(waits[0] <= FIRST_RETRY, "{waits:?}");
        assert!(waits.iter().all(|wait| *wait <= LAST_RETRY), "{waits:?}");
        assert!(waits[39] >= LAST_RETRY.mul_f64(0.75), "{waits:?}");
    }

    /// Counts how often a server is asked for pods in two seconds that answers each time as `answer` says.
    async fn asked(answer: &'static str) -> usize {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                let mut request = vec![0; 4096];
                let _read = stream.read(&mut request).await;
                let head = "Content-Type: application/json\r\nConnection: close";
                let text = format!("HTTP/1.1 {answer}\r\n{head}\r\nContent-Length: 0\r\n\r\n");
                let _written = stream.write_all(text.as_bytes()).await;
            }
        });
        let client = Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap();
        let pods: Api<DynamicObject> = Api::all_with(client, &resource(Kind::Pod));
        let events = patient(watcher(pods, watcher::Config::default()));
        let events = events.for_each(|_event| async {});
        let _elapsed = tokio::time::timeout(Duration::from_secs(2), events).await;
        count.load(Ordering::Relaxed)
    }

    /// Each attempt begins with an event that is no error. At once, after 100, 200, 400 and 800 ms, and 1.6 s: each pause up to a
    /// quarter shorter. The client itself repeats a few times what was answered with 503. A pause that stayed at 100 ms would
    /// make it 20.
    #[tokio::test]
    async fn what_cannot_be_listed_is_asked_for_less_and_less_often() {
        for answer in ["403 Forbidden", "404 Not Found", "503 Service Unavailable"] {
            let times = asked(answer).await;
            assert!((1..=10).contains(&times), "{answer}: {times} times");
        }
    }

    #[test]
    fn every_kind_that_is_compiled_is_followed() {
        for kind in Kind::ALL {
            let followed = KINDS.contains(&kind);
            // Of Secrets only those that are named.
            let is_asked_for =
                [Kind::ServiceAccount, Kind::NetworkPolicy, Kind::Secret].contains(&kind);
            assert_eq!(followed, !is_asked_for, "{kind:?}");
        }
    }
}

//! Rules: when one applies, and what happens then.

use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use ipnet::IpNet;
use model::{Interner, ServiceKey};

use crate::backend::ClusterKey;
use crate::listener::HostPattern;
use crate::origin::Origin;
use crate::text::{Regex, TextMatch};

/// One rule of a route object, as it is delivered: where it is attached, when it applies, and what happens then.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteRule {
    /// Where it counts.
    pub attachments: Vec<Attachment>,
    /// How it stands to other rules there.
    pub precedence: Precedence,
    /// One of them has to hold; none at all means always.
    pub matches: Vec<Match>,
    /// What happens then.
    pub rule: Arc<Rule>,
}

/// Where a rule counts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Attachment {
    /// The service that is dialled.
    pub service: ServiceKey,
    /// The service's port; none for all.
    pub port: Option<u16>,
    /// Only clients of this namespace; for them such rules replace those for everybody.
    pub client_namespace: Option<Arc<str>>,
}

/// The order in which rules are tried.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Precedence {
    /// As written: by this text (of the object), then by the rule's index (VirtualService).
    Listed(Arc<str>),
    /// The most specific match first; among equals by this text, then by the rule's index (Gateway API).
    Specific(Arc<str>),
}

impl RouteRule {
    /// Whether it is for connections, and not for requests.
    pub fn is_for_connections(&self) -> bool {
        self.matches.iter().any(|m| m.connection.is_some())
    }

    /// Makes strings that other rules have too the same allocation.
    pub(crate) fn share_strings(&mut self, interner: &mut Interner) {
        let mut share_key = |key: &mut ServiceKey| {
            interner.share(&mut key.namespace);
            interner.share(&mut key.hostname);
        };
        for attachment in &mut self.attachments {
            share_key(&mut attachment.service);
        }
        // A rule that somebody else has already is left as it is.
        if let Some(rule) = Arc::get_mut(&mut self.rule) {
            let treatment = Arc::get_mut(&mut rule.treatment);
            if let Some(Action::Forward(forward)) = treatment.map(|one| &mut one.action) {
                for one in &mut forward.backends {
                    if let Backend::Cluster(key) = &mut one.backend {
                        share_key(&mut key.service);
                    }
                }
                forward.backends.shrink_to_fit();
                forward.mirrors.shrink_to_fit();
                if *forward.retries == **STANDARD_RETRIES {
                    forward.retries = Arc::clone(&STANDARD_RETRIES);
                }
            }
            interner.share(&mut rule.origin.namespace);
            interner.share(&mut rule.origin.name);
        }
        match &mut self.precedence {
            Precedence::Listed(rank) | Precedence::Specific(rank) => interner.share(rank),
        }
    }
}

/// Conditions that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Match {
    /// The path in normal form.
    pub path: PathMatch,
    /// The method.
    pub method: Option<TextMatch>,
    /// The scheme.
    pub scheme: Option<TextMatch>,
    /// Host and port as received.
    pub authority: Option<TextMatch>,
    /// Headers.
    pub headers: Vec<HeaderMatch>,
    /// Query parameters.
    pub query: Vec<QueryMatch>,
    /// The port that was dialled.
    pub port: Option<u16>,
    /// Labels that the client must have.
    pub client_labels: Vec<(Arc<str>, Arc<str>)>,
    /// The client's namespace.
    pub client_namespace: Option<Arc<str>>,
    /// It is for connections whose bytes are not read as HTTP, and for no request (F22).
    pub connection: Option<Box<ConnectionMatch>>,
}

/// Conditions on a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ConnectionMatch {
    /// Names of which TLS asks for one; none at all is for every connection, whether it speaks TLS or not.
    pub server_names: Vec<HostPattern>,
    /// Ranges of which one holds the address that was dialled; none at all is for every address.
    pub subnets: Vec<IpNet>,
}

impl ConnectionMatch {
    /// Whether they hold for a connection to an address, on which TLS asks for a name.
    pub fn holds(&self, address: IpAddr, server_name: Option<&str>) -> bool {
        let is_named = self.server_names.is_empty()
            || server_name.is_some_and(|name| self.server_names.iter().any(|one| one.holds(name)));
        let is_there =
            self.subnets.is_empty() || self.subnets.iter().any(|subnet| subnet.contains(&address));
        is_named && is_there
    }
}

/// A condition on the path in normal form.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum PathMatch {
    /// Every path.
    #[default]
    Any,
    /// This path.
    Exact(Arc<str>),
    /// Paths that begin with this text.
    Prefix(Arc<str>),
    /// This path and those below it, segment by segment: `/v1` is for `/v1`, `/v1/` and `/v1/x`, not for `/v1beta`.
    /// It has no slash at its end; the empty one is for every path.
    Segments(Arc<str>),
    /// What other conditions on text say.
    Text(TextMatch),
}

/// A condition on a header.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HeaderMatch {
    /// Its name.
    pub name: HeaderName,
    /// The condition on its value; without the header it does not hold.
    pub value: TextMatch,
    /// The condition must not hold.
    pub negated: bool,
}

/// A condition on the first value of a query parameter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct QueryMatch {
    /// Its name.
    pub name: Arc<str>,
    /// The condition on its value; without the parameter it does not hold.
    pub value: TextMatch,
}

/// A rule of an object, and what it says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Where it is written.
    pub origin: Origin,
    /// What happens to a request; many rules say the same.
    pub treatment: Arc<Treatment>,
}

/// What happens to a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Treatment {
    /// The action.
    pub action: Action,
    /// Time for everything, retries included; none is without end.
    pub timeout: Option<Duration>,
    /// What goes wrong on purpose.
    pub fault: Option<Box<Fault>>,
    /// Answers to other origins' scripts.
    pub cors: Option<Box<Cors>>,
    /// Changes of the request's headers.
    pub request_headers: HeaderOperations,
    /// Changes of the answer's headers.
    pub response_headers: HeaderOperations,
}

/// What becomes of a request in the end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// It goes to a backend.
    Forward(Forward),
    /// It is told to go elsewhere.
    Redirect(Redirect),
    /// It is answered at once.
    Respond(DirectResponse),
    /// The rule cannot be carried out: 500, with this reason in the log.
    Fail(Arc<str>),
}

/// Where to, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Forward {
    /// Drawn by weight; none at all, or only zero weights, is answered with 500 (Gateway API) by the waypoint.
    pub backends: Vec<WeightedBackend>,
    /// Changes of path and authority.
    pub rewrite: Rewrite,
    /// When it is tried again.
    pub retries: Arc<Retries>,
    /// Time for one try; none is what is left of the whole.
    pub attempt_timeout: Option<Duration>,
    /// Where copies go, whose answers count for nothing.
    pub mirrors: Vec<Mirror>,
}

/// A backend and its share.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WeightedBackend {
    /// The backend.
    pub backend: Backend,
    /// Its share, relative to the others.
    pub weight: u32,
    /// Changes of the request's headers, for this backend only.
    pub request_headers: HeaderOperations,
    /// Changes of the answer's headers, for this backend only.
    pub response_headers: HeaderOperations,
    /// Another authority, for this backend only.
    pub authority: Option<Arc<str>>,
}

/// Where a share of the requests goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    /// To a port of a service, or a subset of it.
    Cluster(ClusterKey),
    /// Nowhere: it is answered with this status, and the reason is in the log.
    Invalid {
        /// The status.
        status: StatusCode,
        /// Why.
        reason: Arc<str>,
    },
}

/// A copy of some requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mirror {
    /// Where to.
    pub backend: ClusterKey,
    /// How many.
    pub share: Share,
}

/// A share of all requests, in millionths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Share(u32);

/// When a request is tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Retries {
    /// Tries after the first one.
    pub attempts: u32,
    /// What is tried again.
    pub on: RetryOn,
    /// Answers that are tried again.
    pub statuses: Vec<StatusCode>,
    /// Pause before the first retry; later ones double it. None is the default of 25 ms.
    pub backoff: Option<Duration>,
    /// A retry may go to another locality.
    pub other_localities: bool,
}

/// Kinds of failures that are tried again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RetryOn {
    /// No connection could be made: nothing was sent.
    pub connect_failure: bool,
    /// The server refused the stream before it looked at it.
    pub refused_stream: bool,
    /// The connection ended before an answer.
    pub reset: bool,
    /// The connection ended before the request was sent.
    pub reset_before_request: bool,
    /// Any answer of 5xx, and no answer.
    pub server_error: bool,
    /// 502, 503, 504, and no answer.
    pub gateway_error: bool,
    /// 409.
    pub retriable_4xx: bool,
    /// The answers of [`Retries::statuses`].
    pub statuses: bool,
    /// An attempt that took too long (part of `5xx` and `gateway-error` in Envoy's words).
    pub attempt_timeout: bool,
    /// gRPC status CANCELLED.
    pub grpc_cancelled: bool,
    /// gRPC status DEADLINE_EXCEEDED.
    pub grpc_deadline_exceeded: bool,
    /// gRPC status INTERNAL.
    pub grpc_internal: bool,
    /// gRPC status RESOURCE_EXHAUSTED.
    pub grpc_resource_exhausted: bool,
    /// gRPC status UNAVAILABLE.
    pub grpc_unavailable: bool,
}

/// What goes wrong on purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fault {
    /// Requests that wait.
    pub delay: Option<(Share, Duration)>,
    /// Requests that are answered with an error and never sent.
    pub abort: Option<(Share, Abort)>,
}

/// The error of an abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Abort {
    /// An HTTP status.
    Http(StatusCode),
    /// A gRPC status.
    Grpc(u32),
}

/// Changes of headers; most rules have none, and then this takes the room of a pointer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct HeaderOperations(Option<Box<HeaderChanges>>);

/// Changes of headers. In this order: remove, set, add.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct HeaderChanges {
    /// Taken away.
    pub remove: Vec<HeaderName>,
    /// Put in the place of what is there.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Put beside what is there.
    pub add: Vec<(HeaderName, HeaderValue)>,
}

/// Changes of path and authority.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Rewrite {
    /// The new path.
    pub path: Option<PathRewrite>,
    /// The new authority.
    pub authority: Option<Arc<str>>,
}

/// A new path. The query stays.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PathRewrite {
    /// This.
    Full(Arc<str>),
    /// This in place of what a [`PathMatch::Prefix`], [`PathMatch::Exact`] or [`PathMatch::Segments`] has matched.
    Prefix(Arc<str>),
    /// What the pattern finds is substituted; `\1` stands for its first group.
    Regex {
        /// The pattern, which may match a part.
        pattern: Box<Substitution>,
    },
}

/// A pattern and what its matches become.
#[derive(Clone, Debug)]
pub struct Substitution {
    pub(crate) regex: regex::Regex,
    pub(crate) replacement: Arc<str>,
    size: usize,
}

/// Where a client is told to go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Redirect {
    /// The status: 301, 302, 303, 307 or 308.
    pub status: StatusCode,
    /// Another scheme.
    pub scheme: Option<Arc<str>>,
    /// Another host.
    pub host: Option<Arc<str>>,
    /// Another port.
    pub port: RedirectPort,
    /// Another path.
    pub path: Option<PathRewrite>,
}

/// The port that a client is told to go to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RedirectPort {
    /// That of the request's authority, unless the scheme or the host is another.
    #[default]
    Unsaid,
    /// The scheme's own if there is a scheme, else the one that was dialled (Gateway API).
    FromScheme,
    /// The one that was dialled.
    Dialled,
    /// This one.
    Number(u16),
}

/// An answer of the waypoint's own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DirectResponse {
    /// The status.
    pub status: StatusCode,
    /// The body.
    pub body: Arc<[u8]>,
}

/// Which origins' scripts may read answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Cors {
    /// Origins that may.
    pub origins: Vec<TextMatch>,
    /// Methods that a preflight allows; `*` is any.
    pub methods: Vec<Arc<str>>,
    /// Headers that a preflight allows; `*` is any.
    pub headers: Vec<Arc<str>>,
    /// Headers of the answer that may be read.
    pub expose: Vec<Arc<str>>,
    /// For how long a preflight's answer may be kept.
    pub max_age: Option<Duration>,
    /// Whether cookies may be sent.
    pub credentials: bool,
    /// Preflights of other origins are forwarded; otherwise they are answered without allowing anything.
    pub forward_unmatched: bool,
}

impl Rule {
    /// A rule that says this.
    pub fn new(origin: Origin, treatment: Treatment) -> Self {
        Self {
            origin,
            treatment: treatment.into(),
        }
    }
}

impl Deref for Rule {
    type Target = Treatment;

    fn deref(&self) -> &Treatment {
        &self.treatment
    }
}

impl DerefMut for Rule {
    /// What others say stays as it is.
    fn deref_mut(&mut self) -> &mut Treatment {
        Arc::make_mut(&mut self.treatment)
    }
}

impl Share {
    /// All.
    pub const ALL: Self = Self(1_000_000);

    /// So many millionths, at most all.
    pub fn millionths(count: u32) -> Self {
        Self(count.min(Self::ALL.0))
    }

    /// A percentage, to the nearest ten-thousandth of a percent. `None` if it is none.
    pub fn percent(percent: f64) -> Option<Self> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and a million"
        )]
        (0.0..=100.0)
            .contains(&percent)
            .then(|| Self((percent * 10_000.0).round() as u32))
    }

    /// In millionths.
    pub fn as_millionths(self) -> u32 {
        self.0
    }

    /// Whether a number drawn evenly below a million falls into the share.
    pub fn holds(self, drawn: u32) -> bool {
        drawn < self.0
    }
}

impl Retries {
    /// What Istio does where no rule says anything about retries: two more tries of what surely was not processed.
    /// Unlike Istio, an answer of 503 is not tried again: the server may have done the work.
    pub fn standard() -> Self {
        Self {
            attempts: 2,
            on: RetryOn {
                connect_failure: true,
                refused_stream: true,
                reset_before_request: true,
                ..RetryOn::default()
            },
            ..Self::default()
        }
    }
}

/// That of nearly all rules, which they share.
static STANDARD_RETRIES: LazyLock<Arc<Retries>> = LazyLock::new(|| Retries::standard().into());

impl From<HeaderChanges> for HeaderOperations {
    fn from(changes: HeaderChanges) -> Self {
        Self((changes != NO_CHANGES).then(|| Box::new(changes)))
    }
}

impl Deref for HeaderOperations {
    type Target = HeaderChanges;

    fn deref(&self) -> &HeaderChanges {
        self.0.as_deref().unwrap_or(&NO_CHANGES)
    }
}

static NO_CHANGES: HeaderChanges = HeaderChanges {
    remove: Vec::new(),
    set: Vec::new(),
    add: Vec::new(),
};

impl HeaderOperations {
    /// Changes nothing.
    pub const NONE: Self = Self(None);

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Carries them out.
    pub fn apply(&self, headers: &mut http::HeaderMap) {
        for name in &self.remove {
            headers.remove(name);
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
    }
}

impl Cors {
    /// Whether scripts of this origin may.
    pub fn allows(&self, origin: &str) -> bool {
        self.origins.iter().any(|allowed| allowed.holds(origin))
    }

    /// Whether a request is a preflight.
    pub fn is_preflight(method: &Method, headers: &http::HeaderMap) -> bool {
        method == Method::OPTIONS
            && headers.contains_key(http::header::ORIGIN)
            && headers.contains_key(http::header::ACCESS_CONTROL_REQUEST_METHOD)
    }
}

impl Substitution {
    /// A pattern, and what its matches become: `\1` is the first group, `\\` a backslash.
    ///
    /// # Errors
    /// It is no pattern, or too large.
    pub fn new(pattern: &Regex, replacement: &str) -> Result<Self, crate::text::RegexError> {
        let (regex, size) = crate::text::build(pattern.pattern())?;
        Ok(Self {
            regex,
            replacement: replacement.into(),
            size,
        })
    }

    /// What it takes of [`crate::text::REGEX_TOTAL`].
    pub fn size(&self) -> usize {
        self.size
    }

    /// The pattern.
    pub fn pattern(&self) -> &str {
        self.regex.as_str()
    }

    /// What matches become.
    pub fn replacement(&self) -> &str {
        &self.replacement
    }
}

impl PartialEq for Substitution {
    fn eq(&self, other: &Self) -> bool {
        self.regex.as_str() == other.regex.as_str() && self.replacement == other.replacement
    }
}

impl Eq for Substitution {}

impl Hash for Substitution {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.regex.as_str().hash(state);
        self.replacement.hash(state);
    }
}

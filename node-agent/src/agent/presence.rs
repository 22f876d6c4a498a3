//! Whether this agent is still meant to be on its node: what the API server says of the DaemonSet that it is a pod of.
//!
//! An agent that is stopped cannot know from its signal whether another one follows or whether it has been removed for
//! good. So it asks. Removed means that pods may be let go; whatever else it hears, or does not hear, means that they stay
//! captured.
//!
//! Who removes an installation takes the agent's rights and account away before the agent can ask, so that the API server
//! refuses its token. That alone means nothing: the token is bound to the agent's pod, and is refused as well when only
//! that is gone (`kubectl delete pod --force`) and another agent is to follow. So the agent keeps a token of another account,
//! which may ask this and nothing else, belongs to the same installation, and is bound to no pod ([`Witness`]).

use std::{
    io::{self, Read, Write},
    net::{TcpStream, ToSocketAddrs},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto::aws_lc_rs,
    pki_types::ServerName,
};
use serde_json::Value;

/// What the API server says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Presence {
    /// The DaemonSet is there and wants an agent on this node.
    Meant,
    /// It does not, for this reason.
    Removed(String),
    /// Nobody says so or otherwise.
    Unknown(String),
}

/// An object of a namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Named {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// The DaemonSet that an agent is a pod of.
pub type DaemonSet = Named;
/// The service account of a [`Witness`].
pub type Account = Named;

impl std::str::FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) if is_name(namespace) && is_name(name) => Ok(Self {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }),
            _ => Err("write NAMESPACE/NAME".to_owned()),
        }
    }
}

/// It becomes a part of a path.
fn is_name(text: &str) -> bool {
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    !text.is_empty() && text.chars().all(letter)
}

/// A token of an account of the same installation, which is refused when that has been removed and not before.
#[derive(Default)]
pub struct Witness(Mutex<Option<String>>);

impl std::fmt::Debug for Witness {
    /// Without the token.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Witness").finish_non_exhaustive()
    }
}

impl Witness {
    /// Gets a new token if half of the life of the one that there is has passed; waits for the answer.
    ///
    /// # Errors
    /// Says why there is no new one. An earlier one stays.
    pub fn renew(&self, account: &Account) -> Result<(), String> {
        let due = |token: &String| {
            let ends = token_ends(token);
            ends.is_none_or(|ends| ends < SystemTime::now() + LIFE / 2)
        };
        if !self.token().as_ref().is_none_or(due) {
            return Ok(());
        }
        let server = Server::of_this_pod().map_err(|error| error.to_string())?;
        let path = format!(
            "/api/v1/namespaces/{}/serviceaccounts/{}/token",
            account.namespace, account.name
        );
        let question = serde_json::json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"expirationSeconds": LIFE.as_secs()},
        });
        let answer = server
            .ask("POST", &path, &server.token, Some(&question.to_string()))
            .map_err(|error| format!("the API server is not reached: {error}"))?;
        let token = minted(&answer)?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(token);
        Ok(())
    }

    fn token(&self) -> Option<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Makes an event in a namespace, with this pod's own token, and waits for the answer.
///
/// # Errors
/// Says why there is none.
pub fn tell(namespace: &str, event: &Value) -> Result<(), String> {
    let server = Server::of_this_pod().map_err(|error| error.to_string())?;
    let path = format!("/api/v1/namespaces/{namespace}/events");
    let answer = server
        .ask("POST", &path, &server.token, Some(&event.to_string()))
        .map_err(|error| format!("the API server is not reached: {error}"))?;
    match answer.status {
        201 => Ok(()),
        status => Err(format!("the API server answers with status {status}")),
    }
}

/// The token in the answer to a TokenRequest (`authentication.k8s.io/v1`).
fn minted(answer: &Answer) -> Result<String, String> {
    if answer.status != 201 {
        let status = answer.status;
        return Err(format!("the API server answers with status {status}"));
    }
    let object = serde_json::from_slice::<Value>(&answer.body).ok();
    let token = object
        .as_ref()
        .and_then(|object| object["status"]["token"].as_str());
    token
        .map(str::to_owned)
        .ok_or_else(|| "the API server's answer has no token".to_owned())
}

/// Asks the API server of the cluster that this program runs in, and waits for the answer.
#[must_use]
pub fn ask(daemon_set: &DaemonSet, node: &str, witness: &Witness) -> Presence {
    let server = match Server::of_this_pod() {
        Ok(server) => server,
        Err(error) => return Presence::Unknown(error.to_string()),
    };
    let path = format!(
        "/apis/apps/v1/namespaces/{}/daemonsets/{}",
        daemon_set.namespace, daemon_set.name
    );
    let mut token = server.token.clone();
    let mut answer = server.ask("GET", &path, &token, None);
    if let (Ok(Answer { status: 401, .. }), Some(other)) = (&answer, witness.token()) {
        answer = server.ask("GET", &path, &other, None);
        token = other;
    }
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return Presence::Unknown(format!("the API server is not reached: {error}")),
    };
    let is_witness = token != server.token;
    let ends = token_ends(&token).filter(|_| is_witness);
    let presence = match judge(&answer, ends, SystemTime::now()) {
        Verdict::Is(presence) => presence,
        Verdict::IfNodeHas(wanted) => {
            let path = format!("/api/v1/nodes/{node}");
            match is_name(node).then(|| server.ask("GET", &path, &token, None)) {
                Some(Ok(answer)) => selected(&wanted, &answer),
                Some(Err(error)) => Presence::Unknown(format!("the node cannot be read: {error}")),
                None => Presence::Unknown(format!("{node:?} is no name of a node")),
            }
        }
    };
    if presence != Presence::Meant {
        return presence;
    }
    let path = format!("/api/v1/namespaces/{}", daemon_set.namespace);
    match server.ask("GET", &path, &token, None) {
        Ok(answer) => in_namespace(&answer),
        Err(error) => Presence::Unknown(format!("the namespace cannot be read: {error}")),
    }
}

/// What becomes of a DaemonSet that wants an agent here, by the answer about its namespace. Where that is deleted the pods go
/// first, while the DaemonSet is there as before.
fn in_namespace(answer: &Answer) -> Presence {
    match answer.status {
        200 => {}
        // The rights of an earlier version's chart are not enough for this: then what is said of the DaemonSet counts.
        403 => return Presence::Meant,
        status => {
            return Presence::Unknown(format!(
                "the namespace cannot be read: the API server answers with status {status}"
            ));
        }
    }
    match serde_json::from_slice::<Value>(&answer.body) {
        Ok(object) if object["kind"] == "Namespace" => {
            if object["metadata"]["deletionTimestamp"].is_null() {
                Presence::Meant
            } else {
                Presence::Removed("the namespace is being deleted".to_owned())
            }
        }
        _ => Presence::Unknown("the answer about the namespace cannot be read".to_owned()),
    }
}

/// What follows from the answer about the DaemonSet.
enum Verdict {
    Is(Presence),
    /// It is there, and wants nodes with these labels.
    IfNodeHas(serde_json::Map<String, Value>),
}

/// What an answer means. `witness_ends` is when the token ends by which it was asked, if that was the witness's.
fn judge(answer: &Answer, witness_ends: Option<SystemTime>, now: SystemTime) -> Verdict {
    let removed = |why: &str| Verdict::Is(Presence::Removed(why.to_owned()));
    match answer.status {
        200 => {
            let Ok(object) = serde_json::from_slice::<Value>(&answer.body) else {
                return unknown("the answer about the DaemonSet cannot be read");
            };
            if object["kind"] != "DaemonSet" {
                return unknown("the answer is about something else");
            }
            if !object["metadata"]["deletionTimestamp"].is_null() {
                return removed("the DaemonSet is being deleted");
            }
            match object["spec"]["template"]["spec"]["nodeSelector"].as_object() {
                Some(wanted) if !wanted.is_empty() => Verdict::IfNodeHas(wanted.clone()),
                _ => Verdict::Is(Presence::Meant),
            }
        }
        404 => removed("the DaemonSet is gone"),
        // A token that is bound to no pod and has not ended is refused when its account is no more, which goes with the
        // installation.
        401 if witness_ends.is_some_and(|end| end > now) => {
            removed("the installation's service accounts are gone")
        }
        status => unknown(&format!("the API server answers with status {status}")),
    }
}

fn unknown(why: &str) -> Verdict {
    Verdict::Is(Presence::Unknown(why.to_owned()))
}

fn selected(wanted: &serde_json::Map<String, Value>, answer: &Answer) -> Presence {
    let node: Option<Value> = (answer.status == 200)
        .then(|| serde_json::from_slice(&answer.body).ok())
        .flatten();
    let Some(node) = node.filter(|node| node["kind"] == "Node") else {
        return Presence::Unknown(format!(
            "the node cannot be read: the API server answers with status {}",
            answer.status
        ));
    };
    let labels = &node["metadata"]["labels"];
    match wanted
        .iter()
        .find(|(key, value)| labels[key.as_str()] != **value)
    {
        None => Presence::Meant,
        Some((key, value)) => Presence::Removed(format!(
            "the DaemonSet wants nodes with the label {key}={}, which this node does not have",
            value.as_str().unwrap_or_default()
        )),
    }
}

/// An API server, and who we are to it.
struct Server {
    host: String,
    port: u16,
    roots: PathBuf,
    token: String,
}

struct Answer {
    status: u16,
    body: Vec<u8>,
}

impl Server {
    fn of_this_pod() -> io::Result<Self> {
        let variable = |name: &str| {
            std::env::var(name).map_err(|_unset| {
                io::Error::other(format!("{name} is not set: this program runs in no pod"))
            })
        };
        let account = Path::new(ACCOUNT);
        let port = variable("KUBERNETES_SERVICE_PORT")?;
        Ok(Self {
            host: variable("KUBERNETES_SERVICE_HOST")?,
            port: port.parse().map_err(io::Error::other)?,
            roots: account.join("ca.crt"),
            token: std::fs::read_to_string(account.join("token"))?
                .trim()
                .to_owned(),
        })
    }

    /// One request on a connection of its own: with HTTP/1.0 the answer ends with the connection, and is in one piece.
    fn ask(&self, method: &str, path: &str, token: &str, body: Option<&str>) -> io::Result<Answer> {
        let mut stream = self.connect()?;
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        let content = body.map_or_else(String::new, |body| {
            let length = body.len();
            format!("Content-Type: application/json\r\nContent-Length: {length}\r\n")
        });
        let request = format!(
            "{method} {path} HTTP/1.0\r\nHost: {host}:{}\r\nAuthorization: Bearer {token}\r\nAccept: application/json\r\n{content}\r\n{}",
            self.port,
            body.unwrap_or_default()
        );
        stream.write_all(request.as_bytes())?;
        let mut bytes = Vec::new();
        match stream.take(LONGEST_ANSWER).read_to_end(&mut bytes) {
            // The end of TLS is not always said; the length is.
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(error),
            _ => {}
        }
        parse(&bytes).ok_or_else(|| io::Error::other("the answer is no whole HTTP"))
    }

    fn connect(&self) -> io::Result<StreamOwned<ClientConnection, TcpStream>> {
        let text = std::fs::read_to_string(&self.roots)?;
        let roots = tls::Roots::from_pem(&text).map_err(io::Error::other)?;
        let mut store = RootCertStore::empty();
        for root in roots.certificates() {
            store.add(root.clone()).map_err(io::Error::other)?;
        }
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(store)
            .with_no_client_auth();
        let name = ServerName::try_from(self.host.clone()).map_err(io::Error::other)?;
        let session = ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)?;
        let address = (self.host.as_str(), self.port)
            .to_socket_addrs()?
            .next()
            .ok_or_else(|| io::Error::other("the API server has no address"))?;
        let tcp = TcpStream::connect_timeout(&address, ANSWERS_WITHIN)?;
        tcp.set_read_timeout(Some(ANSWERS_WITHIN))?;
        tcp.set_write_timeout(Some(ANSWERS_WITHIN))?;
        Ok(StreamOwned::new(session, tcp))
    }
}

/// When a token ends, as it says itself: `exp` of the claims in its middle part (RFC 7519).
fn token_ends(token: &str) -> Option<SystemTime> {
    let claims = token.split('.').nth(1)?;
    let claims: Value = serde_json::from_slice(&base64url(claims)?).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(claims["exp"].as_u64()?))
}

/// Status and body of an answer whose length is as announced.
fn parse(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    let (head, body) = bytes.split_at(end);
    let body = body.get(4..)?;
    let head = std::str::from_utf8(head).ok()?;
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    for line in lines {
        let (name, value) = line.split_once(':')?;
        if name.eq_ignore_ascii_case("content-length") && value.trim().parse() != Ok(body.len()) {
            return None;
        }
    }
    Some(Answer {
        status,
        body: body.to_vec(),
    })
}

/// Reads base64 in the alphabet for URLs, without padding (RFC 4648, section 5).
fn base64url(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut bits, mut held) = (0_u32, 0_u32);
    for letter in text.bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(value)) & 0xffff;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from((bits >> held) & 0xff).ok()?);
        }
    }
    Some(bytes)
}

/// Where Kubernetes puts what a pod needs to speak to the API server.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);
/// Of a witness's token.
const LIFE: Duration = Duration::from_secs(24 * 3600);
const LONGEST_ANSWER: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer(status: u16, body: &Value) -> Answer {
        Answer {
            status,
            body: body.to_string().into_bytes(),
        }
    }

    fn daemon_set(change: impl FnOnce(&mut Value)) -> Value {
        let mut object = json!({
            "kind": "DaemonSet", "metadata": {"name": "agent"},
            "spec": {"template": {"spec": {}}},
        });
        change(&mut object);
        object
    }

    const NO_WITNESS: i64 = i64::MIN;

    fn judged(status: u16, object: &Value, token_left: i64) -> Presence {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let ends = (token_left != NO_WITNESS).then(|| now.checked_add_signed(token_left));
        let ends = ends.flatten();
        match judge(&answer(status, object), ends, now) {
            Verdict::Is(presence) => presence,
            Verdict::IfNodeHas(wanted) => {
                let node = json!({"kind": "Node", "metadata": {"labels": {"mesh": "yes"}}});
                selected(&wanted, &answer(200, &node))
            }
        }
    }

    trait Signed {
        fn checked_add_signed(self, seconds: i64) -> Option<SystemTime>;
    }

    impl Signed for SystemTime {
        fn checked_add_signed(self, seconds: i64) -> Option<SystemTime> {
            let by = Duration::from_secs(seconds.unsigned_abs());
            if seconds < 0 {
                self.checked_sub(by)
            } else {
                self.checked_add(by)
            }
        }
    }

    #[test]
    fn only_a_daemon_set_that_is_gone_goes_or_wants_other_nodes_lets_pods_go() {
        let there = daemon_set(|_| {});
        let going = daemon_set(|set| set["metadata"]["deletionTimestamp"] = json!("2026-01-01"));
        let here = daemon_set(|set| {
            set["spec"]["template"]["spec"]["nodeSelector"] = json!({"mesh": "yes"});
        });
        let elsewhere = daemon_set(|set| {
            set["spec"]["template"]["spec"]["nodeSelector"] = json!({"mesh": "yes", "zone": "b"});
        });
        for (status, object, token_left, expected) in [
            (200, &there, 60, "meant"),
            (200, &here, 60, "meant"),
            (200, &going, 60, "removed"),
            (200, &elsewhere, 60, "removed"),
            (404, &json!({"kind": "Status"}), 60, "removed"),
            (401, &json!({"kind": "Status"}), 60, "removed"),
            // Whoever renews tokens is ill: that says nothing.
            (401, &json!({"kind": "Status"}), -1, "unknown"),
            // The agent's own token is refused when its pod is gone.
            (401, &json!({"kind": "Status"}), NO_WITNESS, "unknown"),
            (403, &json!({"kind": "Status"}), 60, "unknown"),
            (500, &json!({"kind": "Status"}), 60, "unknown"),
            (429, &json!({"kind": "Status"}), 60, "unknown"),
            (200, &json!({"kind": "Pod", "metadata": {}}), 60, "unknown"),
            (200, &json!("nonsense"), 60, "unknown"),
        ] {
            let presence = judged(status, object, token_left);
            let kind = match &presence {
                Presence::Meant => "meant",
                Presence::Removed(_) => "removed",
                Presence::Unknown(_) => "unknown",
            };
            assert_eq!(kind, expected, "{status} {object}: {presence:?}");
        }
    }

    #[test]
    fn a_node_that_cannot_be_read_decides_nothing() {
        let wanted = json!({"mesh": "yes"});
        let wanted = wanted.as_object().unwrap();
        for (status, object) in [
            (404, json!({"kind": "Status"})),
            (403, json!({"kind": "Status"})),
            (200, json!({"kind": "Pod"})),
        ] {
            let presence = selected(wanted, &answer(status, &object));
            assert!(matches!(presence, Presence::Unknown(_)), "{presence:?}");
        }
    }

    /// `kubectl delete namespace` takes the pods away before the DaemonSet.
    #[test]
    fn a_namespace_that_is_being_deleted_lets_pods_go_and_one_that_cannot_be_read_does_not() {
        let there = json!({"kind": "Namespace", "metadata": {"name": "keelson-system"}});
        let mut going = there.clone();
        going["metadata"]["deletionTimestamp"] = json!("2026-01-01");
        for (status, object, expected) in [
            (200, &there, "meant"),
            (200, &going, "removed"),
            (403, &json!({"kind": "Status"}), "meant"),
            (401, &json!({"kind": "Status"}), "unknown"),
            (500, &json!({"kind": "Status"}), "unknown"),
            (200, &json!({"kind": "Status"}), "unknown"),
            (200, &json!("nonsense"), "unknown"),
        ] {
            let presence = in_namespace(&answer(status, object));
            let kind = match &presence {
                Presence::Meant => "meant",
                Presence::Removed(_) => "removed",
                Presence::Unknown(_) => "unknown",
            };
            assert_eq!(kind, expected, "{status} {object}: {presence:?}");
        }
    }

    #[test]
    fn an_answer_that_was_cut_off_is_none() {
        let whole = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(parse(whole).map(|answer| answer.status), Some(200));
        for end in 0..whole.len() {
            assert!(parse(&whole[..end]).is_none(), "{end}");
        }
    }

    #[test]
    fn a_witness_is_what_the_api_server_has_signed() {
        let token = json!({"kind": "TokenRequest", "status": {"token": "a.b.c"}});
        assert_eq!(minted(&answer(201, &token)).unwrap(), "a.b.c");
        for (status, object) in [
            (200, token),
            (403, json!({"kind": "Status"})),
            (201, json!({"kind": "TokenRequest"})),
        ] {
            assert!(minted(&answer(status, &object)).is_err(), "{status}");
        }
    }

    #[test]
    fn a_token_says_when_it_ends() {
        let at = UNIX_EPOCH + Duration::from_secs(17);
        assert_eq!(token_ends("x.eyJleHAiOjE3fQ.y"), Some(at));
        assert_eq!(token_ends("no token"), None);
        assert_eq!(base64url("eyJleHAiOjE3fQ").unwrap(), b"{\"exp\":17}");
        assert_eq!(base64url("__-_").unwrap(), [0xff, 0xff, 0xbf]);
        assert!(base64url("a+b").is_none());
    }

    #[test]
    fn what_becomes_a_path_is_a_name() {
        assert!("mesh/agent".parse::<DaemonSet>().is_ok());
        for text in ["agent", "mesh/", "mesh/a/b", "mesh/a?b", "/agent", "mesh/A"] {
            assert!(text.parse::<DaemonSet>().is_err(), "{text}");
        }
    }
}

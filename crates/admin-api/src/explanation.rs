//! What an agent says of a connection that somebody might open, by the functions that decide on real ones.

use std::net::SocketAddr;

use model::Reason;
use serde::{Deserialize, Serialize};

use crate::Pod;

/// How a connection gets to where it goes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    /// Socket to socket in the kernel, between two pods of one node.
    Direct,
    /// In a tunnel, encrypted.
    Tunnel,
    /// As it is.
    Plain,
    /// Nowhere.
    Refused,
}

impl Path {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Tunnel => "tunnel",
            Self::Plain => "plain",
            Self::Refused => "refused",
        }
    }
}

/// Yes or no, and whose word it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// Whether the connection goes on.
    pub allowed: bool,
    /// The word that metrics and logs have for a refusal.
    pub reason: Option<Reason>,
    /// The sentence that the log has for a refusal, or why it is allowed.
    pub text: String,
    /// The object that decides, if one does: `AuthorizationPolicy shop/readers`.
    pub object: Option<String>,
    /// Its rule, from 0.
    pub rule: Option<usize>,
}

/// What the agent of the client's node says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutboundAnswer {
    /// The client; nothing if the agent knows no such pod.
    pub pod: Option<Pod>,
    /// The identity that it shows to its peers.
    pub identity: Option<String>,
    /// The service that the address is of.
    pub service: Option<String>,
    /// Why the connection goes nowhere, if it does not.
    pub refused: Option<Decision>,
    /// Where it may go.
    pub endpoints: Vec<Endpoint>,
}

/// Somewhere that the connection may go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Endpoint {
    /// Address and port of the application.
    pub address: SocketAddr,
    /// The pod there, `namespace/name`, if it is known.
    pub pod: Option<String>,
    /// The node of that pod.
    pub node: Option<String>,
    /// How the connection gets there. A refusal is what the kernel half says of a pod of its own node.
    pub path: Path,
    /// From which address.
    pub from: Option<std::net::IpAddr>,
    /// Whether the other side sees the client's identity.
    pub proves_identity: bool,
    /// Whether it is the client itself, which nobody is asked about.
    #[serde(default)]
    pub is_own: bool,
    /// Whether the pod is a waypoint, which decides where the connection goes from there.
    #[serde(default)]
    pub is_waypoint: bool,
}

/// What the agent of the server's node says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboundAnswer {
    /// The server; nothing if the agent knows no pod with the address.
    pub pod: Option<Pod>,
    /// Whether the pod takes the connection.
    pub decision: Decision,
}

/// What a waypoint says of a request that somebody might send, or of a connection if what was dialled is not HTTP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestAnswer {
    /// The service that was dialled; its address if that is of no service.
    pub on: String,
    /// Whether requests are read. If not, all that follows is of the connection.
    pub is_http: bool,
    /// The rule that the request is for, by its object; nothing if no rule is.
    pub rule: Option<String>,
    /// What that rule does, a text a backend.
    pub does: Vec<String>,
    /// Why the waypoint answers by itself, with the status; nothing if it does not.
    pub answered: Option<(u16, String)>,
    /// Policy about what is answered without an endpoint.
    pub decision: Option<Decision>,
    /// Where the request may go.
    pub endpoints: Vec<RequestEndpoint>,
}

/// An endpoint that a waypoint may choose for a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestEndpoint {
    /// The cluster that it is of, in Envoy's form: `outbound|PORT|SUBSET|HOST`.
    pub cluster: String,
    /// Where it serves.
    pub address: SocketAddr,
    /// The pod there, `namespace/name`, if it is known.
    pub pod: Option<String>,
    /// The node of that pod.
    pub node: Option<String>,
    /// Why it is left alone now, `errors` or `unreachable`, and for how long still in milliseconds.
    pub left_alone: Option<(String, u64)>,
    /// Whether the client's request may go there.
    pub decision: Decision,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_as_it_was_written() {
        let answer = InboundAnswer {
            pod: None,
            decision: Decision {
                allowed: false,
                reason: Some(Reason::PolicyDeny),
                text: "DENY policy shop/guard matches (rules[0])".to_owned(),
                object: Some("AuthorizationPolicy shop/guard".to_owned()),
                rule: Some(0),
            },
        };
        let text = serde_json::to_string(&answer).expect("writes");
        assert!(text.contains(r#""reason":"policy_deny""#), "{text}");
        let read: InboundAnswer = serde_json::from_str(&text).expect("reads");
        assert_eq!(read, answer);
    }
}

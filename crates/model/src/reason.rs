//! The words of telemetry: why a connection was refused, how it was secured, and how it ended.
//!
//! Each word is written here once. Agents, and what else carries connections, name a cause by its variant; metrics,
//! logs and pages write the word; `docs/observability.md` has a row for each, which tests compare.

use std::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $word:literal, $meaning:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum $name { $(#[doc = $meaning] $variant,)* }

        impl $name {
            /// All of them, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The word that metrics, logs and pages write. It does not change.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }

            /// What it means, as the documentation says it.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)* }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let word = String::deserialize(deserializer)?;
                let known = Self::ALL.iter().find(|known| known.as_str() == word);
                known.copied().ok_or_else(|| D::Error::custom(format!("unknown word {word:?}")))
            }
        }
    };
}

words! {
    /// Why a connection was refused or could not be made. One cause has one word, whoever finds it.
    Reason {
        PolicyDeny = "policy_deny", "a DENY policy matches; the sentence names policy and rule";
        PolicyNoAllow = "policy_no_allow", "there are ALLOW policies and none matches; they are listed";
        PolicyUnenforceable = "policy_unenforceable", "a policy has a part that no agent can check, or could never be read, and refuses instead";
        PolicyUnknown = "policy_unknown", "a policy that the workload names has not arrived or cannot be read";
        PolicyChanged = "policy_changed", "policy refused it and has changed since, so that it is not known which one it was";
        WaypointRequired = "waypoint_required", "the pod requires a waypoint and the connection does not come from it; the server's agent says so";
        DeniedByPeer = "denied_by_peer", "the server's agent refused by policy (401); the sentence is its own";

        NoSuchPort = "no_such_port", "the service does not declare the port";
        NoEndpoint = "no_endpoint", "nothing runs behind the service";
        EndpointInOtherNetwork = "endpoint_in_other_network", "the service's endpoints are in other networks, which cannot be reached yet";
        EndpointWithoutAddress = "endpoint_without_address", "no endpoint has an address of the service's families";
        EndpointWithoutPort = "endpoint_without_port", "no endpoint serves the port";
        EndpointUnhealthy = "endpoint_unhealthy", "no endpoint is ready";
        EndpointWeightedZero = "endpoint_weighted_zero", "every endpoint is weighted zero";
        EndpointTooFar = "endpoint_too_far", "no endpoint is near enough for the service's strict locality";
        WaypointUnreachable = "waypoint_unreachable", "the destination requires a waypoint that has no ready pod or does not take the connection; it does not go past it";
        EgressClosed = "egress_closed", "nobody in the mesh knows the destination, and the pod's namespace says `keelson.io/egress: closed`";
        AddressTombstone = "address_tombstone", "nobody is known to have the address now, and it was a captured pod's: its node has not said that it let go of it, or holds a pod there that the controller does not know. It is never dialled in plain";
        ReservedPort = "reserved_port", "port 15001, 15006 or 15008 of a mesh pod";
        WaypointPort = "waypoint_port", "a port of a waypoint where it takes what the kernel leads there from a service's address, dialled itself";
        CallerUnknown = "caller_unknown", "at such a port of a waypoint, from an address that its agent has not told it of";
        ConnectionRefused = "connection_refused", "TCP to the destination or its agent was refused";
        ConnectTimeout = "connect_timeout", "TCP to the destination or its agent was not answered in time";
        Unreachable = "unreachable", "no route leads to the destination or its agent";
        ConnectFailed = "connect_failed", "TCP to the destination or its agent failed in another way";
        ApplicationRefused = "application_refused", "the application does not take the connection; the server's agent, the client's agent and the kernel half say the same word";
        ApplicationTimeout = "application_timeout", "the application did not answer its agent in time";
        ApplicationUnreachable = "application_unreachable", "no route leads from the agent to the application";
        TranslationUnknown = "translation_unknown", "a client without identity called a pod that tracks connections, and the kernel does not say what it dialled: it refuses the question, or has such connections in several zones. Policy cannot be asked";
        RefusedByPeer = "refused_by_peer", "the server's agent refused for another reason than policy; the sentence is its own";
        TunnelFailed = "tunnel_failed", "the tunnel broke before the connection was accepted";
        BadRequest = "bad_request", "a peer asked for something that is not a connection to this pod";
        AgentStopping = "agent_stopping", "the agent drains";
        NoAttempt = "no_attempt", "no endpoint was tried";
        AgentHeaderMissing = "agent_header_missing", "what reached a waypoint does not begin with the header that its node's agent writes";
        AgentHeaderMalformed = "agent_header_malformed", "what reached a waypoint begins with a header that no agent writes";
        AgentHeaderIncomplete = "agent_header_incomplete", "a connection to a waypoint ended within the agent's header, or the header did not come in time";
        RequestHeadTimeout = "request_head_timeout", "a client of a waypoint has not sent the head of its request within `--head-timeout`";

        PodConnectionLimit = "pod_connection_limit", "the pod has as many connections open through the agent as it may: its own share and what pods have in common are used up, or `--max-connections-per-pod` is reached. Its neighbours have their shares still";
        PodOpeningLimit = "pod_opening_limit", "4096 connections that the pod opens wait at one worker for their turn, which is as many as may; the client gets `ECONNREFUSED`. A worker opens 512 connections of a pod at once, 32 of them to one destination";
        HandshakeLimit = "handshake_limit", "a peer has dialled port 15008 of the pod and shown no certificate yet, and too many wait that have not either. The one that has waited longest goes, of the same address first (IPv6: of the same /64), then of the same pod, so a peer with a certificate gets in";
        NoDescriptors = "no_descriptors", "the agent may open no more descriptors";
        ServiceConnectionLimit = "service_connection_limit", "the service has as many connections open through the waypoint as its DestinationRule allows";

        CertificateMissing = "certificate_missing", "this pod has no certificate yet";
        WorkloadUnknown = "workload_unknown", "the controller has not told this node about its pod";
        HandshakeTimeout = "handshake_timeout", "TLS or HTTP/2 took longer than 10 s";
        NoCertificate = "no_certificate", "the peer presented no certificate";
        UnknownRoot = "unknown_root", "the peer's certificate ends in another root";
        Expired = "expired", "the peer's certificate has ended";
        NotYetValid = "not_yet_valid", "the peer's certificate is not valid yet";
        OtherTrustDomain = "other_trust_domain", "a valid certificate of another trust domain";
        UnexpectedIdentity = "unexpected_identity", "the peer is not whom the workload API says; the sentence has both names";
        ManyNames = "many_names", "the peer's certificate has several URI names; an identity is exactly one";
        CertificateEnded = "certificate_ended", "a certificate of the tunnel ended, and a connection was asked for in it all the same. At the server: the client was asked for a new tunnel and tries again by itself. At the client: a new tunnel was over before it was used";
        NoSpiffeId = "no_spiffe_id", "the peer's certificate names no SPIFFE identity";
        WrongPurpose = "wrong_purpose", "the peer's certificate is not for this side of a handshake, or is an authority's";
        Malformed = "malformed", "the peer's certificate cannot be read";
        KeyNotProven = "key_not_proven", "the peer did not prove that it holds the certificate's key";
        RefusedByPeerNoCertificate = "refused_by_peer_no_certificate", "the peer says that we presented no certificate";
        RefusedByPeerUnknownRoot = "refused_by_peer_unknown_root", "the peer does not trust the root of our certificate";
        RefusedByPeerNotInDate = "refused_by_peer_not_in_date", "our certificate is expired or not yet valid by the peer's clock";
        RefusedByPeerIdentity = "refused_by_peer_identity", "the peer does not accept our identity: it is of another trust domain, or not exactly one SPIFFE name";
        RefusedByPeerWrongPurpose = "refused_by_peer_wrong_purpose", "the peer says that our certificate is not for this use";
        RefusedByPeerRevoked = "refused_by_peer_revoked", "the peer says that our certificate is revoked";
        RefusedByPeerMalformed = "refused_by_peer_malformed", "the peer cannot read our certificate";
        RefusedByPeerSignature = "refused_by_peer_signature", "the peer could not verify a signature of ours";
        RefusedByPeerAlpn = "refused_by_peer_alpn", "the peer does not speak HTTP/2 in TLS";
        RefusedByPeerVersion = "refused_by_peer_version", "the peer does not speak TLS 1.3 with AES-GCM";
        RefusedByPeerOther = "refused_by_peer_other", "the peer sent another alert; the sentence names it";
        H2HandshakeFailed = "h2_handshake_failed", "TLS worked, HTTP/2 did not";
        Alpn = "alpn", "the peer speaks TLS and not HTTP/2 in it";
        Keys = "keys", "the handshake is done and its keys cannot be used (`--tunnel-records own`)";
        TlsProtocol = "tls_protocol", "what the peer sent is not TLS 1.3";
        TlsIo = "tls_io", "the connection broke during the handshake";

        NoAgent = "no_agent", "no agent is alive on the pod's node, or it died while it opened the connection";
        AgentHung = "agent_hung", "an agent listens, and the worker that would take the connection has not said for 2 s that it is alive";
        CapturePending = "capture_pending", "the pod's capture is not complete, or its state is not known";
        HandoverFailed = "handover_failed", "the kernel could not prepare the socket, or would not hand the connection over";
        LinkLocal = "link_local", "an IPv6 link-local address of another has a scope and no identity";
        NoFamily = "no_family", "the destination is in the mesh, and the pod has no address of its family; the client gets `ENETUNREACH`";
        Forwarded = "forwarded", "the pod forwards the connection to somebody behind it, about whom policy is not asked";
    }
}

/// Where a connection failed: Istio's response flags of TCP metrics.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Flag {
    /// Policy.
    Deny,
    /// Finding or reaching the destination.
    Connect,
    /// The TLS handshake, or who the peer is.
    TlsFailure,
    /// HTTP/2 after TLS.
    H2HandshakeFailure,
    /// This side has no certificate, or does not know its own pod.
    IdentityError,
    /// No room for the connection.
    Overflow,
}

impl Flag {
    /// The flag as metrics and logs write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::H2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::Overflow => "OVERFLOW",
        }
    }
}

impl Reason {
    /// Where the connection failed. What only the kernel refuses has no line in the access log, and no flag.
    #[must_use]
    pub const fn flag(self) -> Option<Flag> {
        Some(match self {
            Self::PolicyDeny
            | Self::PolicyNoAllow
            | Self::PolicyUnenforceable
            | Self::PolicyUnknown
            | Self::PolicyChanged
            | Self::WaypointRequired
            | Self::DeniedByPeer => Flag::Deny,
            Self::NoSuchPort
            | Self::NoEndpoint
            | Self::EndpointInOtherNetwork
            | Self::EndpointWithoutAddress
            | Self::EndpointWithoutPort
            | Self::EndpointUnhealthy
            | Self::EndpointWeightedZero
            | Self::EndpointTooFar
            | Self::WaypointUnreachable
            | Self::EgressClosed
            | Self::AddressTombstone
            | Self::ReservedPort
            | Self::WaypointPort
            | Self::CallerUnknown
            | Self::ConnectionRefused
            | Self::ConnectTimeout
            | Self::Unreachable
            | Self::ConnectFailed
            | Self::ApplicationRefused
            | Self::ApplicationTimeout
            | Self::ApplicationUnreachable
            | Self::TranslationUnknown
            | Self::RefusedByPeer
            | Self::TunnelFailed
            | Self::BadRequest
            | Self::AgentStopping
            | Self::NoAttempt
            | Self::AgentHeaderMissing
            | Self::AgentHeaderMalformed
            | Self::AgentHeaderIncomplete
            | Self::RequestHeadTimeout => Flag::Connect,
            Self::PodConnectionLimit
            | Self::PodOpeningLimit
            | Self::HandshakeLimit
            | Self::NoDescriptors
            | Self::ServiceConnectionLimit => Flag::Overflow,
            Self::CertificateMissing | Self::WorkloadUnknown => Flag::IdentityError,
            Self::HandshakeTimeout
            | Self::NoCertificate
            | Self::UnknownRoot
            | Self::Expired
            | Self::NotYetValid
            | Self::OtherTrustDomain
            | Self::UnexpectedIdentity
            | Self::ManyNames
            | Self::CertificateEnded
            | Self::NoSpiffeId
            | Self::WrongPurpose
            | Self::Malformed
            | Self::KeyNotProven
            | Self::RefusedByPeerNoCertificate
            | Self::RefusedByPeerUnknownRoot
            | Self::RefusedByPeerNotInDate
            | Self::RefusedByPeerIdentity
            | Self::RefusedByPeerWrongPurpose
            | Self::RefusedByPeerRevoked
            | Self::RefusedByPeerMalformed
            | Self::RefusedByPeerSignature
            | Self::RefusedByPeerAlpn
            | Self::RefusedByPeerVersion
            | Self::RefusedByPeerOther
            | Self::Alpn
            | Self::Keys
            | Self::TlsProtocol
            | Self::TlsIo => Flag::TlsFailure,
            Self::H2HandshakeFailed => Flag::H2HandshakeFailure,
            Self::NoAgent
            | Self::AgentHung
            | Self::CapturePending
            | Self::HandoverFailed
            | Self::LinkLocal
            | Self::NoFamily
            | Self::Forwarded => return None,
        })
    }
}

words! {
    /// How a connection is protected, and by what its peer is known.
    Security {
        MutualTls = "mutual_tls", "in a tunnel; certificates prove both ends";
        SameNode = "same_node", "between two pods of one node; the client's own socket proves who it is";
        None = "none", "plain, from or to somebody without identity";
        Unknown = "unknown", "refused before it was known";
    }
}

words! {
    /// How an established connection ended.
    Ending {
        Clean = "clean", "both sides finished";
        FirstReset = "first_reset", "the first side's TCP connection was reset or failed. Outbound: the client. Inbound: the application";
        SecondReset = "second_reset", "the second side's TCP connection was reset or failed. Outbound: the destination. Inbound: a plaintext client";
        StreamReset = "stream_reset", "the other end's agent reset it, mostly because its side was reset";
        TunnelLost = "tunnel_lost", "the tunnel broke: the other agent died or the network failed";
        Policy = "policy", "a changed policy refuses it now; `error` names it";
        Drain = "drain", "the agent stopped or was succeeded, or the pod left the mesh or is gone, and the connection outlived its deadline";
        Older = "older", "it is older than its pod's capture and policy does not allow it to a client without identity, or it was being opened then";
        Limit = "limit", "a limit was reached";
        Silence = "silence", "the far side has not answered for as long as the application waits (`TCP_USER_TIMEOUT`, `SO_KEEPALIVE`)";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = include_str!("../../../docs/observability.md");

    /// The rows of the tables between two lines of the page, without heads.
    fn rows(from: &str, to: &str) -> Vec<Vec<&'static str>> {
        let (_, section) = PAGE.split_once(from).expect("the page has the beginning");
        let (section, _) = section.split_once(to).expect("and the end");
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
        rows.map(|row| row.split(" | ").collect()).collect()
    }

    #[test]
    fn the_page_says_of_every_refusal_what_the_code_says_and_of_no_other() {
        let flag = |reason: &Reason| match reason.flag() {
            Some(flag) => format!("`{}`", flag.as_str()),
            None => "none".to_owned(),
        };
        let expected: Vec<_> = Reason::ALL
            .iter()
            .map(|reason| {
                [
                    format!("{reason}`"),
                    flag(reason),
                    reason.meaning().to_owned(),
                ]
            })
            .collect();
        let documented: Vec<_> = rows("\n### Policy\n", "\n## Decisions of the kernel half\n")
            .iter()
            .map(|row| [0, 1, 2].map(|column| row[column].to_owned()))
            .collect();
        assert_eq!(documented, expected);
    }

    #[test]
    fn the_page_says_how_connections_are_secured_and_end() {
        let security = Security::ALL
            .iter()
            .map(|one| (one.as_str(), one.meaning()));
        let endings = Ending::ALL.iter().map(|one| (one.as_str(), one.meaning()));
        for (words, from, to) in [
            (
                security.collect::<Vec<_>>(),
                "| `security` | Meaning |",
                "\n\n",
            ),
            (endings.collect(), "| `end` | Meaning |", "\n\n"),
        ] {
            let documented: Vec<_> = rows(from, to)
                .iter()
                .map(|row| (row[0].trim_end_matches('`'), row[1].trim_end_matches(" |")))
                .collect();
            assert_eq!(documented, words);
        }
    }

    #[test]
    fn a_word_has_one_meaning() {
        let words: std::collections::BTreeSet<_> =
            Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(words.len(), Reason::ALL.len());
    }
}

//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use manifest::NamespacedName;
use runtime::log::Format;

use crate::gateways::objects::Settings;

/// Turns Kubernetes and Istio objects, of a cluster or of a folder of manifests, into what node agents need, and signs their certificates.
#[derive(Clone, Debug, Parser)]
#[command(name = "keelson-controller", version)]
pub struct Options {
    /// Folder of manifests (*.yaml, *.yml, *.json); changes apply within a fraction of a second. A broken document
    /// keeps its last good version and is listed at /debug/diagnostics
    #[arg(
        long,
        value_name = "DIR",
        required_unless_present = "kubernetes",
        requires = "node_tokens"
    )]
    pub manifests: Option<PathBuf>,

    /// Read everything from the API server of a Kubernetes cluster: the one that this program runs in, else the one that
    /// KUBECONFIG or ~/.kube/config names
    #[arg(long, conflicts_with = "manifests")]
    pub kubernetes: bool,

    /// Kubeconfig file of the cluster, in place of what --kubernetes finds
    #[arg(long, value_name = "FILE", requires = "kubernetes")]
    pub kubeconfig: Option<PathBuf>,

    /// Service accounts whose pods speak for the node they run on (with --kubernetes). Any other pod speaks for itself
    #[arg(long, value_name = "NAMESPACE/ACCOUNT", value_delimiter = ',', value_parser = account, default_value = "keelson-system/keelson-node-agent")]
    pub agent_accounts: Vec<NamespacedName>,

    /// Audiences of the service account tokens that are taken (with --kubernetes). istio-ca lets a stock ztunnel in, if
    /// --agent-accounts names its account
    #[arg(
        long,
        value_name = "AUDIENCE",
        value_delimiter = ',',
        default_value = "keelson"
    )]
    pub token_audiences: Vec<String>,

    /// Address of the TLS port that node agents connect to; port 0 picks a free one, see --root-cert-out for the trust
    #[arg(long, value_name = "ADDR:PORT", default_value = "[::]:15012")]
    pub listen: SocketAddr,

    /// File with one `<token> <node>` per line; a node's agent proves with its token which node it is. Changes apply
    /// without a restart. In a cluster Kubernetes says whose a token is, unless this is given
    #[arg(long, value_name = "FILE")]
    pub node_tokens: Option<PathBuf>,

    /// Folder for the CA root (unless --cacerts), the last good configuration and which pods are captured; keep it
    /// over restarts, or every node needs the new root
    #[arg(long, value_name = "DIR")]
    pub state_dir: PathBuf,

    /// Folder with ca-cert.pem, ca-key.pem, root-cert.pem and cert-chain.pem, to sign with a root of your own
    #[arg(long, value_name = "DIR")]
    pub cacerts: Option<PathBuf>,

    /// Keep the CA root in this namespace of the cluster (with --kubernetes): the Secret cacerts, if there is one, else the
    /// Secret keelson-ca, made when it is missing; agents find the certificate in the ConfigMap keelson-ca-root
    #[arg(
        long,
        value_name = "NAMESPACE",
        requires = "kubernetes",
        conflicts_with = "cacerts"
    )]
    pub ca_namespace: Option<String>,

    /// Namespace of this installation (with --kubernetes). What nodes report is kept there for all replicas of the controller,
    /// and one of them is chosen there to write statuses. Without it this is the only controller, and writes none
    #[arg(long, value_name = "NAMESPACE", requires = "kubernetes")]
    pub namespace: Option<String>,

    /// The name of this replica, which no other has: that of its pod
    #[arg(
        long,
        value_name = "NAME",
        env = "POD_NAME",
        default_value = "keelson-controller"
    )]
    pub replica: String,

    /// The uid of this replica's pod: what it notes in the cluster goes with it
    #[arg(long, value_name = "UID", env = "POD_UID")]
    pub replica_uid: Option<String>,

    /// Take the taint keelson.io/agent-not-ready off nodes whose agent is ready (with --namespace)
    #[arg(long, requires = "namespace")]
    pub startup_taint: bool,

    /// Tell agents which pods of their nodes are to be captured, and nothing else: workloads, policies and certificates come
    /// from an Istio control plane, for which captured pods are annotated (with --namespace). See --istiod of the agents
    #[arg(long, requires = "namespace", conflicts_with_all = ["gateways", "admission"])]
    pub captures_only: bool,

    /// How pods of gateways and waypoints are made, as JSON: image, controller (https://HOST:PORT) and audience, and if need be
    /// pullPolicy, pullSecrets, replicas, resources, log and logFormat. Without it none are made (with --namespace)
    #[arg(long, value_name = "JSON", requires = "namespace", value_parser = gateways)]
    pub gateways: Option<Settings>,

    /// Address at which the API server asks about objects before it stores them (with --kubernetes); nowhere if it is not given
    #[arg(long, value_name = "ADDR:PORT", requires = "kubernetes")]
    pub admission: Option<SocketAddr>,

    /// The ValidatingWebhookConfiguration that sends the API server there: the certificate that it is to trust is written
    /// into it, and nothing else
    #[arg(long, value_name = "NAME", requires = "admission")]
    pub admission_configuration: Option<String>,

    /// Where to write the root certificate, which node agents need to trust this controller
    #[arg(long, value_name = "FILE")]
    pub root_cert_out: Option<PathBuf>,

    /// Names by which agents reach this controller, for its own certificate: DNS names and IP addresses
    #[arg(long, value_name = "NAME", value_delimiter = ',', default_values_t = ["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()])]
    pub server_name: Vec<String>,

    /// Trust domain of every identity, `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`. Policies that name
    /// principals contain it
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,

    /// Other names of the trust domain in policies, such as the one before a migration. cluster.local always is one
    #[arg(long, value_name = "DOMAIN", value_delimiter = ',')]
    pub trust_domain_aliases: Vec<String>,

    /// DNS suffix of Services, as in cart.shop.svc.cluster.local
    #[arg(long, value_name = "DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,

    /// Policies in this namespace are for the whole mesh
    #[arg(long, value_name = "NAMESPACE", default_value = "istio-system")]
    pub root_namespace: String,

    /// Name of this cluster in the names of workloads
    #[arg(long, value_name = "NAME", default_value = "Kubernetes")]
    pub cluster_id: String,

    /// How captured pods of one node talk to each other, on all nodes: goes before the agents' own --same-node
    #[arg(long, value_enum)]
    pub same_node: Option<SameNode>,

    /// File with settings that may change while this program runs (YAML: sameNode, trustDomainAliases, canary). They go before
    /// the flags of these names. A file that is wrong is refused as a whole, and what it said before stays in force
    #[arg(long, value_name = "FILE")]
    pub settings: Option<PathBuf>,

    /// What NetworkPolicy objects mean for captured pods: enforce holds them against real peers and ports in the mesh too;
    /// ignore leaves them to the cluster's network, which sees port 15008 between nodes
    #[arg(long, value_enum, default_value = "ignore")]
    pub network_policies: NetworkPolicies,

    /// Make a policy beside each NetworkPolicy of a namespace of the mesh that lets port 15008 pass, and hold the first as enforce
    /// does (with --namespace)
    #[arg(long)]
    pub companion_policies: bool,

    /// Whose the pods are that istio.io/dataplane-mode=ambient names: this mesh's, or those of Istio's own ambient mesh that
    /// runs in the cluster too, so that only keelson.io/mesh captures
    #[arg(long, value_enum, default_value = "keelson")]
    pub ambient_label: AmbientLabel,

    /// Longest life of a workload certificate; agents renew theirs before a quarter of it is left
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = ttl)]
    pub cert_ttl: Duration,

    /// Address of the admin page (readiness, metrics, diagnostics, configuration, log level); loopback only, but with
    /// --kubernetes any. Everything but readiness and metrics is for root and this program's user on this host
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:15014")]
    pub admin: SocketAddr,

    /// How log lines look
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: Format,

    /// What is logged, such as `info`, `info,access=off` or `debug,h2=info`; changeable at /logging
    #[arg(
        long,
        alias = "log-level",
        value_name = "FILTER",
        env = "RUST_LOG",
        default_value = "info"
    )]
    pub log: String,
}

/// How captured pods of one node talk to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SameNode {
    /// Socket to socket in the kernel where policy is a plain yes; not encrypted, and never on a wire.
    Direct,
    /// By mutual TLS through the agent, as between nodes.
    Mtls,
}

impl From<SameNode> for proto::agent::SameNode {
    fn from(said: SameNode) -> Self {
        match said {
            SameNode::Direct => Self::Direct,
            SameNode::Mtls => Self::Mtls,
        }
    }
}

/// Whether `NetworkPolicy` objects hold in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum NetworkPolicies {
    /// They do, for captured pods.
    Enforce,
    /// They are left to the cluster's network.
    Ignore,
}

/// Whose pods Istio's label names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum AmbientLabel {
    /// This mesh's.
    Keelson,
    /// Istio's.
    Istio,
}

impl From<AmbientLabel> for compile::index::AmbientLabel {
    fn from(label: AmbientLabel) -> Self {
        match label {
            AmbientLabel::Keelson => Self::Keelson,
            AmbientLabel::Istio => Self::Istio,
        }
    }
}

fn account(text: &str) -> Result<NamespacedName, String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok(NamespacedName::new(namespace, name))
        }
        _ => {
            Err("write NAMESPACE/ACCOUNT, for example keelson-system/keelson-node-agent".to_owned())
        }
    }
}

fn gateways(text: &str) -> Result<Settings, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

fn ttl(text: &str) -> Result<Duration, String> {
    let ttl = humantime::parse_duration(text)
        .map_err(|error| format!("{error}; write for example 24h or 30s"))?;
    if ttl < Duration::from_secs(1) {
        return Err("certificates live for at least 1s".to_owned());
    }
    Ok(ttl)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_reads_the_agreed_flags() {
        Options::command().debug_assert();
        let line = "x --manifests m --listen 127.0.0.1:0 --node-tokens t --state-dir s --cacerts c --root-cert-out r \
                    --server-name a,10.0.0.1 --trust-domain td --trust-domain-aliases old,older --cluster-domain cd --root-namespace rn --cluster-id ci \
                    --same-node mtls --cert-ttl 30s --admin 127.0.0.1:0 --log-format json";
        let options = Options::try_parse_from(line.split_whitespace()).expect("parses");
        assert_eq!(options.cert_ttl, Duration::from_secs(30));
        assert_eq!(options.same_node, Some(SameNode::Mtls));
        assert_eq!(options.server_name, ["a", "10.0.0.1"]);
        assert_eq!(options.trust_domain_aliases, ["old", "older"]);
    }

    #[test]
    fn a_life_of_nothing_is_refused() {
        assert!(ttl("0s").is_err());
        assert!(ttl("soon").is_err());
    }
}

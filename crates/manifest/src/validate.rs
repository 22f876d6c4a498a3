//! What `istioctl analyze` and the API server would refuse in an object whose fields all have the right types.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_api::authorization_policy::{Action, AuthorizationPolicySpec, Condition, Rule, Source};
use k8s_api::peer_authentication::PeerAuthenticationSpec;
use k8s_api::{
    AuthorizationPolicy, EndpointSlice, NetworkPolicy, PeerAuthentication, Service,
    WorkloadSelector,
};

use crate::diagnostic::Severity;
use crate::names;
use crate::object::{Authorship, Object};

/// One problem at one field.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Problem {
    pub(crate) severity: Severity,
    pub(crate) field: String,
    pub(crate) message: String,
}

/// Everything that is wrong with `object`.
pub(crate) fn object(
    object: &Object,
    authorship: Authorship,
    root_namespace: &str,
) -> Vec<Problem> {
    let mut found = Problems(Vec::new());
    match object {
        Object::PeerAuthentication(policy) => found.peer_authentication(policy, root_namespace),
        Object::AuthorizationPolicy(policy) => found.authorization_policy(policy),
        Object::Service(service) => found.service(service, authorship),
        Object::EndpointSlice(slice) => found.endpoint_slice(slice),
        Object::NetworkPolicy(policy) => found.network_policy(policy),
        Object::Namespace(_)
        | Object::Node(_)
        | Object::ServiceAccount(_)
        | Object::Pod(_)
        // The compiler says what is wrong with these, rule by rule.
        | Object::VirtualService(_)
        | Object::DestinationRule(_)
        | Object::Gateway(_)
        | Object::HttpRoute(_)
        | Object::GrpcRoute(_)
        | Object::TlsRoute(_)
        | Object::TcpRoute(_)
        | Object::ReferenceGrant(_)
        | Object::IstioGateway(_)
        | Object::Secret(_)
        | Object::ServiceEntry(_)
        | Object::IngressClass(_)
        | Object::Ingress(_)
        | Object::Broken(_) => {}
    }
    found.0
}

struct Problems(Vec<Problem>);

impl Problems {
    fn error(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.push(Severity::Error, field, message);
    }

    fn push(&mut self, severity: Severity, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(Problem {
            severity,
            field: field.into(),
            message: message.into(),
        });
    }

    fn selector(&mut self, selector: Option<&WorkloadSelector>) {
        for (key, value) in selector.iter().flat_map(|s| &s.match_labels) {
            let field = format!("spec.selector.matchLabels.{key}");
            if key.is_empty() {
                self.error("spec.selector.matchLabels", "a label has an empty key");
            } else if key.contains('*') || value.contains('*') {
                self.error(
                    field,
                    "wildcards are not allowed in a selector; write the exact label",
                );
            }
        }
    }

    fn peer_authentication(&mut self, policy: &PeerAuthentication, root_namespace: &str) {
        let PeerAuthenticationSpec {
            selector,
            port_level_mtls,
            ..
        } = &policy.spec;
        self.selector(selector.as_ref());
        let selects = policy.spec.selects_workloads();
        let in_root = policy.metadata.namespace.as_deref() == Some(root_namespace);
        if !port_level_mtls.is_empty() && !selects {
            self.error(
                "spec.portLevelMtls",
                "portLevelMtls needs spec.selector.matchLabels: ports belong to workloads, not to a namespace",
            );
        }
        if port_level_mtls.contains_key(&0) {
            self.error("spec.portLevelMtls.0", "port 0 does not exist; use 1-65535");
        }
        if in_root && selects {
            let message = format!(
                "with a selector it is for the pods of the root namespace {root_namespace} only; to be for workloads of another namespace it has to be there"
            );
            self.push(Severity::Info, "spec.selector", message);
        }
    }

    fn authorization_policy(&mut self, policy: &AuthorizationPolicy) {
        let AuthorizationPolicySpec {
            selector,
            target_ref,
            target_refs,
            rules,
            action,
            provider,
        } = &policy.spec;
        self.selector(selector.as_ref());
        if selector.is_some() && (target_ref.is_some() || !target_refs.is_empty()) {
            self.error(
                "spec.targetRefs",
                "only one of selector and targetRefs can be set",
            );
        }
        if *action == Action::Custom && provider.as_ref().is_none_or(|p| p.name.is_empty()) {
            self.error(
                "spec.provider.name",
                "action CUSTOM needs the name of an extension provider",
            );
        }
        if *action != Action::Custom && provider.is_some() {
            self.error("spec.provider", "provider is for action CUSTOM only");
        }
        if matches!(action, Action::Deny | Action::Audit) && rules.is_empty() {
            let message = format!(
                "a {} policy without rules never matches; write `rules: [{{}}]` to match everything",
                action.as_str()
            );
            self.push(Severity::Warning, "spec.rules", message);
        }
        for (index, rule) in rules.iter().enumerate() {
            self.rule(&format!("spec.rules[{index}]"), rule);
        }
    }

    fn rule(&mut self, at: &str, rule: &Rule) {
        for (index, from) in rule.from.iter().enumerate() {
            let at = format!("{at}.from[{index}].source");
            match &from.source {
                Some(source) if source.fields().any(|(_, values)| !values.is_empty()) => {
                    self.source(&at, source)
                }
                Some(_) => self.error(
                    at,
                    "source must set at least one field; leave out `from` to match every source",
                ),
                None => self.error(
                    at,
                    "source is missing; leave out `from` to match every source",
                ),
            }
        }
        for (index, to) in rule.to.iter().enumerate() {
            let at = format!("{at}.to[{index}].operation");
            match &to.operation {
                Some(operation) if operation.fields().any(|(_, values)| !values.is_empty()) => {
                    self.no_empty_values(&at, operation.fields());
                    self.ports(&at, "ports", &operation.ports);
                    self.ports(&at, "notPorts", &operation.not_ports);
                }
                Some(_) => self.error(at, "operation must set at least one field; leave out `to` to match every operation"),
                None => self.error(at, "operation is missing; leave out `to` to match every operation"),
            }
        }
        for (index, condition) in rule.when.iter().enumerate() {
            self.condition(&format!("{at}.when[{index}]"), condition);
        }
    }

    fn source(&mut self, at: &str, source: &Source) {
        self.no_empty_values(at, source.fields());
        self.addresses(at, "ipBlocks", &source.ip_blocks);
        self.addresses(at, "notIpBlocks", &source.not_ip_blocks);
        self.addresses(at, "remoteIpBlocks", &source.remote_ip_blocks);
        self.addresses(at, "notRemoteIpBlocks", &source.not_remote_ip_blocks);
        self.service_accounts(at, "serviceAccounts", &source.service_accounts);
        self.service_accounts(at, "notServiceAccounts", &source.not_service_accounts);
        self.principals(at, "principals", &source.principals);
        self.principals(at, "notPrincipals", &source.not_principals);
        let accounts =
            !source.service_accounts.is_empty() || !source.not_service_accounts.is_empty();
        let others = [
            &source.principals,
            &source.not_principals,
            &source.namespaces,
            &source.not_namespaces,
        ];
        if accounts && others.iter().any(|list| !list.is_empty()) {
            self.error(
                format!("{at}.serviceAccounts"),
                "serviceAccounts cannot be combined with principals or namespaces",
            );
        }
    }

    fn condition(&mut self, at: &str, condition: &Condition) {
        let Condition {
            key,
            values,
            not_values,
        } = condition;
        if key.is_empty() {
            return self.error(
                format!("{at}.key"),
                "key is missing, such as source.ip or destination.port",
            );
        }
        if values.is_empty() && not_values.is_empty() {
            self.error(
                format!("{at}.values"),
                format!("{key} needs at least one of values and notValues"),
            );
        }
        self.no_empty_values(
            at,
            [
                ("values", values.as_slice()),
                ("notValues", not_values.as_slice()),
            ],
        );
        for (name, list) in [("values", values), ("notValues", not_values)] {
            match key.as_str() {
                "source.ip" | "destination.ip" | "remote.ip" => self.addresses(at, name, list),
                "destination.port" => self.ports(at, name, list),
                "source.principal" => self.principals(at, name, list),
                _ => {}
            }
        }
        if !is_known_key(key) {
            self.error(
                format!("{at}.key"),
                format!(
                    "unknown attribute {key}; known are {} and request.headers[name]",
                    KEYS.join(", ")
                ),
            );
        }
    }

    fn no_empty_values<'v>(
        &mut self,
        at: &str,
        fields: impl IntoIterator<Item = (&'static str, &'v [String])>,
    ) {
        for (name, values) in fields {
            for (index, _) in values
                .iter()
                .enumerate()
                .filter(|(_, value)| value.is_empty())
            {
                self.error(
                    format!("{at}.{name}[{index}]"),
                    "an empty value matches nothing; remove it",
                );
            }
        }
    }

    fn each(
        &mut self,
        at: &str,
        name: &str,
        values: &[String],
        problem: impl Fn(&str) -> Option<String>,
    ) {
        for (index, value) in values
            .iter()
            .enumerate()
            .filter(|(_, value)| !value.is_empty())
        {
            if let Some(message) = problem(value) {
                self.error(format!("{at}.{name}[{index}]"), message);
            }
        }
    }

    fn addresses(&mut self, at: &str, name: &str, values: &[String]) {
        self.each(at, name, values, |value| {
            let fine = value.parse::<IpAddr>().is_ok() || value.parse::<IpNet>().is_ok();
            (!fine).then(|| format!("{value:?} is not an address or CIDR such as 10.1.0.0/16"))
        });
    }

    fn ports(&mut self, at: &str, name: &str, values: &[String]) {
        self.each(at, name, values, |value| {
            let fine = value.parse::<u16>().is_ok_and(|port| port > 0);
            (!fine).then(|| format!("{value:?} is not a port (1-65535)"))
        });
    }

    fn principals(&mut self, at: &str, name: &str, values: &[String]) {
        self.each(at, name, values, |value| {
            let rest = value.strip_prefix("spiffe://")?;
            Some(format!(
                "principals are written without the scheme; write {rest:?}"
            ))
        });
    }

    fn service_accounts(&mut self, at: &str, name: &str, values: &[String]) {
        self.each(at, name, values, |value| {
            let parts: Vec<_> = value.split('/').collect();
            let fine = matches!(parts.len(), 1 | 2)
                && parts
                    .iter()
                    .all(|part| !part.is_empty() && !part.contains('*'));
            (!fine)
                .then(|| format!("{value:?} must be `namespace/name` or `name`, without wildcards"))
        });
    }

    fn network_policy(&mut self, policy: &NetworkPolicy) {
        let spec = policy.spec.clone().unwrap_or_default();
        let ingress = spec.ingress.into_iter().flatten().map(|rule| rule.from);
        let egress = spec.egress.into_iter().flatten().map(|rule| rule.to);
        let ingress = ingress
            .enumerate()
            .map(|(i, peers)| (format!("spec.ingress[{i}].from"), peers));
        let egress = egress
            .enumerate()
            .map(|(i, peers)| (format!("spec.egress[{i}].to"), peers));
        for (at, peers) in ingress.chain(egress) {
            for (index, peer) in peers.iter().flatten().enumerate() {
                let Some(block) = &peer.ip_block else {
                    continue;
                };
                let at = format!("{at}[{index}].ipBlock");
                self.range(format!("{at}.cidr"), &block.cidr);
                for (hole, text) in block.except.iter().flatten().enumerate() {
                    self.range(format!("{at}.except[{hole}]"), text);
                }
            }
        }
    }

    fn range(&mut self, field: String, text: &str) {
        if text.parse::<IpNet>().is_err() {
            self.error(field, format!("{text:?} is not a CIDR such as 10.1.0.0/16"));
        }
    }

    fn service(&mut self, service: &Service, authorship: Authorship) {
        let ports = service
            .spec
            .iter()
            .flat_map(|spec| spec.ports.iter().flatten());
        for (index, port) in ports.enumerate() {
            if !(1..=65535).contains(&port.port) {
                self.error(
                    format!("spec.ports[{index}].port"),
                    format!("{} is not a port (1-65535)", port.port),
                );
            }
            if let Some(k8s_api::IntOrString::Int(number)) = port.target_port
                && !(1..=65535).contains(&number)
            {
                self.error(
                    format!("spec.ports[{index}].targetPort"),
                    format!("{number} is not a port (1-65535)"),
                );
            }
        }
        let spec = service.spec.as_ref();
        let single = spec
            .and_then(|s| s.cluster_ip.as_ref())
            .map(|ip| ("spec.clusterIP".to_owned(), ip));
        let many = spec
            .into_iter()
            .flat_map(|s| s.cluster_ips.iter().flatten())
            .enumerate();
        for (field, ip) in single
            .into_iter()
            .chain(many.map(|(i, ip)| (format!("spec.clusterIPs[{i}]"), ip)))
        {
            if !ip.is_empty() && ip != "None" && ip.parse::<IpAddr>().is_err() {
                self.error(field, format!("{ip:?} is not an IP address or None"));
            }
        }
        let has_address = spec.is_some_and(|s| s.cluster_ip.is_some() || s.cluster_ips.is_some());
        let is_alias = spec.is_some_and(|s| s.type_.as_deref() == Some("ExternalName"));
        if !has_address && !is_alias && !authorship.allocates_addresses() {
            let message = "there is no clusterIP, and nobody allocates one for a manifest in a folder; write one, or None";
            self.push(Severity::Info, "spec.clusterIP", message);
        }
    }

    fn endpoint_slice(&mut self, slice: &EndpointSlice) {
        let named = slice
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(SERVICE_NAME_LABEL));
        match named {
            None => self.push(
                Severity::Warning,
                "metadata.labels",
                format!("without the label {SERVICE_NAME_LABEL} the slice belongs to no Service"),
            ),
            Some(name) => {
                if let Some(problem) = names::label(name) {
                    self.error(format!("metadata.labels[{SERVICE_NAME_LABEL:?}]"), problem);
                }
            }
        }
        if slice.address_type == "FQDN" {
            return self.push(
                Severity::Info,
                "addressType",
                "endpoints by host name are not supported; ignored",
            );
        }
        for (index, endpoint) in slice.endpoints.iter().flatten().enumerate() {
            let at = format!("endpoints[{index}]");
            self.addresses_strict(&at, &endpoint.addresses);
        }
    }

    fn addresses_strict(&mut self, at: &str, values: &[String]) {
        self.each(at, "addresses", values, |value| {
            value
                .parse::<IpAddr>()
                .is_err()
                .then(|| format!("{value:?} is not an IP address"))
        });
    }
}

fn is_known_key(key: &str) -> bool {
    KEYS.contains(&key)
        || ["request.headers[", "request.auth.claims[", "experimental."]
            .iter()
            .any(|prefix| key.starts_with(prefix))
}

/// The label that ties a slice to its Service.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// The attributes of `AuthorizationPolicy` conditions (istio.io, reference/config/security/conditions).
const KEYS: &[&str] = &[
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "source.trustDomain",
    "destination.ip",
    "destination.port",
    "connection.sni",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
];

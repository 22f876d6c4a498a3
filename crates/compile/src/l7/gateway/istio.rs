//! Istio's `Gateway`.

use std::collections::BTreeMap;

use k8s_api::IstioGateway;
use k8s_api::istio_gateway::{Server, ServerTls};
use l7::HostPattern;
use l7::listener::Reads;

use crate::index::authorization::Note;
use crate::l7::notes::Notes;

/// What Istio's `Gateway` says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct IstioServers {
    /// Labels of the pods that serve it.
    pub(crate) selector: BTreeMap<String, String>,
    /// Its servers.
    pub(crate) all: Vec<IstioServer>,
    /// What its author should know.
    pub(crate) notes: Vec<Note>,
}

impl IstioServers {
    /// Whether pods with these labels serve it.
    pub(crate) fn selects(&self, labels: &BTreeMap<String, String>) -> bool {
        let mut wanted = self.selector.iter();
        wanted.all(|(key, value)| labels.get(key) == Some(value))
    }
}

/// One server.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct IstioServer {
    /// Its index in the object.
    pub(crate) index: u32,
    /// Its port.
    pub(crate) port: u16,
    /// Its hosts.
    pub(crate) hosts: Vec<ServerHost>,
    /// Names of Secrets in the namespace of the gateway's pods; `None` where TLS does not end here.
    pub(crate) tls: Option<Vec<String>>,
    /// What is read of what comes.
    pub(crate) reads: Reads,
    /// Clients have to show a certificate.
    pub(crate) mutual: Option<ClientRoots>,
    /// What comes here is told to come by HTTPS.
    pub(crate) redirect: bool,
}

/// Where the roots of clients' certificates are: Secrets of which the first that has them counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ClientRoots(pub(crate) Vec<String>);

/// A host of a server.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ServerHost {
    /// Only VirtualServices of this namespace are bound to it.
    pub(crate) namespace: Option<String>,
    /// Which hosts.
    pub(crate) host: HostPattern,
}

/// Compiles one object of a namespace.
pub(crate) fn istio(gateway: &IstioGateway, namespace: &str) -> IstioServers {
    let mut notes = Notes::default();
    let mut all = Vec::new();
    if gateway.spec.selector.is_empty() {
        let message = "is empty, which selects the pods of every gateway";
        notes.warning("spec.selector", message);
    }
    for (index, server) in (0_u32..).zip(&gateway.spec.servers) {
        let field = format!("spec.servers[{index}]");
        let errors = notes.errors();
        let (tls, reads) = protocol(&field, server, &mut notes);
        for (name, is_there) in [
            ("bind", !server.bind.is_empty()),
            ("defaultEndpoint", !server.default_endpoint.is_empty()),
        ] {
            if is_there {
                notes.error(format!("{field}.{name}"), "is not supported");
            }
        }
        if server.port.target_port.is_some() {
            notes.warning(
                format!("{field}.port.targetPort"),
                "has no effect, as in Istio",
            );
        }
        if server.port.number == 0 {
            notes.error(format!("{field}.port.number"), "is missing");
        }
        if server.hosts.is_empty() {
            notes.error(format!("{field}.hosts"), "is missing");
        }
        if notes.errors() > errors {
            continue;
        }
        all.push(IstioServer {
            index,
            port: server.port.number,
            hosts: server
                .hosts
                .iter()
                .map(|one| host(one, namespace))
                .collect(),
            mutual: server.tls.as_ref().and_then(client_roots),
            redirect: server.tls.as_ref().is_some_and(|tls| tls.https_redirect),
            reads,
            tls,
        });
    }
    IstioServers {
        selector: gateway.spec.selector.clone(),
        all,
        notes: notes.0,
    }
}

/// `namespace/host`, `./host`, `*/host` or `host`.
fn host(written: &str, own: &str) -> ServerHost {
    let (namespace, host) = match written.split_once('/') {
        Some(("*", host)) => (None, host),
        Some((".", host)) => (Some(own), host),
        Some((namespace, host)) => (Some(namespace), host),
        None => (None, written),
    };
    ServerHost {
        namespace: namespace.map(str::to_owned),
        host: HostPattern::new(host),
    }
}

/// As Istio has them: a Secret that is named for it, else that of the certificate, else the one of its name with `-cacert`.
fn client_roots(tls: &ServerTls) -> Option<ClientRoots> {
    if tls.mode != MUTUAL {
        return None;
    }
    let named = &tls.ca_cert_credential_name;
    if !named.is_empty() {
        return Some(ClientRoots(vec![named.clone()]));
    }
    let own = tls.credential_names.iter().chain([&tls.credential_name]);
    let own = own.filter(|name| !name.is_empty());
    let both = own.flat_map(|name| [name.clone(), format!("{name}-cacert")]);
    Some(ClientRoots(both.collect()))
}

/// The Secrets of a server where TLS ends there, and what is read of what comes.
fn protocol(field: &str, server: &Server, notes: &mut Notes) -> (Option<Vec<String>>, Reads) {
    let none = ServerTls::default();
    let tls = server.tls.as_ref().unwrap_or(&none);
    // Without a word the mode is PASSTHROUGH, number 0 of upstream's enum.
    let passes = ["", "PASSTHROUGH"].contains(&tls.mode.as_str());
    let protocol = server.port.protocol.to_ascii_uppercase();
    match protocol.as_str() {
        "HTTP" | "HTTP2" | "GRPC" => {
            if !passes || !tls.credential_name.is_empty() {
                let message = "only httpsRedirect is for HTTP";
                notes.error(format!("{field}.tls"), message);
            }
            (None, Reads::Requests)
        }
        "HTTPS" | "TLS" if passes => {
            let message =
                "has no effect with PASSTHROUGH: the server that it leads to shows its own";
            for (name, is_there) in [
                ("credentialName", !tls.credential_name.is_empty()),
                ("credentialNames", !tls.credential_names.is_empty()),
            ] {
                if is_there {
                    notes.error(format!("{field}.tls.{name}"), message);
                }
            }
            (None, Reads::Names)
        }
        "HTTPS" => (Some(credentials(field, tls, notes)), Reads::Requests),
        "TLS" => (Some(credentials(field, tls, notes)), Reads::Nothing),
        "TCP" | "MONGO" | "MYSQL" | "REDIS" => {
            if server.tls.is_some() {
                notes.error(format!("{field}.tls"), "is not supported for TCP");
            }
            (None, Reads::Nothing)
        }
        other => {
            let message =
                format!("{other} is not supported; HTTP, HTTP2, GRPC, HTTPS, TLS and TCP are");
            notes.error(format!("{field}.port.protocol"), message);
            (None, Reads::Nothing)
        }
    }
}

/// The Secrets of a server with TLS. What would narrow whom it takes, and is not carried out, is an error.
fn credentials(field: &str, tls: &ServerTls, notes: &mut Notes) -> Vec<String> {
    let field = format!("{field}.tls");
    if !["SIMPLE", MUTUAL].contains(&tls.mode.as_str()) {
        let message = format!(
            "{} is not supported; SIMPLE, MUTUAL and PASSTHROUGH are",
            tls.mode
        );
        notes.error(format!("{field}.mode"), message);
    }
    for (name, is_there) in [
        ("serverCertificate", !tls.server_certificate.is_empty()),
        ("privateKey", !tls.private_key.is_empty()),
    ] {
        if is_there {
            let message = "files are not read: put the certificate into a Secret and name it in credentialName";
            notes.error(format!("{field}.{name}"), message);
        }
    }
    for (name, is_there) in [
        ("caCertificates", !tls.ca_certificates.is_empty()),
        ("caCrl", !tls.ca_crl.is_empty()),
        ("tlsCertificates", tls.tls_certificates.is_some()),
        (
            "caCertCredentialName",
            tls.mode != MUTUAL && !tls.ca_cert_credential_name.is_empty(),
        ),
        ("subjectAltNames", !tls.subject_alt_names.is_empty()),
        (
            "verifyCertificateSpki",
            !tls.verify_certificate_spki.is_empty(),
        ),
        (
            "verifyCertificateHash",
            !tls.verify_certificate_hash.is_empty(),
        ),
        ("cipherSuites", !tls.cipher_suites.is_empty()),
    ] {
        if is_there {
            notes.error(format!("{field}.{name}"), "is not supported");
        }
    }
    for (name, version, fine) in [
        ("minProtocolVersion", &tls.min_protocol_version, "TLSV1_2"),
        ("maxProtocolVersion", &tls.max_protocol_version, "TLSV1_3"),
    ] {
        if !["", "TLS_AUTO", fine].contains(&version.as_str()) {
            let message = "is not supported: TLS 1.2 and 1.3 are spoken";
            notes.error(format!("{field}.{name}"), message);
        }
    }
    let names = tls.credential_names.iter().chain([&tls.credential_name]);
    let names: Vec<String> = names.filter(|name| !name.is_empty()).cloned().collect();
    if names.is_empty() && tls.server_certificate.is_empty() {
        notes.error(format!("{field}.credentialName"), "is missing");
    }
    names
}

/// The mode in which clients show certificates.
const MUTUAL: &str = "MUTUAL";

use serde_json::json;

use super::*;

fn api(listeners: serde_json::Value) -> Listeners {
    let gateway = json!({
        "metadata": {"name": "g", "namespace": "edge"},
        "spec": {"gatewayClassName": "keelson", "listeners": listeners},
    });
    listeners_of(gateway)
}

fn listeners_of(gateway: serde_json::Value) -> Listeners {
    listeners(&serde_json::from_value(gateway).unwrap()).unwrap()
}

#[test]
fn listeners_that_cannot_be_carried_out_are_left_out_with_their_field() {
    let refs = json!([{"name": "cert"}]);
    let compiled = api(json!([
        {"name": "http", "port": 80, "protocol": "HTTP"},
        {"name": "https", "port": 443, "protocol": "HTTPS", "hostname": "*.Example.com",
         "tls": {"certificateRefs": refs}, "allowedRoutes": {"namespaces": {"from": "All"}}},
        {"name": "udp", "port": 90, "protocol": "UDP"},
        {"name": "pass", "port": 444, "protocol": "HTTPS", "tls": {"mode": "Passthrough", "certificateRefs": refs}},
        {"name": "mutual", "port": 445, "protocol": "HTTPS",
         "tls": {"certificateRefs": refs, "frontendValidation": {}}},
        {"name": "again", "port": 80, "protocol": "HTTP"},
        {"name": "mixed", "port": 443, "protocol": "HTTP", "hostname": "other.com"},
        {"name": "bare", "port": 446, "protocol": "HTTPS"},
        {"name": "ends", "port": 447, "protocol": "TLS"},
        {"name": "over", "port": 443, "protocol": "TCP"},
    ]));
    let names: Vec<&str> = compiled.all.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["http", "https"]);
    let https = &compiled.all[1];
    assert_eq!(https.tls, Some(vec![NamespacedName::new("edge", "cert")]));
    assert_eq!(https.host.to_string(), "*.example.com");
    assert_eq!(
        (&https.from, &*https.kinds, https.reads),
        (
            &From::All,
            &[Kind::HttpRoute, Kind::GrpcRoute][..],
            Reads::Requests
        )
    );
    let fields: Vec<&str> = compiled
        .notes
        .iter()
        .map(|note| note.field.as_str())
        .collect();
    assert_eq!(
        fields,
        [
            "spec.listeners[2].protocol",
            "spec.listeners[3].tls.mode",
            "spec.listeners[4].tls.frontendValidation",
            "spec.listeners[5]",
            "spec.listeners[6]",
            "spec.listeners[7].tls",
            "spec.listeners[8].tls",
            "spec.listeners[9]",
        ]
    );
}

/// Issue 12 B8: TLS that passes may share a port with TLS that ends, by the name; each takes the routes that it can carry.
#[test]
fn listeners_that_read_no_requests_take_routes_of_connections() {
    let compiled = api(json!([
        {"name": "tcp", "port": 5432, "protocol": "TCP"},
        {"name": "ends", "port": 443, "protocol": "HTTPS", "tls": {"certificateRefs": [{"name": "cert"}]}},
        {"name": "passes", "port": 443, "protocol": "TLS", "hostname": "db.example.com", "tls": {"mode": "Passthrough"}},
        {"name": "wrong", "port": 8443, "protocol": "TLS", "tls": {"mode": "Passthrough"},
         "allowedRoutes": {"kinds": [{"kind": "HTTPRoute"}]}},
        {"name": "unread", "port": 443, "protocol": "TLS", "hostname": "mail.example.com",
         "tls": {"certificateRefs": [{"name": "cert"}]}},
    ]));
    let all = compiled.all.iter();
    let all: Vec<_> = all
        .map(|door| (&*door.name, door.reads, &*door.kinds, door.tls.is_some()))
        .collect();
    let requests = &[Kind::HttpRoute, Kind::GrpcRoute][..];
    let expected = [
        ("tcp", Reads::Nothing, &[Kind::TcpRoute][..], false),
        ("ends", Reads::Requests, requests, true),
        ("passes", Reads::Names, &[Kind::TlsRoute][..], false),
        ("wrong", Reads::Names, &[][..], false),
        (
            "unread",
            Reads::Nothing,
            &[Kind::TcpRoute, Kind::TlsRoute][..],
            true,
        ),
    ];
    assert_eq!(all, expected);
    let fields: Vec<&str> = compiled.notes.iter().map(|n| &*n.field).collect();
    assert_eq!(fields, ["spec.listeners[3].allowedRoutes.kinds[0]"]);
}

/// Issue 12 B7: a listener whose certificate cannot be one is there, closed, for whoever asks for its routes.
#[test]
fn a_listener_with_a_reference_to_no_secret_is_kept_without_a_certificate() {
    let compiled = api(json!([
        {"name": "https", "port": 443, "protocol": "HTTPS",
         "tls": {"certificateRefs": [{"group": "x.org", "kind": "Cert", "name": "a"}]}},
    ]));
    assert_eq!(compiled.all[0].tls, Some(Vec::new()));
    let fields: Vec<&str> = compiled.notes.iter().map(|n| &*n.field).collect();
    assert_eq!(fields, ["spec.listeners[0].tls.certificateRefs[0].kind"]);
}

#[test]
fn istios_servers_that_cannot_be_carried_out_are_left_out_with_their_field() {
    let gateway: k8s_api::IstioGateway = serde_json::from_value(json!({
        "spec": {"selector": {"istio": "ingressgateway"}, "servers": [
            {"hosts": ["shop/a.com", "./b.com", "*/c.com", "*"], "port": {"number": 80, "protocol": "HTTP"},
             "tls": {"httpsRedirect": true}},
            {"hosts": ["*"], "port": {"number": 443, "protocol": "HTTPS"},
             "tls": {"mode": "SIMPLE", "credentialName": "cert"}},
            {"hosts": ["*"], "port": {"number": 444, "protocol": "HTTPS"},
             "tls": {"mode": "SIMPLE", "serverCertificate": "/etc/x.pem", "privateKey": "/etc/k.pem"}},
            {"hosts": ["*"], "port": {"number": 445, "protocol": "HTTPS"},
             "tls": {"mode": "MUTUAL", "credentialName": "cert", "subjectAltNames": ["a"]}},
            {"hosts": ["*"], "port": {"number": 446, "protocol": "UDP"}},
            {"hosts": ["*"], "port": {"number": 447, "protocol": "HTTPS"}, "tls": {"credentialName": "cert"}},
            {"hosts": ["*"], "port": {"number": 448, "protocol": "HTTPS"},
             "tls": {"mode": "MUTUAL", "credentialName": "cert"}},
            {"hosts": ["*"], "port": {"number": 449, "protocol": "HTTPS"},
             "tls": {"mode": "MUTUAL", "credentialName": "cert", "caCertCredentialName": "roots"}},
            {"hosts": ["*"], "port": {"number": 450, "protocol": "TLS"}, "tls": {"mode": "PASSTHROUGH"}},
            {"hosts": ["*"], "port": {"number": 451, "protocol": "MONGO"}},
            {"hosts": ["*"], "port": {"number": 452, "protocol": "TLS"}, "tls": {"mode": "SIMPLE", "credentialName": "cert"}},
            {"hosts": ["*"], "port": {"number": 453, "protocol": "TLS"}, "tls": {"mode": "AUTO_PASSTHROUGH"}},
        ]}
    }))
    .unwrap();
    let compiled = istio(&gateway, "edge");
    let ports: Vec<u16> = compiled.all.iter().map(|one| one.port).collect();
    assert_eq!(ports, [80, 443, 448, 449, 450, 451, 452]);
    let roots: Vec<_> = compiled
        .all
        .iter()
        .map(|one| one.mutual.as_ref().map(|roots| roots.0.join(" ")))
        .collect();
    assert_eq!(
        roots,
        [
            None,
            None,
            Some("cert cert-cacert".into()),
            Some("roots".into()),
            None,
            None,
            None,
        ]
    );
    let reads: Vec<Reads> = compiled.all.iter().map(|one| one.reads).collect();
    assert_eq!(reads[..4], [Reads::Requests; 4]);
    assert_eq!(reads[4..], [Reads::Names, Reads::Nothing, Reads::Nothing]);
    let ends: Vec<bool> = compiled.all.iter().map(|one| one.tls.is_some()).collect();
    assert_eq!(ends[4..], [false, false, true]);
    let hosts: Vec<_> = compiled.all[0]
        .hosts
        .iter()
        .map(|one| one.namespace.as_deref())
        .collect();
    assert_eq!(hosts, [Some("shop"), Some("edge"), None, None]);
    assert!(compiled.all[0].redirect && compiled.all[0].tls.is_none());
    assert_eq!(compiled.all[1].tls, Some(vec!["cert".to_owned()]));
    let fields: Vec<&str> = compiled
        .notes
        .iter()
        .map(|note| note.field.as_str())
        .collect();
    assert_eq!(
        fields,
        [
            "spec.servers[2].tls.serverCertificate",
            "spec.servers[2].tls.privateKey",
            "spec.servers[3].tls.subjectAltNames",
            "spec.servers[4].port.protocol",
            "spec.servers[5].tls.credentialName",
            "spec.servers[11].tls.mode",
            "spec.servers[11].tls.credentialName",
        ]
    );
}

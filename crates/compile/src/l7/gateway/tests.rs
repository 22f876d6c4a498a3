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
        {"name": "tcp", "port": 90, "protocol": "TCP"},
        {"name": "pass", "port": 444, "protocol": "HTTPS", "tls": {"mode": "Passthrough", "certificateRefs": refs}},
        {"name": "mutual", "port": 445, "protocol": "HTTPS",
         "tls": {"certificateRefs": refs, "frontendValidation": {}}},
        {"name": "again", "port": 80, "protocol": "HTTP"},
        {"name": "mixed", "port": 443, "protocol": "HTTP", "hostname": "other.com"},
        {"name": "bare", "port": 446, "protocol": "HTTPS"},
    ]));
    let names: Vec<&str> = compiled.all.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["http", "https"]);
    let https = &compiled.all[1];
    assert_eq!(https.tls, Some(vec![NamespacedName::new("edge", "cert")]));
    assert_eq!(https.host.to_string(), "*.example.com");
    assert_eq!(
        (&https.from, https.http, https.grpc),
        (&From::All, true, true)
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
        ]
    );
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
            {"hosts": ["*"], "port": {"number": 446, "protocol": "TCP"}},
            {"hosts": ["*"], "port": {"number": 447, "protocol": "HTTPS"}, "tls": {"credentialName": "cert"}},
            {"hosts": ["*"], "port": {"number": 448, "protocol": "HTTPS"},
             "tls": {"mode": "MUTUAL", "credentialName": "cert"}},
            {"hosts": ["*"], "port": {"number": 449, "protocol": "HTTPS"},
             "tls": {"mode": "MUTUAL", "credentialName": "cert", "caCertCredentialName": "roots"}},
        ]}
    }))
    .unwrap();
    let compiled = istio(&gateway, "edge");
    let ports: Vec<u16> = compiled.all.iter().map(|one| one.port).collect();
    assert_eq!(ports, [80, 443, 448, 449]);
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
            Some("roots".into())
        ]
    );
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
            "spec.servers[5].tls.mode",
        ]
    );
}

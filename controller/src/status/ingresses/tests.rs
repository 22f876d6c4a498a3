use compile::index::Verdict;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::*;

fn outcome(addresses: Vec<(&'static str, String)>) -> Outcome {
    Outcome {
        refused: None,
        programmed: Verdict::yes("Programmed"),
        addresses,
    }
}

fn view(gateway: Option<&str>, wrong: &str) -> View {
    let ingress = IngressView {
        uid: "u".into(),
        gateway: gateway.map(|name| NamespacedName::new("edge", name)),
        wrong: wrong.to_owned(),
    };
    View {
        ingresses: [(NamespacedName::new("shop", "web"), ingress)].into(),
        ..View::default()
    }
}

/// An API server without Ingresses of an earlier writer.
async fn server() -> (Client, mpsc::UnboundedReceiver<(String, Value)>) {
    server_with(json!([])).await
}

/// An API server that takes everything, lists these Ingresses, and tells what else it was sent: the line of the request, and the
/// body.
async fn server_with(listed: Value) -> (Client, mpsc::UnboundedReceiver<(String, Value)>) {
    let list = json!({
        "apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": {}, "items": listed,
    });
    let list = list.to_string();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut read = Vec::new();
            let sent = loop {
                let mut part = [0; 4096];
                let count = stream.read(&mut part).await.unwrap();
                read.extend_from_slice(&part[..count]);
                let text = String::from_utf8_lossy(&read);
                let Some((head, body)) = text.split_once("\r\n\r\n") else {
                    continue;
                };
                let length = head
                    .lines()
                    .find_map(|line| {
                        line.to_ascii_lowercase()
                            .strip_prefix("content-length: ")?
                            .parse()
                            .ok()
                    })
                    .unwrap_or(0_usize);
                if body.len() >= length {
                    let line = head.lines().next().unwrap_or_default().to_owned();
                    break (line, serde_json::from_str(body).unwrap_or_default());
                }
            };
            let one = r#"{"apiVersion":"networking.k8s.io/v1","kind":"Ingress","metadata":{"name":"web"}}"#;
            let is_list = sent.0.starts_with("GET ");
            let answer = if is_list { list.as_str() } else { one };
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{answer}",
                answer.len()
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            if !is_list {
                tell.send(sent).unwrap();
            }
        }
    });
    let config = kube::Config::new(format!("http://{address}").parse().unwrap());
    (Client::try_from(config).unwrap(), told)
}

/// Issue 12 B8: the addresses are those of the Gateway; what is the same is not written again, and what no longer is served
/// by us loses them.
#[tokio::test]
async fn an_ingress_has_the_addresses_of_its_gateway_by_server_side_apply() {
    let (client, mut told) = server().await;
    let mut writer = Ingresses::new(client);
    let addresses = vec![
        ("IPAddress", "192.0.2.1".to_owned()),
        ("Hostname", "lb.example.com".to_owned()),
    ];
    let outcomes = BTreeMap::from([(NamespacedName::new("edge", "gw"), outcome(addresses))]);
    // Nothing is known of another Gateway.
    writer.write(&view(Some("other"), ""), &outcomes).await;
    for _ in 0..2 {
        writer.write(&view(Some("gw"), ""), &outcomes).await;
    }
    let (line, body) = told.recv().await.unwrap();
    assert!(
        line.starts_with("PATCH /apis/networking.k8s.io/v1/namespaces/shop/ingresses/web/status?"),
        "{line}"
    );
    assert!(line.contains("fieldManager=keelson-controller"), "{line}");
    assert_eq!(
        body["status"],
        json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}, {"hostname": "lb.example.com"}]}})
    );
    assert_eq!(body["metadata"], json!({"uid": "u"}));
    assert!(told.try_recv().is_err(), "it was written once");
    writer.write(&View::default(), &outcomes).await;
    let (_, body) = told.recv().await.unwrap();
    assert_eq!(body.get("status"), None, "{body}");
}

/// An Ingress has no conditions, so what is wrong with it is an event, once.
#[tokio::test]
async fn what_is_wrong_with_an_ingress_is_an_event() {
    let (client, mut told) = server().await;
    let mut writer = Ingresses::new(client);
    for _ in 0..2 {
        let wrong = "spec.tls[0].secretName: there is no Secret shop/cert";
        writer.write(&view(None, wrong), &BTreeMap::new()).await;
    }
    let (line, body) = told.recv().await.unwrap();
    assert!(
        line.starts_with("POST /apis/events.k8s.io/v1/namespaces/shop/events"),
        "{line}"
    );
    assert_eq!(
        body["note"],
        "spec.tls[0].secretName: there is no Secret shop/cert"
    );
    assert_eq!(
        (&body["type"], &body["regarding"]["kind"]),
        (&"Warning".into(), &"Ingress".into())
    );
    assert!(
        told.try_recv().is_err(),
        "it was said once, and there is no status to write"
    );
}

/// What an earlier writer has said of an Ingress is put right, or taken back from one that is ours no more; what others have said
/// is theirs.
#[tokio::test]
async fn what_an_earlier_writer_has_left_is_put_right_or_taken_back() {
    let by = |name: &str, manager: &str, subresource: Option<&str>| {
        json!({
            "metadata": {
                "namespace": "shop", "name": name, "uid": "u",
                "managedFields": [{"manager": manager, "operation": "Apply", "subresource": subresource}],
            },
        })
    };
    let (client, mut told) = server_with(json!([
        by("web", MANAGER, Some("status")),
        by("left", MANAGER, Some("status")),
        by("anothers", "nginx", Some("status")),
        by("made", MANAGER, None),
    ]))
    .await;
    let mut writer = Ingresses::new(client);
    // It is of our class, and no Gateway serves it.
    for _ in 0..2 {
        writer.write(&view(None, ""), &BTreeMap::new()).await;
    }
    for name in ["left", "web"] {
        let (line, body) = told.recv().await.unwrap();
        let path =
            format!("PATCH /apis/networking.k8s.io/v1/namespaces/shop/ingresses/{name}/status?");
        assert!(line.starts_with(&path), "{line}");
        assert_eq!(body.get("status"), None, "{body}");
    }
    assert!(
        told.try_recv().is_err(),
        "each was written once, and no other"
    );
    // And once more when another one has written in between.
    writer.forget();
    writer.write(&View::default(), &BTreeMap::new()).await;
    assert!(told.recv().await.is_some() && told.recv().await.is_some());
}

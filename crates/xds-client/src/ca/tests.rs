//! The CA client against a server of the CA API.

use proto::agent::NodeReport;
use tls::ca::{Authority, system_clock};

use super::*;
use crate::node::NodeClient;
use crate::testing::{Answer, Running, Site};

const NAME: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const HOUR: Duration = Duration::from_secs(3600);

fn id() -> Identity {
    NAME.parse().unwrap()
}

async fn start() -> (Site, Running, CaClient) {
    let site = Site::new().await;
    let running = site.run().await;
    let client = CaClient::new(site.controller(), HOUR);
    (site, running, client)
}

#[tokio::test]
async fn a_certificate_is_asked_for_as_istio_does() {
    let (site, running, client) = start().await;
    let first = client.issue(&id()).await.unwrap();
    std::fs::write(site.file("token"), "secret-2").unwrap();
    let second = client.issue(&id()).await.unwrap();
    assert_ne!(first.info().serial, second.info().serial);
    assert_eq!(first.roots, *site.authority.roots());
    let life = first.not_after.duration_since(first.obtained).unwrap();
    assert!(life <= HOUR + Duration::from_secs(1) && life > HOUR - Duration::from_secs(5));
    let asked = running.calls.certificates.lock().unwrap();
    let tokens: Vec<&str> = asked.iter().map(|(token, _)| token.as_str()).collect();
    assert_eq!(tokens, ["Bearer secret-1", "Bearer secret-2"]);
    assert_eq!(asked[0].1.validity_duration, 3600);
    assert!(asked[0].1.csr.contains("BEGIN CERTIFICATE REQUEST"));
}

#[tokio::test]
async fn answers_that_no_peer_would_accept_are_refused() {
    let (site, running, client) = start().await;
    let stranger = Authority::generate("test", system_clock()).unwrap();
    let (_key, csr) = csr::new_key_and_csr(&id()).unwrap();
    let other = site
        .authority
        .sign(
            &csr,
            &"spiffe://cluster.local/ns/shop/sa/db".parse().unwrap(),
            HOUR,
        )
        .map(drop);
    assert!(other.is_err(), "the CSR names its owner");
    let foreign_key = site.authority.sign(&csr, &id(), HOUR).unwrap();
    let mut foreign_root = foreign_key.clone();
    foreign_root[1] = stranger.roots().to_pem();
    let db = "spiffe://cluster.local/ns/shop/sa/db".parse().unwrap();
    let (_key, csr) = csr::new_key_and_csr(&db).unwrap();
    let other_name = site.authority.sign(&csr, &db, HOUR).unwrap();
    for (case, chain, part) in [
        ("nothing", vec![], "empty"),
        ("a leaf only", foreign_key[..1].to_vec(), "leaf and a root"),
        (
            "junk",
            vec!["x".to_owned(), "y".to_owned()],
            "no root certificate",
        ),
        ("another key", foreign_key, "does not belong"),
        ("another root", foreign_root, "does not belong"),
        ("another name", other_name, "sa/db"),
    ] {
        *running.calls.answer.lock().unwrap() = Answer::Chain(chain);
        let error = client.issue(&id()).await.unwrap_err();
        assert_eq!(error.code(), "unusable", "{case}");
        let text = crate::causes(&error);
        assert!(text.contains(part), "{case}: {text}");
    }
}

#[tokio::test]
async fn refusals_are_told_from_trouble() {
    let (_site, running, client) = start().await;
    for (status, code) in [
        (
            tonic::Status::permission_denied("not on this node"),
            "refused",
        ),
        (tonic::Status::unauthenticated("token"), "refused"),
        (tonic::Status::invalid_argument("csr"), "refused"),
        (tonic::Status::unavailable("starting"), "unreachable"),
        (tonic::Status::internal("bug"), "unreachable"),
    ] {
        let text = status.message().to_owned();
        *running.calls.answer.lock().unwrap() = Answer::Refuse(status);
        let error = client.issue(&id()).await.unwrap_err();
        assert_eq!(error.code(), code, "{text}");
        assert!(crate::causes(&error).contains(&text), "{text}");
    }
    *running.calls.answer.lock().unwrap() = Answer::Good;
    client.issue(&id()).await.unwrap();
}

#[tokio::test]
async fn the_client_works_again_when_the_authority_is_back() {
    let (site, running, client) = start().await;
    client.issue(&id()).await.unwrap();
    drop(running);
    let error = loop {
        // The listener closes a moment after the stop was asked for.
        match client.issue(&id()).await {
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), "unreachable");
    let _running = site.run().await;
    client.issue(&id()).await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_missing_is_named() {
    let (site, _running, client) = start().await;
    for file in ["token", "root.pem"] {
        std::fs::remove_file(site.file(file)).unwrap();
        let fresh = CaClient::new(client.controller.clone(), HOUR);
        let text = crate::causes(&fresh.issue(&id()).await.unwrap_err());
        assert!(text.contains(file), "{text}");
    }
    let plain = Controller::new("http://127.0.0.1:1", "x", "y");
    let text = crate::causes(&plain.connect().await.unwrap_err());
    assert!(text.contains("https://"), "{text}");
}

#[tokio::test]
async fn captured_pods_are_reported() {
    let (site, running, _client) = start().await;
    let mut node = NodeClient::new(site.controller());
    let report = NodeReport {
        node: "n1".to_owned(),
        captured: vec!["Kubernetes//Pod/shop/a".to_owned()],
        ..NodeReport::default()
    };
    node.report(report.clone()).await.unwrap();
    *running.calls.answer.lock().unwrap() =
        Answer::Refuse(tonic::Status::permission_denied("another node"));
    let error = node.report(report.clone()).await.unwrap_err();
    assert!(error.to_string().contains("another node"), "{error}");
    *running.calls.answer.lock().unwrap() = Answer::Good;
    node.report(report.clone()).await.unwrap();
    assert_eq!(
        *running.calls.reports.lock().unwrap(),
        [report.clone(), report]
    );
}

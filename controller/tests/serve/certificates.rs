use model::Identity;
use prost_types::{Struct, Value, value::Kind};
use proto::istio::ca::IstioCertificateRequest;
use tonic::{Code, Status};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::support::*;

/// What `ImpersonatedIdentity` says.
fn metadata(identity: &str) -> Struct {
    let value = Value {
        kind: Some(Kind::StringValue(identity.to_owned())),
    };
    Struct {
        fields: [("ImpersonatedIdentity".to_owned(), value)].into(),
    }
}

fn request(identity: &str, validity_duration: i64) -> IstioCertificateRequest {
    let named: Identity = "spiffe://cluster.local/ns/shop/sa/cart"
        .parse()
        .expect("an identity");
    let (_key, csr) =
        tls::csr::new_key_and_csr(&identity.parse().unwrap_or(named)).expect("a request");
    IstioCertificateRequest {
        csr,
        validity_duration,
        metadata: Some(metadata(identity)),
    }
}

async fn ask(
    controller: &Controller,
    token: &str,
    request: IstioCertificateRequest,
) -> Result<Vec<String>, Status> {
    let answer = controller
        .ca()
        .await
        .create_certificate(bearer(request, token))
        .await?;
    Ok(answer.into_inner().cert_chain)
}

/// The URI names and the seconds from now until the end.
fn leaf(pem: &str) -> (Vec<String>, i64) {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).expect("PEM");
    let (_, leaf) = X509Certificate::from_der(&pem.contents).expect("a certificate");
    let names = leaf
        .subject_alternative_name()
        .expect("readable")
        .expect("present");
    assert!(names.critical);
    let names = names.value.general_names.iter().map(|name| match name {
        GeneralName::URI(uri) => (*uri).to_owned(),
        other => panic!("{other:?}"),
    });
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("after 1970")
        .as_secs();
    (
        names.collect(),
        leaf.validity().not_after.timestamp() - now.cast_signed(),
    )
}

const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_gets_the_identities_of_its_pods_leaf_first_and_root_last() {
    let home = Home::new();
    home.write("mesh.yaml", MESH);
    let controller = home.start(&["--cert-ttl", "60s"]).await;
    for (asked, lives) in [(0, 60), (86_400, 60), (20, 20), (-5, 60)] {
        let chain = ask(&controller, "token-1", request(CART, asked))
            .await
            .expect("granted");
        let (names, left) = leaf(&chain[0]);
        assert_eq!(names, [CART]);
        assert!(
            (lives - 5..=lives + 1).contains(&left),
            "asked for {asked}, lives {left} s"
        );
        let root = std::fs::read_to_string(home.path().join("root.pem")).expect("written");
        assert_eq!(chain.last(), Some(&root));
    }
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_else_is_refused_with_its_reason() {
    let home = Home::new();
    home.write("mesh.yaml", MESH);
    let controller = home.start(&[]).await;
    let nobody = IstioCertificateRequest {
        metadata: None,
        ..request(CART, 0)
    };
    let garbage = IstioCertificateRequest {
        csr: "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"
            .into(),
        ..request(CART, 0)
    };
    let other_name = IstioCertificateRequest {
        csr: request(WEB, 0).csr,
        ..request(CART, 0)
    };
    let table = [
        (
            "token-1",
            request(WEB, 0),
            Code::PermissionDenied,
            "not_on_node",
        ),
        (
            "token-2",
            request(CART, 0),
            Code::PermissionDenied,
            "not_on_node",
        ),
        (
            "token-1",
            request("spiffe://cluster.local/ns/other/sa/cart", 0),
            Code::PermissionDenied,
            "not_on_node",
        ),
        (
            "token-1",
            request("spiffe://elsewhere/ns/shop/sa/cart", 0),
            Code::PermissionDenied,
            "other_trust_domain",
        ),
        (
            "token-1",
            request("shop/cart", 0),
            Code::InvalidArgument,
            "bad_identity",
        ),
        ("token-1", nobody, Code::InvalidArgument, "no_identity"),
        ("token-1", garbage, Code::InvalidArgument, "bad_request"),
        ("token-1", other_name, Code::InvalidArgument, "bad_request"),
        (
            "stolen",
            request(CART, 0),
            Code::Unauthenticated,
            "unauthenticated",
        ),
    ];
    for (token, request, code, reason) in table {
        let refused = ask(&controller, token, request.clone())
            .await
            .expect_err(reason);
        assert_eq!(refused.code(), code, "{reason}: {refused}");
        let metric = format!("certificates_refused_total{{reason=\"{reason}\"}}");
        assert!(
            controller.page("/stats/prometheus").await.contains(&metric),
            "{metric}"
        );
    }
    // The pod goes, and its identity with it.
    let removed = MESH.replace("nodeName: n1", "nodeName: n3");
    home.write("mesh.yaml", &removed);
    controller
        .until(
            "moved",
            |page| page.contains("\"n3\""),
            "/debug/config_dump",
        )
        .await;
    let refused = ask(&controller, "token-1", request(CART, 0))
        .await
        .expect_err("gone");
    assert_eq!(refused.code(), Code::PermissionDenied);
    controller.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_is_an_identity_gets_its_own_without_naming_it_and_no_other() {
    let home = Home::new();
    home.write("mesh.yaml", MESH);
    let controller = home.start(&[]).await;
    let unnamed = |identity: &str| IstioCertificateRequest {
        metadata: None,
        ..request(identity, 0)
    };
    for named in [unnamed(CART), request(CART, 0)] {
        let chain = ask(&controller, "token-cart", named)
            .await
            .expect("granted");
        assert_eq!(leaf(&chain[0]).0, [CART]);
    }
    let other = ask(&controller, "token-cart", request(WEB, 0)).await;
    let other = other.expect_err("not its own");
    assert_eq!(other.code(), Code::PermissionDenied, "{other}");
    let agent = ask(&controller, "token-1", unnamed(CART)).await;
    let agent = agent.expect_err("an agent has no identity of its own");
    assert_eq!(agent.code(), Code::InvalidArgument, "{agent}");
    let report = controller.report("token-cart", "n1", &[A]).await;
    assert_eq!(report.expect_err("no agent").code(), Code::PermissionDenied);
    controller.stop().await;
}

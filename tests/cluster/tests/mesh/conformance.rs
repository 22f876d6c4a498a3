//! The Gateway API's own conformance suite, as its makers run it: against an installation, from a node.
//!
//! What the suite says of this version is kept in `docs/conformance`, as its projects do.

mod balancer;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests_cluster::{eventually, kubectl};

use self::balancer::Balancer;
use crate::installed::Installed;
use crate::kinds::{Kinds, condition};

/// Issue 12 B7, B8: each test of the profiles that Keelson says it conforms to, with all features that it says it has, passes
/// but for those that are named here and in `docs/conformance.md`.
#[test]
#[ignore = "conformance"]
fn the_suite_of_the_gateway_api_passes_but_for_the_tests_that_are_named() -> Result<()> {
    // The suite has a dozen gateways at a time.
    let mesh = Installed::install_with(json!({"gateways": {"replicas": 1}}))?;
    let _kinds = Kinds::apply()?;
    let _balancer = Balancer::start()?;
    for class in ["keelson", "keelson-waypoint"] {
        eventually(&format!("the class {class} is accepted"), || {
            let class = tests_cluster::get(&["gatewayclass", class])?;
            let accepted = condition(&class["status"]["conditions"], "Accepted")?;
            ensure!(accepted.0 == "True", "{class}");
            Ok(())
        })?;
    }
    let report = run(&mesh)?;
    let failed = failures(&report)?;
    let known: BTreeSet<String> = KNOWN.iter().map(|name| (*name).to_owned()).collect();
    ensure!(
        failed == known,
        "failed: {failed:?}, and as known these: {known:?}"
    );
    Ok(())
}

/// Runs it in the network of a node, where addresses of services lead somewhere, and returns its report.
fn run(mesh: &Installed) -> Result<Value> {
    let out = target()?;
    fs::create_dir_all(&out)?;
    let config = kubectl(&["config", "view", "--raw", "--flatten", "-o", "json"])?;
    let mut config: Value = serde_json::from_str(&config)?;
    // As the nodes know the API server.
    config["clusters"][0]["cluster"]["server"] = format!("https://{API_SERVER}").into();
    mesh.on(
        NODE,
        &format!("cat > /tmp/config.json <<'END'\n{config}\nEND"),
    )?;
    let mut words: Vec<String> = vec![
        "env".into(),
        "KUBECONFIG=/tmp/config.json".into(),
        "/keelson/bin/gateway-api-conformance".into(),
        "-test.v".into(),
        "-test.timeout=60m".into(),
        "-gateway-class=keelson".into(),
        format!("-conformance-profiles={}", PROFILES.join(",")),
        format!("-supported-features={}", FEATURES.join(",")),
        "-namespace-labels=keelson.io/mesh=enabled,keelson.io/l7=auto".into(),
        "-organization=keelson".into(),
        "-project=keelson".into(),
        "-url=https://keelson.io".into(),
        "-contact=https://keelson.io".into(),
        format!("-version=v{}", env!("CARGO_PKG_VERSION")),
        "-report-output=/tmp/report.yaml".into(),
    ];
    // For whoever looks at one test.
    if let Ok(test) = std::env::var("KEELSON_CONFORMANCE_TEST") {
        words.push(format!("-run-test={test}"));
    }
    let log = out.join("log");
    let output = File::create(&log).with_context(|| format!("writing {}", log.display()))?;
    mesh.standing()?
        .command(NODE, &words)?
        .stdout(output.try_clone()?)
        .stderr(output)
        .status()
        .context("starting the suite")?;
    let report = mesh.on(NODE, "cat /tmp/report.yaml");
    let report = report.with_context(|| format!("no report: see {}", log.display()))?;
    fs::write(out.join("report.yaml"), format!("{report}\n"))?;
    serde_saphyr::from_str(&report).context("the report")
}

/// The names of all tests that failed, of every profile.
#[expect(clippy::print_stdout, reason = "the figures of the suite")]
fn failures(report: &Value) -> Result<BTreeSet<String>> {
    let mut failed = BTreeSet::new();
    let profiles = report["profiles"].as_array().context("profiles")?;
    ensure!(profiles.len() == PROFILES.len(), "{report}");
    for profile in profiles {
        for level in ["core", "extended"] {
            let part = &profile[level];
            println!("{} {level}: {}", profile["name"], part["statistics"]);
            let names = part["failedTests"].as_array().into_iter().flatten();
            failed.extend(names.filter_map(Value::as_str).map(str::to_owned));
        }
    }
    Ok(failed)
}

fn target() -> Result<PathBuf> {
    let base = std::env::var_os("KEELSON_CLUSTER_BASE").context("a cluster of this machine")?;
    Ok(PathBuf::from(base).with_file_name("conformance"))
}

/// Tests that fail, each with its reason in `docs/conformance.md`.
const KNOWN: [&str; 0] = [];

const PROFILES: [&str; 6] = [
    "MESH-HTTP",
    "MESH-GRPC",
    "GATEWAY-HTTP",
    "GATEWAY-GRPC",
    "GATEWAY-TLS",
    "GATEWAY-TCP",
];

/// What is beyond the core of the profiles, of the standard channel: `retry` of an HTTPRoute is not in its definition.
const FEATURES: [&str; 35] = [
    "MeshClusterIPMatching",
    "MeshConsumerRoute",
    "MeshHTTPRouteRewritePath",
    "MeshHTTPRouteSchemeRedirect",
    "MeshHTTPRouteRedirectPort",
    "MeshHTTPRouteRedirectPath",
    "MeshHTTPRouteBackendRequestHeaderModification",
    "MeshHTTPRouteQueryParamMatching",
    "MeshHTTPRouteNamedRouteRule",
    "GatewayPort8080",
    "GatewayHTTPListenerIsolation",
    "GatewayInfrastructure",
    "GRPCRouteNamedRouteRule",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteMethodMatching",
    "HTTPRouteResponseHeaderModification",
    "HTTPRoutePortRedirect",
    "HTTPRouteSchemeRedirect",
    "HTTPRoutePathRedirect",
    "HTTPRouteHostRewrite",
    "HTTPRoutePathRewrite",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteBackendTimeout",
    "HTTPRouteParentRefPort",
    "HTTPRouteBackendProtocolH2C",
    "HTTPRouteBackendProtocolWebSocket",
    "HTTPRouteNamedRouteRule",
    "HTTPRouteCORS",
    "HTTPRoute303RedirectStatusCode",
    "HTTPRoute307RedirectStatusCode",
    "HTTPRoute308RedirectStatusCode",
];

/// Where the suite runs.
const NODE: &str = "node1";
/// As `tools/cluster` lays it out.
const API_SERVER: &str = "172.30.255.1:6443";

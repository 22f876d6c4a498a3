//! Three nodes in three regions, and a service with a replica in each.

use anyhow::{Result, ensure};
use lab::Lab;
use tests_lab::Shared;

use super::stand::{Answer, apply, ask_often, mesh, moody, pages, requests, soon, tally};

static REGIONS: Shared = Shared::new(stand_up);

const CLIENT: &str = "default/client";

fn stand_up() -> Result<Lab> {
    let lab = mesh(3, &[("default", true)])?;
    let file = "registered-nodes.yaml";
    let mut nodes = std::fs::read_to_string(lab.manifests_dir().join(file))?;
    for region in ["us-east", "us-west", "eu"] {
        let label = "topology.kubernetes.io/region: ";
        nodes = nodes.replacen(&format!("{label}lab\n"), &format!("{label}{region}\n"), 1);
    }
    ensure!(!nodes.contains("region: lab"), "{nodes}");
    lab.apply(file, &nodes)?;
    lab.create(&lab::PodSpec::new("default", "client", "n1"))?;
    let replicas = [("east", "n1"), ("west", "n2"), ("europe", "n3")];
    pages(&lab, ("default", "near"), (80, 8080), &replicas)?;
    apply(&lab, FAILOVER)?;
    Ok(lab)
}

const FAILOVER: &str = "apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: near}
spec:
  host: near
  trafficPolicy:
    loadBalancer: {localityLbSetting: {enabled: true, failover: [{from: us-east, to: eu}]}}
    outlierDetection: {consecutive5xxErrors: 3, interval: 200ms, baseEjectionTime: 1s, maxEjectionPercent: 100}
";

/// A32, F61: no request leaves the region while its replica is well; then the mapped region gets them, and no other.
#[test]
fn a32_the_mapped_region_gets_what_the_own_one_cannot_serve() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = REGIONS.lab()?;
    let seen = |count| -> Result<_> {
        let seen = ask_often(lab, CLIENT, "http://near/", &[], count)?;
        Ok(tally(seen.iter().map(Answer::version)))
    };
    let only = |region: &str| {
        soon(&format!("only {region} answers"), || {
            let seen = seen(20)?;
            ensure!(seen.get(region) == Some(&20), "{seen:?}");
            Ok(())
        })
    };
    only("east")?;
    let far = ["default/near-west", "default/near-europe"];
    let before = far.map(|pod| requests(lab, pod));
    ensure!(seen(200)?.get("east") == Some(&200));
    assert_eq!(far.map(|pod| requests(lab, pod)), before);
    moody(lab, &["near-east"], "status 503", || only("europe"))?;
    assert_eq!(requests(lab, far[0]), before[0], "us-west is not mapped");
    // It is well again, and near.
    only("east")
}

//! That our own renderer of the chart says what Helm says.

use std::collections::BTreeMap;
use std::slice::from_ref;

use anyhow::{Context as _, Result, ensure};
use chart::Release;
use serde_json::{Value, json};
use tests_cluster::{helm, helm_with};

use crate::installed::chart_directory;

/// F130, F131: so `helm install` and an installation without Helm are of the same objects.
#[test]
#[ignore = "nightly: Helm"]
fn the_chart_renders_as_helm_renders_it_and_helm_finds_nothing_to_complain_of() -> Result<()> {
    let chart_directory = chart_directory();
    helm(&["lint", "--strict", &chart_directory])?;
    let release = Release {
        name: "mesh".to_owned(),
        namespace: "mesh-system".to_owned(),
    };
    let platforms = chart::PLATFORMS.iter().map(|(_, text)| chart::read(text));
    let platforms = platforms.collect::<Result<Vec<Value>, _>>()?;
    let others = [
        json!({}),
        json!({"admission": {"enabled": false}, "controller": {"hostNetwork": true}}),
        json!({"istiod": {"enabled": true, "caAddress": "https://csr:443"}}),
        json!({"criticalPodsQuota": true, "agent": {"raiseFileLimit": false, "startupTaint": true, "extraArgs": ["--a=<b>&c"]}}),
        json!({
            "image": {"registry": "example.org/a", "tag": "1.2.3-x", "pullSecrets": [{"name": "s"}]},
            "mesh": {"trustDomainAliases": "old,older", "sameNode": "mtls"},
            "agent": {
                "cgroup": {"root": "/unified/$(NODE_NAME)", "kubelet": ""},
                "nodeSelector": {"kubernetes.io/os": null, "mesh": "yes"}, "tolerations": [],
                "terminationGracePeriodSeconds": 1_000_000,
            },
            "cni": {"excludeNamespaces": "", "confDir": "/a b/c"},
            "admission": {"port": 9443, "failurePolicy": "Ignore"},
            "controller": {"replicas": 0, "affinity": {"nodeAffinity": {}}, "resources": {"limits": {"cpu": 2}}},
        }),
    ];
    for values in platforms.into_iter().chain(others) {
        let ours = chart::values(from_ref(&values))?;
        let ours = chart::render(&release, &ours)?;
        let ours = ours
            .iter()
            .map(|file| (file.path.to_owned(), normal(&file.text)));
        let ours: BTreeMap<String, Vec<String>> = ours
            .filter(|(_, documents)| !documents.is_empty())
            .collect();
        let words = [
            "template",
            "mesh",
            &chart_directory,
            "-n",
            "mesh-system",
            "-f",
            "-",
            KUBERNETES,
        ];
        let theirs = by_template(&helm_with(&words, &values.to_string())?)?;
        let names = |all: &BTreeMap<String, Vec<String>>| all.keys().cloned().collect::<Vec<_>>();
        ensure!(names(&ours) == names(&theirs), "{:?}", names(&theirs));
        for (path, mut documents) in ours {
            // Helm sorts objects by kind over all files.
            documents.sort();
            let theirs = theirs.get(&path).context("just compared")?;
            for (ours, theirs) in documents.iter().zip(theirs) {
                assert_eq!(ours, theirs, "{path} with {values}");
            }
            assert_eq!(documents.len(), theirs.len(), "{path}");
        }
    }
    Ok(())
}

/// Both refuse the same values.
#[test]
#[ignore = "nightly: Helm"]
fn values_that_helm_refuses_are_refused_by_us() -> Result<()> {
    let chart_directory = chart_directory();
    for values in [
        json!({"agent": {"logLevle": "debug"}}),
        json!({"controller": {"replicas": "two"}}),
        json!({"mesh": {"sameNode": "fast"}}),
        json!({"cni": {"binDir": "opt"}}),
        json!({"agent": {"extraArgs": [1]}}),
    ] {
        let words = ["template", "mesh", &chart_directory, "-f", "-", KUBERNETES];
        ensure!(helm_with(&words, &values.to_string()).is_err(), "{values}");
        ensure!(chart::values(from_ref(&values)).is_err(), "{values}");
    }
    let nothing: Value = json!({});
    ensure!(chart::values(&[nothing]).is_ok());
    Ok(())
}

/// Helm asks no cluster here, and does not know for which one it renders.
const KUBERNETES: &str = "--kube-version=1.36.0";

/// What Helm prints, by template: it puts the template's name before each object.
fn by_template(text: &str) -> Result<BTreeMap<String, Vec<String>>> {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for document in text.split("---\n").filter(|text| !text.trim().is_empty()) {
        let (first, rest) = document.split_once('\n').context("more than a line")?;
        let path = first
            .strip_prefix("# Source: keelson/")
            .with_context(|| format!("{first:?} names no template"))?;
        all.entry(path.to_owned()).or_default().extend(normal(rest));
    }
    for documents in all.values_mut() {
        documents.sort();
    }
    Ok(all)
}

/// The objects of a text, each without the empty lines around it.
fn normal(text: &str) -> Vec<String> {
    let documents = text.split("---\n").map(|text| text.trim().to_owned());
    documents.filter(|text| !text.is_empty()).collect()
}

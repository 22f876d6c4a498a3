use serde_json::json;

use super::kinds::Kind;
use super::*;

fn release() -> chart::Release {
    chart::Release {
        name: "mesh".to_owned(),
        namespace: "mesh-system".to_owned(),
    }
}

/// P51: whatever the chart may have is known, so that it can be applied and found again.
#[test]
fn every_kind_of_the_chart_is_in_the_list_of_kinds() {
    let mut all = vec![json!({"criticalPodsQuota": true, "securityContextConstraints": true})];
    for (_, text) in chart::PLATFORMS {
        all.push(chart::read(text).expect("values"));
    }
    for values in all {
        let values = chart::values(&[values]).expect("allowed");
        for object in chart::objects(&release(), &values).expect("objects") {
            let name = object["kind"].as_str().unwrap_or_default();
            let kind = Kind::named(name);
            let kind = kind.unwrap_or_else(|| panic!("{name} is in no list of kinds"));
            let version = object["apiVersion"].as_str().unwrap_or_default();
            let group = version.split_once('/').map_or("", |(group, _)| group);
            assert_eq!(group, kind.group, "{name}");
            let namespaced = object["metadata"].get("namespace").is_some();
            assert_eq!(namespaced, kind.namespaced, "{name}");
        }
    }
}

/// Helm takes over what has these marks, and refuses anything else.
#[test]
fn objects_have_the_marks_of_their_helm_release_and_the_agents_the_values() {
    let given = json!({"agent": {"logLevel": "debug"}});
    let values = chart::values(std::slice::from_ref(&given)).expect("allowed");
    let objects = chart::objects(&release(), &values).expect("objects");
    let marked = objects::marked(objects, &release(), &given).expect("marks");
    for object in &marked {
        let metadata = &object["metadata"];
        assert_eq!(metadata["labels"]["app.kubernetes.io/managed-by"], "Helm");
        let notes = &metadata["annotations"];
        assert_eq!(notes["meta.helm.sh/release-name"], "mesh");
        assert_eq!(notes["meta.helm.sh/release-namespace"], "mesh-system");
        assert_eq!(notes.get(VALUES).is_some(), object["kind"] == "DaemonSet");
    }
    let agents = marked.iter().find(|one| one["kind"] == "DaemonSet");
    let noted = agents.and_then(|one| one["metadata"]["annotations"][VALUES].as_str());
    let noted: Value = serde_json::from_str(noted.unwrap_or_default()).expect("JSON");
    assert_eq!(noted, given);
}

/// F131: later ones win, and what the schema does not know is refused with its name.
#[test]
fn values_come_from_profile_platform_files_and_settings_in_this_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("values.yaml");
    fs::write(&file, "agent: {logLevel: debug, cgroup: {kubelet: /a}}\n").expect("writes");
    let what = What {
        namespace: "mesh-system".to_owned(),
        release: None,
        given: Given {
            files: vec![file],
            settings: vec!["agent.logLevel=warn".to_owned()],
            profile: Profile::Minimal,
            platform: Some("k3s".to_owned()),
        },
        crds: false,
        dry_run: false,
        wait: false,
        timeout: Duration::from_secs(1),
    };
    let values = chart::values(&what.given.read().expect("readable")).expect("allowed");
    assert_eq!(values["agent"]["logLevel"], "warn");
    assert_eq!(values["agent"]["cgroup"]["kubelet"], "/a");
    assert_eq!(values["cni"]["binDir"], "/var/lib/rancher/k3s/data/cni");
    assert_eq!(values["controller"]["resources"]["requests"]["cpu"], "10m");
    let wrong = Given {
        files: Vec::new(),
        settings: vec!["agent.logLevle=warn".to_owned()],
        profile: Profile::Default,
        platform: None,
    };
    let error = chart::values(&wrong.read().expect("readable")).expect_err("refused");
    assert!(error.to_string().starts_with("agent.logLevle"), "{error}");
}

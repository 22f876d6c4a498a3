//! What is different in an installation on each kind of cluster, held against golden files. A file has the paths of
//! objects that the chart's own values render otherwise, so that it changes with the values of a kind of cluster and with
//! nothing else.

use std::collections::BTreeMap;
use std::{env, fs, path::PathBuf};

use chart::{PLATFORMS, Release};
use serde_json::Value;

/// Every leaf of every object by its path.
fn leaves(values: &[Value]) -> Result<BTreeMap<String, String>, chart::ChartError> {
    let release = Release {
        name: "keelson".to_owned(),
        namespace: "keelson-system".to_owned(),
    };
    let values = chart::values(values)?;
    let mut all = BTreeMap::new();
    for object in chart::objects(&release, &values)? {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let name = format!(
            "{} {}",
            text(&object["kind"]),
            text(&object["metadata"]["name"])
        );
        collect(&name, &object, &mut all);
    }
    Ok(all)
}

fn collect(path: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                collect(&format!("{path}.{name}"), value, into);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for (number, item) in items.iter().enumerate() {
                // By name where items have one, so that a new neighbour moves nothing.
                let name = item["name"]
                    .as_str()
                    .map_or_else(|| number.to_string(), str::to_owned);
                let flag = item
                    .as_str()
                    .and_then(|text| text.split_once('='))
                    .map(|(flag, _)| flag.to_owned());
                collect(&format!("{path}[{}]", flag.unwrap_or(name)), item, into);
            }
        }
        other => {
            // A flag that can be given several times has the values of all.
            let entry = into.entry(path.to_owned()).or_default();
            if !entry.is_empty() {
                entry.push_str(" and ");
            }
            entry.push_str(&other.to_string());
        }
    }
}

/// F130: CNI folders, the kubelet's cgroup, labels of security, quota.
#[test]
fn what_a_kind_of_cluster_changes_is_what_its_golden_file_says() {
    let usual = leaves(&[]).unwrap();
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/platforms");
    for (name, text) in PLATFORMS {
        let here = leaves(&[chart::read(text).unwrap()]).unwrap();
        let mut said = String::new();
        for (path, value) in &here {
            match usual.get(path) {
                Some(before) if before == value => {}
                Some(before) => said.push_str(&format!("{path}: {value} (else {before})\n")),
                None => said.push_str(&format!("{path}: {value}\n")),
            }
        }
        for path in usual.keys().filter(|path| !here.contains_key(*path)) {
            said.push_str(&format!("{path}: not there\n"));
        }
        let file = folder.join(format!("{name}.txt"));
        if env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&file, &said).unwrap();
        }
        let golden = fs::read_to_string(&file).unwrap_or_default();
        assert!(!said.is_empty(), "{name} changes nothing");
        assert_eq!(
            said, golden,
            "{name}; UPDATE_GOLDEN=1 writes the files anew"
        );
    }
}

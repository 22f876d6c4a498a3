//! The Kubernetes objects of the live folder, and what the API server would have filled in.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::address;
use crate::yaml;

/// The annotation that states a pod's addresses, separated by commas.
pub const POD_IPS: &str = "keelson.io/pod-ips";

/// The objects that a kubelet and a kube-proxy act on.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    pub(crate) pods: Vec<Pod>,
    pub(crate) services: Vec<Service>,
    pub(crate) slices: Vec<EndpointSlice>,
}

impl Objects {
    /// Reads the folder. A file or object that cannot be read is logged and left out: the
    /// controller reports it to the user, and a broken manifest must not stop the others.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let mut objects = Self::default();
        for file in files(folder)? {
            match documents(&file) {
                Ok(documents) => objects.add(&file, documents),
                Err(error) => tracing::info!(error = format!("{error:#}"), "left out"),
            }
        }
        Ok(objects)
    }

    fn add(&mut self, file: &Path, documents: Vec<Value>) {
        for document in documents {
            match kind(&document) {
                "Pod" => self.pods.extend(typed(file, document)),
                "Service" => self.services.extend(typed(file, document)),
                "EndpointSlice" => self.slices.extend(typed(file, document)),
                _ => {}
            }
        }
    }
}

/// The manifests of a folder, in the order of their names; subfolders are left alone.
pub(crate) fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        let yaml = path
            .extension()
            .is_some_and(|extension| extension == "yaml" || extension == "yml");
        if yaml && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The documents of one manifest.
pub(crate) fn documents(file: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    yaml::parse(&text).with_context(|| format!("{}", file.display()))
}

/// Writes a manifest in one step, so that a watcher never reads half of it.
pub(crate) fn write(file: &Path, text: &str) -> Result<()> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let unfinished = file.with_file_name(format!(".{name}.new"));
    fs::write(&unfinished, text).with_context(|| format!("writing {}", unfinished.display()))?;
    fs::rename(&unfinished, file).with_context(|| format!("writing {}", file.display()))
}

/// Changes the documents of the folder and writes back the files in which `change` did something.
pub(crate) fn edit(folder: &Path, mut change: impl FnMut(&mut Value) -> bool) -> Result<usize> {
    let mut changes = 0;
    for file in files(folder)? {
        let Ok(mut documents) = documents(&file) else {
            continue;
        };
        let changed = documents
            .iter_mut()
            .filter_map(|document| change(document).then_some(()));
        let changed = changed.count();
        if changed > 0 {
            write(&file, &yaml::emit(&documents))?;
        }
        changes += changed;
    }
    Ok(changes)
}

/// Sets or, without a value, removes a label of one object; `None` is any namespace.
pub(crate) fn label(
    folder: &Path,
    kind_wanted: &str,
    namespace_wanted: Option<&str>,
    name_wanted: &str,
    (key, value): (&str, Option<&str>),
) -> Result<()> {
    let changed = edit(folder, |document| {
        let same = kind(document) == kind_wanted
            && name(document) == name_wanted
            && namespace_wanted.is_none_or(|wanted| namespace(document) == wanted);
        if !same {
            return false;
        }
        if let Some(value) = value {
            set(document, &["metadata", "labels", key], json!(value));
        } else {
            let labels = document.pointer_mut("/metadata/labels");
            labels
                .and_then(Value::as_object_mut)
                .and_then(|labels| labels.remove(key));
        }
        true
    })?;
    if changed == 0 {
        bail!("the live folder holds no {kind_wanted} {name_wanted}");
    }
    Ok(())
}

/// Removes the documents for which `gone` holds, and files that are then empty.
pub(crate) fn delete(folder: &Path, gone: impl Fn(&Value) -> bool) -> Result<usize> {
    let mut deleted = 0;
    for file in files(folder)? {
        let Ok(documents) = documents(&file) else {
            continue;
        };
        let before = documents.len();
        let kept: Vec<Value> = documents
            .into_iter()
            .filter(|document| !gone(document))
            .collect();
        deleted += before - kept.len();
        if kept.is_empty() && before > 0 {
            fs::remove_file(&file)?;
        } else if kept.len() < before {
            write(&file, &yaml::emit(&kept))?;
        }
    }
    Ok(deleted)
}

/// Gives every pod that has a node a uid and addresses, as the API server and a CNI would, and
/// writes them into the folder for the controller to read.
pub(crate) fn complete_pods(folder: &Path, nodes: &[String]) -> Result<()> {
    let mut used = BTreeSet::new();
    for file in files(folder)? {
        for document in documents(&file).unwrap_or_default() {
            if kind(&document) == "Pod" {
                used.extend(pod_ips(&document));
            }
        }
    }
    edit(folder, |document| {
        let Some(index) = node_index(document, nodes) else {
            return false;
        };
        let mut changed = false;
        if document.pointer("/metadata/uid").is_none() {
            let uid = uid_of(document);
            set(document, &["metadata", "uid"], json!(uid));
            changed = true;
        }
        if pod_ips(document).is_empty() {
            let ips = address::free_pod_ips(index, &used);
            used.extend(ips);
            let text = ips.map(|ip| ip.to_string()).join(",");
            set(document, &["metadata", "annotations", POD_IPS], json!(text));
            changed = true;
        }
        changed
    })?;
    Ok(())
}

/// Gives every Service that selects pods an address of its own if it asks for none, as the API server does.
pub(crate) fn complete_services(folder: &Path) -> Result<()> {
    let mut used = BTreeSet::new();
    for file in files(folder)? {
        for document in documents(&file).unwrap_or_default() {
            used.extend(text(&document, "/spec/clusterIP").map(str::to_owned));
        }
    }
    edit(folder, |document| {
        let asks = ["/spec/clusterIP", "/spec/clusterIPs"];
        let asks = asks.iter().any(|field| document.pointer(field).is_some());
        let is_external = text(document, "/spec/type") == Some("ExternalName");
        if kind(document) != "Service"
            || asks
            || is_external
            || document.pointer("/spec/selector").is_none()
        {
            return false;
        }
        let Some(ip) = address::free_service_ip(|ip| used.contains(ip)) else {
            return false;
        };
        set(document, &["spec", "clusterIP"], json!(ip));
        set(document, &["spec", "clusterIPs"], json!([ip]));
        used.insert(ip);
        true
    })?;
    Ok(())
}

/// The addresses that a Pod's annotation states.
pub(crate) fn parse_ips(pod: &Pod) -> Result<Vec<IpAddr>> {
    let annotations = pod.metadata.annotations.as_ref();
    let Some(text) = annotations.and_then(|annotations| annotations.get(POD_IPS)) else {
        bail!("has no annotation {POD_IPS}");
    };
    text.split(',')
        .map(|ip| {
            let ip = ip.trim();
            ip.parse().with_context(|| {
                format!("annotation {POD_IPS} holds {ip:?}, which is no IP address")
            })
        })
        .collect()
}

/// `metadata.namespace`, or `default`, which `kubectl apply` fills in.
pub(crate) fn namespace(document: &Value) -> &str {
    text(document, "/metadata/namespace").unwrap_or("default")
}

/// `metadata.name`, or nothing.
pub(crate) fn name(document: &Value) -> &str {
    text(document, "/metadata/name").unwrap_or_default()
}

/// The kind, or nothing.
pub(crate) fn kind(document: &Value) -> &str {
    text(document, "/kind").unwrap_or_default()
}

/// Sets a field, making the mappings above it; anything but a mapping in the way stays.
pub(crate) fn set(document: &mut Value, path: &[&str], value: Value) {
    let mut at = document;
    for key in path {
        if at.is_null() {
            *at = json!({});
        }
        let Value::Object(map) = at else { return };
        at = map.entry(*key).or_insert(Value::Null);
    }
    *at = value;
}

fn pod_ips(document: &Value) -> Vec<IpAddr> {
    let annotations = document.pointer("/metadata/annotations");
    let text = annotations.and_then(|annotations| annotations.get(POD_IPS)?.as_str());
    let ips = text.unwrap_or_default().split(',');
    ips.filter_map(|ip| ip.trim().parse().ok()).collect()
}

fn node_index(document: &Value, nodes: &[String]) -> Option<u8> {
    if kind(document) != "Pod" {
        return None;
    }
    let node = text(document, "/spec/nodeName")?;
    let index = nodes.iter().position(|name| name == node)?;
    u8::try_from(index + 1).ok()
}

/// The same uid for the same pod in every run, in the form of a UUID.
fn uid_of(document: &Value) -> String {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        (salt, namespace(document), name(document)).hash(&mut hasher);
        hasher.finish()
    };
    let (high, low) = (half(0), half(1));
    format!(
        "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
        high >> 32,
        (high >> 16) & 0xffff,
        high & 0xffff,
        low >> 48,
        low & 0xffff_ffff_ffff
    )
}

fn text<'a>(document: &'a Value, pointer: &str) -> Option<&'a str> {
    document.pointer(pointer)?.as_str()
}

fn typed<T: DeserializeOwned>(file: &Path, document: Value) -> Option<T> {
    let what = format!(
        "{} {}/{}",
        kind(&document),
        namespace(&document),
        name(&document)
    );
    match serde_json::from_value(document) {
        Ok(object) => Some(object),
        Err(error) => {
            tracing::info!(file = %file.display(), object = what, %error, "left out");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_get_free_addresses_and_the_same_uid_each_time() {
        let nodes = ["n1".to_owned(), "n2".to_owned()];
        let mut uids = Vec::new();
        for _ in 0..2 {
            let folder = tempfile::tempdir().unwrap();
            let taken = "kind: Pod\nmetadata:\n  name: x\n  annotations:\n    keelson.io/pod-ips: 10.244.2.10\n";
            let pod = "kind: Pod\nmetadata: {name: a, namespace: shop}\nspec: {nodeName: n2}\n";
            let unscheduled = "kind: Pod\nmetadata: {name: b}\n";
            fs::write(
                folder.path().join("p.yaml"),
                [taken, pod, unscheduled].join("---\n"),
            )
            .unwrap();
            complete_pods(folder.path(), &nodes).unwrap();
            let pods = Objects::read(folder.path()).unwrap().pods;
            let ips: Vec<IpAddr> = ["10.244.2.11", "fd00:10:244:2::11"]
                .map(|ip| ip.parse().unwrap())
                .into();
            assert_eq!(parse_ips(&pods[1]).unwrap(), ips);
            assert!(parse_ips(&pods[2]).is_err());
            uids.push(pods[1].metadata.uid.clone().unwrap());
        }
        assert_eq!(uids[0], uids[1]);
        assert_eq!(uids[0].len(), 36);
    }

    #[test]
    fn services_that_ask_for_no_address_get_free_ones() {
        let folder = tempfile::tempdir().unwrap();
        let taken = "kind: Service\nspec: {clusterIP: 10.96.128.1, selector: {app: a}}\n";
        let open = "kind: Service\nspec: {selector: {app: b}}\n";
        let headless = "kind: Service\nspec: {clusterIP: None, selector: {app: c}}\n";
        let text = [taken, open, headless].join("---\n");
        fs::write(folder.path().join("s.yaml"), text).unwrap();
        complete_services(folder.path()).unwrap();
        let services = Objects::read(folder.path()).unwrap().services;
        let ips = services
            .iter()
            .map(|one| one.spec.as_ref()?.cluster_ip.as_deref());
        let ips: Vec<Option<&str>> = ips.collect();
        assert_eq!(
            ips,
            [Some("10.96.128.1"), Some("10.96.128.2"), Some("None")]
        );
    }

    #[test]
    fn a_broken_manifest_does_not_hide_the_others() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.yaml"), "kind: [").unwrap();
        fs::write(
            folder.path().join("b.yaml"),
            "kind: Service\nspec: 7\n---\nkind: Service\nmetadata: {name: s}\n",
        )
        .unwrap();
        let objects = Objects::read(folder.path()).unwrap();
        assert_eq!(objects.services.len(), 1);
    }
}

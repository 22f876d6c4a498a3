//! Keelson's Helm chart, and the objects that it stands for: the same that `helm template` prints.
//!
//! The chart's templates use a small part of Helm's language, so that this crate is small: see [`template`]. Values are
//! held against `values.schema.json` as Helm does it.

mod platform;
pub mod schema;
pub mod template;

pub use platform::{MINIMAL, PLATFORMS, platform, platform_names};

use serde_json::{Map, Value};

/// A file of the chart, compiled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct File {
    /// Its path in the chart.
    pub path: &'static str,
    /// Its text.
    pub text: &'static str,
}

macro_rules! files {
    ($($path:literal),+ $(,)?) => {
        [$(File {
            path: $path,
            text: include_str!(concat!("../../../deploy/charts/keelson/", $path)),
        }),+]
    };
}

/// The templates, by name.
pub const TEMPLATES: [File; 9] = files![
    "templates/accounts.yaml",
    "templates/admission.yaml",
    "templates/controller.yaml",
    "templates/installation.yaml",
    "templates/node-agent.yaml",
    "templates/openshift.yaml",
    "templates/quota.yaml",
    "templates/rights.yaml",
    "templates/settings.yaml",
];
/// The default values, with what each is for.
pub const VALUES: &str = include_str!("../../../deploy/charts/keelson/values.yaml");
/// Which values there may be.
pub const SCHEMA: &str = include_str!("../../../deploy/charts/keelson/values.schema.json");

const CRDS: [&str; 2] = [
    include_str!("../../../deploy/crds/istio-security.yaml"),
    include_str!("../../../deploy/crds/istio-networking.yaml"),
];

/// What is installed under which name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// The release's name.
    pub name: String,
    /// The namespace that it is installed into.
    pub namespace: String,
}

/// A template as it was rendered; nothing but spaces if it stands for no object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The template's path in the chart.
    pub path: &'static str,
    /// YAML.
    pub text: String,
}

/// Why there are no objects.
#[derive(Debug, thiserror::Error)]
pub enum ChartError {
    /// A file of values is no YAML.
    #[error("the values cannot be read")]
    Yaml(#[from] serde_saphyr::Error),
    /// A file of values is something else than a map.
    #[error("values are a map of names to values, and these are not")]
    NoMap,
    /// A setting on the command line cannot be read.
    #[error("{0:?}: write a.b.c=value")]
    Setting(String),
    /// A value that is not allowed.
    #[error("{}", .0.join("\n"))]
    Values(Vec<String>),
    /// The embedded schema is at fault.
    #[error("the chart's schema cannot be used: {0}")]
    Schema(String),
    /// A template is at fault.
    #[error("{path}")]
    Template {
        /// The template.
        path: &'static str,
        /// What is wrong.
        #[source]
        source: template::TemplateError,
    },
    /// What a template became is no object.
    #[error("{path}: an object was expected")]
    Object {
        /// The template.
        path: &'static str,
    },
}

/// The values that count: the chart's own, overridden by each of `overrides` in turn.
///
/// # Errors
/// A value that the schema does not allow, with every fault named.
pub fn values(overrides: &[Value]) -> Result<Value, ChartError> {
    let mut values: Value = read(VALUES)?;
    for more in overrides {
        let Value::Object(more) = more else {
            return Err(ChartError::NoMap);
        };
        if let Value::Object(values) = &mut values {
            merge(values, more);
        }
    }
    let schema: Value =
        serde_json::from_str(SCHEMA).map_err(|error| ChartError::Schema(error.to_string()))?;
    let faults = schema::check(&schema, &values).map_err(ChartError::Schema)?;
    if faults.is_empty() {
        Ok(values)
    } else {
        Err(ChartError::Values(faults))
    }
}

/// What `overrides` say together, without the chart's own values.
///
/// # Errors
/// One of them is no map.
pub fn merged(overrides: &[Value]) -> Result<Value, ChartError> {
    let mut all = Map::new();
    for more in overrides {
        let more = more.as_object().ok_or(ChartError::NoMap)?;
        note(&mut all, more);
    }
    Ok(Value::Object(all))
}

/// As [`merge`], but that `null` stays: it still has to take the chart's own value away.
fn note(into: &mut Map<String, Value>, more: &Map<String, Value>) {
    for (name, value) in more {
        match (into.get_mut(name), value) {
            (Some(Value::Object(inner)), Value::Object(more)) => note(inner, more),
            _ => {
                into.insert(name.clone(), value.clone());
            }
        }
    }
}

/// The kinds of Istio's security and traffic APIs that the mesh reads, for clusters that have none.
///
/// # Errors
/// An embedded file is at fault.
pub fn istio_crds() -> Result<Vec<Value>, ChartError> {
    let mut all = Vec::new();
    for file in CRDS {
        all.extend(serde_saphyr::from_multiple::<Value>(file)?);
    }
    Ok(all)
}

/// Reads a file of values.
///
/// # Errors
/// It is no YAML, or no map.
pub fn read(text: &str) -> Result<Value, ChartError> {
    match serde_saphyr::from_str(text)? {
        Value::Null => Ok(Value::Object(Map::new())),
        map @ Value::Object(_) => Ok(map),
        _ => Err(ChartError::NoMap),
    }
}

/// Reads a setting as `--set` takes it: `a.b.c=value`, one value. Numbers, `true`, `false` and `null` are such, JSON lists
/// and maps too; all else is a string.
///
/// # Errors
/// It has no name or no equals sign.
pub fn setting(text: &str) -> Result<Value, ChartError> {
    let wrong = || ChartError::Setting(text.to_owned());
    let (path, value) = text.split_once('=').ok_or_else(wrong)?;
    if path.split('.').any(str::is_empty) {
        return Err(wrong());
    }
    let value = serde_json::from_str(value).unwrap_or_else(|_text| Value::String(value.to_owned()));
    let nested = path.rsplit('.').fold(value, |inner, name| {
        Value::Object(Map::from_iter([(name.to_owned(), inner)]))
    });
    Ok(nested)
}

/// As Helm merges: maps by name, `null` takes a default away, everything else replaces.
fn merge(into: &mut Map<String, Value>, more: &Map<String, Value>) {
    for (name, value) in more {
        match (into.get_mut(name), value) {
            (_, Value::Null) => {
                into.remove(name);
            }
            (Some(Value::Object(inner)), Value::Object(more)) => merge(inner, more),
            _ => {
                into.insert(name.clone(), value.clone());
            }
        }
    }
}

/// Renders every template with values of [`values`].
///
/// # Errors
/// A template that asks for what is not there.
pub fn render(release: &Release, values: &Value) -> Result<Vec<Rendered>, ChartError> {
    let scope = template::Scope {
        values,
        release_name: &release.name,
        release_namespace: &release.namespace,
    };
    TEMPLATES
        .iter()
        .map(|file| {
            let path = file.path;
            let text = template::render(file.text, &scope)
                .map_err(|source| ChartError::Template { path, source })?;
            Ok(Rendered { path, text })
        })
        .collect()
}

/// The objects themselves, in an order in which they can be made: what others need comes first.
///
/// # Errors
/// As [`render`], or a template that makes no objects.
pub fn objects(release: &Release, values: &Value) -> Result<Vec<Value>, ChartError> {
    let mut objects = Vec::new();
    for rendered in render(release, values)? {
        let documents: Vec<Value> = serde_saphyr::from_multiple(&rendered.text)?;
        for document in documents {
            if document.is_null() {
                continue;
            }
            if document.get("kind").and_then(Value::as_str).is_none() {
                return Err(ChartError::Object {
                    path: rendered.path,
                });
            }
            objects.push(document);
        }
    }
    objects.sort_by_key(|object| {
        let kind = object.get("kind").and_then(Value::as_str);
        ORDER
            .iter()
            .position(|known| kind == Some(known))
            .unwrap_or(ORDER.len())
    });
    Ok(objects)
}

/// What comes before all else.
const ORDER: [&str; 9] = [
    "ResourceQuota",
    "PodDisruptionBudget",
    "ServiceAccount",
    "ConfigMap",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "Service",
];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn release() -> Release {
        Release {
            name: "mesh".to_owned(),
            namespace: "mesh-system".to_owned(),
        }
    }

    #[test]
    fn the_defaults_are_allowed_and_make_an_object_of_each_kind() {
        let values = values(&[]).unwrap();
        let objects = objects(&release(), &values).unwrap();
        let mut kinds: Vec<&str> = objects
            .iter()
            .map(|object| object["kind"].as_str().unwrap())
            .collect();
        kinds.dedup();
        assert_eq!(
            kinds,
            [
                "PodDisruptionBudget",
                "ServiceAccount",
                "ConfigMap",
                "ClusterRole",
                "ClusterRoleBinding",
                "Role",
                "RoleBinding",
                "Service",
                "ValidatingWebhookConfiguration",
                "Deployment",
                "DaemonSet"
            ]
        );
        for object in &objects {
            let namespace = &object["metadata"]["namespace"];
            let kind = object["kind"].as_str().unwrap();
            let cluster_wide =
                kind.starts_with("Cluster") || kind == "ValidatingWebhookConfiguration";
            assert_eq!(namespace == "mesh-system", !cluster_wide, "{object}");
        }
    }

    #[test]
    fn every_object_has_the_marks_by_which_it_is_found_again() {
        for values in every_object() {
            for object in objects(&release(), &values).unwrap() {
                let labels = &object["metadata"]["labels"];
                assert_eq!(labels["app.kubernetes.io/part-of"], "keelson", "{object}");
                assert_eq!(labels["app.kubernetes.io/instance"], "mesh", "{object}");
            }
        }
    }

    /// Values with which each template stands for something.
    fn every_object() -> Vec<Value> {
        let all = json!({"criticalPodsQuota": true, "securityContextConstraints": true});
        vec![values(&[]).unwrap(), values(&[all]).unwrap()]
    }

    /// Istio's control plane has policies, certificates, gateways and admission; ours has no right that these would need.
    #[test]
    fn beside_istiod_there_is_nothing_that_is_istiods() {
        let given = json!({"istiod": {"enabled": true}});
        let objects = objects(&release(), &values(&[given]).unwrap()).unwrap();
        let of_kind = |kind: &str| -> Vec<&Value> {
            let of_kind = objects.iter().filter(|object| object["kind"] == kind);
            of_kind.collect()
        };
        assert!(of_kind("ValidatingWebhookConfiguration").is_empty());
        let roles = of_kind("ClusterRole");
        let rights: Vec<String> = roles
            .iter()
            .filter(|role| role["metadata"]["name"] == "keelson-controller-mesh-system")
            .flat_map(|role| role["rules"].as_array().unwrap())
            .map(|rule| format!("{} {}", rule["resources"], rule["verbs"]))
            .collect();
        assert_eq!(
            rights,
            [
                r#"["namespaces","nodes","pods"] ["list","watch"]"#,
                r#"["pods/status"] ["patch"]"#,
                r#"["tokenreviews"] ["create"]"#
            ]
        );
        assert_eq!(roles.len(), 2, "and that of agents");
        let words = |kind: &str| {
            let containers = &of_kind(kind)[0]["spec"]["template"]["spec"]["containers"];
            containers[0]["command"].to_string()
        };
        let controller = words("Deployment");
        assert!(controller.contains("--captures-only"), "{controller}");
        for istiods in ["--admission", "--gateways"] {
            assert!(!controller.contains(istiods), "{controller}");
        }
        let agent = words("DaemonSet");
        assert!(agent.contains("--istiod=https://istiod.istio-system.svc:15012"));
        assert!(!agent.contains("--istiod-ca="), "{agent}");
    }

    /// B8: a stock ztunnel needs its audience and its account; both come from one value.
    #[test]
    fn one_value_lets_stock_ztunnels_in() {
        let words = |given: Value| {
            let objects = objects(&release(), &values(&[given]).unwrap()).unwrap();
            let deployment = objects.into_iter().find(|one| one["kind"] == "Deployment");
            let command =
                deployment.unwrap()["spec"]["template"]["spec"]["containers"][0]["command"].clone();
            let words: Vec<String> = serde_json::from_value(command).unwrap();
            let of = |flag: &str| {
                let found = words.iter().find_map(|word| word.strip_prefix(flag));
                found.unwrap().to_owned()
            };
            (of("--token-audiences="), of("--agent-accounts="))
        };
        let ours = "mesh-system/keelson-node-agent";
        let (audiences, accounts) = words(json!({}));
        assert_eq!((&*audiences, &*accounts), ("keelson", ours));
        let (audiences, accounts) =
            words(json!({"controller": {"ztunnelAccounts": "istio-system/ztunnel"}}));
        assert_eq!(audiences, "keelson,istio-ca");
        assert_eq!(accounts, format!("{ours},istio-system/ztunnel"));
        let wrong = json!({"controller": {"ztunnelAccounts": "ztunnel"}});
        assert!(values(&[wrong]).is_err());
    }

    #[test]
    fn values_that_were_given_are_noted_as_they_were_given() {
        let given = [
            json!({"agent": {"nodeSelector": {"kubernetes.io/os": null, "a": "b"}}}),
            json!({"agent": {"nodeSelector": {"a": "c"}, "logLevel": "debug"}}),
        ];
        let noted = merged(&given).unwrap();
        assert_eq!(
            noted,
            json!({"agent": {"nodeSelector": {"kubernetes.io/os": null, "a": "c"}, "logLevel": "debug"}})
        );
        assert_eq!(values(&[noted]).unwrap(), values(&given).unwrap());
    }

    #[test]
    fn the_kinds_of_istio_are_those_that_are_read() {
        let all = istio_crds().unwrap();
        let names: Vec<&Value> = all
            .iter()
            .map(|object| &object["spec"]["names"]["kind"])
            .collect();
        assert_eq!(
            names,
            [
                "PeerAuthentication",
                "AuthorizationPolicy",
                "VirtualService",
                "DestinationRule",
                "Gateway",
                "ServiceEntry"
            ]
        );
        for object in &all {
            let (spec, name) = (&object["spec"], &object["metadata"]["name"]);
            let plural = spec["names"]["plural"].as_str().unwrap();
            let group = spec["group"].as_str().unwrap();
            assert_eq!(*name, format!("{plural}.{group}"));
            let versions = spec["versions"].as_array().unwrap();
            let stored = versions.iter().filter(|one| one["storage"] == true);
            assert_eq!(stored.count(), 1, "{name}");
            for version in versions {
                assert!(version["subresources"]["status"].is_object(), "{name}");
                let schema = &version["schema"]["openAPIV3Schema"]["properties"];
                for part in ["spec", "status"] {
                    let keeps = &schema[part]["x-kubernetes-preserve-unknown-fields"];
                    assert_eq!(*keeps, true, "{name}");
                }
            }
        }
    }

    /// With the node's network two pods of one node are in each other's way: none waits for a place that another has.
    #[test]
    fn on_the_nodes_network_an_old_controller_goes_before_a_new_one_comes() {
        for (host, expected) in [(false, json!([1, 0])), (true, json!([0, 1]))] {
            let given = json!({"controller": {"hostNetwork": host}});
            let objects = objects(&release(), &values(&[given]).unwrap()).unwrap();
            let mut all = objects.iter();
            let controller = all.find(|object| object["kind"] == "Deployment").unwrap();
            let rolls = &controller["spec"]["strategy"]["rollingUpdate"];
            let said = json!([rolls["maxSurge"], rolls["maxUnavailable"]]);
            assert_eq!(said, expected, "{controller}");
        }
    }

    /// What is given stays one value in the file, whatever is in it.
    #[test]
    fn aliases_of_the_trust_domain_are_no_yaml() {
        for given in ["", "a.org, b.org", "a]: [", "x: y", "# none"] {
            let value = json!({"mesh": {"trustDomainAliases": given}});
            let objects = objects(&release(), &values(&[value]).unwrap()).unwrap();
            let mut all = objects.iter();
            let map = all.find(|object| object["metadata"]["name"] == "keelson-settings");
            let text = map.unwrap()["data"]["settings.yaml"].as_str().unwrap();
            let read = read(text).unwrap();
            assert_eq!(read["trustDomainAliases"], given, "{text}");
        }
    }

    /// An outage of the controller refuses the mesh's own kinds and nothing else, and deleting asks nobody.
    #[test]
    fn admission_fails_closed_for_the_meshs_own_kinds_alone() {
        let objects = objects(&release(), &values(&[]).unwrap()).unwrap();
        let mut all = objects.iter();
        let all = all.find(|object| object["kind"] == "ValidatingWebhookConfiguration");
        for webhook in all.unwrap()["webhooks"].as_array().unwrap() {
            for rule in webhook["rules"].as_array().unwrap() {
                assert_eq!(rule["operations"], json!(["CREATE", "UPDATE"]));
                let group = rule["apiGroups"][0].as_str().unwrap();
                let is_own = group.ends_with(".istio.io");
                let fails = webhook["failurePolicy"] == "Fail";
                assert_eq!(fails, is_own, "{webhook}");
            }
        }
    }

    #[test]
    fn a_value_that_is_misspelt_or_of_another_kind_is_named() {
        for (wrong, named) in [
            (json!({"agent": {"logLevle": "debug"}}), "agent.logLevle"),
            (json!({"controler": {}}), "controler"),
            (
                json!({"controller": {"replicas": "two"}}),
                "controller.replicas",
            ),
            (
                json!({"controller": {"replicas": -1}}),
                "controller.replicas",
            ),
            (json!({"mesh": {"sameNode": "fast"}}), "mesh.sameNode"),
            (json!({"cni": {"binDir": "opt"}}), "cni.binDir"),
            (json!({"image": {"tag": ""}}), "image.tag"),
            (
                json!({"gateways": {"trace": {"percent": 101}}}),
                "gateways.trace.percent",
            ),
            (
                json!({"gateways": {"trace": {"endpoint": "otel:4317"}}}),
                "gateways.trace.endpoint",
            ),
            (json!({"agent": {"extraArgs": [1]}}), "agent.extraArgs[0]"),
            (
                json!({"agent": {"nodeSelector": {"a": true}}}),
                "agent.nodeSelector.a",
            ),
        ] {
            let error = values(&[wrong]).unwrap_err().to_string();
            assert!(error.starts_with(named), "{error}");
        }
    }

    #[test]
    fn settings_are_read_as_helm_reads_them() {
        for (text, expected) in [
            ("a.b=c", json!({"a": {"b": "c"}})),
            ("a=2", json!({"a": 2})),
            ("a=true", json!({"a": true})),
            ("a=x=y", json!({"a": "x=y"})),
            ("a=[]", json!({"a": []})),
        ] {
            assert_eq!(setting(text).unwrap(), expected);
        }
        for text in ["a", "=b", "a..b=c"] {
            setting(text).unwrap_err();
        }
    }

    #[test]
    fn a_default_is_overridden_by_the_last_who_says_something() {
        let changed = values(&[
            json!({"agent": {"logLevel": "debug", "nodeSelector": {"a": "b"}}}),
            setting("agent.logLevel=warn").unwrap(),
        ])
        .unwrap();
        assert_eq!(changed["agent"]["logLevel"], "warn");
        assert_eq!(changed["agent"]["nodeSelector"]["a"], "b");
        assert_eq!(
            changed["agent"]["nodeSelector"]["kubernetes.io/os"],
            "linux"
        );
    }
}

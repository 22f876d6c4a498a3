//! A call of a container runtime: what it asks, and the answer in the words of the CNI specification.

use std::collections::HashMap;
use std::env;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::agent::{self, Silence};
use crate::known::{self, Belongs};

/// What a runtime says in the environment (CNI specification, "Parameters").
#[derive(Debug, Default)]
pub(crate) struct Call {
    /// The network namespace of the pod.
    pub(crate) netns: String,
    /// `KEY=VALUE` pairs, separated by semicolons.
    pub(crate) args: String,
}

impl Call {
    /// As the runtime has set it.
    pub(crate) fn from_environment() -> Self {
        let read = |name| env::var(name).unwrap_or_default();
        Self {
            netns: read("CNI_NETNS"),
            args: read("CNI_ARGS"),
        }
    }

    fn arg(&self, key: &str) -> Option<&str> {
        let pairs: HashMap<_, _> = self
            .args
            .split(';')
            .filter_map(|pair| pair.split_once('='))
            .collect();
        pairs.get(key).copied().filter(|value| !value.is_empty())
    }
}

/// The entry of the list that names this plugin.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    cni_version: String,
    /// Where the agent listens.
    socket: PathBuf,
    /// Namespaces whose pods start without the agent, which is not asked: what a node needs before the agent can run.
    exclude_namespaces: Vec<String>,
    /// Where the agent keeps which pods and namespaces belong to the mesh.
    known: PathBuf,
    /// How long an agent that is not there is waited for.
    wait_ms: u64,
    prev_result: Option<Value>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cni_version: OLDEST.to_owned(),
            socket: "/run/keelson/cni.sock".into(),
            exclude_namespaces: vec!["kube-system".to_owned(), "keelson-system".to_owned()],
            known: "/var/lib/keelson/mesh.json".into(),
            wait_ms: 3000,
            prev_result: None,
        }
    }
}

/// A result of a plugin before us, as far as it is read here.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Previous {
    ips: Vec<Ip>,
}

#[derive(Debug, Deserialize)]
struct Ip {
    /// Address and length of the prefix.
    address: String,
}

/// Why a call fails, with its code (CNI specification, "Error").
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    code: u32,
    message: String,
}

impl Failure {
    /// What stands in the configuration or the environment is no good.
    pub(crate) fn config(message: String) -> Self {
        Self {
            code: INVALID_CONFIG,
            message,
        }
    }

    fn again(message: String) -> Self {
        Self {
            code: TRY_AGAIN_LATER,
            message,
        }
    }

    /// As the runtime reads it, and shows it in the pod's events.
    pub(crate) fn to_json(&self, config: &str) -> String {
        let version = serde_json::from_str::<Value>(config).ok();
        let version = version.as_ref().and_then(|config| config.get("cniVersion"));
        json!({
            "cniVersion": version.and_then(Value::as_str).unwrap_or(NEWEST),
            "code": self.code,
            "msg": self.message,
        })
        .to_string()
    }
}

/// Does what the runtime asks, and gives what it prints.
pub(crate) fn serve(command: &str, config: &str, call: &Call) -> Result<String, Failure> {
    if command == "VERSION" {
        let answer = json!({"cniVersion": NEWEST, "supportedVersions": VERSIONS});
        return Ok(answer.to_string());
    }
    let config: Config = match serde_json::from_str(config) {
        Ok(config) => config,
        // A pod can be deleted whatever happened to the configuration.
        Err(_) if command == "DEL" => Config::default(),
        Err(error) => {
            return Err(Failure::config(format!(
                "the configuration of keelson-cni cannot be read: {error}"
            )));
        }
    };
    match command {
        "ADD" => add(&config, call),
        "DEL" => {
            del(&config, call);
            Ok(String::new())
        }
        // What there is to check the agent checks itself, all the time.
        "CHECK" | "STATUS" | "GC" => Ok(String::new()),
        other => Err(Failure {
            code: INVALID_ENVIRONMENT,
            message: format!("CNI_COMMAND {other:?} is none that this plugin knows"),
        }),
    }
}

fn add(config: &Config, call: &Call) -> Result<String, Failure> {
    let Some(previous) = &config.prev_result else {
        return Err(Failure::config(
            "keelson-cni gives pods no network: chain it behind the plugin that does".to_owned(),
        ));
    };
    let result = previous.to_string();
    let pod = (call.arg("K8S_POD_NAMESPACE"), call.arg("K8S_POD_NAME"));
    let (Some(namespace), Some(name)) = pod else {
        // No pod of Kubernetes.
        return Ok(result);
    };
    // The controller could not start if an agent that waits for it refused its traffic. What of these belongs to the mesh is
    // captured while it runs.
    if config.exclude_namespaces.iter().any(|own| own == namespace) {
        return Ok(result);
    }
    if call.netns.is_empty() {
        return Err(Failure {
            code: INVALID_ENVIRONMENT,
            message: "CNI_NETNS is not set".to_owned(),
        });
    }
    let question = json!({"add": {
        "namespace": namespace, "name": name, "uid": call.arg("K8S_POD_UID").unwrap_or_default(),
        "netns": call.netns, "ips": addresses(previous)?,
    }});
    let belongs = known::belongs(&config.known, namespace, name);
    // An agent that is being replaced is waited for on behalf of those who need it.
    let wait = match belongs {
        Belongs::No => 0,
        Belongs::Yes(_) => config.wait_ms,
    };
    let answer = agent::ask(&config.socket, &question, Duration::from_millis(wait));
    match (answer, belongs) {
        (Ok(_), _) | (Err(Silence::Absent(_)), Belongs::No) => Ok(result),
        (Err(_), Belongs::No) => {
            // An agent that cannot decide refuses the pod's traffic until it can: it shall not wait for this one.
            del(config, call);
            Ok(result)
        }
        (Err(Silence::Absent(error)), Belongs::Yes(why)) => Err(Failure::again(format!(
            "the Keelson agent does not run on this node ({}: {error}); pod {namespace}/{name} starts when it does, because {why}",
            config.socket.display()
        ))),
        (Err(Silence::Broken(error)), _) => Err(Failure::again(format!(
            "the Keelson agent of this node does not answer ({error}); pod {namespace}/{name} starts when it does"
        ))),
        (Err(Silence::Refused(why)), _) => Err(Failure::again(format!(
            "the Keelson agent could not take pod {namespace}/{name}: {why}"
        ))),
    }
}

/// The pod goes, whoever hears of it: an agent that is away sees later that the namespace is gone.
fn del(config: &Config, call: &Call) {
    let pod = (call.arg("K8S_POD_NAMESPACE"), call.arg("K8S_POD_NAME"));
    if let (Some(namespace), Some(name)) = pod {
        let question = json!({"del": {
            "namespace": namespace, "name": name, "uid": call.arg("K8S_POD_UID").unwrap_or_default(),
        }});
        let _unheard = agent::ask(&config.socket, &question, Duration::ZERO);
    }
}

/// The addresses that the plugins before gave to the pod.
fn addresses(previous: &Value) -> Result<Vec<IpAddr>, Failure> {
    let unreadable = |what: String| Failure::config(format!("prevResult: {what}"));
    let previous: Previous =
        serde_json::from_value(previous.clone()).map_err(|error| unreadable(error.to_string()))?;
    let parse = |ip: &Ip| {
        let (address, _) = ip.address.split_once('/').unwrap_or((&ip.address, ""));
        address
            .parse()
            .map_err(|_unparsed| unreadable(format!("{:?} is no address", ip.address)))
    };
    previous.ips.iter().map(parse).collect()
}

const VERSIONS: [&str; 5] = [OLDEST, "0.3.1", "0.4.0", "1.0.0", NEWEST];
const OLDEST: &str = "0.3.0";
const NEWEST: &str = "1.1.0";
const INVALID_ENVIRONMENT: u32 = 4;
const INVALID_CONFIG: u32 = 7;
const TRY_AGAIN_LATER: u32 = 11;

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::net::UnixListener;
    use std::path::Path;
    use std::thread::JoinHandle;

    use super::*;

    const RESULT: &str = r#"{"cniVersion":"1.0.0","interfaces":[{"name":"eth0"}],"ips":[{"address":"10.244.1.7/24","interface":0},{"address":"fd00::7/64"}],"dns":{}}"#;

    fn config(socket: &Path) -> String {
        let previous: Value = serde_json::from_str(RESULT).expect("a result");
        json!({
            "cniVersion": "1.0.0", "name": "cluster", "type": "keelson-cni",
            "socket": socket, "waitMs": 100, "prevResult": previous,
            "known": socket.with_file_name("mesh.json"),
        })
        .to_string()
    }

    fn call(namespace: &str) -> Call {
        Call {
            netns: "/var/run/netns/x".to_owned(),
            args: format!(
                "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=cart;K8S_POD_UID=u-1"
            ),
        }
    }

    /// Answers one question as an agent would, and gives the question.
    fn agent(socket: &Path, answer: &'static str) -> JoinHandle<Value> {
        let listener = UnixListener::bind(socket).expect("binds");
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a caller");
            let mut line = String::new();
            let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
            reader.read_line(&mut line).expect("a question");
            stream.write_all(answer.as_bytes()).expect("takes it");
            serde_json::from_str(&line).expect("JSON")
        })
    }

    #[test]
    fn the_agent_hears_of_the_pod_and_the_result_before_is_passed_on() {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("cni.sock");
        let heard = agent(&socket, "{\"ok\":{\"capture\":\"captured\"}}\n");
        let answer = serve("ADD", &config(&socket), &call("shop")).expect("succeeds");
        let [answer, expected] =
            [&*answer, RESULT].map(|text| serde_json::from_str::<Value>(text).expect("JSON"));
        assert_eq!(answer, expected);
        let question = heard.join().expect("no panic");
        let expected = json!({"add": {
            "namespace": "shop", "name": "cart", "uid": "u-1", "netns": "/var/run/netns/x",
            "ips": ["10.244.1.7", "fd00::7"],
        }});
        assert_eq!(question, expected);
    }

    #[test]
    fn without_an_agent_only_what_a_node_needs_first_starts() {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("cni.sock");
        let failure = serve("ADD", &config(&socket), &call("shop")).expect_err("waits");
        assert_eq!(failure.code, TRY_AGAIN_LATER);
        assert!(
            failure.message.contains("does not run on this node"),
            "{failure:?}"
        );
        assert!(
            failure
                .to_json(&config(&socket))
                .contains("\"cniVersion\":\"1.0.0\"")
        );
        for namespace in ["kube-system", "keelson-system"] {
            assert!(
                serve("ADD", &config(&socket), &call(namespace)).is_ok(),
                "{namespace}"
            );
        }
    }

    #[test]
    fn without_an_agent_pods_of_the_mesh_wait_and_others_start() {
        let dir = tempfile::tempdir().expect("a folder");
        let config = config(&dir.path().join("cni.sock"));
        let known = r#"{"namespaces":["shop","bank"],"pods":{"bank/cart":false,"lone/cart":true}}"#;
        std::fs::write(dir.path().join("mesh.json"), known).expect("writes");
        for (namespace, starts) in [
            ("shop", false),
            ("lone", false),
            ("bank", true),
            ("other", true),
            ("kube-system", true),
        ] {
            let done = serve("ADD", &config, &call(namespace));
            assert_eq!(done.is_ok(), starts, "{namespace}: {done:?}");
        }
        let failure = serve("ADD", &config, &call("shop")).expect_err("waits");
        assert!(failure.message.contains("namespace shop"), "{failure:?}");
        // What cannot be read says nothing of anybody.
        std::fs::write(dir.path().join("mesh.json"), "{").expect("writes");
        assert!(serve("ADD", &config, &call("other")).is_err());
    }

    #[test]
    fn a_pod_that_the_agent_does_not_take_does_not_start() {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("cni.sock");
        for answer in ["{\"error\":\"the map is full\"}\n", "", "nonsense\n"] {
            let _heard = agent(&socket, answer);
            let failure = serve("ADD", &config(&socket), &call("shop")).expect_err("refused");
            assert_eq!(failure.code, TRY_AGAIN_LATER, "{answer:?}");
            std::fs::remove_file(&socket).expect("was there");
        }
    }

    #[test]
    fn a_pod_can_always_be_deleted() {
        let dir = tempfile::tempdir().expect("a folder");
        let socket = dir.path().join("cni.sock");
        for config in [config(&socket), "{".to_owned(), "{}".to_owned()] {
            for call in [call("shop"), Call::default()] {
                assert_eq!(serve("DEL", &config, &call), Ok(String::new()));
            }
        }
    }

    #[test]
    fn what_is_no_pod_passes_and_what_has_no_network_does_not() {
        let config = config(Path::new("/nonexistent"));
        assert!(serve("ADD", &config, &Call::default()).is_ok());
        let failure = serve("ADD", "{}", &call("shop")).expect_err("not chained");
        assert_eq!(failure.code, INVALID_CONFIG);
        let version = serve("VERSION", "", &Call::default()).expect("known");
        assert!(version.contains("\"1.1.0\""), "{version}");
        assert!(serve("EAT", "{}", &Call::default()).is_err());
    }
}

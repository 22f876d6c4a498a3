//! The mesh while its controllers hear the API server badly.

use std::net::TcpListener;
use std::time::Duration;

use anyhow::{Result, ensure};
use faults::{Identity, Plan, Proxy};
use lab::Netns;
use serde_json::json;
use tests_cluster::{CLIENT, eventually, kubectl, nodes, pod, upstream};

use crate::command_line::{asked, good};
use crate::installed::{CONTROLLER, Installed, NAMESPACE};
use crate::pair::{Kept, Pair};

/// A proxy where pods reach it, that shows the API server's own certificate.
fn proxy(mesh: &Installed) -> Result<Proxy> {
    let control = Netns::of_process(mesh.standing()?.pid("control")?)?;
    let listener = control.run(|| TcpListener::bind((CONTROL, 0)))??;
    let file = |name: &str| mesh.on("control", &format!("cat /keelson/config/{name}"));
    let identity = Identity {
        chain: file("apiserver.crt")?,
        key: file("apiserver.key")?,
    };
    Proxy::start(listener, Some(identity), upstream()?, SEED)
}

/// Has the controllers ask there.
fn ask_by(proxy: &Proxy) -> Result<()> {
    let deployment = format!("deployment/{CONTROLLER}");
    kubectl(&[
        "-n",
        NAMESPACE,
        "set",
        "env",
        &deployment,
        &format!("KUBERNETES_SERVICE_HOST={CONTROL}"),
        &format!("KUBERNETES_SERVICE_PORT={}", proxy.address().port()),
    ])?;
    let words = ["-n", NAMESPACE, "rollout", "status", &deployment];
    kubectl(&[&words[..], &["--timeout=120s"]].concat()).map(drop)
}

/// Issue 11, A3: of the data path nothing is lost, and changes arrive, if late.
#[test]
#[ignore = "nightly"]
fn while_controllers_hear_the_api_server_badly_no_request_fails_and_changes_arrive() -> Result<()> {
    let mesh = Installed::install()?;
    let pair = Pair::create(&mesh, "badly")?;
    pair.label("keelson.io/mesh=enabled")?;
    pair.until_readable(false)?;
    let proxy = proxy(&mesh)?;
    ask_by(&proxy)?;
    pair.until_readable(false)?;
    pair.keep_asking()?;
    proxy.set(Plan {
        broken: 0.1,
        busy: 0.15,
        slow: 0.3,
        gone: 0.25,
        cut: 0.05,
        repeat: 0.3,
        late: 0.2,
        delay: Duration::from_millis(200),
    });
    for round in 0..ROUNDS {
        proxy.cut_watches();
        let name = format!("new{round}");
        let node = &nodes()?[round % 2];
        pair.namespace.apply(&[pod(&name, Some(node), CLIENT)])?;
        pair.namespace.wait_ready(&name)?;
        let rules = pair.namespace.exec(&name, "ip rule list")?;
        ensure!(rules.contains("fwmark"), "{name} started outside: {rules}");
        let answer = eventually("it is served", || pair.namespace.exec(&name, &pair.ask))?;
        ensure!(answer.starts_with("server "), "{answer}");
        let deny = json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "deny"},
            "spec": {"action": "DENY", "rules": [{"to": [{"operation": {"ports": [(9000 + round).to_string()]}}]}]},
        });
        eventually("a controller answers", || {
            pair.namespace.apply(std::slice::from_ref(&deny))
        })?;
        let other = pair.ask.replace(":8080", &format!(":{}", 9000 + round));
        let at = other
            .split("//")
            .nth(1)
            .and_then(|rest| rest.split('/').next());
        let client = format!("{}/client", pair.namespace.name());
        eventually("the policy is known", || {
            let (code, said, _) = asked(&["explain", &client, at.unwrap_or_default()], "")?;
            ensure!(code == 1, "{said:#}");
            Ok(())
        })?;
        pair.namespace.kubectl(&["delete", "pod", &name])?;
    }
    let counts = proxy.counts();
    println!("{ROUNDS} rounds: {counts:?}");
    ensure!(
        counts.broken > 0 && counts.gone > 0 && counts.cut > 0 && counts.repeated > 0,
        "{counts:?}"
    );
    proxy.set(Plan::default());
    pair.stop_asking("controllers heard the API server badly", Kept::GoesOn)?;
    pair.until_readable(false)?;
    eventually("every node is in step", || good(&["status"], ""))?;
    ensure!(pair.restarts()? == 0, "nothing is restarted");
    Ok(())
}

const ROUNDS: usize = 5;
/// The machine of the control plane, on the link of the nodes.
const CONTROL: &str = "172.30.255.1";
/// Which answers are hit.
const SEED: u64 = 12;

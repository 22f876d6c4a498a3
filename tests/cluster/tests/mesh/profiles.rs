//! `keelson install` in each of its profiles.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests_cluster::{get, nodes};

use crate::command_line::good;
use crate::installed::{CONTROLLER, Installed, NAMESPACE};
use crate::pair::Pair;

/// Issue 11, B15: each stands, captures and goes; which one it is is seen in the cluster.
#[test]
#[ignore = "nightly"]
fn each_profile_installs_captures_and_goes() -> Result<()> {
    let mesh = Installed::nothing()?;
    let values = mesh.values()?.to_string();
    for (profile, controllers) in [("minimal", 1), ("default", 2)] {
        let words = [
            "install",
            "--profile",
            profile,
            "--crds",
            "--wait",
            "-f",
            "-",
        ];
        good(&words, &values).context(profile)?;
        let deployment = get(&["-n", NAMESPACE, "deployment", CONTROLLER])?;
        ensure!(
            deployment["status"]["readyReplicas"] == controllers,
            "{profile}: {}",
            deployment["status"]
        );
        let pair = Pair::create(&mesh, profile)?;
        pair.label("keelson.io/mesh=enabled")?;
        pair.until_readable(false)?;
        let status = good(&["status"], "")?;
        ensure!(
            status["nodes"].as_array().map(Vec::len) == Some(nodes()?.len()),
            "{profile}: {status:#}"
        );
        let gone = good(&["uninstall"], "")?;
        ensure!(gone["left"] == Value::Array(vec![]), "{profile}: {gone:#}");
        ensure!(
            pair.is_readable()?,
            "{profile}: pods talk on, without the mesh"
        );
    }
    Ok(())
}

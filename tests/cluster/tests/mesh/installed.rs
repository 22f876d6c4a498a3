//! An installation that goes with its test.

use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use cluster::{Place, Standing};
use serde_json::{Value, json};
use tests_cluster::{eventually, helm, helm_with, kubectl};

use crate::command_line::good;

/// Where the tests install.
pub(crate) const NAMESPACE: &str = "keelson-system";
pub(crate) const RELEASE: &str = "keelson";

/// The mesh, installed. Dropping it uninstalls it.
pub(crate) struct Installed {
    place: Where,
    here: bool,
    by_helm: bool,
    /// Values of this installation beside those that every cluster of ours needs, by section.
    more: Value,
    _alone: MutexGuard<'static, ()>,
}

/// Which cluster it is.
enum Where {
    /// One of this machine, whose nodes and network can be looked at.
    Here { standing: Standing, id: String },
    /// Another, of which nothing is known but its API server. What its nodes need is in a file of values, if they need anything.
    Elsewhere {
        values: Option<PathBuf>,
        /// The kinds that there were before.
        kinds: BTreeSet<String>,
    },
}

impl Where {
    fn find() -> Result<Self> {
        let base = env::var_os("KEELSON_CLUSTER_BASE");
        let id = env::var("KEELSON_CLUSTER");
        if let Some((base, id)) = base.zip(id.ok()) {
            let standing = Standing::open(&Place::new(&PathBuf::from(base), &id)?)?;
            return Ok(Self::Here { standing, id });
        }
        Ok(Self::Elsewhere {
            values: env::var_os("KEELSON_VALUES").map(PathBuf::from),
            kinds: kinds()?,
        })
    }
}

impl Installed {
    /// Installs by `keelson install` and waits until everything is ready.
    pub(crate) fn install() -> Result<Self> {
        Self::install_with(json!({}))
    }

    /// The same with further values.
    pub(crate) fn install_with(more: Value) -> Result<Self> {
        let mut installed = Self::nothing()?;
        installed.install_now(more)?;
        Ok(installed)
    }

    /// Installs, with further values, where there is nothing yet.
    pub(crate) fn install_now(&mut self, more: Value) -> Result<()> {
        self.more = more;
        self.here = true;
        self.apply()
    }

    /// The same by Helm.
    pub(crate) fn install_by_helm() -> Result<Self> {
        let mut installed = Self::nothing()?;
        installed.by_helm = true;
        installed.here = true;
        istio_kinds()?;
        installed.apply()?;
        Ok(installed)
    }

    /// The cluster alone, for who installs in another way. Whatever is there at the end is uninstalled.
    pub(crate) fn nothing() -> Result<Self> {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Self {
            place: Where::find()?,
            here: false,
            by_helm: false,
            more: json!({}),
            _alone: alone,
        })
    }

    /// The cluster's machines.
    pub(crate) fn standing(&self) -> Result<&Standing> {
        match &self.place {
            Where::Here { standing, .. } => Ok(standing),
            Where::Elsewhere { .. } => {
                bail!(
                    "this test looks at a cluster's machines: `cargo xtask test --cluster` puts one up without KUBECONFIG"
                )
            }
        }
    }

    /// What the nodes of such a cluster need, and this installation's own.
    pub(crate) fn values(&self) -> Result<Value> {
        let mut all = match &self.place {
            Where::Here { id, .. } => values(id)?,
            Where::Elsewhere { values: None, .. } => json!({}),
            Where::Elsewhere {
                values: Some(file), ..
            } => {
                let text = std::fs::read_to_string(file);
                let text = text.with_context(|| format!("KEELSON_VALUES: {}", file.display()))?;
                serde_saphyr::from_str(&text)?
            }
        };
        for (section, values) in self.more.as_object().into_iter().flatten() {
            for (name, value) in values.as_object().into_iter().flatten() {
                all[section][name] = value.clone();
            }
        }
        Ok(all)
    }

    /// Installs what is missing, and waits until everything is ready.
    pub(crate) fn apply(&self) -> Result<()> {
        let values = self.values()?.to_string();
        let done = if self.by_helm {
            let chart = chart_directory();
            let words = [
                "upgrade",
                "--install",
                RELEASE,
                &chart,
                "--namespace",
                NAMESPACE,
                "--create-namespace",
                "--wait",
                "--timeout",
                "120s",
                "--values",
                "-",
            ];
            helm_with(&words, &values).map(drop)
        } else {
            let words = [
                "install",
                "--crds",
                "--wait",
                "--timeout",
                "120s",
                "-f",
                "-",
            ];
            good(&words, &values).map(drop)
        };
        done.map_err(|error| {
            let pods = kubectl(&["-n", NAMESPACE, "describe", "pods"]).unwrap_or_default();
            let logs = [CONTROLLER, AGENT].map(|name| self.logs(name));
            error.context(format!("{pods}\n{}", logs.join("\n")))
        })
    }

    /// Uninstalls, and waits until the agents are gone.
    pub(crate) fn uninstall(&mut self) -> Result<()> {
        self.here = false;
        let removed = if self.by_helm {
            helm(&["uninstall", RELEASE, "--namespace", NAMESPACE, "--wait"]).map(drop)
        } else {
            good(&["uninstall"], "").map(drop)
        };
        if removed.is_err() {
            // Not by whom it was made, or only half there.
            let ours = "app.kubernetes.io/part-of=keelson";
            kubectl(&[
                "-n",
                NAMESPACE,
                "delete",
                "daemonset,deployment",
                "-l",
                ours,
            ])?;
            let everywhere = "clusterrole,clusterrolebinding,validatingwebhookconfiguration";
            kubectl(&["delete", everywhere, "-l", ours])?;
        }
        eventually("the agents are gone", || {
            let pods = kubectl(&["-n", NAMESPACE, "get", "pods", "-o", "name"])?;
            ensure!(pods.trim().is_empty(), "{pods}\n{}", self.logs(AGENT));
            Ok(())
        })
    }

    /// What a program of ours has logged last, on all nodes.
    pub(crate) fn logs(&self, name: &str) -> String {
        let label = format!("app.kubernetes.io/name={name}");
        let words = [
            "-n",
            NAMESPACE,
            "logs",
            "--prefix",
            "--tail=40",
            "-l",
            &label,
        ];
        kubectl(&words).unwrap_or_else(|error| error.to_string())
    }

    /// Runs a shell command on a node and returns what it prints.
    pub(crate) fn on(&self, node: &str, command: &str) -> Result<String> {
        let words = ["sh", "-c", command].map(str::to_owned);
        let output = self.standing()?.command(node, &words)?.output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() {
            bail!("{command} on {node}: {said}");
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

impl Drop for Installed {
    #[expect(clippy::print_stderr, reason = "shown with a test that fails")]
    fn drop(&mut self) {
        let stands = kubectl(&["-n", NAMESPACE, "get", "daemonset", AGENT]).is_ok();
        if self.here || stands {
            eprintln!("{}\n{}", self.logs(AGENT), self.logs(CONTROLLER));
            // A test that fails has its own message.
            drop(self.uninstall());
        }
        drop(kubectl(&[
            "delete",
            "namespace",
            NAMESPACE,
            "--timeout=60s",
        ]));
        if let Where::Elsewhere { kinds: before, .. } = &self.place {
            let now = kinds().unwrap_or_default();
            for kind in now.difference(before) {
                drop(kubectl(&["delete", "--timeout=60s", kind]));
            }
        }
    }
}

/// The kinds that somebody has defined.
fn kinds() -> Result<BTreeSet<String>> {
    let names = kubectl(&["get", "crd", "-o", "name"])?;
    Ok(names.lines().map(str::to_owned).collect())
}

/// A node of such a cluster is a part of this machine: of its cgroups, and with its rights.
fn values(id: &str) -> Result<Value> {
    let cgroup2 = lab::cgroup2_root()?;
    let below = cgroup2.strip_prefix("/sys/fs/cgroup")?;
    let root = Path::new("/")
        .join(below)
        .join(format!("keelson-cluster-{id}"));
    let root = format!("{}/$(NODE_NAME)", root.display());
    let status = std::fs::read_to_string("/proc/self/status")?;
    let rights = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    let rights = u64::from_str_radix(rights.context("CapBnd")?.trim(), 16)?;
    Ok(json!({
        "agent": {
            "cgroup": {"root": root, "kubelet": format!("{root}/system.slice/kubelet.service")},
            "raiseFileLimit": rights & CAP_SYS_RESOURCE != 0,
            "drainDeadline": "5s",
            "terminationGracePeriodSeconds": 60,
        },
    }))
}

/// Applies the kinds of policies, which Helm does not install.
pub(crate) fn istio_kinds() -> Result<()> {
    let crds = root().join("deploy/crds/istio-security.yaml");
    kubectl(&["apply", "-f", &crds.display().to_string()]).map(drop)
}

pub(crate) fn chart_directory() -> String {
    root().join("deploy/charts/keelson").display().to_string()
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

pub(crate) const AGENT: &str = "keelson-node-agent";
pub(crate) const CONTROLLER: &str = "keelson-controller";
/// include/uapi/linux/capability.h
const CAP_SYS_RESOURCE: u64 = 1 << 24;

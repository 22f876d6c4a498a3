//! The programs of a cluster, compiled from the Go modules that `tools/cluster` pins, once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::cluster_command::base;
use crate::shell;

/// A directory below `tools/cluster` and what is built there.
#[derive(Debug)]
pub(crate) struct Module {
    directory: &'static str,
    /// Names of programs with the packages that they are built from.
    programs: &'static [(&'static str, &'static str)],
    /// How long that takes on two processors, the first time.
    takes: &'static str,
}

/// What every cluster needs.
pub(crate) const KUBERNETES: [Module; 2] = [
    Module {
        directory: "kubernetes",
        programs: &[
            ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
            ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
            (
                "kube-controller-manager",
                "k8s.io/kubernetes/cmd/kube-controller-manager",
            ),
            ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
            ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
            ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
            ("etcd", "go.etcd.io/etcd/server/v3"),
        ],
        takes: "6 to 10 minutes",
    },
    Module {
        directory: "coredns",
        programs: &[("coredns", "github.com/coredns/coredns")],
        takes: "2 minutes",
    },
];

/// What some clusters and tests need.
pub(crate) const OTHERS: [Module; 5] = [KUBE_ROUTER, HELM, CONFORMANCE, ECHO, ISTIOD];

/// Enforces NetworkPolicy.
pub(crate) const KUBE_ROUTER: Module = Module {
    directory: "kube-router",
    programs: &[(
        "kube-router",
        "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router",
    )],
    takes: "2 minutes",
};

/// Installs charts.
pub(crate) const HELM: Module = Module {
    directory: "helm",
    programs: &[("helm", "helm.sh/helm/v3/cmd/helm")],
    takes: "2 minutes",
};

/// The Gateway API's own tests, and the application that these send requests through gateways to.
pub(crate) const CONFORMANCE: Module = Module {
    directory: "conformance",
    programs: &[
        ("gateway-api-conformance", OWN_TEST),
        (
            "echo-basic",
            "sigs.k8s.io/gateway-api/conformance/echo-basic",
        ),
    ],
    takes: "2 minutes",
};

/// Istio's echo application, which those tests call in a mesh.
pub(crate) const ECHO: Module = Module {
    directory: "echo",
    programs: &[
        ("echo-server", "istio.io/istio/pkg/test/echo/cmd/server"),
        ("echo-client", "istio.io/istio/pkg/test/echo/cmd/client"),
    ],
    takes: "1 minute",
};

/// Istio's control plane, whose agents are ours in one test.
pub(crate) const ISTIOD: Module = Module {
    directory: "istiod",
    programs: &[(
        "pilot-discovery",
        "istio.io/istio/pilot/cmd/pilot-discovery",
    )],
    takes: "5 minutes",
};

/// Stands for a package where the program is the test in the module's own directory.
const OWN_TEST: &str = ".";

/// Builds what is missing or was built from other modules.
///
/// # Errors
/// There is no Go here, a module cannot be fetched or a program not built.
pub(crate) fn build(modules: &[&Module]) -> Result<()> {
    let bin = base()?.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("making {}", bin.display()))?;
    let mut missing = Vec::new();
    for module in modules {
        let stamp = Stamp::of(module, &bin)?;
        if !stamp.is_there(module, &bin) {
            missing.push((*module, stamp));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    check_go()?;
    for (module, _) in &missing {
        let names: Vec<&str> = module.programs.iter().map(|(name, _)| *name).collect();
        println!(
            "to be compiled: {} (about {} on two processors)",
            names.join(", "),
            module.takes
        );
    }
    for (module, stamp) in missing {
        let start = Instant::now();
        for (name, package) in module.programs {
            compile(module, &bin.join(name), package)?;
        }
        stamp.write()?;
        println!(
            "{} compiled in {} s, kept in {}",
            module.directory,
            start.elapsed().as_secs(),
            bin.display()
        );
    }
    Ok(())
}

fn compile(module: &Module, out: &Path, package: &str) -> Result<()> {
    let mut command = Command::new("go");
    command
        .args(match package {
            OWN_TEST => &["test", "-c"][..],
            _ => &["build"],
        })
        .args(["-trimpath", "-buildvcs=false", "-mod=readonly"])
        .arg(format!("-ldflags={}", link_flags(module)?))
        .arg("-o")
        .arg(out)
        .arg(package)
        .current_dir(directory(module)?)
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off")
        .env_remove("GOOS")
        .env_remove("GOARCH")
        .stdin(Stdio::null());
    println!("{} go build {package}", shell::dim("$"));
    let status = command.status().context("starting go")?;
    if !status.success() {
        bail!("go cannot build {package}: {status}");
    }
    Ok(())
}

/// Programs of Kubernetes refuse to work without knowing their own version.
fn link_flags(module: &Module) -> Result<String> {
    let mut flags = "-s -w".to_owned();
    if module.directory != "kubernetes" {
        return Ok(flags);
    }
    let text = fs::read_to_string(directory(module)?.join("go.mod"))?;
    let version = version_of(&text, "k8s.io/kubernetes")
        .context("tools/cluster/kubernetes/go.mod names no version of Kubernetes")?;
    let mut numbers = version.trim_start_matches('v').split('.');
    let major = numbers.next().unwrap_or_default();
    let minor = numbers.next().unwrap_or_default();
    let commit = "0".repeat(40);
    for (name, value) in [
        ("gitVersion", version),
        ("gitMajor", major),
        ("gitMinor", minor),
        ("gitTreeState", "clean"),
        ("gitCommit", &commit),
    ] {
        flags.push_str(&format!(" -X k8s.io/component-base/version.{name}={value}"));
    }
    Ok(flags)
}

/// The version that a go.mod requires of a module.
fn version_of<'a>(text: &'a str, module: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let word = words.next()?;
        let word = if word == "require" {
            words.next()?
        } else {
            word
        };
        (word == module).then(|| words.next())?
    })
}

/// The directory of a module of Go's cache.
///
/// # Errors
/// It has not been fetched.
pub(crate) fn module_directory(module: &Module, path: &str) -> Result<PathBuf> {
    let mut command = Command::new("go");
    command
        .args(["list", "-mod=readonly", "-m", "-f", "{{.Dir}}", path])
        .current_dir(directory(module)?)
        .env("GOWORK", "off");
    Ok(PathBuf::from(shell::read(&mut command)?))
}

/// Says in one line what is missing.
fn check_go() -> Result<()> {
    let advice = "Go 1.26 or later from https://go.dev/dl";
    if shell::which("go").is_none() {
        bail!(
            "a cluster needs Kubernetes to be compiled, and this machine has no Go: install {advice}"
        );
    }
    let version = shell::read(Command::new("go").args(["env", "GOVERSION"]))?;
    let number = version.strip_prefix("go1.").unwrap_or_default();
    let number: u32 = number
        .split(|letter: char| !letter.is_ascii_digit())
        .next()
        .and_then(|number| number.parse().ok())
        .unwrap_or_default();
    // From 1.21 on, Go fetches a later version of itself where go.mod asks for one.
    if number < 21 {
        bail!(
            "a cluster needs Kubernetes to be compiled, and this machine has {version}: install {advice}"
        );
    }
    Ok(())
}

/// What programs were built from, written down beside them.
struct Stamp {
    path: PathBuf,
    text: String,
}

impl Stamp {
    fn of(module: &Module, bin: &Path) -> Result<Self> {
        let directory = directory(module)?;
        let mut text = link_flags(module)?;
        for file in ["go.mod", "go.sum"] {
            let path = directory.join(file);
            let more =
                fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            text.push_str(&more);
        }
        Ok(Self {
            path: bin.join(format!(".{}", module.directory)),
            text,
        })
    }

    fn is_there(&self, module: &Module, bin: &Path) -> bool {
        fs::read_to_string(&self.path).is_ok_and(|text| text == self.text)
            && module
                .programs
                .iter()
                .all(|(name, _)| bin.join(name).is_file())
    }

    fn write(&self) -> Result<()> {
        fs::write(&self.path, &self.text)
            .with_context(|| format!("writing {}", self.path.display()))
    }
}

fn directory(module: &Module) -> Result<PathBuf> {
    Ok(shell::root()?.join("tools/cluster").join(module.directory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_is_a_tool_of_its_module() {
        for module in KUBERNETES.iter().chain(&OTHERS) {
            let path = directory(module).unwrap().join("go.mod");
            let text = fs::read_to_string(path).unwrap();
            let packages = module.programs.iter();
            for (name, package) in packages.filter(|(_, package)| *package != OWN_TEST) {
                let named = |line: &str| line.split_whitespace().any(|word| word == *package);
                assert!(text.lines().any(named), "{name}");
            }
        }
    }

    #[test]
    fn the_version_is_read_from_either_form_of_a_requirement() {
        let block =
            "require (\n\tgo.etcd.io/etcd/server/v3 v3.6.13\n\tk8s.io/kubernetes v1.36.3\n)\n";
        assert_eq!(version_of(block, "k8s.io/kubernetes"), Some("v1.36.3"));
        let line = "require k8s.io/kubernetes v1.36.3\n";
        assert_eq!(version_of(line, "k8s.io/kubernetes"), Some("v1.36.3"));
        assert_eq!(version_of(line, "k8s.io/kube"), None);
    }
}

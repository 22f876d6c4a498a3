//! Envoys as sidecars: started in the pods, with certificates, behind iptables, as Istio does it.

mod config;
pub(super) mod hop;
pub mod install;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use lab::{Pod, Process};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};

use super::Setup;
use crate::site::{Proxies, Site};

/// What the sidecars take the application's bytes for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http,
    Tcp,
}

/// A sidecar's certificate, key and root, in PEM.
#[derive(Debug)]
struct Secret {
    chain: String,
    key: String,
    root: String,
}

/// Starts client, servers and their sidecars.
pub(super) fn start(setup: &Setup, protocol: Protocol) -> Result<Site> {
    let envoy = setup
        .envoy
        .as_ref()
        .context("Envoy has not been installed")?;
    let site = Site::settle(Site::nodes(&[])?)?;
    let authority = authority()?;
    let mut sidecars = Vec::new();
    for pod in site.pods() {
        let secret = secret(&authority, pod)?;
        let file = site
            .lab()
            .run_dir()
            .join(format!("envoy-{}.json", pod.name()));
        fs::write(
            &file,
            config::bootstrap(protocol, pod.name(), &secret).to_string(),
        )?;
        fs::set_permissions(&file, Permissions::from_mode(0o644))?;
        let mut command = Command::new("setpriv");
        command.args([
            "--reuid",
            UID,
            "--regid",
            UID,
            "--clear-groups",
            "--inh-caps=-all",
        ]);
        command.arg(envoy).arg("-c").arg(&file);
        command.args([
            "--concurrency",
            "2",
            "--log-level",
            "warning",
            "--disable-hot-restart",
        ]);
        let mut process = pod.spawn(command)?;
        wait_ready(pod, &mut process)?;
        redirect(pod)?;
        sidecars.push(process);
    }
    let sidecars = sidecars.try_into().ok().context("three sidecars")?;
    let site = site.with(Proxies::Sidecars(Box::new(sidecars)));
    if site.is_readable()? {
        bail!("traffic does not pass the sidecars");
    }
    Ok(site)
}

type Authority = CertifiedIssuer<'static, KeyPair>;

/// A root for the sidecars of one run.
fn authority() -> Result<Authority> {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "bench");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

fn secret(authority: &Authority, pod: &Pod) -> Result<Secret> {
    let name = format!(
        "spiffe://cluster.local/ns/{}/sa/{}",
        pod.namespace(),
        pod.service_account()
    );
    let mut params = CertificateParams::default();
    params
        .subject_alt_names
        .push(SanType::URI(name.try_into()?));
    let key = KeyPair::generate()?;
    Ok(Secret {
        chain: params.signed_by(&key, authority)?.pem(),
        key: key.serialize_pem(),
        root: authority.pem(),
    })
}

fn wait_ready(pod: &Pod, process: &mut Process) -> Result<()> {
    let ready = lab::wait_until("Envoy listens", READY, || {
        if let Some(status) = process.exited()? {
            bail!("Envoy ended: {status}");
        }
        // Every worker has its own listening sockets; the last of them come at about one time.
        let sockets = pod
            .netns()
            .run(|| fs::read_to_string("/proc/thread-self/net/tcp"))??;
        Ok([OUTBOUND, INBOUND]
            .iter()
            .all(|port| listens(&sockets, *port)))
    });
    ready.map_err(|error| {
        let log = process.log();
        let tail: Vec<&str> = log.lines().rev().take(8).collect();
        error.context(anyhow!("{}:\n{}", pod.key(), tail.join("\n")))
    })
}

/// Whether `/proc/net/tcp` shows a listening socket (state 0A) on `port`.
fn listens(sockets: &str, port: u16) -> bool {
    let port = format!(":{port:04X}");
    sockets.lines().any(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next().unwrap_or_default();
        local.ends_with(&port) && fields.nth(1) == Some("0A")
    })
}

/// The rules that Istio's init container makes, as far as this traffic meets them.
fn redirect(pod: &Pod) -> Result<()> {
    let inbound = INBOUND.to_string();
    let outbound = OUTBOUND.to_string();
    let rules: [&[&str]; 11] = [
        &["-N", "ISTIO_INBOUND"],
        &["-N", "ISTIO_IN_REDIRECT"],
        &["-N", "ISTIO_OUTPUT"],
        &["-N", "ISTIO_REDIRECT"],
        &[
            "-A",
            "ISTIO_IN_REDIRECT",
            "-p",
            "tcp",
            "-j",
            "REDIRECT",
            "--to-ports",
            &inbound,
        ],
        &[
            "-A",
            "ISTIO_REDIRECT",
            "-p",
            "tcp",
            "-j",
            "REDIRECT",
            "--to-ports",
            &outbound,
        ],
        &["-A", "PREROUTING", "-p", "tcp", "-j", "ISTIO_INBOUND"],
        &[
            "-A",
            "ISTIO_INBOUND",
            "-p",
            "tcp",
            "-j",
            "ISTIO_IN_REDIRECT",
        ],
        &["-A", "OUTPUT", "-p", "tcp", "-j", "ISTIO_OUTPUT"],
        &[
            "-A",
            "ISTIO_OUTPUT",
            "-m",
            "owner",
            "--uid-owner",
            UID,
            "-j",
            "RETURN",
        ],
        &[
            "-A",
            "ISTIO_OUTPUT",
            "!",
            "-d",
            "127.0.0.1/32",
            "-j",
            "ISTIO_REDIRECT",
        ],
    ];
    for rule in rules {
        let mut command = Command::new("iptables");
        command.args(["-w", "-t", "nat"]).args(rule);
        let output = pod.output(command)?;
        if !output.status.success() {
            bail!(
                "iptables {}: {}",
                rule.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
    }
    Ok(())
}

/// The user that Istio's sidecar runs as; its own connections are not redirected.
const UID: &str = "1337";
const OUTBOUND: u16 = 15001;
const INBOUND: u16 = 15006;
const READY: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listening_socket_is_told_from_a_connected_one() {
        let table = "  sl  local_address rem_address   st tx\n   0: 00000000:3A99 00000000:0000 0A 0\n   1: 0100007F:3A9E 0100007F:0001 01 0\n";
        assert!(listens(table, 15001));
        assert!(!listens(table, 15006));
    }
}

//! What the lab's tests share: taking turns on the machine, one lab for many tests, manifests.
//!
//! - [`turn`] lets one test at a time use the machine, also among several test programs: two cores
//!   and wall-clock promises ("refused within 100 ms") do not go together with neighbours.
//! - [`Shared`] is a lab that the first test of a theme makes and the end of the process removes.
//! - [`syn`] writes packets with a source of one's choice, [`frame`] puts VLAN tags before them.
//! - [`metrics`] finds the numbers of an agent's metrics page by name and labels.
//! - [`talk`] serves and dials over TCP, and says how an attempt ended.
//! - [`namespace`], [`service`] and [`mtls`] write the manifests that every theme needs.
//!
//! What only one test program needs stays there.

pub mod frame;
pub mod metrics;
pub mod syn;
pub mod talk;

use std::fmt::Write as _;
use std::fs::File;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context as _, Result, anyhow};
use lab::Lab;

/// The right to use the machine, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    _machine: File,
    _process: MutexGuard<'static, ()>,
}

/// Waits until no other test uses the machine.
///
/// # Errors
/// The lock file cannot be made.
pub fn turn() -> Result<Turn> {
    static PROCESS: Mutex<()> = Mutex::new(());
    let process = PROCESS.lock().unwrap_or_else(PoisonError::into_inner);
    let path = std::env::temp_dir().join("keelson-lab-tests.lock");
    let machine = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path);
    let machine = machine.with_context(|| format!("opening {}", path.display()))?;
    machine.lock()?;
    Ok(Turn {
        _machine: machine,
        _process: process,
    })
}

/// A lab that many tests of one program use, made by the first of them.
#[derive(Debug)]
pub struct Shared {
    make: fn() -> Result<Lab>,
    lab: OnceLock<Result<Lab, String>>,
}

impl Shared {
    /// A lab to be made by `make` when it is first asked for.
    #[must_use]
    pub const fn new(make: fn() -> Result<Lab>) -> Self {
        Self {
            make,
            lab: OnceLock::new(),
        }
    }

    /// The lab. It is removed when the process ends; statics are not dropped.
    ///
    /// # Errors
    /// It could not be made, now or when it was first asked for.
    pub fn lab(&'static self) -> Result<&'static Lab> {
        let lab = self.lab.get_or_init(|| {
            let lab = (self.make)().map_err(|error| format!("{error:#}"))?;
            remove_at_exit(lab.id());
            Ok(lab)
        });
        lab.as_ref().map_err(|error| anyhow!("{error}"))
    }
}

fn remove_at_exit(id: &str) {
    let mut labs = LABS.lock().unwrap_or_else(PoisonError::into_inner);
    labs.push(id.to_owned());
    if labs.len() > 1 {
        return;
    }
    #[expect(unsafe_code, reason = "the standard library has no hook for the end")]
    // SAFETY: the handler is a plain function that lives as long as the process and does not
    // unwind: what it calls returns its errors.
    let registered = unsafe { libc::atexit(remove_labs) };
    debug_assert_eq!(registered, 0, "32 handlers are always possible");
}

extern "C" fn remove_labs() {
    let labs = LABS.lock().unwrap_or_else(PoisonError::into_inner);
    for id in &*labs {
        lab::hold(id);
        if let Err(error) = lab::remove(id) {
            tracing::error!(lab = %id, error = format!("{error:#}"), "not wholly removed");
        }
    }
}

static LABS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// A Namespace with these labels.
#[must_use]
pub fn namespace(name: &str, labels: &[(&str, &str)]) -> String {
    let mut text = format!(
        "---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels:\n    kubernetes.io/metadata.name: {name}\n"
    );
    for (key, value) in labels {
        let _ = writeln!(text, "    {key}: \"{value}\"");
    }
    text
}

/// A dual-stack Service `name` in `namespace` for the pods whose label `app` is `name`:
/// `10.96.0.host` and `fd00:10:96::host`, with `ports` as (protocol, port, target port).
#[must_use]
pub fn service(namespace: &str, name: &str, host: u8, ports: &[(&str, u16, u16)]) -> String {
    let ips = format!("[10.96.0.{host}, 'fd00:10:96::{host}']");
    with_cluster_ips(namespace, name, name, &ips, ports)
}

/// A headless Service `name` in `namespace` for the pods whose label `app` is `app`.
#[must_use]
pub fn headless(namespace: &str, name: &str, app: &str, ports: &[(&str, u16, u16)]) -> String {
    with_cluster_ips(namespace, name, app, "[None]", ports)
}

fn with_cluster_ips(
    namespace: &str,
    name: &str,
    app: &str,
    ips: &str,
    ports: &[(&str, u16, u16)],
) -> String {
    let first = ips.trim_matches(['[', ']']).split(',').next();
    let first = first.unwrap_or_default();
    let mut text = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  \
         clusterIP: {first}\n  clusterIPs: {ips}\n  ipFamilies: [IPv4, IPv6]\n  ipFamilyPolicy: RequireDualStack\n  \
         selector: {{app: {app}}}\n  ports:\n"
    );
    for (protocol, port, target) in ports {
        let name = format!("{}-{port}", protocol.to_lowercase());
        let _ = writeln!(
            text,
            "  - {{name: {name}, protocol: {protocol}, port: {port}, targetPort: {target}}}"
        );
    }
    text
}

/// A PeerAuthentication for a whole namespace: `STRICT`, `PERMISSIVE` or `DISABLE`.
#[must_use]
pub fn mtls(namespace: &str, mode: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {{name: default, namespace: {namespace}}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
    )
}

/// What agents and controller have to say: the last lines of their logs, more with `KEELSON_LOG_LINES`.
#[must_use]
pub fn evidence(lab: &Lab) -> String {
    let lines = std::env::var("KEELSON_LOG_LINES").ok();
    let lines: usize = lines.and_then(|lines| lines.parse().ok()).unwrap_or(6);
    let agents = lab.nodes().iter().map(|node| {
        let name = node.name();
        (format!("agent of {name}"), lab.agent_log(name))
    });
    let all = agents.chain([("controller".to_owned(), lab.controller_log())]);
    all.fold(String::new(), |text, (who, log)| {
        let skip = log.lines().count().saturating_sub(lines);
        let tail: Vec<&str> = log.lines().skip(skip).collect();
        format!("{text}--- {who}, last lines:\n{}\n", tail.join("\n"))
    })
}

/// Time on processors, in clock ticks of ten milliseconds (proc(5), fields 14 and 15).
///
/// # Errors
/// There is no such process.
pub fn ticks(pid: i32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("no name")?;
    let field = |index: usize| -> Result<u64> {
        let text = fields
            .split_whitespace()
            .nth(index)
            .context("no such field")?;
        Ok(text.parse()?)
    };
    Ok(field(11)? + field(12)?)
}

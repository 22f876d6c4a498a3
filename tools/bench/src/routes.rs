//! How long a route takes from its manifest to the first request that goes by it, through the real controller and a
//! real gateway: while nothing else changes, and while other routes and endpoints change all the time.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use serde::{Deserialize, Serialize};

use crate::budget::FEW_ROUTES;
use crate::load::message;
use crate::modes::{Mode as _, Setup, hop::Keelson};
use crate::site::{NAMESPACE, Site};
use crate::statistics::Spread;

/// What to measure.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Routes that are changed and waited for, on each side.
    pub routes: usize,
    /// Other changes a second, half of them of routes and half of endpoints, on the second side.
    pub changes: u32,
}

/// Times from manifest to request, in milliseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Side {
    /// Other changes a second.
    pub changes: u32,
    /// Of each route, in ascending order.
    pub milliseconds: Vec<f64>,
    /// Requests that were sent to find out.
    pub requests: u64,
    /// Requests that failed.
    pub failed: u64,
}

impl Side {
    /// What so many of a hundred do not exceed.
    #[must_use]
    pub fn quantile(&self, of_hundred: usize) -> Option<f64> {
        let index = (self.milliseconds.len() * of_hundred).div_ceil(100);
        self.milliseconds.get(index.checked_sub(1)?).copied()
    }
}

/// Measures both sides.
///
/// # Errors
/// The gateway could not be started, or a route did not come.
pub fn run(options: &Options) -> Result<[Side; 2]> {
    let site = Keelson(FEW_ROUTES).start(&Setup::default())?;
    let quiet = side(&site, options.routes, 0)?;
    let busy = side(&site, options.routes, options.changes)?;
    Ok([quiet, busy])
}

/// As people read it, beside what was promised.
#[must_use]
pub fn table(sides: &[Side]) -> String {
    let mut out = String::from(
        "| route in the folder until a request goes by it | routes | p50 | p99 | longest | failed requests | at least | aim | |\n\
         |-|-:|-:|-:|-:|-:|-:|-:|-|\n",
    );
    for side in sides {
        let text = |value: Option<f64>| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.1} ms"))
        };
        let p99 = side.quantile(99);
        let verdict = match p99 {
            Some(p99) if p99 <= AIM => "aim reached",
            Some(p99) if p99 <= AT_LEAST => "ok",
            _ => "MISSED",
        };
        out += &format!(
            "| {} other changes a second | {} | {} | {} | {} | {} of {} | {AT_LEAST} ms | {AIM} ms | {verdict} |\n",
            side.changes,
            side.milliseconds.len(),
            text(side.quantile(50)),
            text(p99),
            text(Spread::of(side.milliseconds.iter().copied()).map(|spread| spread.max)),
            side.failed,
            side.requests,
        );
    }
    out
}

fn side(site: &Site, routes: usize, changes: u32) -> Result<Side> {
    let folder = site.lab().manifests_dir();
    let noise = (changes > 0)
        .then(|| Noise::start(&folder, changes))
        .transpose()?;
    let [client, ..] = site.pods();
    let target = site.dialled_near()?;
    let open = || -> Result<TcpStream> {
        let stream = client.netns().run(|| TcpStream::connect(target))??;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    };
    let mut stream = open()?;
    let (mut requests, mut failed) = (0, 0);
    let mut milliseconds = Vec::with_capacity(routes);
    for number in 0..routes {
        let wanted = format!("{changes}-{number}");
        write(&folder.join("live.yaml"), &route(&wanted))?;
        let begin = Instant::now();
        loop {
            requests += 1;
            match ask(&mut stream) {
                Ok(live) if live.as_deref() == Some(&*wanted) => break,
                Ok(_before) => {}
                Err(error) => {
                    failed += 1;
                    if failed > MAX_FAILED {
                        return Err(error.context("too many requests fail"));
                    }
                    stream = open()?;
                }
            }
            if begin.elapsed() > PATIENCE {
                bail!("the route {wanted} did not come within {PATIENCE:?}");
            }
        }
        milliseconds.push(begin.elapsed().as_secs_f64() * 1e3);
        // Not in step with any timer.
        std::thread::sleep(Duration::from_millis(5 + u64::try_from(number % 17)?));
    }
    noise.map(Noise::stop).transpose()?;
    milliseconds.sort_by(f64::total_cmp);
    Ok(Side {
        changes,
        milliseconds,
        requests,
        failed,
    })
}

/// Sends a request and returns what its route said of itself.
fn ask(stream: &mut TcpStream) -> Result<Option<String>> {
    stream.write_all(b"GET /load HTTP/1.1\r\nhost: server.bench\r\nx-live: yes\r\n\r\n")?;
    let mut bytes = Vec::with_capacity(2048);
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            bail!("the connection was closed");
        }
        bytes.extend_from_slice(buffer.get(..count).unwrap_or_default());
        let Some(head) = message::parse(&bytes)? else {
            continue;
        };
        if head.refused {
            bail!("an answer other than 200");
        }
        if bytes.len() < head.total {
            continue;
        }
        let text = String::from_utf8_lossy(bytes.get(..head.head).unwrap_or_default());
        let live = text
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("x-generation"));
        return Ok(live.map(|(_, value)| value.trim().to_owned()));
    }
}

fn route(generation: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: live, namespace: {NAMESPACE}}}\n\
         spec:\n  parentRefs: [{{name: door, sectionName: near}}]\n  rules:\n  \
         - matches: [{{headers: [{{name: x-live, value: \"yes\"}}]}}]\n    filters:\n    \
         - {{type: ResponseHeaderModifier, responseHeaderModifier: {{set: [{{name: x-generation, value: \"{generation}\"}}]}}}}\n    \
         backendRefs: [{{name: near, port: 80}}]\n"
    )
}

/// As an editor does that takes care: the file is there whole or not at all.
fn write(path: &Path, text: &str) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(&new, path).with_context(|| format!("writing {}", path.display()))
}

/// Changes of other routes and endpoints that go on until they are stopped.
struct Noise {
    stop: Arc<AtomicBool>,
    writer: JoinHandle<Result<()>>,
}

impl Noise {
    fn start(folder: &Path, rate: u32) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (folder, stopped) = (folder.to_owned(), Arc::clone(&stop));
        let writer = std::thread::Builder::new()
            .name("changes".to_owned())
            .spawn(move || noise(&folder, rate, &stopped))?;
        Ok(Self { stop, writer })
    }

    fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Release);
        let ended = self.writer.join();
        ended.map_err(|_panic| anyhow!("the writer of changes panicked"))?
    }
}

fn noise(folder: &Path, rate: u32, stop: &AtomicBool) -> Result<()> {
    let of = |number: u32| -> (PathBuf, String) {
        let slot = (number / 2) % SLOTS;
        let name = format!("noise-{slot}");
        let file = |kind: &str| folder.join(format!("{name}-{kind}.yaml"));
        if number.is_multiple_of(2) {
            let route = format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
                 metadata: {{name: {name}, namespace: {NAMESPACE}}}\nspec:\n  \
                 parentRefs: [{{name: door, sectionName: near}}]\n  rules:\n  \
                 - matches: [{{path: {{type: PathPrefix, value: /noise-{slot}/{number}}}}}]\n    \
                 backendRefs: [{{name: {name}, port: 80}}]\n"
            );
            return (file("route"), route);
        }
        let address = format!("10.250.{}.{}", slot, 1 + number % 250);
        let endpoints = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\nspec:\n  \
             clusterIP: 10.96.9.{ip}\n  clusterIPs: [10.96.9.{ip}]\n  ports: [{{name: http, port: 80}}]\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {name}, namespace: {NAMESPACE}, labels: {{kubernetes.io/service-name: {name}}}}}\n\
             addressType: IPv4\nports: [{{name: http, port: 80}}]\n\
             endpoints: [{{addresses: [{address}], conditions: {{ready: true}}}}]\n",
            ip = slot + 1
        );
        (file("endpoints"), endpoints)
    };
    let begin = Instant::now();
    let mut written = Vec::new();
    let mut number = 0;
    while !stop.load(Ordering::Acquire) {
        let (path, text) = of(number);
        write(&path, &text)?;
        if number < 2 * SLOTS {
            written.push(path);
        }
        number += 1;
        let due = begin + Duration::from_secs(1) * number / rate;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    for path in written {
        fs::remove_file(path)?;
    }
    Ok(())
}

/// Routes, and services, that change in turns.
const SLOTS: u32 = 20;
const PATIENCE: Duration = Duration::from_secs(20);
const MAX_FAILED: u64 = 100;
const AT_LEAST: f64 = 20.0;
const AIM: f64 = 5.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_times_that_were_seen() {
        let side = Side {
            changes: 0,
            milliseconds: (1..=200).map(f64::from).collect(),
            requests: 0,
            failed: 0,
        };
        assert_eq!(side.quantile(50), Some(100.0));
        assert_eq!(side.quantile(99), Some(198.0));
        let none = Side {
            milliseconds: Vec::new(),
            ..side
        };
        assert_eq!(none.quantile(99), None);
    }
}

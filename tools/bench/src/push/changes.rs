//! Changes at a rate: files of pods that change, come and go, and of policies that change.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};

use crate::site::NAMESPACE;

/// Changes that go on until they are stopped.
#[derive(Debug)]
pub struct Changes {
    stop: Arc<AtomicBool>,
    writer: JoinHandle<Result<Written>>,
}

/// What was written.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Written {
    /// Objects that were changed.
    pub objects: u64,
    /// How long it took.
    pub seconds: f64,
}

impl Changes {
    /// Starts to change `rate` objects per second in a folder of manifests.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn start(folder: &Path, rate: u32) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let writer = Writer {
            folder: folder.to_owned(),
            each: usize::try_from(rate / TICKS)?.max(1),
            version: 0,
        };
        let stopped = Arc::clone(&stop);
        let writer = std::thread::Builder::new()
            .name("changes".to_owned())
            .spawn(move || writer.run(&stopped))?;
        Ok(Self { stop, writer })
    }

    /// Ends the changes and takes back what they added.
    ///
    /// # Errors
    /// A file could not be written.
    pub fn stop(self) -> Result<Written> {
        self.stop.store(true, Ordering::Release);
        let written = self.writer.join();
        written.map_err(|_panic| anyhow!("the writer of changes panicked"))?
    }
}

struct Writer {
    folder: PathBuf,
    /// Objects per tick.
    each: usize,
    version: usize,
}

impl Writer {
    fn run(mut self, stop: &AtomicBool) -> Result<Written> {
        super::stand_back_here()?;
        let start = Instant::now();
        let mut written = Written::default();
        let mut due = start;
        while !stop.load(Ordering::Acquire) {
            self.tick()?;
            written.objects += u64::try_from(self.each)?;
            due += Duration::from_secs(1) / TICKS;
            // A writer that is late catches up, so that the rate is what was asked for.
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        written.seconds = start.elapsed().as_secs_f64();
        fs::remove_file(self.folder.join(FILE)).context("removing the changing objects")?;
        Ok(written)
    }

    /// Replaces the file by one in which every object differs.
    fn tick(&mut self) -> Result<()> {
        self.version += 1;
        let unfinished = self.folder.join(format!(".{FILE}"));
        fs::write(&unfinished, manifest(self.each, self.version))?;
        fs::rename(&unfinished, self.folder.join(FILE)).context("replacing the changing objects")
    }
}

/// A tenth are policies, a tenth pods that come or go, the rest pods of which a label changes.
fn manifest(objects: usize, version: usize) -> String {
    let mut text = String::new();
    let policies = objects.div_ceil(10);
    let movers = objects.div_ceil(10);
    for policy in 0..policies {
        // Of the client's and servers' namespace: their connections are judged again. They name ports
        // that nobody uses, so nothing is refused.
        let port = 20_000 + (version * policies + policy) % 20_000;
        let _ = write!(
            text,
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
             metadata: {{name: changing-{policy}, namespace: {NAMESPACE}}}\nspec:\n  action: DENY\n  rules:\n  \
             - to: [{{operation: {{ports: [\"{port}\"]}}}}]\n"
        );
    }
    for pod in policies..objects {
        // One set of names is there in even versions, another in odd ones.
        let name = if pod < policies + movers {
            format!("mover-{}-{pod}", version % 2)
        } else {
            format!("changing-{pod}")
        };
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: ns-0\n  uid: uid-{name}\n  \
             labels: {{app: svc-0, service.istio.io/canonical-revision: r{version}}}\n  \
             annotations: {{keelson.io/pod-ips: \"10.254.{}.{}\"}}\n\
             spec: {{nodeName: node-1, serviceAccountName: changing, containers: [{{name: app, image: app, ports: [{{name: http, containerPort: 8080}}]}}]}}\n\
             status: {{phase: Running}}\n",
            pod >> 8,
            pod & 255,
        );
    }
    text
}

const FILE: &str = "pushed-changes.yaml";
/// Writes per second. The folder waits for 20 ms of quiet, so each of these is a push of its own.
pub(super) const TICKS: u32 = 25;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_differs_between_versions() {
        let (one, other) = (manifest(40, 1), manifest(40, 2));
        let count = |text: &str, what: &str| text.matches(what).count();
        assert_eq!(count(&one, "kind: AuthorizationPolicy"), 4);
        assert_eq!(count(&one, "kind: Pod"), 36);
        assert_eq!(count(&one, "name: mover-1-"), 4);
        let others: Vec<&str> = other.split("---\n").skip(1).collect();
        assert!(
            one.split("---\n")
                .skip(1)
                .all(|object| !others.contains(&object))
        );
    }
}

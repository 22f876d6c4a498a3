//! Wires the agent together: the control thread (configuration, certificates, CNI, admin pages), the
//! enrolment thread and the workers.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use proto::{agent::NodeReport, type_url};
use runtime::{
    admin::{Condition, Exposure, Readiness, Server},
    drain::Drain,
    metrics::Metrics,
    signals::{Stop, StopSignals},
};
use tls::{RotationPolicy, SvidStore, persist::PrivateDir};
use tokio::{
    net::UnixListener,
    sync::{oneshot, watch},
    task::LocalSet,
};
use xds_client::{
    CaClient, Client, Controller, Flusher, Handler, NodeClient, NodeInfo, RawResource, Rejection,
    Status,
};

use crate::{
    admin,
    bpf::{Kernel, MapSizes, Place},
    budget::{self, Budget},
    cgroup, cni,
    config::{LogFormat, RunArgs},
    direct::{Direct, DirectHandle},
    enrol::{Awaited, Command, EnrolConfig, EnrolHandle, Enroller, Parts},
    mesh::{Mesh, Resource, Writer},
    metrics::{ConnectionMetrics, EnrolmentMetrics, register_kernel},
    netns,
    record::{Recorder, Refusals},
    succession::{self, Lock, Office, Predecessor, Stage, Who},
    worker::{Cause, Drained, Shared, WorkerHandle},
};

/// Lifetime asked of the CA; it may give less.
const CERTIFICATE_TTL: Duration = Duration::from_hours(24);
/// Policy changes that come together are applied to live connections together.
const REAUTHORIZE_AFTER: Duration = Duration::from_millis(5);
/// The controller is told again this often, should it have lost what it was told.
const REPORT_EVERY: Duration = Duration::from_secs(30);
const REPORT_RETRY: Duration = Duration::from_millis(500);
/// A controller that is back is found again within this time.
const RECONNECT_AT_MOST: Duration = Duration::from_secs(5);
/// A successor that does not hear of the controller for this long works with the last good configuration.
const CONTROLLER_WAIT: Duration = Duration::from_secs(5);
/// Answers that are being given when an agent ends may take this long.
const ADMIN_ENDS_WITHIN: Duration = Duration::from_secs(2);
/// Connections need descriptors: the limit is raised to what the kernel allows.
const DESCRIPTORS: u64 = 1 << 20;

/// Runs until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// What keeps the agent from starting. Nothing that happens later ends it.
pub fn run(args: RunArgs) -> anyhow::Result<()> {
    let format = match args.log_format {
        LogFormat::Text => runtime::log::Format::Text,
        LogFormat::Json => runtime::log::Format::Json,
    };
    let log = runtime::log::init(format, &args.log).context("--log")?;
    netns::remember_home().context("/proc must be mounted")?;
    let descriptors = raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, control(args, log, descriptors))
}

async fn control(
    args: RunArgs,
    log: runtime::log::LogHandle,
    descriptors: u64,
) -> anyhow::Result<()> {
    let mut signals = StopSignals::listen()?;
    std::fs::create_dir_all(&args.state_dir)
        .with_context(|| format!("--state-dir {}", args.state_dir.display()))?;
    std::fs::create_dir_all(&args.runtime_dir)
        .with_context(|| format!("--runtime-dir {}", args.runtime_dir.display()))?;
    let own = Who::new(
        args.abi_version,
        cgroup::own_id(&args.cgroup_root)?,
        args.instance.clone(),
    );
    let predecessor = tokio::select! {
        predecessor = succession::apply(&args.runtime_dir, &own, args.takeover_timeout) => predecessor?,
        reason = signals.next() => return not_in_charge(reason),
    };
    let crew = Crew::assemble(&args, own, descriptors)?;
    let taken = tokio::select! {
        taken = crew.take_charge(&args, predecessor) => taken,
        reason = signals.next() => return not_in_charge(reason),
    };
    let lock = taken.context("cannot take charge")?;
    crew.work(args, log, lock, signals).await
}

fn not_in_charge(reason: Stop) -> anyhow::Result<()> {
    tracing::info!(%reason, "stopped before this agent was in charge; nothing has changed");
    Ok(())
}

/// Everything that works in an agent, in charge or not.
struct Crew {
    own: Who,
    metrics: Metrics,
    readiness: Readiness,
    certs: SvidStore,
    kernel: Arc<Kernel>,
    shared: Arc<Shared>,
    workers: Vec<WorkerHandle>,
    direct: DirectHandle,
    enrol: EnrolHandle,
    enroller: RefCell<Option<Enroller>>,
    enrolling: RefCell<Option<std::thread::JoinHandle<()>>>,
    awaited: watch::Receiver<Awaited>,
    status: watch::Receiver<Status>,
    reporting: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    subscription: RefCell<Option<tokio::task::JoinHandle<()>>>,
}

impl Crew {
    /// Makes everything that can be there before an agent is in charge. Writes nothing that another
    /// agent would notice.
    fn assemble(args: &RunArgs, own: Who, descriptors: u64) -> anyhow::Result<Self> {
        let metrics = Metrics::new();
        let readiness = Readiness::new();
        let controller = Controller::new(&args.controller, &args.controller_ca, &args.token_file);
        let certs = certificates(&controller, &args.runtime_dir)?;
        let workers = worker_count(args);
        let kernel = Arc::new(Kernel::load(place(args, workers)?)?);
        kernel.add_agent(own.cgroup)?;
        register_kernel(&metrics, Arc::clone(&kernel));
        let mesh = Arc::new(Mesh::default());
        let limits = budget::Limits {
            total: args.max_connections,
            per_pod: args.max_connections_per_pod,
        };
        let budget = Arc::new(Budget::new(limits, descriptors));
        budget::register(&metrics, Arc::clone(&budget));
        let shared = Arc::new(Shared {
            mesh: Arc::clone(&mesh),
            reached: Arc::default(),
            recorder: Arc::new(Recorder {
                metrics: ConnectionMetrics::register(&metrics),
                refusals: Refusals::default(),
            }),
            budget: Arc::clone(&budget),
            tunnel: tunnel::Settings::default(),
            connect_timeout: args.connect_timeout,
            enrol: std::sync::OnceLock::new(),
        });
        let workers = (0..workers)
            .map(|index| WorkerHandle::start(index, Arc::clone(&shared)))
            .collect::<Result<Vec<_>, _>>()?;
        let direct = Direct::start(
            Arc::clone(&kernel),
            Arc::clone(&mesh),
            Arc::clone(&shared.recorder),
            Arc::clone(&shared.reached),
            budget,
            args.same_node,
        )?;
        let (enroller, ends) = Enroller::new(Parts {
            kernel: Arc::clone(&kernel),
            workers: workers.clone(),
            certs: Arc::new(certs.clone()),
            config: enrol_config(args, readiness.condition("every captured pod is known")),
            metrics: EnrolmentMetrics::register(&metrics),
            direct: direct.clone(),
        });
        // Set once, before the first connection can ask for it.
        let _fresh = shared.enrol.set(ends.handle.clone()).is_ok();
        let client = Client::new(client_config(args, controller.clone()));
        let status = client.status();
        let kept = client.flusher();
        let (stop, stopped) = watch::channel(false);
        let subscription = tokio::task::spawn_local(
            client.run(ToMesh(Writer::new(Arc::clone(&mesh))), until(stopped)),
        );
        tokio::task::spawn_local(follow_wanted(mesh.wanted(), kept, ends.handle.clone()));
        tokio::task::spawn_local(follow_policy(
            mesh.changes(),
            workers.clone(),
            direct.clone(),
        ));
        let (reporting, reports) = watch::channel(true);
        tokio::task::spawn_local(report_captured(
            NodeClient::new(controller),
            args.node.clone(),
            args.abi_version,
            ends.captured,
            reports,
        ));
        Ok(Self {
            own,
            metrics,
            readiness,
            certs,
            kernel,
            shared,
            workers,
            direct,
            enrol: ends.handle,
            enroller: RefCell::new(Some(enroller)),
            enrolling: RefCell::default(),
            awaited: ends.awaited,
            status,
            reporting,
            stop,
            subscription: RefCell::new(Some(subscription)),
        })
    }

    /// Puts this agent in charge: at once if nobody is, else as soon as it has what the pods of the
    /// one in charge need.
    async fn take_charge(
        &self,
        args: &RunArgs,
        predecessor: Predecessor,
    ) -> anyhow::Result<InCharge> {
        let mut running = match predecessor {
            Predecessor::Nobody(lock) => {
                self.kernel.attach()?;
                self.start_enrolling(Enroller::in_charge)?;
                let cni = self.bind_cni(args)?;
                let admin = Server::bind_beside(args.admin, Exposure::Loopback)?;
                return Ok(InCharge { lock, cni, admin });
            }
            Predecessor::Running(running) => running,
        };
        // The predecessor's own connections in the pods, which our programs will see.
        self.kernel.add_agent(running.who.cgroup)?;
        self.start_enrolling(|enroller| enroller)?;
        let (configured, known) = watch::channel(false);
        let configured =
            tokio::task::spawn_local(follow_configuration(self.status.clone(), configured));
        running.until_ready(known, self.awaited.clone()).await?;
        configured.abort();
        running.pause().await?;
        let started = Instant::now();
        let (taken, wait) = oneshot::channel();
        self.enrol.send(Command::TakeCharge(taken));
        wait.await
            .context("the enrolment thread has ended")?
            .map_err(anyhow::Error::msg)?;
        let cni = self.bind_cni(args)?;
        let admin = Server::bind_beside(args.admin, Exposure::Loopback)?;
        let (lock, farewell) = running.drain().await?;
        tracing::info!(took = ?started.elapsed(), "this agent is in charge; its predecessor drains");
        tokio::task::spawn_local(farewell.wait());
        Ok(InCharge { lock, cni, admin })
    }

    fn start_enrolling(&self, prepare: impl FnOnce(Enroller) -> Enroller) -> anyhow::Result<()> {
        let Some(enroller) = self.enroller.take().map(prepare) else {
            return Ok(());
        };
        let thread = std::thread::Builder::new()
            .name("enrol".to_owned())
            .spawn(move || enroller.run())?;
        self.enrolling.replace(Some(thread));
        Ok(())
    }

    fn bind_cni(&self, args: &RunArgs) -> anyhow::Result<UnixListener> {
        cni::bind(&args.cni_socket)
            .with_context(|| format!("--cni-socket {}", args.cni_socket.display()))
    }

    /// Works until SIGTERM, SIGINT or a successor, then drains.
    async fn work(
        self,
        args: RunArgs,
        log: runtime::log::LogHandle,
        post: InCharge,
        mut signals: StopSignals,
    ) -> anyhow::Result<()> {
        let InCharge { lock, cni, admin } = post;
        let readiness = self.readiness.clone();
        tokio::task::spawn_local(follow_readiness(
            self.status.clone(),
            readiness.condition("configuration"),
        ));
        let (stage, mut stages) = watch::channel(Stage::Alone);
        let desk = cni::Desk {
            enrol: self.enrol.clone(),
            stage: stages.clone(),
            path: args.cni_socket.clone(),
        };
        tokio::task::spawn_local(cni::serve(cni, desk.clone()));
        let office = Office {
            own: self.own.clone(),
            kernel: Arc::clone(&self.kernel),
            enrol: self.enrol.clone(),
            direct: self.direct.clone(),
            reporting: self.reporting.clone(),
            patience: args.takeover_timeout,
            restore: Box::new(move || rebind_cni(&desk)),
        };
        let (drained, wait) = oneshot::channel();
        let listener = succession::bind(&args.runtime_dir)
            .with_context(|| format!("--runtime-dir {}", args.runtime_dir.display()))?;
        let succession = tokio::task::spawn_local(succession::serve(listener, office, stage, wait));
        let drain = Drain::new();
        let server = admin
            .with_readiness(readiness)
            .with_metrics(self.metrics.clone())
            .with_log(log);
        let server = admin::pages(
            server,
            &self.shared,
            &self.workers,
            &self.certs,
            &self.enrol,
            &self.direct,
            args.abi_version,
        );
        tokio::task::spawn_local(server.run(drain.signal()));
        tracing::info!(node = args.node, admin = %args.admin, workers = self.workers.len(), abi = args.abi_version, "agent started");

        let cause = until_over(&mut signals, &mut stages, args.takeover_timeout).await;
        tracing::info!(?cause, deadline = ?args.drain_deadline, "agent stops: draining");
        self.enrol.send(Command::Stop);
        self.direct.stop();
        self.reporting.send_replace(false);
        // Whoever is started now need not wait: nothing is written any more but by connections.
        self.join_enroller().await;
        drop(lock);
        if cause == Cause::Succeeded {
            // The pages are the successor's.
            tokio::task::spawn_local(drain.finish(ADMIN_ENDS_WITHIN));
        }
        let sum = tokio::select! {
            sum = self.drain(cause, args.drain_deadline) => sum,
            () = impatient(&mut signals) => self.drain(cause, Duration::ZERO).await,
        };
        tracing::info!(
            finished = sum.finished,
            cut = sum.cut,
            "agent drained; captured pods stay captured"
        );
        self.stop.send_replace(true);
        if let Some(subscription) = self.subscription.take() {
            subscription.await?;
        }
        if cause == Cause::Succeeded && drained.send(sum).is_ok() {
            drop(tokio::time::timeout(ADMIN_ENDS_WITHIN, succession).await);
        }
        Ok(())
    }

    async fn join_enroller(&self) {
        let Some(thread) = self.enrolling.take() else {
            return;
        };
        let joined = tokio::task::spawn_blocking(move || thread.join().is_ok()).await;
        if !joined.unwrap_or(false) {
            tracing::error!("the enrolment thread had panicked");
        }
    }

    async fn drain(&self, cause: Cause, within: Duration) -> Drained {
        let deadline = Instant::now() + within;
        let mut sum = Drained::default();
        let draining: Vec<_> = self
            .workers
            .iter()
            .cloned()
            .map(|worker| {
                tokio::task::spawn_local(async move { worker.drain(cause, deadline).await })
            })
            .collect();
        for worker in draining {
            sum += worker.await.unwrap_or_default();
        }
        sum
    }
}

/// What an agent in charge holds.
struct InCharge {
    lock: Lock,
    cni: UnixListener,
    admin: Server,
}

/// Waits for the reason to end. While a successor gets ready it is waited for: its start is usually
/// why this agent is asked to stop.
async fn until_over(
    signals: &mut StopSignals,
    stages: &mut watch::Receiver<Stage>,
    patience: Duration,
) -> Cause {
    let succeeded = |stage: &Stage| *stage == Stage::Succeeded;
    tokio::select! {
        reason = signals.next() => tracing::info!(%reason, "asked to stop"),
        _ = stages.wait_for(succeeded) => return Cause::Succeeded,
    }
    let over = |stage: &Stage| matches!(stage, Stage::Succeeded | Stage::Alone);
    let waited = tokio::select! {
        waited = tokio::time::timeout(patience, stages.wait_for(over)) => waited,
        _again = signals.next() => return Cause::Stopped,
    };
    match waited {
        Ok(Ok(stage)) if succeeded(&stage) => Cause::Succeeded,
        _ => Cause::Stopped,
    }
}

/// A second signal while draining means now; the first that comes after a succession only says what
/// is known already.
async fn impatient(signals: &mut StopSignals) {
    signals.next().await;
    tracing::info!("asked to stop while draining: once more ends what is open");
    signals.next().await;
}

fn rebind_cni(desk: &cni::Desk) {
    match cni::bind(&desk.path) {
        Ok(listener) => drop(tokio::task::spawn_local(cni::serve(listener, desk.clone()))),
        Err(error) => {
            tracing::error!(%error, path = %desk.path.display(), "cannot listen for the CNI again");
        }
    }
}

fn certificates(controller: &Controller, runtime_dir: &Path) -> anyhow::Result<SvidStore> {
    let source = CaClient::new(controller.clone(), CERTIFICATE_TTL);
    let keys = PrivateDir::open(runtime_dir.join("keys")).context("--runtime-dir")?;
    Ok(
        SvidStore::builder(Arc::new(source), RotationPolicy::default())
            .directory(keys)
            .build(),
    )
}

fn worker_count(args: &RunArgs) -> usize {
    match args.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        count => count,
    }
}

fn place(args: &RunArgs, workers: usize) -> anyhow::Result<Place> {
    Ok(Place {
        bpf_dir: args.bpf_dir.clone(),
        version: args.abi_version,
        cgroup_root: args.cgroup_root.clone(),
        kubelet_cgroup: args.kubelet_cgroup.clone(),
        sizes: MapSizes {
            pods: args.max_pods,
            workers: u32::try_from(workers)?,
            listening: args.max_listening_ports,
            service_ports: args.max_service_ports,
            service_slots: args.max_service_slots,
            verdicts: args.max_verdicts,
            flows: args.max_direct_flows,
        },
        config: abi::NodeConfig {
            workers: u32::try_from(workers)?,
            // Until it is known what the mesh says, nothing goes directly.
            flags: 0,
        },
    })
}

fn enrol_config(args: &RunArgs, known: Condition) -> EnrolConfig {
    EnrolConfig {
        runtime_dir: args.runtime_dir.clone(),
        certificate_wait: args.certificate_wait,
        release_wait: args.release_wait,
        drain_deadline: args.drain_deadline,
        audit_interval: args.audit_interval,
        known,
    }
}

fn client_config(args: &RunArgs, controller: Controller) -> xds_client::Config {
    let node = NodeInfo {
        node: args.node.clone(),
        ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        pod: format!("node-agent-{}", args.node),
        namespace: "keelson-system".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        metadata: std::collections::BTreeMap::new(),
    };
    let types = [
        type_url::AUTHORIZATION,
        type_url::ADDRESS,
        type_url::NODE_POD,
    ]
    .map(str::to_owned);
    let mut config = xds_client::Config::new(controller, node, types.to_vec());
    config.backoff.max = RECONNECT_AT_MOST;
    config.snapshot = Some(args.state_dir.join("configuration.snapshot"));
    config
}

struct ToMesh(Writer);

impl Handler for ToMesh {
    fn apply(
        &mut self,
        type_url: &str,
        updated: Vec<RawResource>,
        removed: Vec<String>,
    ) -> Vec<Rejection> {
        let resources = updated.iter().map(|resource| Resource {
            name: &resource.name,
            bytes: &resource.bytes,
        });
        let rejected = self.0.apply(type_url, resources, &removed);
        rejected
            .into_iter()
            .map(|(name, reason)| Rejection { name, reason })
            .collect()
    }
}

async fn until(mut stopped: watch::Receiver<bool>) {
    // A sender that is gone means stop as well.
    drop(stopped.wait_for(|stop| *stop).await);
}

/// A pod is captured only after the configuration that says so is on disk: an agent that ends without
/// warning has a successor that knows every captured pod. Where nothing can be kept, the client says so.
async fn follow_wanted(
    mut wanted: watch::Receiver<Arc<crate::enrol::WantedPods>>,
    kept: Flusher,
    enrol: EnrolHandle,
) {
    while wanted.changed().await.is_ok() {
        let pods = Arc::clone(&wanted.borrow_and_update());
        kept.flush().await;
        enrol.send(Command::Wanted(pods));
    }
}

async fn follow_policy(
    mut changes: watch::Receiver<u64>,
    workers: Vec<WorkerHandle>,
    direct: DirectHandle,
) {
    while changes.changed().await.is_ok() {
        let told = *changes.borrow_and_update();
        direct.mesh_changed();
        tokio::time::sleep(REAUTHORIZE_AFTER).await;
        if *changes.borrow_and_update() != told {
            direct.mesh_changed();
        }
        workers.iter().for_each(WorkerHandle::reauthorize);
    }
}

async fn report_captured(
    mut client: NodeClient,
    node: String,
    abi_version: u32,
    mut captured: watch::Receiver<Option<BTreeSet<String>>>,
    mut reporting: watch::Receiver<bool>,
) {
    loop {
        if reporting.wait_for(|reporting| *reporting).await.is_err() {
            return;
        }
        let known = captured.borrow_and_update().clone();
        let Some(known) = known else {
            if captured.changed().await.is_err() {
                return;
            }
            continue;
        };
        let report = NodeReport {
            node: node.clone(),
            captured: known.into_iter().collect(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            abi_version,
        };
        let result = tokio::select! {
            result = client.report(report) => result,
            // A successor speaks for the node.
            _ = reporting.wait_for(|reporting| !*reporting) => continue,
        };
        let wait = match result {
            Ok(()) => REPORT_EVERY,
            Err(error) => {
                tracing::debug!(
                    error = crate::enrol::describe(&error),
                    "cannot tell the controller which pods are captured"
                );
                REPORT_RETRY
            }
        };
        tokio::select! {
            changed = captured.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Tells when there is a configuration to carry connections by: the controller's, or the last good one
/// if the controller is not heard of.
async fn follow_configuration(
    mut status: watch::Receiver<Status>,
    configured: watch::Sender<bool>,
) {
    let all = |status: &Status, which: fn(&xds_client::TypeStatus) -> bool| {
        !status.types.is_empty() && status.types.values().all(which)
    };
    let synced = status.wait_for(|status| all(status, |t| t.synced));
    if !matches!(
        tokio::time::timeout(CONTROLLER_WAIT, synced).await,
        Ok(Ok(_))
    ) && status
        .wait_for(|status| all(status, |t| t.synced || t.restored))
        .await
        .is_err()
    {
        return;
    }
    configured.send_replace(true);
}

async fn follow_readiness(mut status: watch::Receiver<Status>, configuration: Condition) {
    loop {
        let synced = status
            .borrow_and_update()
            .types
            .values()
            .all(|t| t.synced || t.restored);
        configuration.set(synced);
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// Raises the limit of open files as far as it goes; says how many there may be now.
fn raise_descriptor_limit() -> u64 {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| {
        // Root may raise the hard limit too, up to fs.nr_open.
        setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS.max(hard))
            .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))
    });
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    // What every system gives at least, should the kernel not say.
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
}

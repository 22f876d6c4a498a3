//! Wires the agent together: the control thread (configuration, certificates, CNI, admin pages), the
//! enrolment thread and the workers.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use abi::ABI_VERSION;
use anyhow::Context;
use proto::{agent::NodeReport, type_url};
use runtime::{
    admin::{Condition, Exposure, Readiness, Server},
    drain::Drain,
    metrics::Metrics,
    signals::StopSignals,
};
use tls::{RotationPolicy, SvidStore, persist::PrivateDir};
use tokio::{sync::watch, task::LocalSet};
use xds_client::{
    CaClient, Client, Controller, Flusher, Handler, NodeClient, NodeInfo, RawResource, Rejection,
    Status,
};

use crate::{
    admin,
    bpf::{Kernel, MapSizes},
    budget::{self, Budget},
    cgroup, cni,
    config::{LogFormat, RunArgs, SameNode},
    direct::{Direct, DirectHandle},
    enrol::{Command, EnrolConfig, EnrolHandle, Enroller},
    mesh::{Mesh, Resource, Writer},
    metrics::{ConnectionMetrics, EnrolmentMetrics, register_kernel},
    netns,
    record::{Recorder, Refusals},
    worker::{Shared, WorkerHandle},
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
    let metrics = Metrics::new();
    let readiness = Readiness::new();
    let server = Server::bind(args.admin, Exposure::Loopback).await?;
    std::fs::create_dir_all(&args.state_dir)
        .with_context(|| format!("--state-dir {}", args.state_dir.display()))?;
    std::fs::create_dir_all(&args.runtime_dir)
        .with_context(|| format!("--runtime-dir {}", args.runtime_dir.display()))?;
    let controller = Controller::new(&args.controller, &args.controller_ca, &args.token_file);
    let certs = certificates(&controller, &args.runtime_dir)?;
    let cni_listener = cni::bind(&args.cni_socket)
        .with_context(|| format!("--cni-socket {}", args.cni_socket.display()))?;

    let kernel = Arc::new(load_kernel(&args)?);
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
    let workers = start_workers(&args, &kernel, &shared)?;
    let direct = Direct::start(
        Arc::clone(&kernel),
        Arc::clone(&mesh),
        Arc::clone(&shared.recorder),
        Arc::clone(&shared.reached),
        budget,
    )?;
    let (enroller, enrol, captured) = Enroller::new(
        Arc::clone(&kernel),
        workers.clone(),
        Arc::new(certs.clone()),
        enrol_config(&args, readiness.condition("every captured pod is known")),
        EnrolmentMetrics::register(&metrics),
        direct.clone(),
    );
    // Set once, before the first connection can ask for it.
    let _fresh = shared.enrol.set(enrol.clone()).is_ok();
    let enroller = std::thread::Builder::new()
        .name("enrol".to_owned())
        .spawn(move || enroller.run())?;

    let client = Client::new(client_config(&args, controller.clone()));
    let status = client.status();
    let kept = client.flusher();
    let (stop, stopped) = watch::channel(false);
    let subscription = tokio::task::spawn_local(
        client.run(ToMesh(Writer::new(Arc::clone(&mesh))), until(stopped)),
    );
    tokio::task::spawn_local(follow_wanted(mesh.wanted(), kept, enrol.clone()));
    tokio::task::spawn_local(follow_policy(
        mesh.changes(),
        workers.clone(),
        direct.clone(),
    ));
    tokio::task::spawn_local(report_captured(
        NodeClient::new(controller),
        args.node.clone(),
        captured,
    ));
    tokio::task::spawn_local(cni::serve(cni_listener, enrol.clone()));
    tokio::task::spawn_local(follow_readiness(
        status,
        readiness.condition("configuration"),
    ));

    let drain = Drain::new();
    let server = server
        .with_readiness(readiness)
        .with_metrics(metrics)
        .with_log(log);
    let server = admin::pages(server, &shared, &workers, &certs, &enrol, &direct);
    tokio::task::spawn_local(server.run(drain.signal()));
    tracing::info!(node = args.node, admin = %args.admin, workers = workers.len(), abi = ABI_VERSION, "agent started");

    let reason = signals.next().await;
    tracing::info!(?reason, deadline = ?args.drain_deadline, "agent stops: draining");
    enrol.send(Command::Stop);
    direct.stop();
    let deadline = Instant::now() + args.drain_deadline;
    let mut draining = Vec::new();
    for worker in workers {
        draining.push(tokio::task::spawn_local(async move {
            worker.drain(deadline).await
        }));
    }
    for worker in draining {
        worker.await?;
    }
    stop.send_replace(true);
    subscription.await?;
    if enroller.join().is_err() {
        tracing::error!("the enrolment thread had panicked");
    }
    tracing::info!("agent stopped; captured pods stay captured");
    Ok(())
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

fn load_kernel(args: &RunArgs) -> anyhow::Result<Kernel> {
    let sizes = MapSizes {
        pods: args.max_pods,
        workers: u32::try_from(worker_count(args))?,
        listening: args.max_listening_ports,
        service_ports: args.max_service_ports,
        service_slots: args.max_service_slots,
        verdicts: args.max_verdicts,
        flows: args.max_direct_flows,
    };
    let kernel = Kernel::load(
        &args.bpf_dir,
        &args.cgroup_root,
        args.kubelet_cgroup.as_deref(),
        sizes,
    )?;
    kernel.add_agent(cgroup::own_id(&args.cgroup_root)?)?;
    Ok(kernel)
}

fn worker_count(args: &RunArgs) -> usize {
    match args.workers {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        count => count,
    }
}

fn start_workers(
    args: &RunArgs,
    kernel: &Kernel,
    shared: &Arc<Shared>,
) -> anyhow::Result<Vec<WorkerHandle>> {
    let count = worker_count(args);
    let workers = (0..count)
        .map(|index| WorkerHandle::start(index, Arc::clone(shared)))
        .collect::<Result<Vec<_>, _>>()?;
    kernel.configure(u32::try_from(count)?, args.same_node == SameNode::Direct)?;
    Ok(workers)
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
    mut captured: watch::Receiver<Option<BTreeSet<String>>>,
) {
    loop {
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
            abi_version: ABI_VERSION,
        };
        let wait = match client.report(report).await {
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

//! Wires the agent together: the control thread (configuration, certificates, CNI, admin pages), the
//! enrolment thread and the workers.

pub mod admin;
pub mod cleanup;
pub mod cni;
pub mod config;
mod explain;
mod follow;
mod known;
mod leave;
pub mod plugin;
pub mod presence;
mod setup;
mod unservable;

use std::{
    cell::RefCell,
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use runtime::{
    admin::{Exposure, Readiness, Server},
    drain::Drain,
    metrics::Metrics,
    signals::{Stop, StopSignals},
    threads,
};
use tls::SvidStore;
use tokio::{
    net::UnixListener,
    sync::{oneshot, watch},
    task::LocalSet,
};
use xds_client::{Client, Controller, NodeClient, Status};

use crate::{
    bpf::{Kernel, check_log},
    carry::{
        hold, lobby,
        worker::{Cause, Drained, Shared, WorkerHandle},
    },
    direct::{Direct, DirectHandle},
    enrol::{Awaited, Command, EnrolHandle, Enroller, Parts},
    host::{cgroup, netns, pod_net},
    mesh::{Mesh, Writer, native::Native},
    pod::{
        budget::{self, Budget},
        translation::{Translations, Walks},
    },
    succession::{self, Incumbent, Lock, Predecessor, Stage, Who},
    telemetry::{
        metrics::{ConnectionMetrics, EnrolmentMetrics, count_stalls, register_kernel, stalls},
        ration::Rations,
        record::{Recorder, Refusals},
    },
};
use config::{Framing, LogFormat, Records, RunArgs};
use follow::{
    ToMesh, follow_configuration, follow_policy, follow_readiness, follow_wanted, report_captured,
    until,
};
use plugin::Plugin;
use presence::Witness;
use setup::{
    certificates, client_config, enrol_config, place, raise_descriptor_limit, worker_count,
};
use unservable::Unservable;

/// Answers that are being given when an agent ends may take this long.
const ADMIN_ENDS_WITHIN: Duration = Duration::from_secs(2);

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
    check_log(args.ebpf_log)?;
    netns::remember_home().context("/proc must be mounted")?;
    pod_net::write_settings_in(args.net_settings.clone());
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
    if let Err(reason) = unservable::look() {
        return unservable::stay(&args, log, signals, reason).await;
    }
    std::fs::create_dir_all(&args.state_dir)
        .with_context(|| format!("--state-dir {}", args.state_dir.display()))?;
    std::fs::create_dir_all(&args.runtime_dir)
        .with_context(|| format!("--runtime-dir {}", args.runtime_dir.display()))?;
    let cgroup = match cgroup::enter_own(&args.cgroup_root) {
        Ok(cgroup) => cgroup,
        Err(error) => {
            let reason = Unservable(error.to_string());
            return unservable::stay(&args, log, signals, reason).await;
        }
    };
    let mut own = Who::new(args.abi_version, cgroup, args.instance.clone());
    let predecessor = tokio::select! {
        predecessor = succession::apply(&args.runtime_dir, &own, args.takeover_timeout) => predecessor?,
        reason = signals.next() => return not_in_charge(reason),
    };
    if let Predecessor::Running(running) = &predecessor {
        own.beats = running.who.beats.wrapping_add(1);
    }
    let is_alone = matches!(predecessor, Predecessor::Nobody(_));
    let prepared = match Prepared::assemble(&args, own, descriptors) {
        Ok(prepared) => prepared,
        Err(error) => match error.downcast::<Unservable>() {
            Ok(reason) if is_alone => {
                // Who comes next is to find nobody in charge.
                drop(predecessor);
                return unservable::stay(&args, log, signals, reason).await;
            }
            Ok(reason) => return Err(reason.into()),
            Err(error) => return Err(error),
        },
    };
    let taken = tokio::select! {
        taken = prepared.take_charge(&args, predecessor) => taken,
        reason = signals.next() => return not_in_charge(reason),
    };
    let lock = taken.context("cannot take charge")?;
    prepared.work(args, log, lock, signals).await
}

fn not_in_charge(reason: Stop) -> anyhow::Result<()> {
    tracing::info!(%reason, "stopped before this agent was in charge; nothing has changed");
    Ok(())
}

/// Everything that works in an agent, in charge or not.
struct Prepared {
    own: Who,
    metrics: Metrics,
    readiness: Readiness,
    certs: SvidStore,
    kernel: Arc<Kernel>,
    shared: Arc<Shared>,
    workers: Vec<WorkerHandle>,
    direct: DirectHandle,
    native: Arc<Native>,
    enrol: EnrolHandle,
    enroller: RefCell<Option<Enroller>>,
    enrolling: RefCell<Option<std::thread::JoinHandle<()>>>,
    awaited: watch::Receiver<Awaited>,
    status: watch::Receiver<Status>,
    reporting: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    subscription: RefCell<Option<tokio::task::JoinHandle<()>>>,
    following: tokio::task::JoinHandle<()>,
}

impl Prepared {
    /// Makes everything that can be there before an agent is in charge. Writes nothing that another
    /// agent would notice.
    fn assemble(args: &RunArgs, own: Who, descriptors: u64) -> anyhow::Result<Self> {
        let metrics = Metrics::new();
        let readiness = Readiness::new();
        let controller = Controller::new(&args.controller, &args.controller_ca, &args.token_file);
        let certs = certificates(&controller, &args.runtime_dir)?;
        let workers = worker_count(args);
        let kernel = Kernel::load(place(args, workers, own.beats))
            .map_err(|error| Unservable(format!("{:#}", anyhow::Error::from(error))))?;
        let kernel = Arc::new(kernel);
        kernel.add_agent(own.cgroup)?;
        register_kernel(&metrics, Arc::clone(&kernel));
        tokio::task::spawn_local(count_stalls(stalls(&metrics)));
        let mesh = Arc::new(Mesh::default());
        let native = Arc::new(Native::new(Arc::clone(&kernel), Arc::clone(&mesh)));
        let limits = budget::Limits {
            total: args.max_connections,
            per_pod: args.max_connections_per_pod,
        };
        let budget = Arc::new(Budget::new(limits, descriptors));
        budget::register(&metrics, Arc::clone(&budget));
        let shared = Arc::new(Shared {
            mesh: Arc::clone(&mesh),
            reached: Arc::default(),
            kernel: Arc::clone(&kernel),
            translations: Translations::default(),
            walks: Walks::default(),
            recorder: Arc::new(Recorder {
                metrics: ConnectionMetrics::register(&metrics),
                refusals: Refusals::default(),
                rations: Rations::default(),
            }),
            budget: Arc::clone(&budget),
            lobby: lobby::Bounds::new(descriptors, workers),
            tunnel: tunnel::Settings {
                thin: args.tunnel_framing == Framing::Thin,
                records: match args.tunnel_records {
                    Records::Rustls => tunnel::settings::RecordLayer::Rustls,
                    Records::Own => tunnel::settings::RecordLayer::Own,
                },
                max_age: args.tunnel_max_age,
                ..tunnel::Settings::default()
            },
            busy_poll: args.busy_poll,
            connect_timeout: args.connect_timeout,
            held: Arc::clone(kernel.held()),
            heartbeat: Arc::clone(kernel.heartbeat()),
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
            Arc::clone(&native),
            budget,
            args.same_node,
        )?;
        let (enroller, ends) = Enroller::new(Parts {
            kernel: Arc::clone(&kernel),
            mesh: Arc::clone(&mesh),
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
        let writer = Writer::new(Arc::clone(&mesh)).telling(Arc::clone(&native));
        let to_mesh = ToMesh(writer);
        let subscription = vital("configuration", client.run(to_mesh, until(stopped)));
        let following = vital(
            "wanted",
            follow_wanted(mesh.wanted(), kept, ends.handle.clone()),
        );
        vital(
            "policy",
            follow_policy(mesh.changes(), workers.clone(), direct.clone()),
        );
        let (reporting, reports) = watch::channel(true);
        let (namespaces, told) = watch::channel(None);
        let report = report_captured(
            NodeClient::new(controller),
            args.node.clone(),
            args.abi_version,
            ends.captured,
            reports,
            status.clone(),
            namespaces,
        );
        vital("report", report);
        vital(
            "memory",
            known::keep(args.state_dir.clone(), told, mesh.wanted()),
        );
        Ok(Self {
            own,
            metrics,
            readiness,
            certs,
            kernel,
            shared,
            workers,
            direct,
            native,
            enrol: ends.handle,
            enroller: RefCell::new(Some(enroller)),
            enrolling: RefCell::default(),
            awaited: ends.awaited,
            status,
            reporting,
            stop,
            subscription: RefCell::new(Some(subscription)),
            following,
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
                hold::receive(self.kernel.held(), &self.workers);
                self.kernel.attach()?;
                self.kernel.forget_gone_agents();
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
        let thread = threads::spawn("enrol", move || enroller.run())?;
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
        let configured = readiness.condition("configuration");
        vital(
            "readiness",
            follow_readiness(self.status.clone(), configured),
        );
        let (stage, mut stages) = watch::channel(Stage::Alone);
        let service = cni::CniService {
            enrol: self.enrol.clone(),
            stage: stages.clone(),
            path: args.cni_socket.clone(),
        };
        vital("cni", cni::serve(cni, service.clone()));
        let incumbent = Incumbent {
            own: self.own.clone(),
            kernel: Arc::clone(&self.kernel),
            enrol: self.enrol.clone(),
            direct: self.direct.clone(),
            reporting: self.reporting.clone(),
            patience: args.takeover_timeout,
            restore: Box::new(move || rebind_cni(&service)),
        };
        let (drained, wait) = oneshot::channel();
        let listener = succession::bind(&args.runtime_dir)
            .with_context(|| format!("--runtime-dir {}", args.runtime_dir.display()))?;
        let served = succession::serve(listener, incumbent, stage, wait);
        let succession = vital("succession", served);
        let drain = Drain::new();
        let server = admin
            .with_readiness(readiness)
            .with_metrics(self.metrics.clone())
            .with_log(log);
        let sources = admin::Sources {
            node: args.node.clone(),
            abi_version: args.abi_version,
            shared: Arc::clone(&self.shared),
            workers: self.workers.clone().into(),
            certs: self.certs.clone(),
            enrol: self.enrol.clone(),
            direct: self.direct.clone(),
            status: self.status.clone(),
        };
        let server = admin::pages(server, &Arc::new(sources));
        vital("admin", server.run(drain.signal()));
        tracing::info!(node = args.node, admin = %args.admin, workers = self.workers.len(), abi = args.abi_version, "agent started");
        let plugin = Plugin::of(&args).map(Plugin::keep).transpose();
        let plugin = plugin.context("cannot keep the CNI plugin installed")?;

        let witness = Arc::<Witness>::default();
        if let Some(account) = args.presence_account.clone() {
            vital(
                "witness",
                leave::keep_witness(Arc::clone(&witness), account),
            );
        }

        let cause = until_over(&mut signals, &mut stages, args.takeover_timeout).await;
        let removed =
            cause == Cause::Stopped && leave::is_removed(&args, &witness, &mut signals).await;
        if removed {
            self.let_go(plugin, &args).await;
        } else {
            drop(plugin);
        }
        tracing::info!(?cause, deadline = ?args.drain_deadline, "agent stops: draining");
        self.enrol.send(Command::Stop);
        self.direct.stop();
        self.native.pause();
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
            removed,
            "agent drained; captured pods stay captured unless the agent has been removed"
        );
        self.stop.send_replace(true);
        if let Some(subscription) = self.subscription.take() {
            subscription.await?;
        }
        if cause == Cause::Succeeded && drained.send(sum).is_ok() {
            drop(tokio::time::timeout(ADMIN_ENDS_WITHIN, succession).await);
        }
        if removed {
            leave::sweep(&args)?;
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

/// Runs a task of the control thread whose end by a panic ends the agent.
fn vital<F: Future + 'static>(name: &'static str, body: F) -> tokio::task::JoinHandle<F::Output> {
    tokio::task::spawn_local(threads::task(name, body))
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

fn rebind_cni(service: &cni::CniService) {
    match cni::bind(&service.path) {
        Ok(listener) => drop(vital("cni", cni::serve(listener, service.clone()))),
        Err(error) => {
            tracing::error!(%error, path = %service.path.display(), "cannot listen for the CNI again");
        }
    }
}

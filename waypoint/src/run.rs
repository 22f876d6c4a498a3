//! Wires the program together from its command line.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use proto::convert;
use runtime::admin::{Condition, Exposure, Readiness, Server};
use runtime::drain::Drain;
use runtime::metrics::Metrics;
use runtime::signals::StopSignals;
use tokio::sync::{oneshot, watch};
use xds_client::{Client, Controller, NodeInfo, Status};

use crate::feed::Feed;
use crate::memory::Changes;
use crate::options::Options;
use crate::program::{Core, Serving};
use crate::trace::{self, MayTrace, Tracer};
use crate::worker::Limits;
use crate::{admin, names, quota};

/// Runs until it is asked to stop.
///
/// # Errors
/// Why it cannot.
pub fn run(options: Options) -> anyhow::Result<()> {
    let log = runtime::log::init(options.log_format, &options.log).context("--log")?;
    let descriptors = runtime::descriptors::raise(DESCRIPTORS);
    tracing::debug!(descriptors, "files that may be open");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the control thread's runtime")?;
    runtime.block_on(control(options, log))
}

async fn control(options: Options, log: runtime::log::LogHandle) -> anyhow::Result<()> {
    let mut signals = StopSignals::listen()?;
    let metrics = Metrics::new();
    let pod = format!("{}/{}", namespace(&options)?, options.pod);
    let tracer = tracer(&options, &pod, &metrics)?;
    let core = Core::new(&pod, &metrics);
    let core = match &tracer {
        Some(tracer) => core.traced_by(Arc::clone(tracer)),
        None => core,
    };
    let client = Client::new(client_config(&options)?);
    let readiness = Readiness::new();
    let configured = readiness.condition("configuration");
    let taking = readiness.condition("not stopping");
    taking.set(true);
    let mut status = client.status();
    tokio::spawn(follow(client.status(), configured));
    let own = (namespace(&options)?.into(), options.pod.as_str().into());
    let changes = Changes::default();
    let feed = Feed::new(Arc::clone(&core.newest), own, changes.clone());
    let (stop, stopped) = oneshot::channel::<()>();
    match names::resolver(&options.dns_server) {
        Ok(resolver) => drop(tokio::spawn(feed.clone().look_up(resolver))),
        // Most waypoints have no endpoint with a name.
        Err(error) => tracing::warn!(%error, "no name can be looked up"),
    }
    let subscription = tokio::spawn(client.run(feed.clone(), async {
        drop(stopped.await);
    }));
    let exposure = if options.admin.ip().is_loopback() {
        Exposure::Loopback
    } else {
        Exposure::AnyAddress
    };
    let server = Server::bind(options.admin, exposure)
        .await
        .context("--admin")?
        .with_readiness(readiness)
        .with_metrics(metrics.clone())
        .with_log(log);
    let pages = Drain::new();
    let server = admin::pages(server, &core, feed.clone());
    tokio::spawn(server.run(pages.signal()));
    // Before that it would know of nothing, and answer 404.
    tokio::select! {
        known = status.wait_for(is_known) => drop(known.context("the configuration has ended")?),
        signal = signals.next() => {
            tracing::info!(%signal, "asked to stop before there was a configuration");
            return Ok(());
        }
    }
    let workers = match options.workers {
        0 => quota::workers(),
        count => count,
    };
    let limits = Limits {
        head_timeout: options.head_timeout,
        idle_timeout: options.idle_timeout,
        stream_idle: options.stream_idle_timeout,
        detect_timeout: options.detect_timeout,
        http2_age: options.http2_age,
        replay_bytes: options.replay_bytes,
        busy_poll: options.busy_poll,
        ..Limits::default()
    };
    let telemetry = Arc::clone(&core.telemetry);
    let serving = Serving::start(options.listen, workers, core, limits)
        .with_context(|| format!("--listen {}", options.listen))?;
    tracing::info!(gateway = options.gateway, listen = %serving.address(), workers, "waypoint started");
    let connections = telemetry.connections.clone();
    tokio::spawn(changes.keep_small(move || connections.get()));
    let signal = signals.next().await;
    tracing::info!(%signal, deadline = ?options.drain_deadline, "asked to stop: draining");
    taking.set(false);
    let end = tokio::select! {
        end = serving.finish(options.drain_deadline) => Some(end),
        _again = signals.next() => None,
    };
    tracing::info!(?end, "drained");
    let _ended = stop.send(());
    drop(tokio::time::timeout(Duration::from_secs(2), subscription).await);
    if let Some(tracer) = tracer {
        // Connections to the collector are driven by this thread, so another one has to wait.
        drop(tokio::task::spawn_blocking(move || tracer.finish()).await);
    }
    Ok(())
}

/// A connection of a client takes one, and one to an endpoint another. What starts a container often leaves it 1,024.
const DESCRIPTORS: u64 = 1 << 20;

/// Who makes spans, if that is wanted.
fn tracer(options: &Options, pod: &str, metrics: &Metrics) -> anyhow::Result<MayTrace> {
    let Some(endpoint) = &options.trace_endpoint else {
        return Ok(None);
    };
    let (namespace, name) = options.gateway.split_once('/').unwrap_or_default();
    let settings = trace::Settings {
        endpoint: endpoint.clone(),
        percent: options.trace_percent,
        service: format!("{name}.{namespace}"),
        pod: pod.to_owned(),
    };
    let tracer = Tracer::new(&settings, metrics).context("--trace-endpoint")?;
    Ok(Some(Arc::new(tracer)))
}

fn namespace(options: &Options) -> anyhow::Result<&str> {
    let (namespace, _name) = options
        .gateway
        .split_once('/')
        .context("--gateway is written NAMESPACE/NAME")?;
    Ok(namespace)
}

fn client_config(options: &Options) -> anyhow::Result<xds_client::Config> {
    let controller = Controller::new(
        options.controller.clone(),
        options.controller_ca.clone(),
        options.token_file.clone(),
    );
    let node = NodeInfo {
        node: options.node.clone(),
        ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        pod: options.pod.clone(),
        namespace: namespace(options)?.to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        metadata: [("GATEWAY".to_owned(), options.gateway.clone())].into(),
    };
    let types = convert::l7::TYPES.map(str::to_owned).to_vec();
    let mut config = xds_client::Config::new(controller, node, types);
    config.backoff.max = Duration::from_secs(5);
    config.snapshot = options
        .state_dir
        .as_ref()
        .map(|directory| directory.join("configuration.snapshot"));
    Ok(config)
}

fn is_known(status: &Status) -> bool {
    !status.types.is_empty() && status.types.values().all(|one| one.synced || one.restored)
}

async fn follow(mut status: watch::Receiver<Status>, configured: Condition) {
    loop {
        configured.set(is_known(&status.borrow_and_update()));
        if status.changed().await.is_err() {
            return;
        }
    }
}

//! Many agents' subscriptions in one process: each follows delta ADS like an agent, acknowledges, and
//! forgets what it was sent.

mod captured;

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bench::scale::outcome::{Pushed, Report};
use bench::scale::{loopback_bytes, manifests};
use bench::statistics::Spread;
use proto::envoy::core::Node;
use proto::envoy::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use proto::envoy::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use proto::type_url;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::UnboundedReceiverStream;
use xds_client::{Controller, NodeInfo};

/// What to do.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The controller, as `https://HOST:PORT`.
    pub(crate) controller: String,
    /// The root of its certificate.
    pub(crate) controller_ca: PathBuf,
    /// The name in its certificate, if it is another than its host.
    pub(crate) server_name: Option<String>,
    /// Lines `<token> <node>`, the first of which is left alone.
    pub(crate) tokens: PathBuf,
    /// What the nodes report as captured.
    pub(crate) captured: Option<PathBuf>,
    /// The manifest to change; if there is none, others change until standard input ends.
    pub(crate) change: Option<PathBuf>,
    /// How many subscribe.
    pub(crate) subscribers: usize,
    /// How many changes.
    pub(crate) changes: usize,
    /// How many addresses a whole snapshot has.
    pub(crate) addresses: usize,
}

/// What a subscriber tells.
#[derive(Debug)]
enum Event {
    /// It has everything.
    Complete,
    /// It has acknowledged the changed pod.
    Acked(Instant),
    /// Its stream ended.
    Ended(anyhow::Error),
}

/// What came since everybody had everything.
#[derive(Debug, Default)]
struct Counters {
    responses: AtomicU64,
    addresses: AtomicU64,
}

/// Subscribes, changes, waits; tells `print` what came out, a line of JSON: a [`Report`], and where others change, first that
/// and then [`Pushed`].
///
/// # Errors
/// The controller ended a stream, or did not send what was expected in time.
pub(crate) async fn run(plan: &Plan, mut print: impl FnMut(String) -> Result<()>) -> Result<()> {
    let tokens = fs::read_to_string(&plan.tokens).context("the tokens")?;
    let nodes: Vec<(&str, &str)> = tokens
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(' '))
        .take(plan.subscribers)
        .collect();
    let (tell, mut told) = mpsc::unbounded_channel();
    let counters = Arc::new(Counters::default());
    let mut report = Report::default();

    let wire = loopback_bytes(Path::new(WIRE));
    let start = Instant::now();
    let mut rest = nodes.iter();
    let first = rest.next().context("at least one subscriber")?;
    subscribe(plan, first, &tell, &counters)?;
    complete(&mut told, 1).await?;
    report.first_snapshot_seconds = start.elapsed().as_secs_f64();
    report.snapshot_bytes = loopback_bytes(Path::new(WIRE)).saturating_sub(wire);

    let start = Instant::now();
    for node in rest {
        subscribe(plan, node, &tell, &counters)?;
    }
    complete(&mut told, nodes.len() - 1).await?;
    report.all_snapshots_seconds = start.elapsed().as_secs_f64();
    if let Some(captured) = &plan.captured {
        let nodes = nodes.iter().map(|(_, node)| *node);
        captured::report(plan, captured, nodes).await?;
    }

    // What comes late belongs to no change.
    tokio::time::sleep(PAUSE * 5).await;
    while told.try_recv().is_ok() {}
    if let Some(changing) = &plan.change {
        change_often(plan, changing, &mut told, nodes.len(), &mut report).await?;
        return print(serde_json::to_string(&report)?);
    }
    print(serde_json::to_string(&report)?)?;
    let before = counters.now();
    wait_for_the_end(&mut told).await?;
    let after = counters.now();
    print(serde_json::to_string(&Pushed {
        responses: after.responses - before.responses,
        addresses: after.addresses - before.addresses,
    })?)
}

impl Counters {
    fn now(&self) -> Pushed {
        Pushed {
            responses: self.responses.load(Ordering::Relaxed),
            addresses: self.addresses.load(Ordering::Relaxed),
        }
    }
}

/// Until standard input ends, unless a stream ends before.
async fn wait_for_the_end(told: &mut mpsc::UnboundedReceiver<Event>) -> Result<()> {
    let (tell, mut ended) = oneshot::channel();
    // A thread that nobody waits for: a stream that ends first ends the program.
    std::thread::spawn(move || {
        let read = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        // Who would hear it has ended with a stream.
        drop(tell.send(read));
    });
    loop {
        tokio::select! {
            read = &mut ended => return Ok(read?.map(drop)?),
            event = told.recv() => match event.context("all subscribers have ended")? {
                Event::Ended(error) => return Err(error),
                Event::Complete | Event::Acked(_) => {}
            },
        }
    }
}

/// Changes the pod again and again, and takes the times down.
async fn change_often(
    plan: &Plan,
    changing: &Path,
    told: &mut mpsc::UnboundedReceiver<Event>,
    subscribers: usize,
    report: &mut Report,
) -> Result<()> {
    let wire = loopback_bytes(Path::new(WIRE));
    let (mut whole, mut spread) = (Vec::new(), Vec::new());
    for version in 1..=plan.changes {
        let (first, last) = change(changing, version, told, subscribers).await?;
        whole.push(last);
        spread.push(last - first);
        tokio::time::sleep(PAUSE).await;
    }
    let bytes = loopback_bytes(Path::new(WIRE)).saturating_sub(wire);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let per_change = bytes as f64 / plan.changes.max(1) as f64;
    report.change_bytes = per_change;
    report.changes = whole.len();
    report.fan_out_p50 = Spread::of(spread).map_or(0.0, |spread| spread.median);
    report.change_p50 = Spread::of(whole.iter().copied()).map_or(0.0, |spread| spread.median);
    report.change_max = whole.iter().copied().fold(0.0, f64::max);
    whole.sort_by(f64::total_cmp);
    let rank = (whole.len() * 99).div_ceil(100).saturating_sub(1);
    report.change_p99 = whole.get(rank).copied().unwrap_or_default();
    Ok(())
}

/// Changes the pod and returns when the first and the last subscriber had acknowledged, in
/// milliseconds.
async fn change(
    changing: &Path,
    version: usize,
    told: &mut mpsc::UnboundedReceiver<Event>,
    subscribers: usize,
) -> Result<(f64, f64)> {
    let unfinished = changing.with_extension("new");
    fs::write(&unfinished, manifests::changing(version))?;
    let start = Instant::now();
    fs::rename(&unfinished, changing)?;
    let (mut first, mut last) = (f64::INFINITY, 0.0_f64);
    for _ in 0..subscribers {
        match next(told, CHANGE_PATIENCE)
            .await
            .with_context(|| format!("change {version}"))?
        {
            Event::Acked(at) => {
                let millis = at.saturating_duration_since(start).as_secs_f64() * 1e3;
                first = first.min(millis);
                last = last.max(millis);
            }
            Event::Complete => bail!("a subscriber began anew"),
            Event::Ended(error) => return Err(error),
        }
    }
    Ok((first, last))
}

async fn complete(told: &mut mpsc::UnboundedReceiver<Event>, count: usize) -> Result<()> {
    let mut done = 0;
    while done < count {
        match next(told, SNAPSHOT_PATIENCE)
            .await
            .context("a whole snapshot")?
        {
            Event::Complete => done += 1,
            Event::Acked(_) => {}
            Event::Ended(error) => return Err(error),
        }
    }
    Ok(())
}

async fn next(told: &mut mpsc::UnboundedReceiver<Event>, patience: Duration) -> Result<Event> {
    let event = tokio::time::timeout(patience, told.recv()).await;
    event
        .with_context(|| format!("nothing came for {patience:?}"))?
        .context("all subscribers have ended")
}

/// How a node asks the controller; its token has a file by now.
fn controller(plan: &Plan, node: &str) -> Controller {
    let token = plan.tokens.with_file_name(format!("token-{node}"));
    let mut controller = Controller::new(&*plan.controller, &plan.controller_ca, token);
    controller.server_name.clone_from(&plan.server_name);
    controller
}

fn subscribe(
    plan: &Plan,
    (token, node): &(&str, &str),
    tell: &mpsc::UnboundedSender<Event>,
    counters: &Arc<Counters>,
) -> Result<()> {
    let controller = controller(plan, node);
    fs::write(&controller.token, token)?;
    let info = NodeInfo {
        node: (*node).to_owned(),
        ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        pod: (*node).to_owned(),
        namespace: "keelson-system".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        metadata: std::collections::BTreeMap::new(),
    };
    let (addresses, tell, counters) = (plan.addresses, tell.clone(), Arc::clone(counters));
    tokio::spawn(async move {
        let ended = follow(&controller, &info, addresses, &tell, &counters).await;
        let error = ended
            .err()
            .unwrap_or_else(|| anyhow::anyhow!("the controller closed the stream"));
        // The listener has gone when all is over.
        let _over = tell.send(Event::Ended(
            error.context(format!("the subscriber {}", info.node)),
        ));
    });
    Ok(())
}

async fn follow(
    controller: &Controller,
    info: &NodeInfo,
    expected: usize,
    tell: &mpsc::UnboundedSender<Event>,
    counters: &Counters,
) -> Result<()> {
    let channel = controller.connect().await?;
    let mut client =
        AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(1 << 30);
    let (requests, outgoing) = mpsc::unbounded_channel();
    for type_url in [
        type_url::ADDRESS,
        type_url::AUTHORIZATION,
        type_url::NODE_POD,
    ] {
        requests.send(DeltaDiscoveryRequest {
            node: Some(Node {
                id: info.id(),
                ..Node::default()
            }),
            type_url: type_url.to_owned(),
            ..DeltaDiscoveryRequest::default()
        })?;
    }
    let request = controller.authorize(UnboundedReceiverStream::new(outgoing))?;
    let mut responses = client
        .delta_aggregated_resources(request)
        .await?
        .into_inner();
    let (mut addresses, mut whole) = (0, false);
    while let Some(response) = responses.message().await? {
        let DeltaDiscoveryResponse {
            type_url,
            nonce,
            resources,
            ..
        } = response;
        let is_address = type_url == type_url::ADDRESS;
        requests.send(DeltaDiscoveryRequest {
            type_url,
            response_nonce: nonce,
            ..DeltaDiscoveryRequest::default()
        })?;
        counters.responses.fetch_add(1, Ordering::Relaxed);
        if !is_address {
            continue;
        }
        addresses += resources.len();
        let more = u64::try_from(resources.len())?;
        counters.addresses.fetch_add(more, Ordering::Relaxed);
        if !whole && addresses >= expected {
            whole = true;
            tell.send(Event::Complete)?;
        } else if resources
            .iter()
            .any(|one| one.name.ends_with(manifests::CHANGING_POD))
        {
            tell.send(Event::Acked(Instant::now()))?;
        }
    }
    Ok(())
}

/// The counters of this process's network namespace.
const WIRE: &str = "/proc/self/net/dev";
const PAUSE: Duration = Duration::from_millis(100);
const CHANGE_PATIENCE: Duration = Duration::from_secs(60);
const SNAPSHOT_PATIENCE: Duration = Duration::from_secs(300);

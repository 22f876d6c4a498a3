//! Many agents' subscriptions in one process: each follows delta ADS like an agent, acknowledges, and
//! forgets what it was sent.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use bench::scale::outcome::Report;
use bench::scale::{loopback_bytes, manifests};
use bench::statistics::Spread;
use proto::envoy::core::Node;
use proto::envoy::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use proto::envoy::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use proto::type_url;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use xds_client::{Controller, NodeInfo};

/// What to do.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The controller, as `https://HOST:PORT`.
    pub(crate) controller: String,
    /// The root of its certificate.
    pub(crate) controller_ca: PathBuf,
    /// Lines `<token> <node>`, the first of which is left alone.
    pub(crate) tokens: PathBuf,
    /// The manifest to change.
    pub(crate) change: PathBuf,
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

/// Subscribes, changes, waits.
///
/// # Errors
/// The controller ended a stream, or did not send what was expected in time.
pub(crate) async fn run(plan: &Plan) -> Result<Report> {
    let tokens = fs::read_to_string(&plan.tokens).context("the tokens")?;
    let nodes: Vec<&str> = tokens
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().nth(1))
        .take(plan.subscribers)
        .collect();
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut report = Report::default();

    let wire = loopback_bytes(Path::new(WIRE));
    let start = Instant::now();
    let mut rest = nodes.iter();
    let first = rest.next().context("at least one subscriber")?;
    subscribe(plan, first, &tell)?;
    complete(&mut told, 1).await?;
    report.first_snapshot_seconds = start.elapsed().as_secs_f64();
    report.snapshot_bytes = loopback_bytes(Path::new(WIRE)).saturating_sub(wire);

    let start = Instant::now();
    for node in rest {
        subscribe(plan, node, &tell)?;
    }
    complete(&mut told, nodes.len() - 1).await?;
    report.all_snapshots_seconds = start.elapsed().as_secs_f64();

    // What comes late belongs to no change.
    tokio::time::sleep(PAUSE * 5).await;
    while told.try_recv().is_ok() {}
    let wire = loopback_bytes(Path::new(WIRE));
    let (mut whole, mut spread) = (Vec::new(), Vec::new());
    for version in 1..=plan.changes {
        let (first, last) = change(plan, version, &mut told, nodes.len()).await?;
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
    Ok(report)
}

/// Changes the pod and returns when the first and the last subscriber had acknowledged, in
/// milliseconds.
async fn change(
    plan: &Plan,
    version: usize,
    told: &mut mpsc::UnboundedReceiver<Event>,
    subscribers: usize,
) -> Result<(f64, f64)> {
    let unfinished = plan.change.with_extension("new");
    fs::write(&unfinished, manifests::changing(version))?;
    let start = Instant::now();
    fs::rename(&unfinished, &plan.change)?;
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

fn subscribe(plan: &Plan, node: &str, tell: &mpsc::UnboundedSender<Event>) -> Result<()> {
    let token = plan.tokens.with_file_name(format!("token-{node}"));
    fs::write(&token, manifests::token(node))?;
    let controller = Controller::new(&*plan.controller, &plan.controller_ca, token);
    let info = NodeInfo {
        node: node.to_owned(),
        ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
        pod: node.to_owned(),
        namespace: "keelson-system".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        metadata: std::collections::BTreeMap::new(),
    };
    let (addresses, tell) = (plan.addresses, tell.clone());
    tokio::spawn(async move {
        let ended = follow(&controller, &info, addresses, &tell).await;
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
        if !is_address {
            continue;
        }
        addresses += resources.len();
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

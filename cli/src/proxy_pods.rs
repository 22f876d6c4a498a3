//! `keelson proxy-config listener|route|cluster|endpoint`: what a waypoint or gateway routes by.

use admin_api::{ProxyConfig, ProxyEndpoint, page};
use anyhow::Result;

use crate::output::Answer;
use crate::reach::Mesh;
use crate::table::Table;

/// A pod of a waypoint or a gateway.
#[derive(Debug, clap::Args)]
pub(crate) struct Of {
    /// A pod of a waypoint or a gateway, as NAMESPACE/NAME.
    #[arg(value_name = "NAMESPACE/POD")]
    pod: String,
}

fn read(mesh: &Mesh, of: &Of) -> Result<ProxyConfig> {
    mesh.pod(&of.pod, page::PROXY_CONFIG)?
        .json(&format!("pod {}", of.pod))
}

pub(crate) fn listeners(mesh: &Mesh, of: &Of) -> Result<Answer> {
    let all = read(mesh, of)?.listeners;
    let mut table = Table::new(["PORT", "NAME", "HOST", "TLS", "READS", "HOSTS SERVED"]);
    for one in &all {
        table.row([
            one.port.to_string(),
            one.name.clone(),
            one.host.clone(),
            match (one.tls, one.mutual) {
                (false, _) => "",
                (true, false) => "ends here",
                (true, true) => "ends here, both prove who they are",
            }
            .to_owned(),
            one.reads.clone(),
            one.hosts.join(","),
        ]);
    }
    Answer::good(&all, table.to_string())
}

pub(crate) fn routes(mesh: &Mesh, of: &Of) -> Result<Answer> {
    let all = read(mesh, of)?.routes;
    let mut table = Table::new(["ON", "PORT", "CLIENTS OF", "WHEN", "TO", "OBJECT"]);
    for one in &all {
        table.row([
            one.on.clone(),
            one.port.map(|port| port.to_string()).unwrap_or_default(),
            one.clients.clone().unwrap_or_default(),
            match one.when.is_empty() {
                true => "always".to_owned(),
                false => one.when.join("; or "),
            },
            one.to.join("; "),
            one.object.clone(),
        ]);
    }
    Answer::good(&all, table.to_string())
}

pub(crate) fn clusters(mesh: &Mesh, of: &Of) -> Result<Answer> {
    let all = read(mesh, of)?.clusters;
    let mut table = Table::new(["SERVICE", "PORT", "SUBSET", "ENDPOINTS", "TLS", "OBJECT"]);
    for one in &all {
        let usable = one.endpoints.iter().filter(|one| is_usable(one)).count();
        table.row([
            one.service.clone(),
            one.port.to_string(),
            one.subset.clone().unwrap_or_default(),
            format!("{usable}/{} usable", one.endpoints.len()),
            one.tls.clone().unwrap_or_default(),
            one.object.clone().unwrap_or_default(),
        ]);
    }
    Answer::good(&all, table.to_string())
}

pub(crate) fn endpoints(mesh: &Mesh, of: &Of) -> Result<Answer> {
    let all = read(mesh, of)?.clusters;
    let mut table = Table::new(["CLUSTER", "ENDPOINT", "STATE", "WEIGHT", "WORKLOAD"]);
    for cluster in &all {
        for one in &cluster.endpoints {
            table.row([
                cluster.name.clone(),
                one.address.to_string(),
                match (&one.left_alone, one.ready) {
                    (_, false) => "not ready".to_owned(),
                    (Some((cause, left)), true) => {
                        format!("left alone ({cause}) for {left} ms")
                    }
                    (None, true) => "healthy".to_owned(),
                },
                one.weight.to_string(),
                one.workload.clone(),
            ]);
        }
    }
    Answer::good(&all, table.to_string())
}

fn is_usable(one: &ProxyEndpoint) -> bool {
    one.ready && one.left_alone.is_none()
}

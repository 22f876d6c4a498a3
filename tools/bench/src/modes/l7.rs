//! What the modes with a proxy for requests have in common: where it stands, and the rules that it has. The load takes
//! the last of a proxy's routes, and one policy allows what the load does.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::{Lab, PodSpec};

use crate::load::Load;
use crate::site::{NAMESPACE, Placement, Site, Timing, tune};

/// The two servers, and what belongs to each.
pub(super) const SERVERS: [Server; 2] = [
    Server {
        name: "near",
        app: "server-near",
        service: Ipv4Addr::new(10, 96, 0, 60),
        port: 8081,
    },
    Server {
        name: "far",
        app: "server-far",
        service: Ipv4Addr::new(10, 96, 0, 61),
        port: 8082,
    },
];
/// The port of the services.
pub(super) const SERVICE_PORT: u16 = 80;
/// The node of the client and of the proxy.
pub(super) const NODE: &str = "n1";

/// One of the servers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Server {
    /// Its service's name.
    pub(super) name: &'static str,
    /// Its pod's label `app`.
    pub(super) app: &'static str,
    /// Its service's address.
    pub(super) service: Ipv4Addr,
    /// The port of a proxy without a mesh that leads to it.
    pub(super) port: u16,
}

/// The prefix of one of the routes that the load does not take, the first being 1.
pub(super) fn other_prefix(index: usize) -> String {
    format!("/team-{}/service-{index}/", index % 97)
}

/// A Service for each of the servers.
pub(super) fn services() -> String {
    let one = |server: Server| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {NAMESPACE}}}\nspec:\n  \
             clusterIP: {ip}\n  clusterIPs: [{ip}]\n  selector: {{app: {app}}}\n  ports:\n  \
             - {{name: http, port: {SERVICE_PORT}, targetPort: 8080}}\n",
            name = server.name,
            ip = server.service,
            app = server.app,
        )
    };
    SERVERS.map(one).concat()
}

/// What the client dials in the mesh: the services.
pub(super) fn by_service(site: Site) -> Site {
    let [near, far] = SERVERS.map(|server| SocketAddr::from((server.service, SERVICE_PORT)));
    site.dialling(near, far)
}

/// What the client dials without a mesh: the ports of the proxy's pod.
pub(super) fn by_port(site: Site, pod: &str) -> Result<Site> {
    let address = site.lab().pod(pod)?.v4()?;
    let [near, far] = SERVERS.map(|server| SocketAddr::from((address, server.port)));
    Ok(site.dialling(near, far))
}

/// A pod in which a program runs that is no part of Keelson.
pub(super) fn proxy_pod(lab: &Lab, name: &str, spec: PodSpec, command: &[&str]) -> Result<()> {
    let pod = lab.create(&spec.service_account(name).container("proxy", command))?;
    tune(pod.netns())
}

/// Waits until both servers answer by way of the proxy.
pub(super) fn settled(site: Site) -> Result<Site> {
    for placement in Placement::ALL {
        let answers = lab::wait_until("the proxy for requests answers", READY, || {
            let timing = Timing {
                warm_up: Duration::ZERO,
                window: Duration::from_millis(20),
                pinned: false,
            };
            let sent = site.run(placement, Load::Closed { connections: 1 }, timing);
            Ok(sent.is_ok_and(|report| report.errors == 0))
        });
        answers.with_context(|| format!("to the server on {}", placement.title()))?;
    }
    Ok(site)
}

/// A path as an argument.
pub(super) fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is no UTF-8")
}

const READY: Duration = Duration::from_secs(30);

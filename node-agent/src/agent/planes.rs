//! Whom the agent asks: a controller of ours for everything, or Istio's control plane for what is Istio's and the controller
//! for what it knows nothing of. Each has a stream of its own: Istio's ends one on which a type is asked for that it does not
//! know, and what becomes of one stream is nothing to the other.

use std::{cell::RefCell, rc::Rc};

use anyhow::Context;
use proto::type_url;
use tokio::sync::watch;
use xds_client::{Client, Config, Controller, Flusher, NodeInfo, Status};

use super::{
    config::RunArgs,
    follow::{ToMesh, until},
    setup::RECONNECT_AT_MOST,
    vital,
};
use crate::mesh::Writer;

/// The control planes of an agent.
pub(super) struct Planes {
    /// Says which pods of this node are to be captured, and is told which are.
    pub(super) controller: Controller,
    istiod: Option<Controller>,
    authority: Controller,
}

impl Planes {
    /// Those that the command line names.
    ///
    /// # Errors
    /// It names half of one.
    pub(super) fn of(args: &RunArgs) -> anyhow::Result<Self> {
        let cluster = |mut plane: Controller| {
            plane.cluster_id.clone_from(&args.cluster_id);
            plane
        };
        let controller = Controller::new(&args.controller, &args.controller_ca, &args.token_file);
        let controller = cluster(controller);
        let Some(uri) = &args.istiod else {
            return Ok(Self {
                authority: controller.clone(),
                controller,
                istiod: None,
            });
        };
        let root = args.istiod_root.as_ref().context("--istiod-root")?;
        let token = args.istiod_token_file.as_ref();
        let token = token.context("--istiod-token-file")?;
        let plane = |uri: &String| cluster(Controller::new(uri, root, token));
        Ok(Self {
            controller,
            istiod: Some(plane(uri)),
            authority: plane(args.istiod_ca.as_ref().unwrap_or(uri)),
        })
    }

    /// Who signs.
    pub(super) fn authority(&self) -> &Controller {
        &self.authority
    }

    /// What is asked of whom.
    pub(super) fn subscriptions(&self, args: &RunArgs) -> Subscriptions {
        let client = |plane: &Controller, types: &[&str], file: &str| {
            let types = types.iter().map(|name| (*name).to_owned()).collect();
            let mut config = Config::new(plane.clone(), node(args), types);
            config.backoff.max = RECONNECT_AT_MOST;
            config.snapshot = Some(args.state_dir.join(file));
            Client::new(config)
        };
        // What is announced is what all nodes know, and only who has told them can say that.
        match &self.istiod {
            None => Subscriptions {
                own: client(&self.controller, &[ISTIOS, OWN].concat(), OWN_FILE),
                istios: None,
            },
            Some(istiod) => Subscriptions {
                own: client(&self.controller, &[type_url::NODE_POD], OWN_FILE),
                istios: Some(client(istiod, ISTIOS, ISTIO_FILE)),
            },
        }
    }
}

fn node(args: &RunArgs) -> NodeInfo {
    NodeInfo {
        node: args.node.clone(),
        ip: args.pod_ip,
        pod: match &*args.pod_name {
            "" => format!("node-agent-{}", args.node),
            name => name.to_owned(),
        },
        namespace: args.pod_namespace.clone(),
        cluster_domain: args.cluster_domain.clone(),
        metadata: std::collections::BTreeMap::new(),
    }
}

/// The streams of an agent before they run.
pub(super) struct Subscriptions {
    own: Client,
    istios: Option<Client>,
}

impl Subscriptions {
    /// Of what the controller says.
    pub(super) fn own_status(&self) -> watch::Receiver<Status> {
        self.own.status()
    }

    /// Of what Istio's control plane says, where there is one.
    pub(super) fn istios_status(&self) -> Option<watch::Receiver<Status>> {
        self.istios.as_ref().map(Client::status)
    }

    /// Of what the controller says.
    pub(super) fn flusher(&self) -> Flusher {
        self.own.flusher()
    }

    /// Of all together.
    pub(super) fn status(&self) -> watch::Receiver<Status> {
        let own = self.own.status();
        let Some(istios) = &self.istios else {
            return own;
        };
        let istios = istios.status();
        let both = watch::Sender::new(both(&own, &istios));
        let status = both.subscribe();
        vital("status", keep_both(own, istios, both));
        status
    }

    /// Runs them until `stopped` says so.
    pub(super) async fn run(self, writer: Writer, stopped: watch::Receiver<bool>) {
        let to_mesh = ToMesh(Rc::new(RefCell::new(writer)));
        let own = self.own.run(to_mesh.clone(), until(stopped.clone()));
        match self.istios {
            None => own.await,
            Some(istios) => {
                tokio::join!(own, istios.run(to_mesh, until(stopped)));
            }
        }
    }
}

fn both(one: &watch::Receiver<Status>, other: &watch::Receiver<Status>) -> Status {
    one.borrow().and(&other.borrow())
}

async fn keep_both(
    mut one: watch::Receiver<Status>,
    mut other: watch::Receiver<Status>,
    both: watch::Sender<Status>,
) {
    loop {
        let together = one.borrow_and_update().and(&other.borrow_and_update());
        both.send_replace(together);
        let changed = tokio::select! {
            changed = one.changed() => changed,
            changed = other.changed() => changed,
        };
        if changed.is_err() {
            return;
        }
    }
}

/// Types that Istio's control plane has.
const ISTIOS: &[&str] = &[type_url::AUTHORIZATION, type_url::ADDRESS];
/// Types of our own.
const OWN: &[&str] = &[type_url::NODE_POD, type_url::ANNOUNCED];
/// Where the last good configuration is kept, in the state directory.
const OWN_FILE: &str = "configuration.snapshot";
const ISTIO_FILE: &str = "istiod.snapshot";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::config::Cli;

    fn args(more: &str) -> Result<RunArgs, clap::Error> {
        let line = format!(
            "agent --node n1 --controller https://c:15012 --controller-ca r --token-file t {more}"
        );
        let words = line.split_whitespace().map(Into::into);
        Cli::read(words).map(|cli| cli.run.expect("it is to run"))
    }

    fn types(client: &Client) -> Vec<String> {
        let types = client.status().borrow().types.clone();
        let name = |url: &String| url.rsplit('.').next().unwrap_or_default().to_owned();
        types.keys().map(name).collect()
    }

    #[test]
    fn istios_control_plane_is_asked_for_no_type_of_ours_and_the_controller_for_none_of_istios() {
        let alone = args("").unwrap();
        let planes = Planes::of(&alone).unwrap();
        let all = planes.subscriptions(&alone);
        assert!(all.istios.is_none());
        assert_eq!(
            types(&all.own),
            ["Authorization", "Address", "Announced", "NodePod"]
        );
        assert_eq!(planes.authority().uri, "https://c:15012");

        let beside = args(
            "--istiod https://i:15012 --istiod-root ir --istiod-token-file it --cluster-id other \
             --pod-name ztunnel-x --pod-namespace istio-system --pod-ip 192.0.2.7",
        );
        let beside = beside.unwrap();
        let planes = Planes::of(&beside).unwrap();
        let both = planes.subscriptions(&beside);
        assert_eq!(types(&both.own), ["NodePod"]);
        let istios = both.istios.expect("two streams");
        assert_eq!(types(&istios), ["Authorization", "Address"]);
        let authority = planes.authority();
        assert_eq!(authority.uri, "https://i:15012");
        assert_eq!(
            (authority.roots.to_str(), authority.token.to_str()),
            (Some("ir"), Some("it"))
        );
        assert_eq!(authority.cluster_id, "other");
        assert_eq!(
            node(&beside).id(),
            "ztunnel~192.0.2.7~ztunnel-x.istio-system~istio-system.svc.cluster.local"
        );
    }

    #[test]
    fn another_may_sign_and_half_a_control_plane_is_refused() {
        let whole = "--istiod https://i:15012 --istiod-root ir --istiod-token-file it";
        let signed = args(&format!("{whole} --istiod-ca https://csr:443")).unwrap();
        let planes = Planes::of(&signed).unwrap();
        assert_eq!(planes.authority().uri, "https://csr:443");
        for half in [
            "--istiod https://i:15012",
            "--istiod https://i:15012 --istiod-root ir",
            "--istiod-root ir --istiod-token-file it",
            "--istiod-ca https://csr:443",
        ] {
            assert!(args(half).is_err(), "{half}");
        }
    }
}

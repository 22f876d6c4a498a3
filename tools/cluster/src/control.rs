//! The machine of the control plane: etcd, API server, controllers, scheduler. It runs no pods.

use std::fs;
use std::path::Path;

use anyhow::Result;
use serde_json::json;

use crate::layout::{
    API_PORT, CONTROL, Options, POD_CIDRS, Place, SERVICE_CIDRS, addresses, comma,
};
use crate::pki::{self, Authority, Subject};
use crate::spec::{CONFIG, Spec, Step, words};

/// The authorities of a cluster.
pub(crate) struct Authorities {
    /// Who serves and who asks.
    pub(crate) cluster: Authority,
    /// Who may speak for somebody else to an extension API server.
    front_proxy: Authority,
}

impl Authorities {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            cluster: Authority::new("kubernetes")?,
            front_proxy: Authority::new("front-proxy")?,
        })
    }

    /// How an administrator reaches the API server.
    pub(crate) fn administrator(&self, address: &str) -> Result<String> {
        let admin = self.cluster.issue(&Subject {
            name: "admin",
            group: "system:masters",
            ..Subject::default()
        })?;
        Ok(serde_json::to_string_pretty(
            &self.cluster.kubeconfig(address, &admin),
        )?)
    }
}

/// Writes down what the machine needs and does.
pub(crate) fn prepare(place: &Place, options: &Options, authorities: &Authorities) -> Result<Spec> {
    let mut spec = Spec::new(place, CONTROL);
    let config = spec.directory.join("config");
    for part in [&config, &spec.directory.join("status")] {
        fs::create_dir_all(part)?;
    }
    credentials(&config, authorities)?;
    fs::write(config.join("audit.json"), audited().to_string())?;
    spec.sysctls = crate::node::forwarding(options);
    spec.start("etcd", etcd());
    spec.start("kube-apiserver", api_server(options));
    let ready = format!("kubectl --kubeconfig {CONFIG}/admin.kubeconfig get --raw /readyz");
    spec.steps.push(Step::Until(words(&ready)));
    spec.start("kube-controller-manager", controllers(options));
    spec.start("kube-scheduler", scheduler());
    spec.write()?;
    Ok(spec)
}

fn credentials(config: &Path, authorities: &Authorities) -> Result<()> {
    let cluster = &authorities.cluster;
    cluster.entrust(config, "ca")?;
    authorities.front_proxy.publish(config, "front-proxy-ca")?;
    let client = |name, group| Subject {
        name,
        group,
        ..Subject::default()
    };
    let mut names: Vec<String> = ["127.0.0.1", "10.96.0.1", "fd00:10:96::1", "localhost"]
        .map(str::to_owned)
        .into();
    names.extend(addresses(0).map(|address| address.to_string()));
    for end in ["", ".default", ".default.svc", ".default.svc.cluster.local"] {
        names.push(format!("kubernetes{end}"));
    }
    let server = Subject {
        name: "kube-apiserver",
        names: &names,
        ..Subject::default()
    };
    cluster.issue(&server)?.write(config, "apiserver")?;
    cluster
        .issue(&client("kube-apiserver-kubelet-client", "system:masters"))?
        .write(config, "apiserver-kubelet-client")?;
    authorities
        .front_proxy
        .issue(&client("front-proxy-client", ""))?
        .write(config, "front-proxy-client")?;
    let (private, public) = pki::key_pair()?;
    pki::secret(&config.join("sa.key"), &private)?;
    pki::secret(&config.join("sa.pub"), &public)?;
    let address = format!("https://127.0.0.1:{API_PORT}");
    for (file, name, group) in [
        ("controller-manager", "system:kube-controller-manager", ""),
        ("scheduler", "system:kube-scheduler", ""),
        ("admin", "admin", "system:masters"),
    ] {
        let issued = cluster.issue(&client(name, group))?;
        let text = cluster.kubeconfig(&address, &issued).to_string();
        pki::secret(&config.join(format!("{file}.kubeconfig")), &text)?;
    }
    Ok(())
}

/// Its data survives a reboot of the machine, not a crash of the kernel: it does not wait for the disk.
fn etcd() -> Vec<String> {
    words(
        "etcd --name control --data-dir /var/lib/etcd --log-level warn --unsafe-no-fsync
         --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379
         --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380
         --initial-cluster control=http://127.0.0.1:2380",
    )
}

/// What the API server writes down: what service accounts ask it for, other than those of Kubernetes itself, and with which
/// outcome, without the objects. Tests compare it with the rights that the accounts have.
fn audited() -> serde_json::Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
            {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
            {"level": "None"},
        ],
    })
}

fn api_server(options: &Options) -> Vec<String> {
    let [advertised, _] = addresses(0);
    let services = comma(options, &SERVICE_CIDRS);
    words(&format!(
        "kube-apiserver --etcd-servers=http://127.0.0.1:2379 --secure-port={API_PORT} --advertise-address={advertised}
         --service-cluster-ip-range={services} --authorization-mode=Node,RBAC --anonymous-auth=false
         --client-ca-file={CONFIG}/ca.crt
         --tls-cert-file={CONFIG}/apiserver.crt --tls-private-key-file={CONFIG}/apiserver.key
         --service-account-issuer=https://kubernetes.default.svc.cluster.local
         --service-account-key-file={CONFIG}/sa.pub --service-account-signing-key-file={CONFIG}/sa.key
         --kubelet-client-certificate={CONFIG}/apiserver-kubelet-client.crt
         --kubelet-client-key={CONFIG}/apiserver-kubelet-client.key
         --kubelet-certificate-authority={CONFIG}/ca.crt --kubelet-preferred-address-types=InternalIP
         --requestheader-client-ca-file={CONFIG}/front-proxy-ca.crt
         --requestheader-allowed-names=front-proxy-client --requestheader-username-headers=X-Remote-User
         --requestheader-group-headers=X-Remote-Group --requestheader-extra-headers-prefix=X-Remote-Extra-
         --proxy-client-cert-file={CONFIG}/front-proxy-client.crt
         --proxy-client-key-file={CONFIG}/front-proxy-client.key
         --enable-admission-plugins=NodeRestriction --allow-privileged=true --enable-aggregator-routing=true
         --audit-policy-file={CONFIG}/audit.json --audit-log-path={AUDIT} --profiling=false"
    ))
}

fn controllers(options: &Options) -> Vec<String> {
    let kubeconfig = format!("{CONFIG}/controller-manager.kubeconfig");
    let (pods, services) = (comma(options, &POD_CIDRS), comma(options, &SERVICE_CIDRS));
    words(&format!(
        "kube-controller-manager --kubeconfig={kubeconfig} --authentication-kubeconfig={kubeconfig}
         --authorization-kubeconfig={kubeconfig} --bind-address=127.0.0.1 --leader-elect=false
         --use-service-account-credentials=true --service-account-private-key-file={CONFIG}/sa.key
         --root-ca-file={CONFIG}/ca.crt --cluster-signing-cert-file={CONFIG}/ca.crt
         --cluster-signing-key-file={CONFIG}/ca.key --client-ca-file={CONFIG}/ca.crt
         --requestheader-client-ca-file={CONFIG}/front-proxy-ca.crt --cluster-cidr={pods}
         --allocate-node-cidrs=false --service-cluster-ip-range={services} --profiling=false"
    ))
}

fn scheduler() -> Vec<String> {
    let kubeconfig = format!("{CONFIG}/scheduler.kubeconfig");
    words(&format!(
        "kube-scheduler --kubeconfig={kubeconfig} --authentication-kubeconfig={kubeconfig}
         --authorization-kubeconfig={kubeconfig} --bind-address=127.0.0.1 --leader-elect=false --profiling=false"
    ))
}

/// Where the machine of the control plane has the API server's audit log.
const AUDIT: &str = "/var/log/audit.log";

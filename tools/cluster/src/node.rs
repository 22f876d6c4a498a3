//! A node: containerd, kubelet and kube-proxy, each as on a machine of its own, with the CNI plugins of Debian.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::control::Authorities;
use crate::layout::{
    API_PORT, DNS_ADDRESS, Options, POD_CIDRS, Place, addresses, comma, families, node_name,
    pod_cidrs,
};
use crate::pki::{self, Subject};
use crate::spec::{CONFIG, INSIDE, Spec, Step, words};

/// Writes down what the node needs and does.
pub(crate) fn prepare(
    place: &Place,
    options: &Options,
    authorities: &Authorities,
    number: u8,
) -> Result<Spec> {
    let name = node_name(number);
    let mut spec = Spec::new(place, &name);
    let directory = spec.directory.clone();
    let config = directory.join("config");
    for part in ["config", "status", "etc/cni/net.d", "opt/cni/bin"] {
        fs::create_dir_all(directory.join(part))?;
    }
    credentials(&config, options, authorities, number)?;
    let write = |path: &str, text: String| {
        let path = directory.join(path);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    };
    write(
        "etc/cni/net.d/10-cluster.conflist",
        cni(options, number).to_string(),
    )?;
    write(
        "etc/machine-id",
        format!("{:032x}\n", 0x6b65_656c_736f_6e00_u64 + u64::from(number)),
    )?;
    write("config/containerd.toml", CONTAINERD.to_owned())?;
    write("config/kubelet.json", kubelet(&spec.cgroup).to_string())?;
    fs::create_dir_all(directory.join("config/static"))?;
    write("config/kube-proxy.json", proxy(options, &name).to_string())?;
    // Pods that do not use the cluster's DNS: there is no other.
    write("config/resolv.conf", "search cluster.local\n".to_owned())?;
    plugins(place, &directory.join("opt/cni/bin"))?;

    spec.sysctls = forwarding(options);
    spec.pretended = PRETENDED
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    let [control, _] = addresses(0);
    // The owner lays the cable.
    spec.steps
        .push(Step::Until(words(&format!("ip route get {control}"))));
    spec.start(
        "containerd",
        words(&format!("containerd -c {CONFIG}/containerd.toml")),
    );
    spec.steps.push(Step::Until(words("ctr version")));
    for image in images(place)? {
        let import = format!("ctr -n k8s.io images import {INSIDE}/images/{image}");
        spec.steps.push(Step::Run(words(&import)));
    }
    let own = comma(options, &addresses(number));
    spec.start(
        "kubelet",
        words(&format!(
            "kubelet --config={CONFIG}/kubelet.json --kubeconfig={CONFIG}/kubelet.kubeconfig
             --hostname-override={name} --node-ip={own}"
        )),
    );
    spec.start(
        "kube-proxy",
        words(&format!("kube-proxy --config={CONFIG}/kube-proxy.json")),
    );
    if options.network_policy {
        spec.start("kube-router", router(options, &name));
    }
    spec.write()?;
    Ok(spec)
}

/// The Node object, which the kubelet finds when it starts: the CNI configuration of the node has its prefixes.
pub(crate) fn object(options: &Options, number: u8) -> Value {
    let cidrs = families(options, &pod_cidrs(number));
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node_name(number)},
        "spec": {"podCIDR": cidrs.first(), "podCIDRs": cidrs},
    })
}

/// A machine passes on what is not for itself.
pub(crate) fn forwarding(options: &Options) -> Vec<(String, String)> {
    let all = [
        ("net/ipv4/ip_forward", true),
        ("net/ipv6/conf/all/forwarding", options.dual_stack),
    ];
    all.into_iter()
        .filter(|(_, wanted)| *wanted)
        .map(|(name, _)| (name.to_owned(), "1".to_owned()))
        .collect()
}

fn credentials(
    config: &Path,
    options: &Options,
    authorities: &Authorities,
    number: u8,
) -> Result<()> {
    let name = node_name(number);
    let user = format!("system:node:{name}");
    let cluster = &authorities.cluster;
    cluster.publish(config, "ca")?;
    let mut names = vec![name.clone(), "127.0.0.1".to_owned()];
    names.extend(addresses(number).map(|address| address.to_string()));
    let server = Subject {
        name: &user,
        group: "system:nodes",
        names: &names,
    };
    cluster.issue(&server)?.write(config, "kubelet")?;
    let [control, _] = addresses(0);
    let address = format!("https://{control}:{API_PORT}");
    let mut clients = vec![
        ("kubelet", user.as_str(), "system:nodes"),
        ("kube-proxy", "system:kube-proxy", ""),
    ];
    if options.network_policy {
        clients.push(("kube-router", "kube-router", "system:masters"));
    }
    for (file, name, group) in clients {
        let issued = cluster.issue(&Subject {
            name,
            group,
            ..Subject::default()
        })?;
        let text = cluster.kubeconfig(&address, &issued).to_string();
        pki::secret(&config.join(format!("{file}.kubeconfig")), &text)?;
    }
    Ok(())
}

/// Every pod has a veth of its own, and everything between pods is routed: a bridge would need br_netfilter for
/// services of the same node.
fn cni(options: &Options, number: u8) -> Value {
    let subnets = families(options, &pod_cidrs(number));
    let ranges: Vec<Value> = subnets
        .iter()
        .map(|subnet| json!([{"subnet": subnet}]))
        .collect();
    let routes: Vec<Value> = families(options, &["0.0.0.0/0", "::/0"])
        .iter()
        .map(|destination| json!({"dst": destination}))
        .collect();
    json!({
        "cniVersion": "1.0.0",
        "name": "cluster",
        "plugins": [
            {"type": "ptp", "ipMasq": false, "ipam": {"type": "host-local", "ranges": ranges, "routes": routes}},
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
}

fn kubelet(cgroup: &str) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": format!("{CONFIG}/ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": format!("{CONFIG}/kubelet.crt"),
        "tlsPrivateKeyFile": format!("{CONFIG}/kubelet.key"),
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{cgroup}"),
        "failSwapOn": false,
        "clusterDomain": "cluster.local",
        "clusterDNS": [DNS_ADDRESS],
        "resolvConf": format!("{CONFIG}/resolv.conf"),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "staticPodPath": format!("{CONFIG}/static"),
        "protectKernelDefaults": true,
        // As many pods of a test as nodes take by default, beside the cluster's and the mesh's own.
        "maxPods": 130,
        // Images cannot be fetched again, and several nodes share a disk.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
    })
}

fn proxy(options: &Options, name: &str) -> Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": format!("{CONFIG}/kube-proxy.kubeconfig")},
        "clusterCIDR": comma(options, &POD_CIDRS),
        "mode": options.proxy,
        "hostnameOverride": name,
        // These are settings of the whole kernel.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    })
}

fn router(options: &Options, name: &str) -> Vec<String> {
    let services = comma(options, &crate::layout::SERVICE_CIDRS);
    words(&format!(
        "kube-router --run-firewall=true --run-router=false --run-service-proxy=false --hostname-override={name}
         --kubeconfig={CONFIG}/kube-router.kubeconfig --service-cluster-ip-range={services}
         --enable-ipv6={}",
        options.dual_stack
    ))
}

fn plugins(place: &Place, to: &Path) -> Result<()> {
    let from = place.debian().join("usr/lib/cni");
    let entries = fs::read_dir(&from).with_context(|| format!("reading {}", from.display()))?;
    for entry in entries {
        let entry = entry?;
        fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// The file names of the images that every node has.
fn images(place: &Place) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(place.images())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".tar") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Containers cannot have a lower OOM score than their runtime where root lacks CAP_SYS_RESOURCE.
const CONTAINERD: &str = r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "/opt/containerd"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.10"
  disable_apparmor = true
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "/keelson/debian/usr/sbin/runc"
        SystemdCgroup = false
"#;

/// What the kubelet insists on with `protectKernelDefaults`, and would set otherwise, for the whole machine.
const PRETENDED: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

//! The lab by itself, without a mesh: who reaches whom, what is captured, what is left behind.
//!
//! Needs root: the namespaces, cgroups and packets are real.

#![expect(clippy::unwrap_used, reason = "a failed assertion ends a test")]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::ExitStatusExt as _;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use lab::{Lab, Node, Pod, PodSpec};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SHORT: Duration = Duration::from_secs(2);

fn two_nodes() -> Result<Lab> {
    Lab::builder(lab::unique_id()).build()
}

/// Serves on `[::]:port` in the pod: each client is told its own address.
fn serve(pod: &Pod, port: u16) -> Result<()> {
    let listener = pod.run(|| TcpListener::bind(("::", port)))??;
    thread::spawn(move || {
        for stream in listener.incoming().take(100) {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip().to_canonical();
            stream.write_all(format!("{peer}").as_bytes()).unwrap();
        }
    });
    Ok(())
}

fn ask(server: SocketAddr) -> Result<IpAddr> {
    let mut stream = TcpStream::connect_timeout(&server, SHORT)
        .with_context(|| format!("connecting to {server}"))?;
    stream.set_read_timeout(Some(SHORT))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.parse()?)
}

fn ask_from(pod: &Pod, server: impl Into<SocketAddr>) -> Result<IpAddr> {
    let server = server.into();
    pod.run(|| ask(server))?
}

fn ask_from_node(node: &Node, server: impl Into<SocketAddr>) -> Result<IpAddr> {
    let server = server.into();
    node.run(|| ask(server))?
}

#[test]
fn pods_and_nodes_reach_each_other_with_their_own_addresses() -> Result<()> {
    let lab = two_nodes()?;
    let a = lab.create(&PodSpec::new("shop", "a", "n1"))?;
    let b = lab.create(&PodSpec::new("shop", "b", "n1"))?;
    let c = lab.create(&PodSpec::new("shop", "c", "n2"))?;
    for server in [&a, &b, &c] {
        serve(server, 80)?;
        for client in [&a, &b, &c] {
            for (own, server) in client.ips().iter().zip(server.ips()) {
                assert_eq!(ask_from(client, (*server, 80))?, *own);
            }
        }
        for node in lab.nodes() {
            let own: [IpAddr; 2] = [node.v4().into(), node.v6().into()];
            for (own, server) in own.iter().zip(server.ips()) {
                assert_eq!(ask_from_node(node, (*server, 80))?, *own);
            }
        }
    }
    Ok(())
}

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIPs: [10.96.0.10, 'fd00:10:96::10']
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: dns, port: 53, protocol: UDP, targetPort: 5353}]
";

#[test]
fn services_are_reached_from_pods_and_nodes_and_refuse_without_endpoints() -> Result<()> {
    let lab = two_nodes()?;
    lab.apply("service.yaml", SERVICE)?;
    let vips: [IpAddr; 2] = ["10.96.0.10".parse()?, "fd00:10:96::10".parse()?];
    let client = lab.create(&PodSpec::new("shop", "client", "n1"))?;
    for vip in vips {
        let refused = ask_from(&client, (vip, 80)).unwrap_err();
        assert!(format!("{refused:#}").contains("refused"), "{refused:#}");
    }
    let one = lab.create(&PodSpec::new("shop", "one", "n1").label("app", "web"))?;
    let two = lab.create(&PodSpec::new("shop", "two", "n2").label("app", "web"))?;
    serve(&one, 8080)?;
    serve(&two, 8080)?;
    for vip in vips {
        for _ in 0..8 {
            ask_from(&client, (vip, 80))?;
            ask_from(&one, (vip, 80))?;
            ask_from_node(&lab.node("n2")?, (vip, 80))?;
        }
    }
    let names = client.output({
        let mut getent = Command::new("getent");
        getent.args(["ahostsv4", "web"]);
        getent
    })?;
    assert!(
        String::from_utf8_lossy(&names.stdout).contains("10.96.0.10"),
        "{names:?}"
    );
    lab.delete("service.yaml")?;
    assert!(ask_from(&client, (vips[0], 80)).is_err());
    Ok(())
}

#[test]
fn datagrams_to_a_service_are_answered_from_its_address() -> Result<()> {
    let lab = two_nodes()?;
    lab.apply("service.yaml", SERVICE)?;
    let client = lab.create(&PodSpec::new("shop", "client", "n1"))?;
    let server = lab.create(&PodSpec::new("shop", "server", "n2").label("app", "web"))?;
    let socket = server.run(|| UdpSocket::bind(("::", 5353)))??;
    thread::spawn(move || {
        let mut buffer = [0; 64];
        let (length, peer) = socket.recv_from(&mut buffer).unwrap();
        socket.send_to(&buffer[..length], peer).unwrap();
    });
    let echoed = client.run(|| -> Result<Vec<u8>> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(SHORT))?;
        socket.connect("10.96.0.10:53")?;
        socket.send(b"query")?;
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer)?;
        Ok(buffer[..length].to_vec())
    })??;
    assert_eq!(echoed, b"query");
    Ok(())
}

#[test]
fn a_pod_cannot_send_with_another_pods_address() -> Result<()> {
    let lab = two_nodes()?;
    let victim = lab.create(&PodSpec::new("shop", "victim", "n1"))?;
    let liar = lab.create(&PodSpec::new("shop", "liar", "n1"))?;
    let server = lab.create(&PodSpec::new("shop", "server", "n2"))?;
    let at_server = server.capture()?;
    for ip in victim.ips() {
        let prefix = if ip.is_ipv4() { 32 } else { 128 };
        let add = format!(
            "ip -n {} addr add {ip}/{prefix} dev lo",
            liar.netns().name()
        );
        assert!(Command::new("sh").args(["-c", &add]).status()?.success());
    }
    for (own, (stolen, server)) in liar.ips().iter().zip(victim.ips().iter().zip(server.ips())) {
        for (source, arrives) in [(own, true), (stolen, false)] {
            liar.run(|| UdpSocket::bind((*source, 0))?.send_to(b"spoof", (*server, 9)))??;
            let arrived =
                at_server.count(|packet| packet.protocol == 17 && packet.source == *source);
            assert_eq!(arrived > 0, arrives, "from {source}");
        }
    }
    Ok(())
}

#[test]
fn a_capture_of_the_link_reads_what_is_not_encrypted() -> Result<()> {
    let lab = two_nodes()?;
    let client = lab.create(&PodSpec::new("shop", "client", "n1"))?;
    let server = lab.create(&PodSpec::new("shop", "server", "n2"))?;
    serve(&server, 80)?;
    let link = lab.node("n1")?.capture_uplink()?;
    let address = server.v4()?;
    ask_from(&client, (address, 80))?;
    let told = client.v4()?.to_string();
    assert!(link.contains(told.as_bytes())?);
    assert!(!link.contains(b"never sent")?);
    assert_eq!(link.syns_from(client.v4()?.into()), 1);
    assert!(link.count_port(6, 80) >= 7);
    assert_eq!(link.count_port(6, 15008), 0);
    assert_eq!(link.counts().lost, 0);

    let file = lab.run_dir().join("link.pcap");
    link.write_pcap(&file)?;
    let bytes = std::fs::read(&file)?;
    assert_eq!(bytes[..4], 0xa1b2_c3d4_u32.to_le_bytes());
    assert!(bytes.len() > 24 + 7 * (16 + 54));

    link.clear();
    assert!(!link.contains(told.as_bytes())?);
    Ok(())
}

#[test]
fn threads_and_processes_stand_in_the_pods_cgroup_and_end_with_it() -> Result<()> {
    let lab = two_nodes()?;
    let pod = lab.create(&PodSpec::new("shop", "a", "n1").container("main", &["sleep", "1000"]))?;
    let own = pod.run(|| std::fs::read_to_string("/proc/thread-self/cgroup"))??;
    let expected = format!("kubepods/pod{}/app", pod.uid());
    assert!(
        own.lines()
            .any(|line| line.starts_with("0::") && line.ends_with(&expected)),
        "{own}"
    );
    let outside = std::fs::read_to_string("/proc/self/cgroup")?;
    assert!(
        !outside.contains(lab.id()),
        "the test's process stays where it was"
    );

    let mut sleeper = pod.spawn({
        let mut command = Command::new("sleep");
        command.arg("1000");
        command
    })?;
    let container = lab.containers("shop/a", |containers| containers[0].pid());
    let mut expected = vec![sleeper.pid(), container];
    expected.sort_unstable();
    assert_eq!(pod.cgroup().processes()?, expected);
    assert_eq!(sleeper.exited()?, None);
    let cgroup = pod.cgroup().clone();
    lab.delete_pod("shop/a")?;
    assert!(sleeper.wait(SHORT)?.is_some());
    assert!(!cgroup.path().exists());
    assert!(lab.pod("shop/a").is_err());
    Ok(())
}

#[test]
fn three_nodes_are_linked_by_a_switch() -> Result<()> {
    let lab = Lab::builder(lab::unique_id()).nodes(3).build()?;
    let a = lab.create(&PodSpec::new("shop", "a", "n1"))?;
    let c = lab.create(&PodSpec::new("shop", "c", "n3"))?;
    serve(&c, 80)?;
    assert_eq!(ask_from(&a, (c.v6()?, 80))?, a.v6()?);
    Ok(())
}

/// Everything on the machine that carries the lab's id.
fn traces(id: &str) -> Vec<String> {
    let named = |directory: &str, part: &str| -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(directory) else {
            return Vec::new();
        };
        let names = entries
            .flatten()
            .map(|entry| entry.path().display().to_string());
        names.filter(|name| name.contains(part)).collect()
    };
    let mut found = named("/run/netns", &format!("/k{id}-"));
    found.extend(named("/run/keelson-lab", &format!("/{id}")));
    found.extend(named("/sys/fs/bpf", &format!("keelson-lab-{id}")));
    let cgroups = lab::cgroup2_root().unwrap();
    found.extend(named(
        &cgroups.display().to_string(),
        &format!("keelson-lab-{id}"),
    ));
    found
}

#[test]
fn nothing_is_left_when_a_lab_is_dropped_or_its_test_panics() -> Result<()> {
    let id = lab::unique_id();
    let lab = Lab::builder(&id).build()?;
    lab.create(&PodSpec::new("shop", "a", "n1").container("main", &["sleep", "1000"]))?;
    assert!(traces(&id).len() >= 5, "{:?}", traces(&id));
    drop(lab);
    assert_eq!(traces(&id), Vec::<String>::new());

    let id = lab::unique_id();
    let panicking = id.clone();
    let panic = thread::spawn(move || {
        let _lab = Lab::builder(panicking).build().unwrap();
        std::panic::resume_unwind(Box::new("on purpose"));
    });
    assert!(panic.join().is_err());
    assert_eq!(traces(&id), Vec::<String>::new());
    lab::remove(&id).context("removing what is gone already")
}

#[test]
fn an_id_in_use_is_refused_without_harm_to_its_owner() -> Result<()> {
    let id = lab::unique_id();
    let lab = Lab::builder(&id).build()?;
    let refused = Lab::builder(&id).build().unwrap_err();
    assert!(
        refused.to_string().contains("exists already"),
        "{refused:#}"
    );
    lab.create(&PodSpec::new("shop", "a", "n1"))?;
    Ok(())
}

/// Not a test by itself: what the next ones run in a process of their own.
#[test]
fn a_lab_in_a_process_of_its_own() -> Result<()> {
    let Ok(id) = std::env::var(CHILD_LAB) else {
        return Ok(());
    };
    let lab = Lab::builder(id).build()?;
    lab.create(&PodSpec::new("shop", "a", "n1").container("main", &["sleep", "1000"]))?;
    thread::sleep(Duration::from_secs(60));
    Ok(())
}

/// Ends a process that owns a lab, and returns what the lab left behind.
fn end_owner(id: &str, signal: Signal) -> Result<Vec<String>> {
    let mut owner = Command::new(std::env::current_exe()?)
        .args(["--exact", "a_lab_in_a_process_of_its_own"])
        .env(CHILD_LAB, id)
        .stdout(std::process::Stdio::null())
        .spawn()?;
    let pods = lab::cgroup2_root()?.join(format!("keelson-lab-{id}/n1/kubepods"));
    lab::wait_until("the owner's pod runs", Duration::from_secs(20), || {
        let pods = std::fs::read_dir(&pods)?.flatten();
        let threads =
            pods.map(|pod| std::fs::read_to_string(pod.path().join("app/cgroup.threads")));
        Ok(threads.flatten().any(|threads| !threads.is_empty()))
    })?;
    kill(Pid::from_raw(owner.id().cast_signed()), signal)?;
    let status = owner.wait()?;
    assert_eq!(status.signal(), Some(signal as i32));
    Ok(traces(id))
}

#[test]
fn ctrl_c_removes_the_lab_before_the_program_ends() -> Result<()> {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        assert_eq!(end_owner(&lab::unique_id(), signal)?, Vec::<String>::new());
    }
    Ok(())
}

#[test]
fn a_lab_whose_owner_was_killed_is_removed_by_the_next_one() -> Result<()> {
    let id = lab::unique_id();
    let left = end_owner(&id, Signal::SIGKILL)?;
    assert!(left.len() >= 4, "{left:?}");
    lab::remove_all_stale()?;
    assert_eq!(traces(&id), Vec::<String>::new());
    Ok(())
}

const CHILD_LAB: &str = "KEELSON_CHILD_LAB";

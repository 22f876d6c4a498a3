//! The link between the machines: a bridge on the control plane's, a veth to each node, and routes to everybody's pods.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::layout::{LINK_PREFIX, Options, addresses, families, pod_cidrs};

/// Makes the bridge in the network of the control plane's first process.
pub(crate) fn bridge(control: i32, options: &Options) -> Result<()> {
    let mut lines = String::from(
        "link set lo up
link add nodes type bridge
link set nodes up
",
    );
    own_addresses(&mut lines, options, 0, "nodes");
    for number in 1..=options.nodes {
        routes(&mut lines, options, number);
    }
    batch(control, &lines)
}

/// Lays the cable from the bridge to a node.
pub(crate) fn plug(control: i32, node: i32, options: &Options, number: u8) -> Result<()> {
    // An earlier cable ends with the namespace of its other end, some time after the last process there.
    let device = format!("node{number}");
    let mut unplug = inside(control, &["ip", "link", "del", &device]);
    unplug.output().context("starting ip")?;
    let cable = format!(
        "link add node{number} type veth peer name eth0 netns {node}
link set node{number} master nodes
link set node{number} up
"
    );
    batch(control, &cable)?;
    let mut lines = String::from("link set lo up\nlink set eth0 up\n");
    own_addresses(&mut lines, options, number, "eth0");
    for other in (1..=options.nodes).filter(|other| *other != number) {
        routes(&mut lines, options, other);
    }
    for gateway in families(options, &addresses(0)) {
        lines.push_str(&format!("route add default via {gateway}\n"));
    }
    batch(node, &lines)
}

fn own_addresses(lines: &mut String, options: &Options, number: u8, device: &str) {
    let lengths = families(options, &LINK_PREFIX);
    for (address, length) in addresses(number).iter().zip(lengths) {
        let end = if address.is_ipv6() { " nodad" } else { "" };
        lines.push_str(&format!("addr add {address}/{length} dev {device}{end}\n"));
    }
}

fn routes(lines: &mut String, options: &Options, to: u8) {
    let cidrs = families(options, &pod_cidrs(to));
    for (cidr, node) in cidrs.iter().zip(addresses(to)) {
        lines.push_str(&format!("route add {cidr} via {node}\n"));
    }
}

fn batch(pid: i32, lines: &str) -> Result<()> {
    let mut child = inside(pid, &["ip", "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting ip")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(lines.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("ip refuses: {}\n{lines}", said.trim());
    }
    Ok(())
}

fn inside(pid: i32, command: &[&str]) -> Command {
    let mut all = Command::new("nsenter");
    all.arg(format!("--net=/proc/{pid}/ns/net")).args(command);
    all
}

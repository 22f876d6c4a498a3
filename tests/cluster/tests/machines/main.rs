//! What happens to machines of a cluster of `cargo xtask cluster`: they are entered from outside, and restarted.

use std::env;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result, ensure};
use cluster::{Place, Standing};
use tests_cluster::{Namespace, SERVER, eventually, pod, who_at};

/// The cluster that these tests were started for, for one of them at a time: a machine that is restarted is gone to the others.
fn standing() -> Result<(Standing, MutexGuard<'static, ()>)> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let base = env::var_os("KEELSON_CLUSTER_BASE");
    let id = env::var("KEELSON_CLUSTER");
    let (base, id) = base.zip(id.ok()).context(
        "no cluster of this machine is named: `cargo xtask test --cluster` puts one up for these tests",
    )?;
    let standing = Standing::open(&Place::new(&PathBuf::from(base), &id)?)?;
    Ok((standing, alone))
}

fn run(standing: &Standing, machine: &str, command: &str) -> Result<String> {
    let words = ["sh", "-c", command].map(str::to_owned);
    let output = standing.command(machine, &words)?.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command} on {machine}: {said}");
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[test]
fn a_reboot_keeps_the_files_of_etc_and_var_and_nothing_else_and_pods_come_back() -> Result<()> {
    let (standing, _alone) = standing()?;
    let node = "node1";
    let namespace = Namespace::create("reboot")?;
    let other = standing.machines().pop().unwrap();
    namespace.apply(&[
        pod("server", Some(node), SERVER),
        pod("client", Some(&other), "sleep 86400"),
    ])?;
    namespace.wait_ready("server")?;
    namespace.wait_ready("client")?;
    run(
        &standing,
        node,
        "touch /etc/kept /var/kept /run/lost /tmp/lost; ip link add lost type bridge",
    )?;
    let containerd = run(&standing, node, "cat /run/services/containerd")?;
    ensure!(!containerd.is_empty());

    standing.reboot(node)?;

    run(
        &standing,
        node,
        "test -e /etc/kept && test -e /var/kept && rm /etc/kept /var/kept",
    )?;
    run(
        &standing,
        node,
        "test ! -e /run/lost && test ! -e /tmp/lost && ! ip link show lost",
    )?;
    eventually("the pod runs again", || {
        let pod = namespace.get(&["pod", "server"])?;
        let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
        ensure!(restarts.as_u64() >= Some(1), "{restarts}");
        let ip = namespace.pod_ip("server")?;
        let client = if other == node { "server" } else { "client" };
        namespace.exec(client, &who_at(ip))
    })?;
    Ok(())
}

#[test]
fn a_program_of_a_node_that_is_killed_is_started_again() -> Result<()> {
    let (standing, _alone) = standing()?;
    let node = standing.machines().pop().unwrap();
    let before = run(&standing, &node, "cat /run/services/kube-proxy")?;
    run(&standing, &node, &format!("kill -9 {before}"))?;
    eventually("it has another process id", || {
        let now = run(&standing, &node, "cat /run/services/kube-proxy")?;
        ensure!(now != before);
        run(&standing, &node, &format!("test -d /proc/{now}"))
    })?;
    Ok(())
}

#[test]
fn settings_of_the_whole_kernel_stay_as_they_are() -> Result<()> {
    let (standing, _alone) = standing()?;
    for (file, pretended) in [("vm/overcommit_memory", "1"), ("kernel/panic", "10")] {
        let path = format!("/proc/sys/{file}");
        assert_eq!(run(&standing, "node1", &format!("cat {path}"))?, pretended);
    }
    // The kubelet would have set it, for the whole machine.
    let here = std::fs::read_to_string("/proc/sys/kernel/keys/root_maxkeys")?;
    let there = run(
        &standing,
        "control",
        "cat /proc/sys/kernel/keys/root_maxkeys",
    )?;
    assert_eq!(here.trim(), there);
    Ok(())
}

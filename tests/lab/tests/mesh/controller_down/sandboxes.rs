//! What an agent knows of its pods is out of reach for a moment: pods stay captured, and are refused
//! until they are served again. Nobody is let go but who is gone.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::{fs::symlink, net::UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, ensure};
use lab::{AgentOptions, Capture, Pod};
use serde_json::{Value, json};
use tests_lab::turn;

use super::mesh::{Mesh, mesh};
use crate::fixture::{APPLIES, Ended, PING, at, call, call_here, echo, joined, pod, wait_for};
use tests_lab::metrics::Metrics;

fn runtime_dir(mesh: &Mesh) -> PathBuf {
    mesh.lab.run_dir().join("nodes/n1/runtime")
}

/// Makes the list of pods of node n1's next agent say that `cart`'s namespace is at `path`.
fn move_cart(kept: &Path, path: &Path) -> Result<()> {
    let mut pods: Value = serde_json::from_slice(&fs::read(kept)?)?;
    let pods = pods.as_array_mut().context("no list")?;
    let cart = pods.iter_mut().find(|pod| pod["name"] == "cart");
    cart.context("cart is not listed")?["netns"] = json!(path);
    fs::write(kept, serde_json::to_vec(pods)?)?;
    Ok(())
}

/// An agent that does not wait until it is ready: it will not be.
fn start_unready(mesh: &Mesh) -> Result<()> {
    let options = AgentOptions {
        wait_ready: false,
        ..AgentOptions::default()
    };
    mesh.lab.start_agent("n1", &options)
}

fn wait_counted(mesh: &Mesh, metric: &str, labels: &[(&str, &str)]) -> Result<()> {
    lab::wait_until(&format!("{metric} counts {labels:?}"), APPLIES, || {
        let metrics = Metrics::of_agent(mesh.lab, "n1")?;
        Ok(metrics.sum(metric, labels) >= 1.0)
    })
}

/// For a while: `cart` gets nowhere, nobody outside the mesh gets to `cart`, and nothing of it shows.
fn check_kept(mesh: &Mesh, link: &Capture, served: SocketAddr) -> Result<()> {
    let own = IpAddr::from(mesh.cart.v4()?);
    for _ in 0..20 {
        let out = call(&mesh.cart, mesh.to()?)?;
        ensure!(out == Ended::Refused, "what it dials: {out}");
        let inside = call(&mesh.stranger, served)?;
        ensure!(inside == Ended::Refused, "what dials it: {inside}");
    }
    let syns = link
        .count(|packet| packet.is_syn() && packet.source == own && packet.destination_port == 8080);
    ensure!(syns == 0, "{syns} SYN in the clear");
    Ok(())
}

/// Sends one line to the agent of n1 as its CNI would.
fn ask(mesh: &Mesh, request: &Value) -> Result<Value> {
    let mut stream = UnixStream::connect(mesh.lab.agent_socket("n1"))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    Ok(serde_json::from_str(&line)?)
}

/// P40: only the kernel says that a pod is gone; that its path cannot be opened now says nothing.
#[test]
fn a_pod_whose_namespace_cannot_be_opened_for_a_moment_stays_captured() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let kept = runtime_dir(&mesh).join("pods.json");
    let odd = mesh.lab.run_dir().join("odd");
    let served = at(mesh.cart.v4()?, 8082);
    let _echo = echo(&mesh.cart, served.port())?;
    mesh.lab.kill_agent("n1")?;
    let old = fs::read(&kept)?;
    let link = mesh.lab.node("n1")?.capture_uplink()?;
    let mut outcomes = Vec::new();
    // A path that cannot be followed now, one that leads nowhere, one with something else at its end.
    for (reason, target) in [
        ("other", Some(odd.clone())),
        ("nothing_there", None),
        ("nothing_there", Some(kept.clone())),
        ("other_namespace", Some("/proc/self/ns/net".into())),
    ] {
        let attempt = || -> Result<()> {
            move_cart(&kept, &odd)?;
            if let Some(target) = &target {
                symlink(target, &odd)?;
            }
            start_unready(&mesh)?;
            wait_counted(
                &mesh,
                "keelson_pods_out_of_reach_total",
                &[("reason", reason)],
            )?;
            check_kept(&mesh, &link, served)?;
            let ready = mesh.lab.agent_get("n1", "/healthz/ready");
            ready.err().context("it says that it is ready")?;
            // Listed still, so that the next agent does not take it for gone either.
            mesh.lab.kill_agent("n1")?;
            start_unready(&mesh)?;
            check_kept(&mesh, &link, served).context("after another restart")?;
            let _absent = fs::remove_file(&odd).is_err();
            symlink(mesh.cart.netns().path(), &odd)?;
            wait_for(&mesh.cart, mesh.to()?, Ended::Answered)?;
            mesh.lab.wait_agent_ready("n1")
        };
        let outcome = attempt().with_context(|| format!("{reason} {target:?}"));
        outcomes.push(outcome.with_context(|| mesh.last_words()));
        let _absent = fs::remove_file(&odd).is_err();
        mesh.lab.kill_agent("n1")?;
        fs::write(&kept, &old)?;
    }
    mesh.lab.start_agent("n1", &AgentOptions::default())?;
    outcomes.into_iter().collect::<Result<Vec<()>>>()?;
    mesh.wait_check("what was kept is in reach again")
}

/// A request of the CNI that cannot be met takes nothing from the pod that it names.
#[test]
fn an_add_whose_namespace_cannot_be_opened_forgets_nobody() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let link = mesh.lab.node("n1")?.capture_uplink()?;
    let cart = &mesh.cart;
    for uid in [cart.uid(), "another"] {
        let answer = ask(
            &mesh,
            &json!({"add": {
                "namespace": cart.namespace(), "name": cart.name(), "uid": uid,
                "netns": "/run/netns/not-there", "ips": cart.ips(),
            }}),
        )?;
        let error = answer["error"].as_str().context("no error")?;
        ensure!(error.contains("/run/netns/not-there"), "{error}");
        mesh.check("after an add that failed")?;
    }
    ensure!(!Mesh::is_readable(&link, cart)?, "in the clear");
    Ok(())
}

/// The CNI may name a pod again, in other words: what is captured is captured all the time.
#[test]
fn a_captured_pod_that_is_named_again_is_never_let_go() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let (cart, to) = (&mesh.cart, mesh.to()?);
    let served = at(cart.v4()?, 8083);
    let _echo = echo(cart, served.port())?;
    let link = mesh.lab.node("n1")?.capture_uplink()?;
    let again = |ips: Vec<&IpAddr>| -> Result<()> {
        let answer = ask(
            &mesh,
            &json!({"add": {
                "namespace": cart.namespace(), "name": cart.name(), "uid": cart.uid(),
                "netns": cart.netns().path(), "ips": ips,
            }}),
        )?;
        ensure!(answer["ok"]["capture"] == "captured", "{answer}");
        Ok(())
    };
    let over = AtomicBool::new(false);
    let hammer = |from: &Pod, to: SocketAddr| -> Result<Vec<Ended>> {
        from.run(|| {
            let calls =
                std::iter::from_fn(|| (!over.load(Ordering::Relaxed)).then(|| call_here(to, PING)));
            calls.collect()
        })
    };
    let (out, inside) = std::thread::scope(|scope| -> Result<_> {
        let out = scope.spawn(|| hammer(cart, to));
        let inside = scope.spawn(|| hammer(&mesh.stranger, served));
        let named = (0..10).try_for_each(|_| {
            again(cart.ips().iter().rev().collect())?;
            again(cart.ips().iter().collect())
        });
        over.store(true, Ordering::Relaxed);
        named?;
        Ok((joined(out)??, joined(inside)??))
    })?;
    let syns = link.count(|packet| packet.is_syn() && packet.destination_port == to.port());
    ensure!(syns == 0, "{syns} SYN in the clear");
    let odd = |ended: &&Ended| !matches!(ended, Ended::Answered | Ended::Refused);
    ensure!(!out.iter().any(|ended| odd(&ended)), "{out:?}");
    ensure!(
        !inside.contains(&Ended::Answered),
        "a stranger was served past STRICT"
    );
    mesh.wait_check("named again")
}

/// A pod that the next agent would not know does not start, and the answer says what is wrong.
#[test]
fn no_pod_starts_while_the_list_of_pods_cannot_be_written() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let dir = runtime_dir(&mesh);
    let (kept, aside) = (dir.join("pods.json"), dir.join("aside.json"));
    let filler = dir.join("filler");
    let fill = || -> Result<()> {
        // Until the file system has no room for one byte more.
        let mut file = fs::File::create(&filler)?;
        while file.write(&[7; 4096]).is_ok() {}
        Ok(())
    };
    let replace = || -> Result<()> {
        fs::rename(&kept, &aside)?;
        Ok(fs::create_dir(&kept)?)
    };
    let restore = || -> Result<()> { Ok(fs::remove_dir(&kept)?) };
    let empty = || -> Result<()> { Ok(fs::remove_file(&filler)?) };
    type Step<'a> = &'a dyn Fn() -> Result<()>;
    let ways: [(&str, Step<'_>, Step<'_>); 2] =
        [("full", &fill, &empty), ("directory", &replace, &restore)];
    for (way, hinder, help) in ways {
        let name = format!("unkept-{way}");
        let key = format!("shop/{name}");
        let spec = pod("shop", &name, "n1").container("main", &["sleep", "1000"]);
        hinder()?;
        let refused = mesh.lab.create(&spec);
        let started = mesh.lab.containers(&key, |containers| containers.len());
        let counted = wait_counted(&mesh, "keelson_pod_list_not_kept_total", &[]);
        let checked = mesh.check("pods that were there before");
        help()?;
        let captured = testkit::eventually("the pod gets in", APPLIES, || {
            mesh.lab.reconcile()?;
            mesh.lab.enrolment(&key).context("never announced")
        });
        let listed = fs::read_to_string(&kept);
        mesh.lab.delete_pod(&key)?;
        let error = format!("{:#}", refused.err().context("it was let start")?);
        ensure!(error.contains("pods.json"), "{way}: {error}");
        ensure!(
            error.contains("--runtime-dir must be writable"),
            "{way}: {error}"
        );
        ensure!(started == 0, "{way}: its container ran");
        counted?;
        checked.with_context(|| way.to_owned())?;
        ensure!(captured?.capture == "captured", "{way}");
        ensure!(
            listed?.contains(&name),
            "{way}: answered before it was kept"
        );
    }
    mesh.wait_check("everything can be kept again")
}

/// A list that cannot be read now is read later, and is not written over before.
#[test]
fn an_agent_waits_for_a_list_that_cannot_be_read_now() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let dir = runtime_dir(&mesh);
    let (kept, aside) = (dir.join("pods.json"), dir.join("aside.json"));
    let served = at(mesh.cart.v4()?, 8082);
    let _echo = echo(&mesh.cart, served.port())?;
    mesh.lab.kill_agent("n1")?;
    fs::rename(&kept, &aside)?;
    fs::create_dir(&kept)?;
    let link = mesh.lab.node("n1")?.capture_uplink()?;
    let spec = pod("shop", "early", "n1").container("main", &["sleep", "1000"]);
    let checked = start_unready(&mesh).and_then(|()| {
        lab::wait_until("the agent says so", APPLIES, || {
            let log = mesh.lab.agent_log("n1");
            Ok(log.contains("cannot read which pods the earlier agent knew"))
        })?;
        check_kept(&mesh, &link, served)?;
        let error = mesh.lab.create(&spec).err().context("it was let start")?;
        let error = format!("{error:#}");
        ensure!(error.contains("which must not be lost"), "{error}");
        Ok(())
    });
    fs::remove_dir(&kept)?;
    fs::rename(&aside, &kept)?;
    let served = mesh.wait_check("the list can be read again");
    mesh.lab.reconcile()?;
    mesh.lab.delete_pod("shop/early")?;
    checked?;
    served
}

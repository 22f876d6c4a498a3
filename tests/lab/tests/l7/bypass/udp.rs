//! What a waypoint does not carry does not pass it by.

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::{Lab, PodSpec};
use tests_lab::metrics::Metrics;

use crate::fixture::{APPLIES, SHOP, gateway};

/// How long one datagram has time; between pods of one machine it needs much less.
const ARRIVES: Duration = Duration::from_millis(500);

#[test]
fn udp_to_what_requires_a_waypoint_is_refused() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    // In the mesh, on another node, and without a waypoint of its own.
    lab.create(&PodSpec::new("bank", "far", "n2"))?;
    let refused = || -> Result<f64> {
        let reason = [("reason", "inbound_datagram")];
        Ok(Metrics::of_agent(lab, "n1")?.sum("keelson_kernel_decisions_total", &reason))
    };
    let checked = ["service", "all", "service"].iter().try_for_each(|is_for| {
        lab.apply("gateway.yaml", &gateway("shop", is_for))?;
        let before = refused()?;
        for address in addresses(lab, "shop/cart-v2")? {
            let server = bind(lab, "shop/cart-v2", address)?;
            // Neighbours on its node, inside and outside of the mesh, and a pod of another.
            for from in ["shop/front", "outside/plain", "shop/back"] {
                let what = format!("waypoint-for {is_for}: {from} to {address}");
                testkit::eventually(&what, APPLIES, || {
                    let comes = arrives(lab, from, &server)?;
                    ensure!(comes == (*is_for == "service"), "{what}: {comes}");
                    Ok(())
                })?;
            }
            asks(lab, address, *is_for == "all")?;
        }
        let more = refused()? - before;
        ensure!(*is_for != "all" || more >= 6.0, "{is_for}: {more}");
        Ok(())
    });
    lab.apply("gateway.yaml", &gateway("shop", "all"))?;
    lab.delete_pod("bank/far")?;
    checked
}

fn addresses(lab: &Lab, pod: &str) -> Result<[IpAddr; 2]> {
    let pod = lab.pod(pod)?;
    Ok([pod.v4()?.into(), pod.v6()?.into()])
}

/// A socket of a pod that is not connected.
fn bind(lab: &Lab, pod: &str, address: IpAddr) -> Result<UdpSocket> {
    let socket = lab.pod(pod)?.run(|| UdpSocket::bind((address, 0)))??;
    socket.set_read_timeout(Some(ARRIVES))?;
    Ok(socket)
}

/// Whether the server hears of a datagram.
fn arrives(lab: &Lab, from: &str, server: &UdpSocket) -> Result<bool> {
    let to = server.local_addr()?;
    let client = bind(lab, from, any(to.ip()))?;
    client.send_to(b"hello", to)?;
    received(server)
}

fn any(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::from([0; 4]),
        IpAddr::V6(_) => IpAddr::from([0_u16; 8]),
    }
}

fn received(socket: &UdpSocket) -> Result<bool> {
    let mut bytes = [0; 16];
    match socket.recv_from(&mut bytes) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error).context("receiving"),
    }
}

/// The pod's own questions are answered, as by a DNS server: by a socket that is connected and by one that is not, there and
/// back of another node and of its own. Nobody else is heard for that where the pod requires a waypoint.
fn asks(lab: &Lab, own: IpAddr, requires: bool) -> Result<()> {
    for (asked, other) in [("outside/plain", "bank/far"), ("bank/far", "outside/plain")] {
        let like = |all: [IpAddr; 2]| all.into_iter().find(|ip| ip.is_ipv4() == own.is_ipv4());
        let address = like(addresses(lab, asked)?).context("of that family")?;
        let answers = bind(lab, asked, address)?;
        for connects in [false, true] {
            let asks = bind(lab, "shop/cart-v2", own)?;
            if connects {
                asks.connect(answers.local_addr()?)?;
                asks.send(b"who?")?;
            } else {
                asks.send_to(b"who?", answers.local_addr()?)?;
            }
            let mut bytes = [0; 16];
            let (_, from) = answers.recv_from(&mut bytes).context("the question")?;
            ensure!(from == asks.local_addr()?, "{from}");
            answers.send_to(b"me", from)?;
            ensure!(received(&asks)?, "{asked} answers, connected: {connects}");
        }
        let asks = bind(lab, "shop/cart-v2", own)?;
        asks.send_to(b"who?", answers.local_addr()?)?;
        let port = answers.local_addr()?.port();
        let stranger = lab
            .pod(other)?
            .run(|| UdpSocket::bind((any(own), port)))??;
        stranger.send_to(b"me", asks.local_addr()?)?;
        let heard = received(&asks)?;
        ensure!(heard != requires, "{other}, who was not asked: {heard}");
    }
    Ok(())
}

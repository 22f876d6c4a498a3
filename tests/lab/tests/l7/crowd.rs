//! Many connections at once.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use lab::Lab;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::fixture::{CART, SHOP, apply, get};

const CONNECTIONS: usize = 15_000;
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: cart\r\n\r\n";

#[test]
fn fifteen_thousand_connections_are_served_by_one_replica() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    apply(lab, "- route: [{destination: {host: cart}}]\n", || {
        ensure!(get(lab, "front", "/", &[])?.status == 200);
        Ok(())
    })?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    ensure!(hard > 16_000, "a process may have {hard} descriptors only");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let mut open = opened(lab)?;
    for (number, stream) in open.iter_mut().enumerate() {
        let asked = stream.write_all(REQUEST).map_err(anyhow::Error::from);
        let answered = asked.and_then(|()| answered(stream));
        answered.with_context(|| format!("connection {number}, the second time"))?;
    }
    Ok(())
}

/// Connections that have been answered once, all of them to the waypoint of the client's node.
fn opened(lab: &Lab) -> Result<Vec<TcpStream>> {
    let service: SocketAddr = format!("{CART}:80").parse()?;
    let front = lab.pod("shop/front")?;
    front.run(|| -> Result<Vec<TcpStream>> {
        let mut open = Vec::with_capacity(CONNECTIONS);
        for number in 0..CONNECTIONS {
            let one = || -> Result<TcpStream> {
                let mut stream = TcpStream::connect(service)?;
                stream.set_read_timeout(Some(Duration::from_secs(20)))?;
                stream.write_all(REQUEST)?;
                answered(&mut stream)?;
                Ok(stream)
            };
            open.push(one().with_context(|| format!("connection {number}"))?);
        }
        Ok(open)
    })?
}

/// Reads an answer with its body, which comes with its length.
fn answered(stream: &mut TcpStream) -> Result<()> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let count = stream.read(&mut piece)?;
        ensure!(count > 0, "closed after {} bytes", bytes.len());
        bytes.extend_from_slice(&piece[..count]);
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length").then_some(value)
        });
        let length: usize = length.context("an answer with its length")?.parse()?;
        if body.len() >= length {
            return Ok(());
        }
    }
}

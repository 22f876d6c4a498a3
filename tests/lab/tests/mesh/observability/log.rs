//! The access log: one line for each connection, when it ends or is refused.

use std::net::Shutdown;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tests_lab::turn;

use super::mesh::{CATALOGUE, field, mesh};
use crate::fixture::{Ended, connect, exchange, refused_call};

/// Checks that each field of the line has this value.
fn check(line: &Value, expected: &[(&str, Value)]) {
    for (name, value) in expected {
        assert_eq!(field(line, name), Some(value), "{name} of {line:#}");
    }
}

fn number(line: &Value, name: &str) -> Result<f64> {
    let value = field(line, name).with_context(|| format!("no {name} in {line:#}"))?;
    // Numbers may be written as numbers or, by some formats, as text.
    let text = value.to_string();
    Ok(text.trim_matches('"').parse()?)
}

/// Who, whom, identities, service, bytes, duration: on both nodes, once each.
#[test]
fn a_closed_connection_is_one_line_on_each_node_with_who_whom_and_how_much() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let stream = connect(&mesh.client, CATALOGUE.parse()?)?;
    let source = stream.local_addr()?;
    assert_eq!(exchange(&stream, &[b'z'; 1234]), Ended::Answered);
    std::thread::sleep(std::time::Duration::from_millis(300));
    for node in ["n1", "n2"] {
        assert_eq!(
            mesh.access_lines(node, source)?,
            Vec::<Value>::new(),
            "it is still open"
        );
    }
    stream.shutdown(Shutdown::Both)?;
    drop(stream);
    for (node, direction) in [("n1", "outbound"), ("n2", "inbound")] {
        let lines = mesh.wait_access_lines(node, source)?;
        let [line] = &lines[..] else {
            panic!("{node}: {lines:#?}");
        };
        check(
            line,
            &[
                ("direction", json!(direction)),
                ("src.workload", json!("front-end")),
                ("src.namespace", json!("sock-shop")),
                (
                    "src.identity",
                    json!("spiffe://cluster.local/ns/sock-shop/sa/front-end"),
                ),
                ("dst.workload", json!("catalogue")),
                ("dst.namespace", json!("sock-shop")),
                (
                    "dst.identity",
                    json!("spiffe://cluster.local/ns/sock-shop/sa/catalogue"),
                ),
                (
                    "dst.service",
                    json!("catalogue.sock-shop.svc.cluster.local"),
                ),
            ],
        );
        assert!(
            (number(line, "bytes_sent")? - 1234.0).abs() < 0.5,
            "{line:#}"
        );
        assert!(
            (number(line, "bytes_recv")? - 1234.0).abs() < 0.5,
            "{line:#}"
        );
        let duration = number(line, "duration_ms")?;
        assert!((250.0..5000.0).contains(&duration), "{line:#}");
    }
    Ok(())
}

/// One line, with the policy, on the side that refused and on the side that was refused.
#[test]
fn a_refused_connection_is_one_line_on_each_node_with_the_policy() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let source = refused_call(&mesh.thief, CATALOGUE.parse()?)?;
    for node in ["n1", "n2"] {
        let lines = mesh.wait_access_lines(node, source)?;
        let [line] = &lines[..] else {
            panic!("{node}: {lines:#?}");
        };
        check(
            line,
            &[
                ("src.workload", json!("thief")),
                (
                    "src.identity",
                    json!("spiffe://cluster.local/ns/sock-shop/sa/thief"),
                ),
                ("dst.workload", json!("catalogue")),
                (
                    "dst.service",
                    json!("catalogue.sock-shop.svc.cluster.local"),
                ),
            ],
        );
        assert!(
            line.to_string().contains("sock-shop/no-thieves"),
            "{node}: {line:#}"
        );
    }
    Ok(())
}

/// A port where nobody listens is no policy: the line says that, too.
#[test]
fn a_connection_that_nobody_takes_is_one_line_that_says_so() -> Result<()> {
    let _turn = turn()?;
    let mesh = mesh()?;
    let to = std::net::SocketAddr::new(mesh.server.v4()?.into(), 8999);
    let source = refused_call(&mesh.client, to)?;
    let lines = mesh.wait_access_lines("n1", source)?;
    let [line] = &lines[..] else {
        panic!("{lines:#?}");
    };
    let text = line.to_string();
    assert!(
        text.contains("8999") && text.contains("refused"),
        "{line:#}"
    );
    assert!(!text.contains("policy"), "{line:#}");
    Ok(())
}

//! Foreign servers in a pod's place: our agent as the client verifies whom it reached.

use std::net::TcpListener;

use anyhow::{Context as _, Result};
use http::StatusCode;
use testkit::{Behaviour, Peer};
use tests_lab::turn;

use crate::authority::{Authority, Wish, server_config};
use crate::estate::{Estate, estate};
use crate::fixture::{Ended, PING, at, call, refusals, spiffe, wait_for};
use crate::hbone::{HBONE, Server};
use tests_lab::metrics::refused;

/// A captured client calls; the server in the place of the destination presents `wish`.
fn meets(estate: &Estate, issuer: &Authority, wish: &Wish) -> Result<(Ended, Server)> {
    let config = server_config(estate.authority.roots()?, issuer.mint(wish)?)?;
    let ip = estate.foreign_ip()?;
    let server = Server::start(&estate.foreign, ip, config, StatusCode::OK)?;
    Ok((call(&estate.client, at(ip, 8080))?, server))
}

/// The wrong server is refused before it is told anything; the reason stands at the client's agent.
#[test]
fn a_server_with_a_certificate_of_somebody_else_gets_no_request() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    estate.announce_foreign(true)?;
    let own = spiffe(&estate.foreign);
    let another = spiffe(&estate.server);
    let elsewhere = own.replace("cluster.local", "another.domain");
    let stranger = Authority::generate()?;
    let rows = [
        (
            "unexpected_identity",
            estate.authority,
            Wish::identity(&another),
        ),
        (
            "other_trust_domain",
            estate.authority,
            Wish::identity(&elsewhere),
        ),
        ("expired", estate.authority, Wish::expired(&own)),
        ("not_yet_valid", estate.authority, Wish::not_yet_valid(&own)),
        ("no_spiffe_id", estate.authority, Wish::nobody()),
        ("unknown_root", &stranger, Wish::identity(&own)),
    ];
    let (ended, server) = meets(&estate, estate.authority, &Wish::identity(&own))?;
    assert_eq!(ended, Ended::Answered, "the right server is accepted");
    assert_eq!(server.take_seen().len(), 1);
    drop(server);
    let mut wrong = Vec::new();
    for (reason, issuer, wish) in rows {
        let counted = refused(estate.lab, "n1", reason)?;
        let (ended, server) = meets(&estate, issuer, &wish)?;
        assert_eq!(ended, Ended::Refused, "{reason}");
        assert!(
            server.take_seen().is_empty(),
            "{reason}: it was told something"
        );
        let list = refusals(estate.lab, "n1")?;
        let newest = list.last().context("no refusal")?;
        assert_eq!(newest["pod"], "shop/client", "{newest}");
        let grown = refused(estate.lab, "n1", reason)? - counted;
        if newest["reason"] != reason || grown < 1.0 {
            wrong.push(format!("{reason}, counted {grown} times: {newest:#}"));
        }
    }
    assert!(wrong.is_empty(), "told as something else: {wrong:#?}");
    let (ended, _server) = meets(&estate, estate.authority, &Wish::identity(&own))?;
    assert_eq!(ended, Ended::Answered, "and afterwards the right one again");
    estate.announce_foreign(false)
}

/// A pod that is announced as HBONE and does not speak it gets no plain text instead.
#[test]
fn where_no_tunnel_is_possible_nothing_is_sent_in_the_clear() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let ip = estate.foreign_ip()?;
    estate.announce_foreign(false)?;
    let direct = crate::fixture::echo(&estate.foreign, 8080)?;
    wait_for(&estate.client, at(ip, 8080), Ended::Answered)?;
    estate.announce_foreign(true)?;
    let accepted = direct.accepted();
    let capture = estate.foreign.capture()?;
    // Nobody listens on the tunnel port, and then somebody who echoes what should be TLS.
    assert_eq!(call(&estate.client, at(ip, 8080))?, Ended::Refused);
    let listener = estate.foreign.run(|| TcpListener::bind((ip, HBONE)))??;
    let babbler = Peer::serve(listener, Behaviour::Echo)?;
    assert_eq!(call(&estate.client, at(ip, 8080))?, Ended::Refused);
    assert!(babbler.accepted() > 0);
    assert_eq!(direct.accepted(), accepted, "the port itself was not tried");
    assert!(!capture.contains(PING)?);
    drop(babbler);
    estate.announce_foreign(false)?;
    wait_for(&estate.client, at(ip, 8080), Ended::Answered)
}

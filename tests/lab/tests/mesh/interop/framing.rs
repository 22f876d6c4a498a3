//! Agents that speak the framing of ours and agents that speak HBONE only, in one mesh: what an
//! upgrade from the one to the other looks like.

use anyhow::Result;
use lab::AgentOptions;
use tests_lab::turn;

use crate::estate::estate;
use crate::fixture::{Ended, at, echo, wait_for};
use crate::hbone::HBONE;
use crate::records::hellos;

/// The one that knows only HBONE offers only HBONE, and each reaches the other.
#[test]
fn an_agent_that_knows_only_hbone_and_one_that_knows_more_understand_each_other() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let old = AgentOptions {
        args: vec!["--tunnel-framing".to_owned(), "hbone".to_owned()],
        ..AgentOptions::default()
    };
    let to_new = at(estate.client.v4()?, 8090);
    let _echo = echo(&estate.client, 8090)?;
    drop(estate.lab.succeed_agent("n2", &old)?);
    let link = estate.lab.node("n2")?.capture_uplink()?;
    let both_ways = || -> Result<()> {
        wait_for(&estate.client, estate.echo_at()?, Ended::Answered)?;
        wait_for(&estate.server, to_new, Ended::Answered)
    };
    let talked = both_ways();
    // The agent that the other tests expect.
    drop(estate.lab.succeed_agent("n2", &AgentOptions::default())?);
    talked?;
    let (clients, _) = hellos(&link, HBONE);
    let offers: Vec<_> = clients.iter().map(|client| &client.alpn).collect();
    let hbone = vec![b"h2".to_vec()];
    let both = vec![b"keelson/1".to_vec(), b"h2".to_vec()];
    assert!(
        offers.contains(&&hbone) && offers.contains(&&both),
        "{offers:?}"
    );
    both_ways()
}

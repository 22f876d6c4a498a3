//! What a foreign client of a captured pod sees when the pod's agent is succeeded.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use h2::Reason;
use lab::AgentOptions;
use tests_lab::turn;

use crate::authority::client_config;
use crate::estate::estate;
use crate::fixture::{APPLIES, at};
use crate::hbone::{HBONE, Stream, Tunnel, inside};

const DRAIN: Duration = Duration::from_secs(6);

/// GOAWAY without an error: no new stream in the old tunnel, the open one goes on until the drain
/// deadline and ends with RST_STREAM; a new tunnel to the same address leads to the new agent.
#[test]
fn a_succeeded_agent_says_goaway_and_its_streams_go_on_until_the_deadline() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let options = AgentOptions {
        drain_deadline: DRAIN,
        ..AgentOptions::default()
    };
    drop(estate.lab.succeed_agent("n2", &options)?);
    let own = estate.foreign_certificate()?;
    let config = client_config(estate.authority.roots()?, Some(own), &[b"h2"])?;
    let hbone = at(estate.server.v4()?, HBONE);
    let to = estate.echo_at()?.to_string();
    let lab = estate.lab;
    let mut before = inside(&estate.foreign, || async move {
        let tunnel = Tunnel::dial(hbone, Arc::clone(&config)).await?;
        let mut open = tunnel.open(&to).await?;
        echo(&mut open).await?;
        let succeeding = tokio::task::spawn_blocking(move || lab.succeed_agent("n2", &options));
        let before = succeeding.await??;
        let since = Instant::now();
        let refused = loop {
            match tunnel.open(&to).await {
                Ok(_) if since.elapsed() < APPLIES => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Ok(_) => anyhow::bail!("no GOAWAY within {APPLIES:?}"),
                Err(error) => break error,
            }
        };
        let error: &h2::Error = refused.downcast_ref().context("an error of HTTP/2")?;
        ensure!(
            error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR),
            "not GOAWAY without an error but {error:?}"
        );
        let again = Tunnel::dial(hbone, config).await?;
        echo(&mut again.open(&to).await?)
            .await
            .context("a new tunnel")?;
        while since.elapsed() < DRAIN - Duration::from_secs(1) {
            echo(&mut open).await.context("the stream that was open")?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let end = tokio::time::timeout(APPLIES, open.read_to_end()).await?;
        let error = end
            .err()
            .context("the stream ended as if it were complete")?;
        let reset: &h2::Error = error.downcast_ref().context("an error of HTTP/2")?;
        ensure!(
            reset.is_reset() && reset.is_remote(),
            "not RST_STREAM but {reset:?}"
        );
        Ok(before)
    })?;
    let ended = before
        .wait(APPLIES)?
        .context("the first agent does not end")?;
    ensure!(ended.success(), "{ended}");
    Ok(())
}

async fn echo(stream: &mut Stream) -> Result<()> {
    stream.write(b"ping", false)?;
    let back = stream.read(4).await?;
    ensure!(back == b"ping", "{back:?}");
    Ok(())
}

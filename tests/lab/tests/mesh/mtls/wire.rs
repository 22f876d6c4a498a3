//! What a capture of the link between the nodes shows.

use anyhow::Result;
use tests_lab::turn;

use crate::estate::estate;
use crate::fixture::{Ended, call_here, wait_for};
use crate::hbone::HBONE;
use crate::records::{ServerHello, hellos};

const SECRET: &[u8] = b"{\"grettings\":\"Hi Istio workshop from v1\"}";

/// A33, F69.
#[test]
fn between_nodes_a_captured_pods_payload_is_unreadable_and_an_uncaptured_pods_is_not() -> Result<()>
{
    let _turn = turn()?;
    let estate = estate()?;
    let to = estate.echo_at()?;
    wait_for(&estate.client, to, Ended::Answered)?;
    let link = estate.lab.node("n1")?.capture_uplink()?;
    let ended = estate.stranger.run(|| call_here(to, SECRET))?;
    assert_eq!(ended, Ended::Answered);
    assert!(link.contains(SECRET)?, "the capture can see plain text");
    link.clear();
    let ended = estate.client.run(|| call_here(to, SECRET))?;
    assert_eq!(ended, Ended::Answered);
    assert!(!link.contains(SECRET)?);
    assert_eq!(
        link.count_port(6, 8080),
        0,
        "nothing goes to the port itself"
    );
    assert!(
        link.count_port(6, HBONE) > 0,
        "what went, went to the tunnel"
    );
    Ok(())
}

/// Only TLS 1.3 with AES-GCM, our framing or else h2, and no server name is offered, and it is what
/// is agreed.
#[test]
fn tunnels_are_tls_1_3_with_aes_gcm_and_h2_and_name_no_server() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let link = estate.lab.node("n1")?.capture_uplink()?;
    // Two agents that have not talked before have no tunnel yet: `other` is called by this test only.
    let to = crate::fixture::at(estate.other.v4()?, 8080);
    let echo = crate::fixture::echo(&estate.other, 8080)?;
    wait_for(&estate.client, to, Ended::Answered)?;
    assert!(echo.accepted() > 0);
    let (clients, servers) = hellos(&link, HBONE);
    assert!(!clients.is_empty() && clients.len() == servers.len());
    for client in clients {
        assert_eq!(client.versions, [0x0304], "{client:?}");
        assert_eq!(
            client.alpn,
            [b"keelson/1".to_vec(), b"h2".to_vec()],
            "{client:?}"
        );
        assert!(!client.server_name, "{client:?}");
        let mut suites = client.ciphers.iter().filter(|suite| **suite != SCSV);
        assert!(suites.all(|suite| AES_GCM.contains(suite)), "{client:?}");
    }
    for ServerHello { version, cipher } in servers {
        assert_eq!(version, 0x0304);
        assert!(AES_GCM.contains(&cipher), "{cipher:#x}");
    }
    Ok(())
}

/// TLS_AES_128_GCM_SHA256 and TLS_AES_256_GCM_SHA384.
const AES_GCM: [u16; 2] = [0x1301, 0x1302];
/// TLS_EMPTY_RENEGOTIATION_INFO_SCSV: not a suite.
const SCSV: u16 = 0x00ff;

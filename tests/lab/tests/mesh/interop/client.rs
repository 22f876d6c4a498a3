//! A foreign HBONE client at a captured pod: `h2` CONNECT, and what each request is answered with.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use h2::Reason;
use http::{Request, StatusCode};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use testkit::Behaviour;
use tests_lab::turn;

use crate::authority::client_config;
use crate::estate::{Estate, estate};
use crate::fixture::{CALL, at, refusals, serve};
use crate::hbone::{HBONE, Stream, Tunnel, connect_request, inside};

/// Talks through a tunnel from the foreign pod to the captured pod `server`.
fn through<T, F>(estate: &Estate, talk: impl FnOnce(Tunnel) -> F + Send) -> Result<T>
where
    T: Send,
    F: Future<Output = Result<T>>,
{
    let own = estate.foreign_certificate()?;
    let config = client_config(estate.authority.roots()?, Some(own), &[b"h2"])?;
    let hbone = at(estate.server.v4()?, HBONE);
    inside(&estate.foreign, || async move {
        let tunnel = Tunnel::dial(hbone, config).await?;
        ensure!(tunnel.alpn.as_deref() == Some(b"h2"), "{:?}", tunnel.alpn);
        talk(tunnel).await
    })
}

#[test]
fn connect_to_an_echo_is_answered_with_200_and_every_byte_and_the_end_come_back() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let to = estate.echo_at()?.to_string();
    let message: Vec<u8> = (0..200_000_u32).map(|index| (index % 251) as u8).collect();
    let expected = message.clone();
    let answer = through(&estate, |tunnel| async move {
        let mut stream = tunnel.open(&to).await?;
        let mut sent = 0;
        // Slices fit into any window that the facts allow (at least 64 KiB).
        while sent < message.len() {
            let end = (sent + 10_000).min(message.len());
            stream.write(&message[sent..end], end == message.len())?;
            sent = end;
        }
        stream.read_to_end().await
    })?;
    assert_eq!(answer.len(), expected.len());
    assert!(answer == expected, "the bytes differ");
    Ok(())
}

#[test]
fn many_requests_share_a_tunnel_and_do_not_mix() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let to = estate.echo_at()?.to_string();
    through(&estate, |tunnel| async move {
        let mut streams = Vec::new();
        for _ in 0..20 {
            streams.push(tunnel.open(&to).await?);
        }
        for (index, stream) in streams.iter_mut().enumerate() {
            stream.write(format!("stream {index}").as_bytes(), true)?;
        }
        for (index, mut stream) in streams.into_iter().enumerate().rev() {
            let answer = stream.read_to_end().await?;
            ensure!(
                answer == format!("stream {index}").as_bytes(),
                "{index}: {answer:?}"
            );
        }
        Ok(())
    })
}

/// The application sees the address of the tunnel's client, not the agent's.
#[test]
fn the_application_sees_the_tunnels_client_address() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let _teller = serve(&estate.server, 8100, Behaviour::TellPeer)?;
    let to = at(estate.server.v4()?, 8100).to_string();
    let told = through(&estate, |tunnel| async move {
        tunnel.open(&to).await?.read_to_end().await
    })?;
    let told: SocketAddr = String::from_utf8(told)?.parse()?;
    assert_eq!(told.ip().to_canonical(), estate.foreign_ip()?);
    Ok(())
}

/// An application that closes its side first still hears the client to its end.
#[test]
fn each_side_may_end_first_and_the_other_goes_on() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let listener = estate.server.run(|| TcpListener::bind("[::]:8101"))??;
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.write_all(b"bye")?;
        stream.shutdown(Shutdown::Write)?;
        stream.set_read_timeout(Some(CALL))?;
        let mut rest = Vec::new();
        let ended = stream.read_to_end(&mut rest).map(|_| rest);
        tell.send(ended)?;
        Ok(())
    });
    let to = at(estate.server.v4()?, 8101).to_string();
    through(&estate, |tunnel| async move {
        let mut stream = tunnel.open(&to).await?;
        ensure!(
            stream.read_to_end().await? == b"bye",
            "the server's end comes first"
        );
        stream.write(b"and then ", false)?;
        stream.write(b"the client's", true)?;
        // The tunnel lives until the application has heard the end.
        let heard = tokio::task::spawn_blocking(move || told.recv_timeout(CALL));
        let heard = heard.await???;
        ensure!(
            heard == b"and then the client's",
            "the application read {heard:?}"
        );
        Ok(())
    })
}

/// A reset of a stream reaches the application as a reset, and the other way round.
#[test]
fn resets_travel_both_ways() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let listener = estate.server.run(|| TcpListener::bind("[::]:8102"))??;
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || -> Result<()> {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(CALL))?;
        stream.write_all(b"hello")?;
        tell.send(stream.read(&mut [0; 16]).map_err(|error| error.kind()))?;
        Ok(())
    });
    let to = at(estate.server.v4()?, 8102).to_string();
    through(&estate, |tunnel| async move {
        let mut stream = tunnel.open(&to).await?;
        stream.read(5).await?;
        stream.send.send_reset(Reason::CANCEL);
        let seen = tokio::task::spawn_blocking(move || told.recv_timeout(CALL)).await??;
        ensure!(
            seen == Err(ErrorKind::ConnectionReset),
            "the application saw {seen:?}"
        );
        Ok(())
    })?;

    let _resetter = serve(&estate.server, 8103, Behaviour::Reset)?;
    let to = at(estate.server.v4()?, 8103).to_string();
    let outcome = through(&estate, |tunnel| async move {
        let mut stream = tunnel.open(&to).await?;
        stream.write(b"x", false)?;
        Ok(stream
            .read_to_end()
            .await
            .map_err(|error| error.to_string()))
    })?;
    assert!(
        outcome.is_err(),
        "an orderly end came instead of a reset: {outcome:?}"
    );
    Ok(())
}

/// 400 for what is no CONNECT to this pod, 503 where the connection cannot be made.
#[test]
fn refusals_have_the_statuses_of_the_facts() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let ip = estate.server.v4()?;
    let other = estate.other.v4()?;
    let _elsewhere = crate::fixture::echo(&estate.other, 8080)?;
    let get = |uri: String| -> Result<Request<()>> { Ok(Request::get(uri).body(())?) };
    let rows = [
        (
            "nobody listens",
            connect_request(&format!("{ip}:8199"))?,
            503,
        ),
        ("GET", get(format!("http://{ip}:8080/"))?, 400),
        ("no port", connect_request(&ip.to_string())?, 400),
        ("port 0", connect_request(&format!("{ip}:0"))?, 400),
        (
            "another pod",
            connect_request(&format!("{other}:8080"))?,
            400,
        ),
        (
            "another pod, IPv6",
            connect_request(&format!("[{}]:8080", estate.other.v6()?))?,
            400,
        ),
        ("the host", connect_request("127.0.0.1:8080")?, 400),
        (
            "an inner port of the mesh",
            connect_request(&format!("{ip}:15008"))?,
            400,
        ),
    ];
    for (what, request, expected) in rows {
        let got = through(&estate, |tunnel| async move {
            Ok(tunnel.request(request).await?.0.as_u16())
        });
        let got = got.with_context(|| what.to_owned())?;
        // The facts leave open how a call of an agent's own port is refused.
        let loops = what.contains("inner") && matches!(got, 400 | 401 | 503);
        assert!(got == expected || loops, "{what}: {got}");
    }
    Ok(())
}

/// A refusal of one request is not a refusal of the tunnel.
#[test]
fn a_tunnel_survives_refused_requests() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let ip = estate.server.v4()?;
    let statuses = through(&estate, |tunnel| async move {
        let mut statuses = Vec::new();
        for port in [8199, 8080, 8199, 8080] {
            statuses.push(tunnel.status(&format!("{ip}:{port}")).await?.as_u16());
        }
        Ok(statuses)
    })?;
    assert_eq!(statuses, [503, 200, 503, 200]);
    Ok(())
}

const DENY_FOREIGN: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: not-foreign, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  action: DENY
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/foreign]}}]}]
";

/// 401, not 403, as every HBONE client expects; and the reason stands in the answer.
#[test]
fn a_denied_request_is_answered_with_401() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let to = estate.echo_at()?.to_string();
    let (status, headers) = estate.with_manifest(DENY_FOREIGN, "shop/not-foreign", || {
        through(&estate, |tunnel| async move {
            let (status, headers, _, _) = tunnel.request(connect_request(&to)?).await?;
            Ok((status, headers))
        })
    })?;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    let reason = headers
        .get("proxy-status")
        .context("no proxy-status (RFC 9209)")?;
    assert!(reason.to_str()?.contains("not-foreign"), "{reason:?}");
    let list = refusals(estate.lab, "n2")?;
    let newest = list.last().context("no refusal")?.to_string();
    assert!(
        newest.contains("not-foreign") && newest.contains("sa/foreign"),
        "{newest}"
    );
    Ok(())
}

/// What other implementations send along must not disturb, even where it is nonsense.
#[test]
fn forwarded_baggage_and_traceparent_are_accepted() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let to = estate.echo_at()?.to_string();
    let rows = [
        (
            "forwarded",
            "for=\"10.244.3.10:4711\";host=server.shop.svc.cluster.local",
        ),
        ("forwarded", "for=;;\"unclosed"),
        (
            "baggage",
            "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=foreign,service.name=foreign,service.version=v1",
        ),
        ("baggage", "===,,=%%"),
        (
            "traceparent",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00",
        ),
        ("traceparent", "nonsense"),
        ("x-something-new", "1"),
    ];
    let statuses = through(&estate, |tunnel| async move {
        let mut statuses = Vec::new();
        for (name, value) in rows {
            let mut request = connect_request(&to)?;
            request.headers_mut().insert(name, value.parse()?);
            statuses.push(tunnel.request(request).await?.0.as_u16());
        }
        Ok(statuses)
    })?;
    assert_eq!(statuses, [200; 7]);
    Ok(())
}

/// The queue of the application's listener is full: the connection is not there yet, and so is no 200.
#[test]
fn the_answer_200_waits_for_the_applications_side_of_the_connection() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let to = at(estate.server.v4()?, 8104);
    let (listener, waiting) = estate.server.run(|| full_listener(to))??;
    let authority = to.to_string();
    through(&estate, |tunnel| async move {
        let answer = tunnel.open(&authority);
        tokio::pin!(answer);
        let early = tokio::time::timeout(Duration::from_millis(700), &mut answer).await;
        ensure!(early.is_err(), "200 came before anything was accepted");
        drop(waiting);
        for _ in 0..2 {
            listener.accept()?;
        }
        let mut stream: Stream = answer.await?;
        stream.write(b"now", true)?;
        let got = tokio::task::spawn_blocking(move || -> Result<String> {
            let mut accepted = listener.accept()?.0;
            accepted.set_read_timeout(Some(CALL))?;
            let mut got = String::new();
            accepted.read_to_string(&mut got)?;
            Ok(got)
        });
        let got = got.await??;
        ensure!(got == "now", "the application read {got:?}");
        Ok(())
    })
}

/// A listener whose queue of one is full with two connections of the pod itself.
fn full_listener(at: SocketAddr) -> Result<(TcpListener, Vec<TcpStream>)> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(at))?;
    socket.listen(1)?;
    let waiting = (0..2).map(|_| TcpStream::connect_timeout(&at, CALL));
    let waiting = waiting.collect::<Result<Vec<_>, _>>()?;
    Ok((socket.into(), waiting))
}

/// IPv6 tunnels and IPv6 authorities, in every combination with IPv4.
#[test]
fn the_authority_may_be_of_either_family() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let own = || estate.foreign_certificate();
    for ip in estate.server.ips() {
        let config = client_config(estate.authority.roots()?, Some(own()?), &[b"h2"])?;
        let (hbone, authority) = (at(*ip, HBONE), at(*ip, 8080).to_string());
        let status = inside(&estate.foreign, || async move {
            Tunnel::dial(hbone, config).await?.status(&authority).await
        })?;
        assert_eq!(status, StatusCode::OK, "{ip}");
    }
    Ok(())
}

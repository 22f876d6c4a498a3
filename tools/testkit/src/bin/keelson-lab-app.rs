//! The applications of the lab's pods: small servers and clients that say what they see.

use std::io::{BufReader, Write as _};
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use serde_json::json;
use testkit::{Behaviour, Call, HttpServer, Page, Peer, read_response, write_request};

/// Small servers and clients for the lab's pods.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    app: App,
}

#[derive(Debug, Subcommand)]
enum App {
    /// Answer HTTP with a JSON greeting that names the client; a POST is answered with its body.
    HttpServer {
        /// The port, on all addresses of both families.
        #[arg(long, default_value_t = 8080)]
        port: u16,
        /// The greeting.
        #[arg(long, default_value = "Hi Istio workshop from v1")]
        text: String,
    },
    /// Call an HTTP server again and again and print each answer.
    HttpClient {
        /// Host and port, such as `server.shop:8080`.
        server: String,
        /// The path.
        #[arg(long, default_value = "/")]
        path: String,
        /// Time between two calls.
        #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
        interval: Duration,
        /// How many calls; without end if not given.
        #[arg(long)]
        count: Option<u64>,
        /// One connection for all calls, and end when it breaks.
        #[arg(long)]
        keep: bool,
    },
    /// A page in the place of an image: it calls others, knows its user, and fails when it is told to.
    Page {
        /// Ports, on all addresses of both families.
        #[arg(long, default_value = "8080", value_delimiter = ',')]
        ports: Vec<u16>,
        /// The application.
        #[arg(long)]
        service: String,
        /// Its version.
        #[arg(long, default_value = "v1")]
        version: String,
        /// The replica.
        #[arg(long, default_value = "")]
        pod: String,
        /// What it calls, as `/prefix=host:port/path`; may be given again.
        #[arg(long = "call")]
        calls: Vec<Call>,
        /// A call that failed is the page's failure.
        #[arg(long)]
        strict: bool,
        /// A file with `status N` or `delay MILLISECONDS`, read for each request.
        #[arg(long)]
        mood: Option<PathBuf>,
    },
    /// Send back whatever comes over TCP.
    TcpEcho {
        /// The port, on all addresses of both families.
        #[arg(long, default_value_t = 7000)]
        port: u16,
        /// Speak first, with this text.
        #[arg(long)]
        greeting: Option<String>,
    },
    /// Send back every datagram.
    UdpEcho {
        /// The port, on all addresses of both families.
        #[arg(long, default_value_t = 7000)]
        port: u16,
    },
    /// Do nothing until killed.
    Sleep,
}

fn main() -> Result<()> {
    match Args::parse().app {
        App::HttpServer { port, text } => http_server(port, &text),
        App::HttpClient {
            server,
            path,
            interval,
            count,
            keep,
        } => {
            let client = Client {
                server,
                path,
                keep,
                connection: None,
            };
            client.run(interval, count)
        }
        App::Page {
            ports,
            service,
            version,
            pod,
            calls,
            strict,
            mood,
        } => {
            let page = Page {
                service,
                version,
                pod,
                calls,
                strict,
                mood,
            };
            for port in ports {
                let listener = listen(port)?;
                let page = page.clone();
                thread::spawn(move || page.serve(&listener));
                say(&format!("serving pages on port {port}"))?;
            }
            sleep()
        }
        App::TcpEcho { port, greeting } => {
            let behaviour = match greeting {
                Some(text) => Behaviour::GreetThenEcho(text.into_bytes()),
                None => Behaviour::Echo,
            };
            let _peer = Peer::serve(listen(port)?, behaviour)?;
            say(&format!("echoing on port {port}"))?;
            sleep()
        }
        App::UdpEcho { port } => udp_echo(port),
        App::Sleep => sleep(),
    }
}

fn http_server(port: u16, text: &str) -> Result<()> {
    let listener = listen(port)?;
    say(&format!("serving HTTP on port {port}"))?;
    let text = text.to_owned();
    HttpServer::serve(&listener, move |request| {
        let peer = request.peer.ip().to_canonical();
        drop(say(&format!(
            "{} {} from {peer}",
            request.method, request.path
        )));
        if request.body.is_empty() {
            let body = json!({"grettings": text, "peer": peer});
            (200, format!("{body}\n").into_bytes())
        } else {
            (200, request.body.clone())
        }
    })
    .context("accepting")
}

struct Client {
    server: String,
    path: String,
    keep: bool,
    connection: Option<TcpStream>,
}

impl Client {
    fn run(mut self, interval: Duration, count: Option<u64>) -> Result<()> {
        let mut calls = 0;
        while count.is_none_or(|count| calls < count) {
            match self.call() {
                Ok(line) => say(&line)?,
                Err(error) if self.keep => return Err(error),
                Err(error) => say(&format!("failed: {error:#}"))?,
            }
            calls += 1;
            thread::sleep(interval);
        }
        Ok(())
    }

    fn call(&mut self) -> Result<String> {
        let stream = match self.connection.take() {
            Some(stream) => stream,
            None => connect(&self.server)?,
        };
        write_request(&stream, &self.server, &self.path, b"")?;
        let response = read_response(&mut BufReader::new(&stream))?;
        if self.keep {
            self.connection = Some(stream);
        }
        let body = String::from_utf8_lossy(&response.body).trim().to_owned();
        Ok(format!("{} {body}", response.status))
    }
}

fn connect(server: &str) -> Result<TcpStream> {
    let attempted = || format!("connecting to {server}");
    let address = server.to_socket_addrs().with_context(attempted)?.next();
    let address = address.with_context(attempted)?;
    let stream = TcpStream::connect_timeout(&address, TIMEOUT).with_context(attempted)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

fn udp_echo(port: u16) -> Result<()> {
    let socket = UdpSocket::bind(("::", port)).with_context(|| format!("binding port {port}"))?;
    say(&format!("echoing datagrams on port {port}"))?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let (length, peer) = socket.recv_from(&mut buffer)?;
        socket.send_to(buffer.get(..length).unwrap_or_default(), peer)?;
    }
}

fn listen(port: u16) -> Result<TcpListener> {
    TcpListener::bind(("::", port)).with_context(|| format!("listening on port {port}"))
}

fn sleep() -> Result<()> {
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

/// A line on standard output, at once: somebody follows the log.
fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

const TIMEOUT: Duration = Duration::from_secs(5);

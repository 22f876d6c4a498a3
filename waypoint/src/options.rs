//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use runtime::log::Format;

/// Serves HTTP between the pods of a mesh: routes, balances, authorizes. Node agents bring connections here and carry
/// away those that it opens; it holds no mesh key.
#[derive(Clone, Debug, Parser)]
#[command(name = "keelson-waypoint", version)]
pub struct Options {
    /// The Gateway that this is a waypoint of, as NAMESPACE/NAME
    #[arg(long, env = "KEELSON_GATEWAY", value_name = "NAMESPACE/NAME")]
    pub gateway: String,
    /// This pod's name
    #[arg(long, env = "POD_NAME", default_value = "keelson-waypoint")]
    pub pod: String,
    /// The node that this pod runs on
    #[arg(long, env = "NODE_NAME", default_value = "")]
    pub node: String,
    /// The controller, as https://HOST:PORT
    #[arg(long, value_name = "URL")]
    pub controller: String,
    /// PEM file with the root that the controller's certificate ends in
    #[arg(long, value_name = "FILE")]
    pub controller_ca: PathBuf,
    /// File with the token that proves to the controller who this is; read anew at each use
    #[arg(long, value_name = "FILE")]
    pub token_file: PathBuf,
    /// Where the last good configuration is kept; the waypoint starts from it while the controller is away
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where the node's agent hands connections over; on loopback, so that nobody outside of the pod reaches it
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:15088", value_parser = loopback)]
    pub listen: SocketAddr,
    /// Address of the admin page (readiness, metrics, configuration, ejections, log level)
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:15020")]
    pub admin: SocketAddr,
    /// Threads that serve; 0 is one for each CPU that this process may use
    #[arg(long, default_value_t = 0)]
    pub workers: usize,
    /// After SIGTERM, how long requests may go on
    #[arg(long, default_value = "25s", value_parser = humantime::parse_duration)]
    pub drain_deadline: Duration,
    /// Time for the head of a request, from its first byte
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    pub head_timeout: Duration,
    /// Time without a request, after which a client's connection is closed
    #[arg(long, default_value = "1h", value_parser = humantime::parse_duration)]
    pub idle_timeout: Duration,
    /// Time in which a client sends nothing more of a request, or takes nothing more of an answer, after which the request is
    /// given up; 0s is without end
    #[arg(long, default_value = "5m", value_parser = humantime::parse_duration)]
    pub stream_idle_timeout: Duration,
    /// Time for a client's first bytes on a port whose protocol is not declared
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    pub detect_timeout: Duration,
    /// After which time, more or less, an HTTP/2 client is asked to connect anew, so that load spreads over replicas
    #[arg(long, default_value = "50s", value_parser = humantime::parse_duration)]
    pub http2_age: Duration,
    /// Bytes of a request's body that are kept to send it again or to mirror it
    #[arg(long, default_value_t = 64 << 10)]
    pub replay_bytes: usize,
    /// How long a worker may stay awake for a request or an answer that it expects at once; 0s puts it to sleep at once.
    #[arg(long, default_value = "100us", value_parser = humantime::parse_duration)]
    pub busy_poll: Duration,
    /// A server that knows the names of endpoints, as ADDR:PORT; may be given several times. Without any, those of
    /// /etc/resolv.conf
    #[arg(long, value_name = "ADDR:PORT")]
    pub dns_server: Vec<SocketAddr>,
    /// The collector that gets spans of requests by OTLP over gRPC, as http://HOST:PORT; without it there are no spans, and
    /// headers of traces pass as they are
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")]
    pub trace_endpoint: Option<String>,
    /// Of a hundred requests whose client has not decided whether it is traced, how many are
    #[arg(long, value_name = "PERCENT", env = "KEELSON_TRACE_PERCENT", default_value_t = 1.0, value_parser = percent)]
    pub trace_percent: f64,
    /// How log lines look
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: Format,
    /// What is logged, such as `info`, `info,access=off` or `debug,h2=info`; changeable at /logging
    #[arg(long, value_name = "FILTER", env = "RUST_LOG", default_value = "info")]
    pub log: String,
}

fn percent(text: &str) -> Result<f64, String> {
    let percent: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (0.0..=100.0).contains(&percent) {
        Ok(percent)
    } else {
        Err("it is between 0 and 100".to_owned())
    }
}

/// Whoever reaches it says who calls.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|error| format!("{error}"))?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err(
            "it has to be a loopback address: whoever reaches it is believed about who calls"
                .to_owned(),
        )
    }
}

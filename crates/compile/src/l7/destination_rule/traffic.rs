//! A `trafficPolicy`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_api::destination_rule as written;
use l7::TrafficPolicy;
use l7::backend::{
    HashKey, Keepalive, Limits, LoadBalancer, LocalityPolicy, Outliers, Roots, TlsMode, Upgrade,
    WarmUp,
};

use crate::l7::notes::Notes;

type ByPort = BTreeMap<u16, Arc<TrafficPolicy>>;

/// The policy of a service or a subset, and those of its ports.
pub(super) fn of(
    field: &str,
    policy: Option<&written::TrafficPolicy>,
    notes: &mut Notes,
) -> (Arc<TrafficPolicy>, ByPort) {
    let Some(policy) = policy else {
        return Default::default();
    };
    for (name, is_there) in [
        ("tunnel", policy.tunnel.is_some()),
        ("proxyProtocol", policy.proxy_protocol.is_some()),
        ("retryBudget", policy.retry_budget.is_some()),
    ] {
        if is_there {
            notes.error(
                format!("{field}.{name}"),
                "is not supported and has no effect",
            );
        }
    }
    let mut ports = ByPort::new();
    for (index, port) in policy.port_level_settings.iter().enumerate() {
        let field = format!("{field}.portLevelSettings[{index}]");
        let Some(number) = port.port.as_ref().map(|port| port.number) else {
            notes.error(format!("{field}.port.number"), "is missing");
            continue;
        };
        let of_port = one(
            &field,
            (
                port.load_balancer.as_ref(),
                port.connection_pool.as_ref(),
                port.outlier_detection.as_ref(),
                port.tls.as_ref(),
            ),
            notes,
        );
        ports.insert(number, Arc::new(of_port));
    }
    let own = one(
        field,
        (
            policy.load_balancer.as_ref(),
            policy.connection_pool.as_ref(),
            policy.outlier_detection.as_ref(),
            policy.tls.as_ref(),
        ),
        notes,
    );
    (Arc::new(own), ports)
}

type Four<'w> = (
    Option<&'w written::LoadBalancer>,
    Option<&'w written::ConnectionPool>,
    Option<&'w written::OutlierDetection>,
    Option<&'w written::ClientTls>,
);

fn one(field: &str, (balancer, pool, outliers, tls): Four<'_>, notes: &mut Notes) -> TrafficPolicy {
    let of = format!("{field}.loadBalancer");
    TrafficPolicy {
        load_balancer: balancer.and_then(|balancer| load_balancer(&of, balancer, notes)),
        locality: balancer
            .and_then(|balancer| balancer.locality_lb_setting.as_ref())
            .map(|setting| locality(&format!("{of}.localityLbSetting"), setting, notes)),
        warm_up: balancer.and_then(|balancer| warm_up(&of, balancer, notes)),
        limits: pool.map(|pool| limits(&format!("{field}.connectionPool"), pool, notes)),
        outliers: outliers
            .map(|outliers| self::outliers(&format!("{field}.outlierDetection"), outliers, notes)),
        tls: tls.and_then(|tls| self::tls(&format!("{field}.tls"), tls, notes)),
    }
}

fn load_balancer(
    field: &str,
    balancer: &written::LoadBalancer,
    notes: &mut Notes,
) -> Option<LoadBalancer> {
    match (balancer.simple.as_deref(), &balancer.consistent_hash) {
        (Some(_), Some(_)) => {
            notes.error(field, "only one of simple and consistentHash can be set");
            None
        }
        (None, Some(hash)) => {
            hash_key(&format!("{field}.consistentHash"), hash, notes).map(LoadBalancer::Hash)
        }
        (Some("ROUND_ROBIN"), None) => Some(LoadBalancer::RoundRobin),
        (Some("LEAST_REQUEST" | "LEAST_CONN"), None) => Some(LoadBalancer::LeastRequest),
        (Some("RANDOM"), None) => Some(LoadBalancer::Random),
        (Some("PASSTHROUGH"), None) => Some(LoadBalancer::Passthrough),
        (None | Some("UNSPECIFIED"), None) => None,
        (Some(other), None) => {
            let message =
                format!("{other:?} is none of ROUND_ROBIN, LEAST_REQUEST, RANDOM and PASSTHROUGH");
            notes.error(format!("{field}.simple"), message);
            None
        }
    }
}

fn hash_key(field: &str, hash: &written::ConsistentHash, notes: &mut Notes) -> Option<HashKey> {
    let written::ConsistentHash {
        http_header_name,
        http_cookie,
        use_source_ip,
        http_query_parameter_name,
        // How the table is made, which is not how ours is.
        minimum_ring_size: _,
        ring_hash: _,
        maglev: _,
    } = hash;
    match (
        http_header_name,
        http_cookie,
        use_source_ip.unwrap_or(false),
        http_query_parameter_name,
    ) {
        (Some(name), None, false, None) => notes
            .header_name(&format!("{field}.httpHeaderName"), name)
            .map(HashKey::Header),
        (None, Some(cookie), false, None) => Some(HashKey::Cookie {
            name: cookie.name.as_str().into(),
            path: (!cookie.path.is_empty()).then(|| cookie.path.as_str().into()),
            ttl: notes.optional_duration(&format!("{field}.httpCookie.ttl"), cookie.ttl.as_deref()),
        }),
        (None, None, true, None) => Some(HashKey::SourceIp),
        (None, None, false, Some(name)) => Some(HashKey::QueryParameter(name.as_str().into())),
        _ => {
            let message = "exactly one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName has to be set";
            notes.error(field, message);
            None
        }
    }
}

fn locality(field: &str, setting: &written::LocalitySetting, notes: &mut Notes) -> LocalityPolicy {
    if setting.enabled == Some(false) {
        return LocalityPolicy::Off;
    }
    let kinds = [
        !setting.distribute.is_empty(),
        !setting.failover.is_empty(),
        !setting.failover_priority.is_empty(),
    ];
    if kinds.iter().filter(|set| **set).count() > 1 && kinds[0] {
        notes.error(
            field,
            "distribute cannot be set together with failover or failoverPriority",
        );
    }
    if !setting.distribute.is_empty() {
        let from = setting.distribute.iter().enumerate().map(|(index, from)| {
            if from.to.values().sum::<u32>() != 100 {
                let field = format!("{field}.distribute[{index}].to");
                notes.error(field, "the weights do not add up to 100");
            }
            let to = from.to.iter();
            let to = to.map(|(to, weight)| (to.as_str().into(), *weight));
            (from.from.as_str().into(), to.collect())
        });
        return LocalityPolicy::Distribute(from.collect());
    }
    if !setting.failover_priority.is_empty() {
        let labels = setting
            .failover_priority
            .iter()
            .map(|label| match label.split_once('=') {
                Some((name, value)) => (name.into(), Some(value.into())),
                None => (label.as_str().into(), None),
            });
        return LocalityPolicy::Priority(labels.collect());
    }
    let regions = setting.failover.iter();
    LocalityPolicy::Failover(
        regions
            .map(|failover| (failover.from.as_str().into(), failover.to.as_str().into()))
            .collect(),
    )
}

fn warm_up(field: &str, balancer: &written::LoadBalancer, notes: &mut Notes) -> Option<WarmUp> {
    let (text, minimum, aggression) = match (&balancer.warmup, &balancer.warmup_duration_secs) {
        (Some(warmup), _) => (
            warmup.duration.as_deref(),
            warmup.minimum_percent,
            warmup.aggression,
        ),
        (None, text) => (text.as_deref(), None, None),
    };
    let duration = notes.optional_duration(&format!("{field}.warmup.duration"), text)?;
    Some(WarmUp {
        duration,
        minimum_percent: minimum.unwrap_or(10.0),
        aggression: aggression.unwrap_or(1.0),
    })
}

fn limits(field: &str, pool: &written::ConnectionPool, notes: &mut Notes) -> Limits {
    let mut limits = Limits::default();
    let number = |field: String, value: Option<i32>, notes: &mut Notes| {
        // 0 is Istio's way to say that there is no limit.
        let value = value.filter(|value| *value != 0)?;
        let read = u32::try_from(value).ok();
        if read.is_none() {
            notes.error(field, format!("{value} is negative"));
        }
        read
    };
    if let Some(tcp) = &pool.tcp {
        let field = format!("{field}.tcp");
        let at = |name: &str| format!("{field}.{name}");
        limits.connections = number(at("maxConnections"), tcp.max_connections, notes);
        let mut time = |name: &str, text: &Option<String>| {
            let read = notes.optional_duration(&at(name), text.as_deref());
            read.filter(|time| !time.is_zero())
        };
        limits.connect_timeout = time("connectTimeout", &tcp.connect_timeout);
        limits.idle_timeout = time("idleTimeout", &tcp.idle_timeout);
        limits.connection_life = time("maxConnectionDuration", &tcp.max_connection_duration);
        limits.keepalive = tcp.tcp_keepalive.as_ref().map(|keepalive| Keepalive {
            probes: keepalive.probes,
            time: time("tcpKeepalive.time", &keepalive.time),
            interval: time("tcpKeepalive.interval", &keepalive.interval),
        });
    }
    if let Some(http) = &pool.http {
        let field = format!("{field}.http");
        let at = |name: &str| format!("{field}.{name}");
        limits.pending = number(
            at("http1MaxPendingRequests"),
            http.http1_max_pending_requests,
            notes,
        );
        limits.requests = number(at("http2MaxRequests"), http.http2_max_requests, notes);
        limits.requests_per_connection = number(
            at("maxRequestsPerConnection"),
            http.max_requests_per_connection,
            notes,
        );
        limits.retries = number(at("maxRetries"), http.max_retries, notes);
        limits.streams_per_connection = number(
            at("maxConcurrentStreams"),
            http.max_concurrent_streams,
            notes,
        );
        let idle = notes.optional_duration(&at("idleTimeout"), http.idle_timeout.as_deref());
        limits.idle_timeout = idle.filter(|time| !time.is_zero()).or(limits.idle_timeout);
        limits.upgrade = match (http.use_client_protocol, http.h2_upgrade_policy.as_deref()) {
            (true, _) => Upgrade::AsClient,
            (false, None | Some("DEFAULT")) => Upgrade::Unsaid,
            (false, Some("UPGRADE")) => Upgrade::Always,
            (false, Some("DO_NOT_UPGRADE")) => Upgrade::Never,
            (false, Some(other)) => {
                let message = format!("{other:?} is none of DEFAULT, UPGRADE and DO_NOT_UPGRADE");
                notes.error(at("h2UpgradePolicy"), message);
                Upgrade::Unsaid
            }
        };
    }
    limits
}

fn outliers(field: &str, written: &written::OutlierDetection, notes: &mut Notes) -> Outliers {
    let standard = Outliers::default();
    let mut time = |name: &str, text: &Option<String>, standard: Duration| {
        let read = notes.optional_duration(&format!("{field}.{name}"), text.as_deref());
        read.filter(|time| !time.is_zero()).unwrap_or(standard)
    };
    let interval = time("interval", &written.interval, standard.interval);
    let base_time = time(
        "baseEjectionTime",
        &written.base_ejection_time,
        standard.base_time,
    );
    let mut percent = |name: &str, value: Option<i32>, standard: u32| {
        let Some(value) = value else {
            return standard;
        };
        let read = u32::try_from(value).ok().filter(|value| *value <= 100);
        read.unwrap_or_else(|| {
            notes.error(
                format!("{field}.{name}"),
                format!("{value} is no percentage"),
            );
            standard
        })
    };
    let off_at_zero = |count: u32| (count != 0).then_some(count);
    // The old name of the field, which books use, also stands for the new one (F60).
    let old = written
        .consecutive_errors
        .and_then(|count| u32::try_from(count).ok());
    let server_errors = written.consecutive_5xx_errors.or(old);
    Outliers {
        server_errors: server_errors.map_or(standard.server_errors, off_at_zero),
        gateway_errors: written.consecutive_gateway_errors.and_then(off_at_zero),
        local_failures: written
            .split_external_local_origin_errors
            .then(|| written.consecutive_local_origin_failures.unwrap_or(5))
            .and_then(off_at_zero),
        interval,
        base_time,
        max_percent: percent(
            "maxEjectionPercent",
            written.max_ejection_percent,
            standard.max_percent,
        ),
        min_health_percent: percent(
            "minHealthPercent",
            written.min_health_percent,
            standard.min_health_percent,
        ),
    }
}

/// TLS to the endpoints. What is wrong in it makes it impossible: nothing goes out in plain that was meant to be encrypted.
fn tls(field: &str, written: &written::ClientTls, notes: &mut Notes) -> Option<TlsMode> {
    match written.mode.as_deref().unwrap_or("DISABLE") {
        // The book on Istio spells it in both ways.
        "DISABLE" | "DISABLED" => Some(TlsMode::Disable),
        "ISTIO_MUTUAL" => Some(TlsMode::Mesh),
        "SIMPLE" => Some(simple(field, written, notes)),
        other => {
            let message = format!(
                "{other:?} is not supported; DISABLE, ISTIO_MUTUAL and SIMPLE are. Nothing is sent"
            );
            notes.error(format!("{field}.mode"), message);
            Some(TlsMode::impossible())
        }
    }
}

fn simple(field: &str, written: &written::ClientTls, notes: &mut Notes) -> TlsMode {
    let errors = notes.errors();
    let of_file = "is not supported: name a Secret with ca.crt in credentialName. Nothing is sent";
    let of_client = "is for MUTUAL, which is not supported. Nothing is sent";
    for (name, value, message) in [
        ("caCertificates", &written.ca_certificates, of_file),
        (
            "caCrl",
            &written.ca_crl,
            "is not supported. Nothing is sent",
        ),
        ("clientCertificate", &written.client_certificate, of_client),
        ("privateKey", &written.private_key, of_client),
    ] {
        if !value.is_empty() {
            notes.error(format!("{field}.{name}"), message);
        }
    }
    for (index, name) in written.subject_alt_names.iter().enumerate() {
        // As a certificate has them: DNS names and addresses.
        let is_name = !name.is_empty() && !name.contains([':', '/', '*', ' ']);
        if !is_name && name.parse::<std::net::IpAddr>().is_err() {
            let message = format!("{name:?} is no name of a host and no address. Nothing is sent");
            notes.error(format!("{field}.subjectAltNames[{index}]"), message);
        }
    }
    if notes.errors() > errors {
        return TlsMode::impossible();
    }
    TlsMode::Simple {
        sni: (!written.sni.is_empty()).then(|| written.sni.as_str().into()),
        names: written
            .subject_alt_names
            .iter()
            .map(|name| name.as_str().into())
            .collect(),
        insecure: written.insecure_skip_verify.unwrap_or(false),
        roots: match written.credential_name.as_str() {
            "" => Roots::Machine,
            name => Roots::Named(name.into()),
        },
    }
}

//! Endpoints, and how they are used.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use l7::Endpoint;
use l7::backend::{
    BackendRule, EndpointPort, HashKey, Keepalive, Limits, LoadBalancer, Locality, LocalityPolicy,
    Outliers, Roots, Subset, TlsMode, TrafficPolicy, Upgrade, WarmUp,
};
use model::ServiceKey;

use super::{
    addresses, header_name, key, key_out, labels, labels_out, microseconds, optional, origin,
    origin_out, text_or_none,
};
use crate::convert::{ConvertError, Problem, at, each_message, ip_bytes, port, required, value};
use crate::l7 as pb;

pub(super) fn endpoint(from: pb::Endpoint) -> Result<Endpoint, ConvertError> {
    let locality = from.locality.unwrap_or_default();
    Ok(Endpoint {
        uid: required("uid", from.uid)?.as_str().into(),
        addresses: addresses(from.addresses)?,
        hostname: optional(from.hostname),
        identity: match from.identity.as_str() {
            "" => None,
            text => Some(
                text.parse()
                    .map_err(|e: model::identity::IdentityError| at("identity", e))?,
            ),
        },
        namespace: from.namespace.into(),
        labels: Arc::new(labels(from.labels)),
        node: from.node.into(),
        locality: Locality {
            region: locality.region.into(),
            zone: locality.zone.into(),
            subzone: locality.subzone.into(),
        },
        weight: from.weight.max(1),
        ports: each_message("ports", from.ports, |served| {
            Ok(EndpointPort {
                service: key("service", served.service)?,
                port: port(served.port).map_err(|e| at("port", e))?,
                target: port(served.target).map_err(|e| at("target", e))?,
                ready: !served.not_ready,
            })
        })?,
        policies: from.policies.into_iter().map(Arc::from).collect(),
    })
}

impl From<&Endpoint> for pb::Endpoint {
    fn from(from: &Endpoint) -> Self {
        let Locality {
            region,
            zone,
            subzone,
        } = &from.locality;
        Self {
            uid: from.uid.to_string(),
            addresses: from.addresses.iter().map(|ip| ip_bytes(*ip)).collect(),
            hostname: from.hostname.as_deref().unwrap_or_default().to_owned(),
            identity: from
                .identity
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
            namespace: from.namespace.to_string(),
            labels: labels_out(&*from.labels),
            node: from.node.to_string(),
            locality: (from.locality != Locality::default()).then(|| pb::Locality {
                region: region.to_string(),
                zone: zone.to_string(),
                subzone: subzone.to_string(),
            }),
            weight: from.weight,
            ports: from
                .ports
                .iter()
                .map(|served| pb::EndpointPort {
                    service: Some(key_out(&served.service)),
                    port: served.port.into(),
                    target: served.target.into(),
                    not_ready: !served.ready,
                })
                .collect(),
            policies: from.policies.iter().map(ToString::to_string).collect(),
        }
    }
}

pub(super) fn rule(from: pb::Backend) -> Result<(ServiceKey, BackendRule), ConvertError> {
    let subsets = from.subsets.into_iter().map(|(name, subset)| {
        let read = || {
            Ok(Subset {
                labels: labels(subset.labels),
                policy: Arc::new(policy(subset.policy.unwrap_or_default())?),
                ports: by_port(subset.ports)?,
            })
        };
        let subset = read().map_err(|e: ConvertError| e.within(&format!("subsets[{name}]")))?;
        Ok((name.into(), subset))
    });
    let rule = BackendRule {
        origin: from.origin.map(|from| origin(Some(from))).transpose()?,
        policy: Arc::new(policy(from.policy.unwrap_or_default())?),
        ports: by_port(from.ports)?,
        subsets: subsets.collect::<Result<_, ConvertError>>()?,
    };
    Ok((key("service", from.service)?, rule))
}

fn by_port(
    from: BTreeMap<u32, pb::TrafficPolicy>,
) -> Result<BTreeMap<u16, Arc<TrafficPolicy>>, ConvertError> {
    let read = |(number, of): (u32, pb::TrafficPolicy)| {
        let number = port(number).map_err(|e| at("ports", e))?;
        Ok((number, Arc::new(policy(of)?)))
    };
    from.into_iter().map(read).collect()
}

fn policy(from: pb::TrafficPolicy) -> Result<TrafficPolicy, ConvertError> {
    Ok(TrafficPolicy {
        load_balancer: from.load_balancer.map(load_balancer).transpose()?,
        locality: from.locality.map(locality).transpose()?,
        warm_up: from.warm_up.map(|from| WarmUp {
            duration: Duration::from_micros(from.duration_us),
            minimum_percent: from.minimum_percent,
            aggression: from.aggression,
        }),
        limits: from.limits.map(limits).transpose()?,
        outliers: from.outliers.map(|from| Outliers {
            server_errors: from.server_errors,
            gateway_errors: from.gateway_errors,
            local_failures: from.local_failures,
            interval: Duration::from_micros(from.interval_us),
            base_time: Duration::from_micros(from.base_time_us),
            max_percent: from.max_percent,
            min_health_percent: from.min_health_percent,
        }),
        tls: from.tls.map(tls).transpose()?,
    })
}

fn load_balancer(from: pb::LoadBalancer) -> Result<LoadBalancer, ConvertError> {
    use pb::load_balancer::{Choice, Simple};

    let missing = || at("load_balancer.choice", Problem::Missing);
    Ok(match from.choice.ok_or_else(missing)? {
        Choice::Simple(number) => match value("load_balancer.simple", number)? {
            Simple::RoundRobin => LoadBalancer::RoundRobin,
            Simple::LeastRequest => LoadBalancer::LeastRequest,
            Simple::Random => LoadBalancer::Random,
            Simple::Passthrough => LoadBalancer::Passthrough,
        },
        Choice::Header(name) => LoadBalancer::Hash(HashKey::Header(
            header_name(&name).map_err(|e| at("load_balancer.header", e))?,
        )),
        Choice::Cookie(cookie) => LoadBalancer::Hash(HashKey::Cookie {
            name: cookie.name.into(),
            path: optional(cookie.path),
            ttl: cookie.ttl_us.map(Duration::from_micros),
        }),
        Choice::SourceIp(true) => LoadBalancer::Hash(HashKey::SourceIp),
        Choice::SourceIp(false) => return Err(missing()),
        Choice::QueryParameter(name) => LoadBalancer::Hash(HashKey::QueryParameter(name.into())),
    })
}

fn locality(from: pb::LocalityPolicy) -> Result<LocalityPolicy, ConvertError> {
    use pb::locality_policy::Policy;

    let missing = || at("locality.policy", Problem::Missing);
    Ok(match from.policy.ok_or_else(missing)? {
        Policy::Off(true) => LocalityPolicy::Off,
        Policy::Off(false) => return Err(missing()),
        Policy::Failover(failover) => LocalityPolicy::Failover(labels(failover.regions)),
        Policy::Priority(priority) => LocalityPolicy::Priority(
            priority
                .labels
                .into_iter()
                .map(|label| (label.name.into(), label.value.map(Arc::from)))
                .collect(),
        ),
        Policy::Distribute(distribute) => LocalityPolicy::Distribute(
            distribute
                .from
                .into_iter()
                .map(|from| {
                    let to = from.to.into_iter();
                    let to = to.map(|(to, weight)| (to.into(), weight)).collect();
                    (from.from.into(), to)
                })
                .collect(),
        ),
    })
}

fn limits(from: pb::Limits) -> Result<Limits, ConvertError> {
    use pb::limits::Upgrade as Pb;

    Ok(Limits {
        connections: from.connections,
        pending: from.pending,
        requests: from.requests,
        requests_per_connection: from.requests_per_connection,
        retries: from.retries,
        streams_per_connection: from.streams_per_connection,
        connect_timeout: from.connect_timeout_us.map(Duration::from_micros),
        idle_timeout: from.idle_timeout_us.map(Duration::from_micros),
        connection_life: from.connection_life_us.map(Duration::from_micros),
        keepalive: from.keepalive.map(|from| Keepalive {
            probes: from.probes,
            time: from.time_us.map(Duration::from_micros),
            interval: from.interval_us.map(Duration::from_micros),
        }),
        upgrade: match value("limits.upgrade", from.upgrade)? {
            Pb::AsPort => Upgrade::Unsaid,
            Pb::NeverUpgrade => Upgrade::Never,
            Pb::AlwaysUpgrade => Upgrade::Always,
            Pb::AsClient => Upgrade::AsClient,
        },
    })
}

fn tls(from: pb::Tls) -> Result<TlsMode, ConvertError> {
    use pb::tls::Mode;

    Ok(match value("tls.mode", from.mode)? {
        Mode::Mesh => TlsMode::Mesh,
        Mode::Disable => TlsMode::Disable,
        Mode::Simple => TlsMode::Simple {
            sni: optional(from.sni),
            names: from.names.into_iter().map(Arc::from).collect(),
            insecure: from.insecure,
            roots: match from.roots {
                None => Roots::Machine,
                Some(pem) => Roots::Given(pem.into()),
            },
        },
    })
}

/// A [`BackendRule`] as it is delivered for a service.
pub fn backend_out(service: &ServiceKey, from: &BackendRule) -> pb::Backend {
    let subsets = from.subsets.iter().map(|(name, subset)| {
        let subset = pb::Subset {
            labels: labels_out(&subset.labels),
            policy: Some(policy_out(&subset.policy)),
            ports: ports_out(&subset.ports),
        };
        (name.to_string(), subset)
    });
    pb::Backend {
        service: Some(key_out(service)),
        origin: from.origin.as_ref().map(origin_out),
        policy: Some(policy_out(&from.policy)),
        ports: ports_out(&from.ports),
        subsets: subsets.collect(),
    }
}

fn ports_out(from: &BTreeMap<u16, Arc<TrafficPolicy>>) -> BTreeMap<u32, pb::TrafficPolicy> {
    from.iter()
        .map(|(port, policy)| (u32::from(*port), policy_out(policy)))
        .collect()
}

fn policy_out(from: &TrafficPolicy) -> pb::TrafficPolicy {
    pb::TrafficPolicy {
        load_balancer: from.load_balancer.as_ref().map(load_balancer_out),
        locality: from.locality.as_ref().map(locality_out),
        warm_up: from.warm_up.map(|from| pb::WarmUp {
            duration_us: microseconds(from.duration),
            minimum_percent: from.minimum_percent,
            aggression: from.aggression,
        }),
        limits: from.limits.as_ref().map(limits_out),
        outliers: from.outliers.as_ref().map(|from| pb::Outliers {
            server_errors: from.server_errors,
            gateway_errors: from.gateway_errors,
            local_failures: from.local_failures,
            interval_us: microseconds(from.interval),
            base_time_us: microseconds(from.base_time),
            max_percent: from.max_percent,
            min_health_percent: from.min_health_percent,
        }),
        tls: from.tls.as_ref().map(tls_out),
    }
}

fn load_balancer_out(from: &LoadBalancer) -> pb::LoadBalancer {
    use pb::load_balancer::{Choice, Cookie, Simple};

    let choice = match from {
        LoadBalancer::RoundRobin => Choice::Simple(Simple::RoundRobin.into()),
        LoadBalancer::LeastRequest => Choice::Simple(Simple::LeastRequest.into()),
        LoadBalancer::Random => Choice::Simple(Simple::Random.into()),
        LoadBalancer::Passthrough => Choice::Simple(Simple::Passthrough.into()),
        LoadBalancer::Hash(HashKey::Header(name)) => Choice::Header(name.to_string()),
        LoadBalancer::Hash(HashKey::Cookie { name, path, ttl }) => Choice::Cookie(Cookie {
            name: name.to_string(),
            path: text_or_none(path.as_ref()),
            ttl_us: ttl.map(microseconds),
        }),
        LoadBalancer::Hash(HashKey::SourceIp) => Choice::SourceIp(true),
        LoadBalancer::Hash(HashKey::QueryParameter(name)) => {
            Choice::QueryParameter(name.to_string())
        }
    };
    pb::LoadBalancer {
        choice: Some(choice),
    }
}

fn locality_out(from: &LocalityPolicy) -> pb::LocalityPolicy {
    use pb::locality_policy::{Distribute, Failover, From, Label, Policy, Priority};

    let policy = match from {
        LocalityPolicy::Off => Policy::Off(true),
        LocalityPolicy::Failover(regions) => Policy::Failover(Failover {
            regions: labels_out(regions),
        }),
        LocalityPolicy::Priority(labels) => Policy::Priority(Priority {
            labels: labels
                .iter()
                .map(|(name, value)| Label {
                    name: name.to_string(),
                    value: value.as_ref().map(ToString::to_string),
                })
                .collect(),
        }),
        LocalityPolicy::Distribute(all) => Policy::Distribute(Distribute {
            from: all
                .iter()
                .map(|(from, to)| From {
                    from: from.to_string(),
                    to: to.iter().map(|(to, w)| (to.to_string(), *w)).collect(),
                })
                .collect(),
        }),
    };
    pb::LocalityPolicy {
        policy: Some(policy),
    }
}

fn limits_out(from: &Limits) -> pb::Limits {
    use pb::limits::Upgrade as Pb;

    pb::Limits {
        connections: from.connections,
        pending: from.pending,
        requests: from.requests,
        requests_per_connection: from.requests_per_connection,
        retries: from.retries,
        streams_per_connection: from.streams_per_connection,
        connect_timeout_us: from.connect_timeout.map(microseconds),
        idle_timeout_us: from.idle_timeout.map(microseconds),
        connection_life_us: from.connection_life.map(microseconds),
        keepalive: from.keepalive.map(|from| pb::Keepalive {
            probes: from.probes,
            time_us: from.time.map(microseconds),
            interval_us: from.interval.map(microseconds),
        }),
        upgrade: match from.upgrade {
            Upgrade::Unsaid => Pb::AsPort,
            Upgrade::Never => Pb::NeverUpgrade,
            Upgrade::Always => Pb::AlwaysUpgrade,
            Upgrade::AsClient => Pb::AsClient,
        }
        .into(),
    }
}

fn tls_out(from: &TlsMode) -> pb::Tls {
    use pb::tls::Mode;

    match from {
        TlsMode::Mesh => pb::Tls {
            mode: Mode::Mesh.into(),
            ..pb::Tls::default()
        },
        TlsMode::Disable => pb::Tls {
            mode: Mode::Disable.into(),
            ..pb::Tls::default()
        },
        TlsMode::Simple {
            sni,
            names,
            insecure,
            roots,
        } => pb::Tls {
            mode: Mode::Simple.into(),
            sni: text_or_none(sni.as_ref()),
            names: names.iter().map(ToString::to_string).collect(),
            insecure: *insecure,
            roots: match roots {
                Roots::Machine => None,
                Roots::Given(pem) => Some(pem.to_vec()),
                // Nobody has put them in.
                Roots::Named(_) => Some(Vec::new()),
            },
        },
    }
}

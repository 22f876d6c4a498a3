//! Listeners of gateways.

use l7::HostPattern;
use l7::listener::{Certificate, Listener, Reads, VirtualHost};

use super::super::{ConvertError, Problem, at, each_message, port, required};
use super::{key, key_out};
use crate::l7 as pb;

pub(super) fn listener(from: pb::Listener) -> Result<Listener, ConvertError> {
    let certificates = from.certificates.into_iter().map(|one| Certificate {
        chain: one.chain,
        key: one.key,
    });
    let certificates: Vec<Certificate> = certificates.collect();
    let reads = pb::listener::Reads::try_from(from.reads);
    // Whoever reads less than it is told to would take requests for what they are not.
    let reads = reads.map_err(|_unknown| at("reads", Problem::UnknownValue(from.reads)))?;
    Ok(Listener {
        name: required("name", from.name)?.into(),
        port: port(from.port).map_err(|e| at("port", e))?,
        host: HostPattern::new(&from.host),
        tls: from.tls.then_some(certificates),
        reads: match reads {
            pb::listener::Reads::Requests => Reads::Requests,
            pb::listener::Reads::Names => Reads::Names,
            pb::listener::Reads::Nothing => Reads::Nothing,
        },
        client_roots: from.client_roots,
        hosts: each_message("hosts", from.hosts, |one| {
            Ok(VirtualHost {
                host: HostPattern::new(&one.host),
                key: key("key", one.key)?,
            })
        })?,
    })
}

impl From<&Listener> for pb::Listener {
    fn from(from: &Listener) -> Self {
        let certificates = from.tls.iter().flatten().map(|one| pb::Certificate {
            chain: one.chain.clone(),
            key: one.key.clone(),
        });
        let hosts = from.hosts.iter().map(|one| pb::VirtualHost {
            host: one.host.to_string(),
            key: Some(key_out(&one.key)),
        });
        Self {
            name: from.name.to_string(),
            port: from.port.into(),
            host: from.host.to_string(),
            tls: from.tls.is_some(),
            certificates: certificates.collect(),
            reads: match from.reads {
                Reads::Requests => pb::listener::Reads::Requests,
                Reads::Names => pb::listener::Reads::Names,
                Reads::Nothing => pb::listener::Reads::Nothing,
            }
            .into(),
            client_roots: from.client_roots.clone(),
            hosts: hosts.collect(),
        }
    }
}

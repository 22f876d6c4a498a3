//! Listeners of gateways.

use l7::HostPattern;
use l7::listener::{Certificate, Listener, VirtualHost};

use super::super::{ConvertError, at, each_message, port, required};
use super::{key, key_out};
use crate::l7 as pb;

pub(super) fn listener(from: pb::Listener) -> Result<Listener, ConvertError> {
    let certificates = from.certificates.into_iter().map(|one| Certificate {
        chain: one.chain,
        key: one.key,
    });
    let certificates: Vec<Certificate> = certificates.collect();
    Ok(Listener {
        name: required("name", from.name)?.into(),
        port: port(from.port).map_err(|e| at("port", e))?,
        host: HostPattern::new(&from.host),
        tls: from.tls.then_some(certificates),
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
            client_roots: from.client_roots.clone(),
            hosts: hosts.collect(),
        }
    }
}

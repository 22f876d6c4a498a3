//! From the wire to [`model`] and back.
//!
//! What comes in is checked once, here. A number that has no name, a port that is none, an
//! address of five bytes: all are errors that name the field. Nothing is dropped in silence.

use std::net::IpAddr;

use model::identity::IdentityError;
use model::policy::Scope;
use model::{NameError, Policy};
use prost::Message;
use prost_types::Any;
use thiserror::Error;

use crate::{istio, type_url};

pub mod doors;
pub mod extension;
#[cfg(feature = "l7")]
pub mod l7;
mod security;
mod service;
mod workload;

pub use security::UNENFORCEABLE;

/// A decoded `istio.workload.Address`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A workload.
    Workload(model::Workload),
    /// Addresses that were a captured workload's. To whoever does not know of tombstones it is a workload
    /// that is reached by tunnel only.
    Tombstone(model::Tombstone),
    /// A service.
    Service(model::Service),
}

/// A message that makes no sense, and where.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("{field}: {problem}")]
pub struct ConvertError {
    /// Path of the field, with indexes.
    pub field: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a field.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum Problem {
    /// The bytes are not a message at all.
    #[error("not a valid message: {0}")]
    Decode(#[from] prost::DecodeError),
    /// It has to be there.
    #[error("is missing")]
    Missing,
    /// It is neither an IPv4 nor an IPv6 address.
    #[error("is {0} bytes long; an address has 4 or 16")]
    AddressLength(usize),
    /// It is longer than the address that it belongs to.
    #[error("is {length}, which is too long for {ip}")]
    PrefixLength {
        /// The address.
        ip: IpAddr,
        /// The length in bits.
        length: u32,
    },
    /// It is no port.
    #[error("is {0}; a port is at most 65535")]
    Port(u32),
    /// It is a value of an enum that is newer than this program.
    #[error("is {0}, which has no meaning here")]
    UnknownValue(i32),
    /// It has a meaning that is not supported.
    #[error("is {0}, which is not supported")]
    Unsupported(&'static str),
    /// It is a condition without its content.
    #[error("has none of exact, prefix, suffix and presence")]
    NoCondition,
    /// It is an extension that may change what the message means.
    #[error("{0:?} is not known, and may narrow what matches")]
    Extension(String),
    /// What a parser says of it.
    #[error("{0}")]
    Text(String),
    /// It is not a name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// It is not part of an identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// An authorization that cannot be enforced as it was meant.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("{error}")]
pub struct RejectedPolicy {
    /// What to say in the NACK.
    pub error: ConvertError,
    /// What to enforce in its place: it denies. None if not even its name makes sense; then
    /// nothing can refer to it.
    pub substitute: Option<Box<Policy>>,
}

/// Reads the bytes of an `istio.workload.Address`.
///
/// # Errors
/// The message makes no sense.
pub fn address(bytes: &[u8]) -> Result<Address, ConvertError> {
    use istio::workload::address::Type;

    let address = istio::workload::Address::decode(bytes).map_err(|e| at("address", e))?;
    match address.r#type {
        Some(Type::Workload(workload)) => workload::address(workload),
        Some(Type::Service(service)) => service.try_into().map(Address::Service),
        None => Err(at("type", Problem::Missing)),
    }
}

/// Reads the bytes of an `istio.security.Authorization` whose xDS name is `name`.
///
/// # Errors
/// The message makes no sense. The error holds what to enforce in its place.
pub fn authorization(name: &str, bytes: &[u8]) -> Result<Policy, RejectedPolicy> {
    let rejected = match istio::security::Authorization::decode(bytes) {
        Ok(authorization) => match Policy::try_from(authorization) {
            Ok(policy) => return Ok(policy),
            Err(rejected) => rejected,
        },
        Err(e) => RejectedPolicy {
            error: at("authorization", e),
            substitute: None,
        },
    };
    // Without a name in the message, that of the resource says where to refuse.
    let RejectedPolicy { error, substitute } = rejected;
    let by_name = || {
        let key = name.parse().ok()?;
        let policy = Policy::unenforceable(key, Scope::Namespace, error.to_string());
        Some(Box::new(policy))
    };
    Err(RejectedPolicy {
        substitute: substitute.or_else(by_name),
        error,
    })
}

/// A workload as an xDS resource; its name there is its uid.
pub fn workload_resource(workload: &model::Workload) -> Any {
    let inner = istio::workload::address::Type::Workload(workload.into());
    pack_address(inner)
}

/// A service as an xDS resource; its name there is its key.
pub fn service_resource(service: &model::Service) -> Any {
    let inner = istio::workload::address::Type::Service(service.into());
    pack_address(inner)
}

/// A policy as an xDS resource; its name there is its key.
pub fn policy_resource(policy: &Policy) -> Any {
    let authorization = istio::security::Authorization::from(policy);
    pack(type_url::AUTHORIZATION, &authorization)
}

/// Any message as an xDS resource.
pub fn pack(type_url: &str, message: &impl Message) -> Any {
    Any {
        type_url: type_url.to_owned(),
        value: message.encode_to_vec(),
    }
}

fn pack_address(inner: istio::workload::address::Type) -> Any {
    let address = istio::workload::Address {
        r#type: Some(inner),
    };
    pack(type_url::ADDRESS, &address)
}

fn at(field: &str, problem: impl Into<Problem>) -> ConvertError {
    ConvertError {
        field: field.to_owned(),
        problem: problem.into(),
    }
}

impl ConvertError {
    fn within(mut self, outer: &str) -> Self {
        self.field = format!("{outer}.{}", self.field);
        self
    }
}

/// Converts each item; an error says which one.
fn each<T, U>(
    field: &str,
    items: impl IntoIterator<Item = T>,
    convert: impl Fn(T) -> Result<U, Problem>,
) -> Result<Vec<U>, ConvertError> {
    items
        .into_iter()
        .enumerate()
        .map(|(i, item)| convert(item).map_err(|e| at(&format!("{field}[{i}]"), e)))
        .collect()
}

/// The same for items that have fields of their own.
fn each_message<T, U>(
    field: &str,
    items: impl IntoIterator<Item = T>,
    convert: impl Fn(T) -> Result<U, ConvertError>,
) -> Result<Vec<U>, ConvertError> {
    items
        .into_iter()
        .enumerate()
        .map(|(i, item)| convert(item).map_err(|e| e.within(&format!("{field}[{i}]"))))
        .collect()
}

fn ip(bytes: &[u8]) -> Result<IpAddr, Problem> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(v4.into());
    }
    <[u8; 16]>::try_from(bytes)
        .map(IpAddr::from)
        .ok()
        .ok_or(Problem::AddressLength(bytes.len()))
}

fn ip_bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn prefix(ip: IpAddr, length: u32) -> Result<u8, Problem> {
    let longest = if ip.is_ipv4() { 32 } else { 128 };
    u8::try_from(length)
        .ok()
        .filter(|&length| length <= longest)
        .ok_or(Problem::PrefixLength { ip, length })
}

fn port(number: u32) -> Result<u16, Problem> {
    u16::try_from(number).ok().ok_or(Problem::Port(number))
}

/// The named value of an enum's number.
fn value<E: TryFrom<i32>>(field: &str, number: i32) -> Result<E, ConvertError> {
    E::try_from(number)
        .ok()
        .ok_or_else(|| at(field, Problem::UnknownValue(number)))
}

fn required(field: &str, text: String) -> Result<String, ConvertError> {
    if text.is_empty() {
        return Err(at(field, Problem::Missing));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;

//! What an agent and a waypoint of its node tell each other: who calls from which address, and which port is for what.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};

use model::Identity;
use model::outbound::is_waypoint_port;
use prost::Message;

use super::{ConvertError, Problem, at, each_message, ip, ip_bytes, port};
use crate::waypoint as pb;

/// A message may have so many bytes: 4,096 doors, or the pods of a large node.
pub const LONGEST: usize = 1 << 20;

/// Who has which address on a node, as its agent tells a waypoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Callers {
    /// Grows with each message of a conversation.
    pub version: u64,
    /// By address.
    pub callers: HashMap<IpAddr, Identity>,
}

/// Where a waypoint takes direct connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Doors {
    /// Version of the callers that all of its threads go by.
    pub callers: u64,
    /// The waypoint's own port, by the service's address and port.
    pub doors: BTreeMap<SocketAddr, u16>,
}

impl Callers {
    /// As it is sent, without its length.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let callers = self.callers.iter().map(|(address, identity)| pb::Caller {
            address: ip_bytes(*address),
            identity: identity.to_string(),
        });
        let message = pb::Callers {
            version: self.version,
            callers: callers.collect(),
        };
        message.encode_to_vec()
    }

    /// Reads what was sent.
    ///
    /// # Errors
    /// The message makes no sense, or says two things of one address.
    pub fn read(bytes: &[u8]) -> Result<Self, ConvertError> {
        let message = pb::Callers::decode(bytes).map_err(|error| at("callers", error))?;
        let entries = each_message("callers", message.callers, |caller| {
            let address = ip(&caller.address).map_err(|error| at("address", error))?;
            let identity = caller.identity.parse();
            let identity: Identity =
                identity.map_err(|error: model::identity::IdentityError| at("identity", error))?;
            Ok((address.to_canonical(), identity))
        })?;
        let count = entries.len();
        let callers: HashMap<_, _> = entries.into_iter().collect();
        if callers.len() < count {
            let twice = Problem::Text("names an address twice".to_owned());
            return Err(at("callers", twice));
        }
        Ok(Self {
            version: message.version,
            callers,
        })
    }
}

impl Doors {
    /// As it is sent, without its length.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let doors = self.doors.iter().map(|(service, door)| pb::Door {
            address: ip_bytes(service.ip()),
            port: service.port().into(),
            at: (*door).into(),
        });
        let message = pb::Doors {
            callers: self.callers,
            doors: doors.collect(),
        };
        message.encode_to_vec()
    }

    /// Reads what was sent.
    ///
    /// # Errors
    /// The message makes no sense, a port is none that a waypoint may take connections on, or one is for two services.
    pub fn read(bytes: &[u8]) -> Result<Self, ConvertError> {
        let message = pb::Doors::decode(bytes).map_err(|error| at("doors", error))?;
        let entries = each_message("doors", message.doors, |door| {
            let address = ip(&door.address).map_err(|error| at("address", error))?;
            let service = port(door.port).map_err(|error| at("port", error))?;
            let own = port(door.at).map_err(|error| at("at", error))?;
            if !is_waypoint_port(own) {
                let text = format!("is {own}, which is none of a waypoint's ports");
                return Err(at("at", Problem::Text(text)));
            }
            Ok((SocketAddr::new(address.to_canonical(), service), own))
        })?;
        let used: std::collections::BTreeSet<u16> = entries.iter().map(|(_, own)| *own).collect();
        if used.len() < entries.len() {
            let twice = Problem::Text("has one port for two services".to_owned());
            return Err(at("doors", twice));
        }
        Ok(Self {
            callers: message.callers,
            doors: entries.into_iter().collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let identity: Identity = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        let callers = Callers {
            version: 7,
            callers: [
                ([10, 0, 0, 1].into(), identity.clone()),
                ("fd00::1".parse().unwrap(), identity),
            ]
            .into(),
        };
        assert_eq!(Callers::read(&callers.to_bytes()), Ok(callers));
        let doors = Doors {
            callers: 7,
            doors: [
                (([10, 96, 0, 1], 80).into(), 61_440),
                ("[fd00::96]:80".parse().unwrap(), 65_535),
            ]
            .into(),
        };
        assert_eq!(Doors::read(&doors.to_bytes()), Ok(doors));
    }

    #[test]
    fn what_would_lead_astray_is_refused() {
        let doors = |entries: &[(u32, u32)]| {
            let doors = entries.iter().map(|(port, at)| pb::Door {
                address: vec![10, 96, 0, 1],
                port: *port,
                at: *at,
            });
            let message = pb::Doors {
                callers: 0,
                doors: doors.collect(),
            };
            Doors::read(&message.encode_to_vec())
        };
        assert!(doors(&[(80, 61_440), (81, 61_441)]).is_ok());
        for (wrong, field) in [
            (doors(&[(80, 8080)]), "doors[0].at"),
            (doors(&[(80, 15008)]), "doors[0].at"),
            (doors(&[(80, 126_976)]), "doors[0].at"),
            (doors(&[(70_000, 61_440)]), "doors[0].port"),
            (doors(&[(80, 61_440), (81, 61_440)]), "doors"),
        ] {
            assert_eq!(wrong.unwrap_err().field, field);
        }
        let caller = |identity: &str| pb::Caller {
            address: vec![10, 0, 0, 1],
            identity: identity.to_owned(),
        };
        let callers = |callers| {
            let version = 1;
            Callers::read(&pb::Callers { version, callers }.encode_to_vec())
        };
        let [one, other] = ["cart", "bank"].map(|name| format!("spiffe://c/ns/shop/sa/{name}"));
        assert_eq!(
            callers(vec![caller(&one), caller(&other)])
                .unwrap_err()
                .field,
            "callers",
            "who has the address is not for the order to say"
        );
        let nobody = callers(vec![caller("")]).unwrap_err();
        assert_eq!(nobody.field, "callers[0].identity");
    }
}

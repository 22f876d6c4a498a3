//! Whether what arrives at a pod's interface goes to a network of its own that this kernel does not see: a sandboxed runtime.
//!
//! Its sockets are not the kernel's, so that no hook of ours is asked about them: such a pod cannot be captured. Nothing
//! here asks the runtime, which may be any. What these runtimes do to the pod's namespace is looked at.

use std::{io, net::IpAddr};

use super::{Device, devices};
use crate::host::netns::Netns;

/// Why a pod's sockets are not this kernel's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Sandboxed {
    /// gVisor takes the addresses off the interface and answers for them itself.
    #[error(
        "no interface of the pod has {0} any more, which the cluster gave to it: a runtime with a network of its own (gVisor) has taken it over, whose connections no kernel hook sees"
    )]
    Addresses(IpAddr),
    /// Kata Containers lead packets past this kernel to a virtual machine, by a device that they call so.
    #[error(
        "a virtual machine is behind the pod's interface ({0}, Kata Containers), whose connections no kernel hook sees"
    )]
    Machine(String),
}

/// Looks at the devices of a pod's namespace. Before its containers start, nothing shows.
///
/// # Errors
/// When the kernel refuses a request.
pub(crate) fn sandboxed(netns: &Netns, given: &[IpAddr]) -> io::Result<Option<Sandboxed>> {
    Ok(shown(&netns.run(devices)??, given))
}

fn shown(devices: &[Device], given: &[IpAddr]) -> Option<Sandboxed> {
    let is_machine = |device: &&Device| device.kind == TUN && device.name.ends_with(KATA);
    if let Some(device) = devices.iter().find(is_machine) {
        return Some(Sandboxed::Machine(device.name.clone()));
    }
    let first = given.first()?;
    let mut found = devices.iter().flat_map(|device| &device.addresses);
    let is_given = |ip: &IpAddr| given.iter().any(|given| given.to_canonical() == *ip);
    (!found.any(is_given)).then_some(Sandboxed::Addresses(*first))
}

const TUN: &str = "tun";
/// `tap0_kata` and so on.
const KATA: &str = "_kata";

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str, kind: &str, addresses: &[&str]) -> Device {
        Device {
            name: name.to_owned(),
            kind: kind.to_owned(),
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
            ..Device::default()
        }
    }

    #[test]
    fn a_network_that_is_not_the_kernels_is_told_by_what_its_runtime_did() {
        let [v4, v6] = ["10.0.1.1", "fd00::1"].map(|ip| ip.parse::<IpAddr>().unwrap());
        let plain = || device("eth0", "veth", &["10.0.1.1", "fd00::1"]);
        assert_eq!(shown(&[plain()], &[v4, v6]), None);
        // One of two is enough, and what the pod has besides is its own business.
        let bridge = device("docker0", "bridge", &["172.17.0.1"]);
        let vpn = device("tun0", "tun", &["10.8.0.2"]);
        let half = device("eth0", "veth", &["fd00::1"]);
        assert_eq!(shown(&[half, bridge, vpn], &[v4, v6]), None);

        let taken = device("eth0", "veth", &[]);
        assert_eq!(shown(&[taken], &[v4, v6]), Some(Sandboxed::Addresses(v4)));
        let tap = device("tap0_kata", "tun", &[]);
        let machine = Sandboxed::Machine("tap0_kata".to_owned());
        assert_eq!(shown(&[plain(), tap], &[v4]), Some(machine));
        // Nothing is said of a pod whose addresses nobody knows.
        assert_eq!(shown(&[device("eth0", "veth", &[])], &[]), None);
    }
}

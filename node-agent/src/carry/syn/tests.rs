use super::*;

const MSS: [u8; 4] = [2, 4, 0x05, 0xb4];

/// An event as the kernel half makes it: the SYN has options, data, and a sum over the pseudo header only.
fn event(client: &str, target: &str, data: &[u8]) -> Vec<u8> {
    let (client, target): (SocketAddr, SocketAddr) =
        (client.parse().unwrap(), target.parse().unwrap());
    let mut tcp = Vec::new();
    tcp.extend(client.port().to_be_bytes());
    tcp.extend(target.port().to_be_bytes());
    tcp.extend(0xffff_ffff_u32.to_be_bytes());
    tcp.extend([0, 0, 0, 0, 0x60, 0x02, 0xfa, 0xf0, 0xab, 0xcd, 0, 0]);
    tcp.extend(MSS);
    tcp.extend(data);
    let mut packet = vec![0; ETHERNET];
    packet.extend(match (client.ip(), target.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => header_v4(from, to, IPPROTO_TCP, tcp.len()),
        (IpAddr::V6(from), IpAddr::V6(to)) => header_v6(from, to, IPPROTO_TCP, tcp.len()),
        _ => unreachable!(),
    });
    let at = u32::try_from(packet.len()).unwrap();
    packet.extend(tcp);
    packet.truncate(134);
    let mut event = Vec::new();
    for word in [9, 0x4b45_4c00, u32::try_from(packet.len()).unwrap(), at, 3] {
        event.extend(word.to_ne_bytes());
    }
    event.extend(packet);
    // The kernel pads.
    event.extend([0; 4]);
    event
}

const PAIRS: [(&str, &str); 2] = [
    ("10.1.0.1:40000", "10.2.0.2:80"),
    ("[fd00::1]:40000", "[fd00::2]:80"),
];

/// Whether a packet's checksum is right.
fn is_right(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> bool {
    transport_sum((from, to), protocol, payload) == 0
}

#[test]
fn a_syn_is_put_back_as_it_was_but_for_its_data() {
    for (client, target) in PAIRS {
        for data in [&b""[..], b"x", &[7; 500]] {
            let syn = Syn::read(&event(client, target, data)).unwrap();
            assert_eq!(syn.client.to_string(), client);
            assert_eq!(syn.target.to_string(), target);
            assert_eq!((syn.pod, syn.mark), (9, 0x4b45_4c00));
            assert_eq!(syn.attempt(), (u32::MAX, 3));
            let again = syn.again();
            let tcp = &again[syn.tcp..];
            assert_eq!(tcp.len(), TCP_HEADER + MSS.len());
            assert!(tcp.ends_with(&MSS), "options are kept");
            assert_eq!(tcp[13], 0x02);
            assert!(is_right(syn.client.ip(), syn.target.ip(), 6, tcp));
            let length = if syn.target.is_ipv4() {
                u16::from_be_bytes([again[2], again[3]])
            } else {
                u16::from_be_bytes([again[4], again[5]]) + 40
            };
            assert_eq!(usize::from(length), again.len());
        }
    }
}

#[test]
fn each_answer_is_one_that_the_client_takes() {
    for (client, target) in PAIRS {
        let syn = Syn::read(&event(client, target, b"")).unwrap();
        let (from, to) = (syn.target.ip(), syn.client.ip());
        let start = if from.is_ipv4() { 20 } else { 40 };
        assert_eq!(syn.answer(Answer::Silence), None);
        let reset = syn.answer(Answer::Refused).unwrap();
        let tcp = &reset[start..];
        assert_eq!(tcp[..4], [0, 80, 0x9c, 0x40]);
        // The number after the last is nought.
        assert_eq!(tcp[8..14], [0, 0, 0, 0, 0x50, RST_ACK]);
        assert!(is_right(from, to, 6, tcp));
        for (answer, expected) in [
            (Answer::NetworkUnreachable, [[3, 0], [1, 0]]),
            (Answer::HostUnreachable, [[3, 1], [1, 3]]),
        ] {
            let packet = syn.answer(answer).unwrap();
            let icmp = &packet[start..];
            let v6 = usize::from(from.is_ipv6());
            assert_eq!(icmp[..2], expected[v6]);
            assert_eq!(icmp[8..], syn.headers[..syn.tcp + 8], "quotes the SYN");
            if from.is_ipv4() {
                assert_eq!(!ones_complement(&[icmp]), 0);
            } else {
                assert!(is_right(from, to, 58, icmp));
            }
        }
    }
}

#[test]
fn what_is_no_whole_syn_is_none() {
    let whole = event(PAIRS[0].0, PAIRS[0].1, b"");
    let without_padding = whole.len() - 4;
    for length in 0..without_padding {
        assert_eq!(Syn::read(&whole[..length]), None, "{length}");
    }
    assert!(Syn::read(&whole[..without_padding]).is_some());
    let broken = |at: usize, value: u8| {
        let mut event = whole.clone();
        event[at] = value;
        Syn::read(&event)
    };
    // Neither IPv4 nor IPv6; a TCP header beyond the packet; one that begins before it.
    assert_eq!(broken(EVENT + ETHERNET, 0x55), None);
    assert_eq!(broken(EVENT + 34 + 12, 0xf0), None);
    assert_eq!(broken(12, 13), None);
}

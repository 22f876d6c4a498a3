use proptest::prelude::*;

use super::*;

fn header() -> Header {
    Header {
        client: "10.244.1.3:40312".parse().unwrap(),
        dialled: "10.96.0.7:80".parse().unwrap(),
        identity: Some("spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap()),
        service: Some("stock.shop.svc.cluster.local".to_owned()),
    }
}

#[test]
fn what_is_written_is_what_the_specification_says() {
    let mut plain = header();
    plain.identity = None;
    plain.service = None;
    let expected = [
        b"\r\n\r\n\0\r\nQUIT\n".as_slice(),
        &[0x21, 0x11, 0, 12],
        &[10, 244, 1, 3, 10, 96, 0, 7, 0x9d, 0x78, 0, 80],
    ];
    assert_eq!(plain.to_bytes(), expected.concat());
}

#[test]
fn a_header_is_not_read_before_it_is_whole() {
    let bytes = header().to_bytes();
    for end in 0..bytes.len() {
        assert_eq!(Header::parse(&bytes[..end]), Ok(None), "{end}");
    }
    let mut more = bytes.clone();
    more.extend(b"GET / HTTP/1.1");
    assert_eq!(Header::parse(&more), Ok(Some((header(), bytes.len()))));
}

#[test]
fn what_is_not_exactly_a_header_is_refused() {
    let good = header().to_bytes();
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let appended = |entry: &[u8]| {
        let mut bytes = good.clone();
        bytes.extend(entry);
        let length = u16::try_from(bytes.len() - FIXED).unwrap();
        bytes[14..16].copy_from_slice(&length.to_be_bytes());
        bytes
    };
    for (bytes, error) in [
        (b"GET / HTTP/1.1\r\n".to_vec(), HeaderError::Signature),
        (
            b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\n".to_vec(),
            HeaderError::Signature,
        ),
        // LOCAL: whoever may say it calls as nobody.
        (with(12, 0x20), HeaderError::Command(0x20)),
        (with(12, 0x11), HeaderError::Command(0x11)),
        (with(13, 0x00), HeaderError::Family(0x00)),
        (with(13, 0x12), HeaderError::Family(0x12)),
        (with(13, 0x31), HeaderError::Family(0x31)),
        (
            with(14, 0xff),
            HeaderError::TooLong(0xff00 | usize::from(good[15])),
        ),
        (with(15, 11), HeaderError::Truncated),
        (with(15, 13), HeaderError::Truncated),
        (appended(&[0xd2, 0, 9, 1]), HeaderError::Truncated),
        (appended(&[0xd0, 0, 1, b'x']), HeaderError::Repeated(0xd0)),
        (appended(&[0xd1, 0, 1, b'x']), HeaderError::Repeated(0xd1)),
    ] {
        let text = format!("{bytes:?}");
        assert_eq!(Header::parse(&bytes), Err(error), "{text}");
    }
}

#[test]
fn an_identity_that_cannot_be_read_is_no_identity() {
    for said in [
        "",
        "spiffe://cluster.local",
        "spiffe://cluster.local/ns/a/sa/b c",
        "nobody",
    ] {
        let mut bytes = Header {
            identity: None,
            ..header()
        }
        .to_bytes();
        bytes.extend([IDENTITY, 0, u8::try_from(said.len()).unwrap()]);
        bytes.extend(said.as_bytes());
        let length = u16::try_from(bytes.len() - FIXED).unwrap();
        bytes[14..16].copy_from_slice(&length.to_be_bytes());
        assert!(Header::parse(&bytes).is_err(), "{said}");
    }
}

#[test]
fn entries_of_others_are_passed_over() {
    let mut bytes = header().to_bytes();
    bytes.extend([0x04, 0, 0, 0xea, 0, 2, 1, 2]);
    let length = u16::try_from(bytes.len() - FIXED).unwrap();
    bytes[14..16].copy_from_slice(&length.to_be_bytes());
    assert_eq!(Header::parse(&bytes), Ok(Some((header(), bytes.len()))));
}

fn address() -> impl Strategy<Value = SocketAddr> {
    (any::<IpAddr>(), 1_u16..).prop_filter_map("unspecified", |(ip, port)| {
        (!ip.to_canonical().is_unspecified() && !ip.is_unspecified())
            .then(|| SocketAddr::new(ip.to_canonical(), port))
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(client in address(), dialled in address(), named in any::<bool>()) {
        let whole = header();
        let header = Header {
            client,
            dialled,
            identity: whole.identity.filter(|_| named),
            service: whole.service.filter(|_| named),
        };
        let bytes = header.to_bytes();
        prop_assert_eq!(Header::parse(&bytes), Ok(Some((header, bytes.len()))));
    }

    #[test]
    fn arbitrary_bytes_are_read_or_refused(tail in prop::collection::vec(any::<u8>(), 0..200), family in any::<bool>()) {
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([PROXY, if family { TCP4 } else { TCP6 }, 0, u8::try_from(tail.len()).unwrap()]);
        bytes.extend(&tail);
        if let Ok(Some((header, length))) = Header::parse(&bytes) {
            prop_assert_eq!(length, bytes.len());
            let again = header.to_bytes();
            prop_assert_eq!(Header::parse(&again), Ok(Some((header, again.len()))));
        }
    }
}

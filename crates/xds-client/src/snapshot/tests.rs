//! What a snapshot gives back, and that damage of any kind is noticed.

use super::*;

fn encode(node: &str, held: &Held) -> Bytes {
    let mut out = Encoder::new(node, held.len());
    for (type_url, resources) in held {
        out.begin(type_url, resources.len());
        for (name, stored) in resources {
            out.resource(name, stored.version.as_deref(), &stored.bytes);
        }
    }
    out.finish()
}

fn held() -> Held {
    let stored = |version: Option<&str>, bytes: &'static [u8]| Stored {
        version: version.map(str::to_owned),
        bytes: Bytes::from_static(bytes),
    };
    let addresses = [
        ("uid".to_owned(), stored(Some("v1"), b"one")),
        ("ns/host".to_owned(), stored(None, b"")),
    ];
    [
        ("type/address".to_owned(), addresses.into()),
        ("type/nothing".to_owned(), BTreeMap::new()),
    ]
    .into()
}

#[test]
fn a_snapshot_is_read_as_it_was_written() {
    for held in [held(), Held::new()] {
        assert_eq!(decode(encode("n1", &held), "n1"), Ok(held));
    }
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("made/on/demand");
    assert!(read(&path, "n1").unwrap().is_none());
    write(&path, &encode("n1", &held())).unwrap();
    assert_eq!(read(&path, "n1").unwrap(), Some(held()));
}

#[test]
fn every_damage_is_noticed() {
    let good = encode("n1", &held());
    for length in 0..good.len() {
        assert!(
            decode(good.slice(..length), "n1").is_err(),
            "cut to {length}"
        );
    }
    for place in 0..good.len() {
        let mut bytes = good.to_vec();
        bytes[place] ^= 0x20;
        assert!(decode(bytes.into(), "n1").is_err(), "byte {place}");
    }
}

#[test]
fn damage_under_a_right_checksum_is_noticed_too() {
    let good = encode("n1", &held());
    let body = &good[..good.len() - SUM];
    let summed = |body: &[u8]| {
        let mut bytes = body.to_vec();
        bytes.extend_from_slice(&Sha256::digest(body));
        decode(bytes.into(), "n1")
    };
    for length in MAGIC.len() + 4..body.len() {
        assert!(summed(&body[..length]).is_err(), "cut to {length}");
    }
    for place in MAGIC.len() + 4..body.len() {
        let mut bytes = body.to_vec();
        bytes[place] ^= 0xff;
        // Content may differ; nothing may panic or claim memory.
        drop(summed(&bytes));
    }
    assert_eq!(summed(&[body, b"x"].concat()), Err(ContentError::Structure));
}

#[test]
fn each_problem_has_its_words() {
    let good = encode("n1", &held());
    let mut later = good.to_vec();
    later[MAGIC.len() + 3] = 9;
    for (bytes, part) in [
        (Bytes::new(), "not a snapshot"),
        (Bytes::from_static(b"{\"json\": 1}"), "not a snapshot"),
        (good.slice(..20), "checksum"),
        (later.into(), "version is 9"),
        (encode("n2", &held()), "\"n2\""),
    ] {
        let error = decode(bytes, "n1").unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
    }
}

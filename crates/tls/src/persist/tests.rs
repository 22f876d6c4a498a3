//! What the private directory refuses to be, and what it gives back.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::ca::{Authority, system_clock};

const NAME: &str = "spiffe://cluster.local/ns/shop/sa/cart";

fn memory() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

fn svid(ttl: Duration) -> Svid {
    Authority::generate("cluster.local", system_clock())
        .unwrap()
        .issue(&NAME.parse().unwrap(), ttl)
        .unwrap()
}

#[test]
fn a_directory_on_a_disk_is_refused_whether_it_exists_or_not() {
    // The sources lie on a disk wherever this is built.
    let disk = Path::new(env!("CARGO_MANIFEST_DIR"));
    for path in [disk.to_owned(), disk.join("missing"), "/proc/self".into()] {
        let error = PrivateDir::open(&path).unwrap_err();
        assert!(matches!(error, PersistError::NotMemory(_)), "{error}");
        assert!(error.to_string().contains("/dev/shm"), "{error}");
    }
    assert!(!disk.join("missing").exists());
}

#[test]
fn a_directory_that_others_can_enter_is_refused() {
    let directory = memory();
    for mode in [0o755, 0o710, 0o701] {
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(mode)).unwrap();
        let error = PrivateDir::open(directory.path()).unwrap_err();
        assert!(matches!(error, PersistError::Open { .. }), "{error}");
    }
}

#[test]
fn an_svid_comes_back_and_only_its_owner_can_read_the_file() {
    let directory = memory();
    let path = directory.path().join("certs");
    let kept = PrivateDir::open(&path).unwrap();
    let svid = svid(Duration::from_secs(60));
    kept.save(&svid).unwrap();
    kept.save(&svid).unwrap();
    assert_eq!(
        kept.identities().unwrap(),
        std::slice::from_ref(&svid.identity)
    );
    let back = kept
        .load(&svid.identity, SystemTime::now())
        .unwrap()
        .unwrap();
    assert_eq!(back.chain, svid.chain);
    assert_eq!(back.key.secret_der(), svid.key.secret_der());
    assert_eq!(back.roots, svid.roots);
    let drift = svid.obtained.duration_since(back.obtained).unwrap();
    assert!(drift < Duration::from_millis(1), "{drift:?}");

    let modes: Vec<u32> = fs::read_dir(&path)
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().mode() & 0o777)
        .collect();
    assert_eq!(modes, [0o600]);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);

    kept.remove(&svid.identity).unwrap();
    kept.remove(&svid.identity).unwrap();
    let gone = kept.load(&svid.identity, SystemTime::now()).unwrap();
    assert!(gone.is_none());
}

#[test]
fn what_is_damaged_expired_or_of_somebody_else_is_not_given_back() {
    let directory = memory();
    let kept = PrivateDir::open(directory.path().join("certs")).unwrap();
    let svid = svid(Duration::from_secs(60));
    kept.save(&svid).unwrap();
    let later = SystemTime::now() + Duration::from_secs(120);
    let error = kept.load(&svid.identity, later).unwrap_err();
    assert!(matches!(error, PersistError::Useless { .. }), "{error}");

    let file = kept.file(&svid.identity);
    let text = fs::read_to_string(&file).unwrap();
    let other: Identity = "spiffe://cluster.local/ns/shop/sa/db".parse().unwrap();
    fs::copy(&file, kept.file(&other)).unwrap();
    let error = kept.load(&other, SystemTime::now()).unwrap_err();
    assert!(matches!(error, PersistError::Useless { .. }), "{error}");

    for damaged in [
        String::new(),
        text.replace(HEADER, "x"),
        text.replacen(" 1 ", " 9 ", 1),
        text.replacen(" 1 ", " 0 ", 1),
        text.replace("PRIVATE KEY", "PUBLIC KEY"),
        text.get(..text.len() / 2).unwrap().to_owned(),
    ] {
        fs::write(&file, &damaged).unwrap();
        let loaded = kept.load(&svid.identity, SystemTime::now());
        assert!(loaded.is_err(), "{damaged}");
    }
}

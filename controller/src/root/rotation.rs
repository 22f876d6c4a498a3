//! How one root of ours follows another: what the Secret says of it, and what follows at which time.
//!
//! | from | the leaves are signed by | agents trust |
//! |---|---|---|
//! | it is asked for | the old root | both |
//! | [`SIGNS_AT`] | the new root | both |
//! | [`ENDS_AT`] | the new root | the new root |
//!
//! Each step waits until nobody is left who knows only the step before: roots come with certificates, so a certificate's
//! life after the first step every workload trusts both, and a life after the second nobody shows a leaf of the old root.
//! All replicas read the same Secret and follow its times by their own clocks; the steps overlap, so they may differ.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use tls::ca::{Authority, AuthorityPem, system_clock};

/// The roots in the Secret.
pub(super) struct Kept {
    root: AuthorityPem,
    next: Option<Next>,
}

/// The root that is to follow.
struct Next {
    root: AuthorityPem,
    signs_at: SystemTime,
    old_ends_at: SystemTime,
}

impl Kept {
    /// A first root, alone.
    pub(super) fn first(root: AuthorityPem) -> Self {
        Self { root, next: None }
    }

    /// Reads what is in the Secret.
    ///
    /// # Errors
    /// A part is missing, or no time.
    pub(super) fn read(secret: &Secret) -> Result<Self> {
        let part = |name: &str| {
            let bytes = secret.data.as_ref().and_then(|data| data.get(name));
            let Some(ByteString(bytes)) = bytes else {
                bail!("it has no {name}");
            };
            String::from_utf8(bytes.clone()).with_context(|| format!("{name} is no text"))
        };
        let time = |name: &str| {
            let text = secret.annotations().get(name);
            let text = text.with_context(|| format!("it has no annotation {name}"))?;
            humantime::parse_rfc3339(text).with_context(|| {
                format!("its annotation {name} is {text:?}; write 2026-01-31T12:00:00Z")
            })
        };
        let data = secret.data.as_ref();
        let has_next = data.is_some_and(|data| data.contains_key(NEXT_KEY));
        let next = if has_next {
            Some(Next {
                root: AuthorityPem {
                    certificate: part(NEXT_CERTIFICATE)?,
                    key: part(NEXT_KEY)?,
                },
                signs_at: time(SIGNS_AT)?,
                old_ends_at: time(ENDS_AT)?,
            })
        } else {
            None
        };
        Ok(Self {
            root: AuthorityPem {
                certificate: part(CERTIFICATE)?,
                key: part(KEY)?,
            },
            next,
        })
    }

    /// Writes them into a Secret, in place of what it had.
    pub(super) fn write(&self, secret: &mut Secret) {
        let mut data = vec![(CERTIFICATE, &self.root.certificate), (KEY, &self.root.key)];
        let mut notes = BTreeMap::new();
        if let Some(next) = &self.next {
            data.push((NEXT_CERTIFICATE, &next.root.certificate));
            data.push((NEXT_KEY, &next.root.key));
            let text = |time| humantime::format_rfc3339_seconds(time).to_string();
            notes.insert(SIGNS_AT.to_owned(), text(next.signs_at));
            notes.insert(ENDS_AT.to_owned(), text(next.old_ends_at));
        }
        let bytes = |text: &String| ByteString(text.clone().into_bytes());
        let data = data.into_iter();
        secret.data = Some(
            data.map(|(name, text)| (name.to_owned(), bytes(text)))
                .collect(),
        );
        let kept = secret.annotations_mut();
        kept.retain(|name, _| ![WANTED, SIGNS_AT, ENDS_AT].contains(&&**name));
        kept.extend(notes);
    }

    /// Who signs and who is trusted at a time.
    ///
    /// # Errors
    /// A root that cannot be used.
    pub(super) fn authority(&self, now: SystemTime) -> Result<Authority> {
        let (signs, also) = match &self.next {
            None => (&self.root, None),
            Some(next) if now < next.signs_at => (&self.root, Some(&next.root)),
            Some(next) if now < next.old_ends_at => (&next.root, Some(&self.root)),
            Some(next) => (&next.root, None),
        };
        let also = also.map_or("", |root| &*root.certificate);
        Ok(Authority::from_pem_beside(signs, also, system_clock())?)
    }

    /// What is to be written into the Secret, if anything: a rotation that is asked for, or the end of one.
    ///
    /// # Errors
    /// A new root cannot be made.
    pub(super) fn step(
        &self,
        wanted: Option<Duration>,
        life: Duration,
        now: SystemTime,
        make: impl FnOnce() -> Result<AuthorityPem>,
    ) -> Result<Option<Self>> {
        match (&self.next, wanted) {
            (None, Some(wanted)) => {
                let overlap = wanted.max(life.saturating_add(SPREAD));
                Ok(Some(Self {
                    root: self.root.clone(),
                    next: Some(Next {
                        root: make()?,
                        signs_at: now + overlap,
                        old_ends_at: now + overlap + overlap,
                    }),
                }))
            }
            (Some(next), _) if now >= next.old_ends_at => Ok(Some(Self::first(next.root.clone()))),
            _ => Ok(None),
        }
    }
}

/// The overlap that somebody asks for.
///
/// # Errors
/// It is no time.
pub(super) fn wanted(secret: &Secret) -> Result<Option<Duration>> {
    let Some(text) = secret.annotations().get(WANTED) else {
        return Ok(None);
    };
    let overlap = humantime::parse_duration(text);
    overlap
        .map(Some)
        .with_context(|| format!("the annotation {WANTED} is {text:?}; write for example 24h"))
}

const CERTIFICATE: &str = "root-cert.pem";
const KEY: &str = "root-key.pem";
const NEXT_CERTIFICATE: &str = "next-cert.pem";
const NEXT_KEY: &str = "next-key.pem";
/// Asks for a new root, and says how long old and new are trusted before the new one signs.
const WANTED: &str = "keelson.io/rotate-root";
/// From when on the new root signs (RFC 3339).
const SIGNS_AT: &str = "keelson.io/new-root-signs-at";
/// From when on the old root is not trusted any more.
const ENDS_AT: &str = "keelson.io/old-root-ends-at";
/// How long a ConfigMap may take until agents have it in a file, how far clocks may be apart, and how late replicas look.
const SPREAD: Duration = Duration::from_secs(180);

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> AuthorityPem {
        let made = Authority::generate("cluster.local", system_clock()).expect("a root");
        made.to_pem()
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000 + seconds)
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn old_and_new_are_trusted_together_before_and_after_the_new_one_begins_to_sign() {
        let (old, new) = (root(), root());
        let kept = Kept::first(old.clone());
        let rotating = kept
            .step(Some(HOUR), HOUR / 2, at(0), || Ok(new.clone()))
            .expect("made")
            .expect("asked for");
        let mut secret = Secret::default();
        secret
            .annotations_mut()
            .insert(WANTED.to_owned(), "1h".to_owned());
        secret
            .annotations_mut()
            .insert("other".to_owned(), "stays".to_owned());
        assert_eq!(wanted(&secret).expect("a time"), Some(HOUR));
        rotating.write(&mut secret);
        assert_eq!(wanted(&secret).expect("none"), None);
        assert!(secret.annotations().contains_key("other"));

        let read = Kept::read(&secret).expect("as written");
        for (seconds, signs, trusted) in [
            (0, &old, 2),
            (3599, &old, 2),
            (3600, &new, 2),
            (7199, &new, 2),
            (7200, &new, 1),
        ] {
            let authority = read.authority(at(seconds)).expect("usable");
            assert!(authority.to_pem() == *signs, "{seconds}");
            assert_eq!(authority.roots().certificates().len(), trusted, "{seconds}");
        }
        let step = |seconds| {
            read.step(None, HOUR, at(seconds), || Ok(root()))
                .expect("no error")
        };
        assert!(step(7199).is_none());
        let over = step(7200).expect("it is over");
        over.write(&mut secret);
        let read = Kept::read(&secret).expect("as written");
        assert!(read.root == new && read.next.is_none());
        assert_eq!(secret.annotations().len(), 1);
    }

    #[test]
    fn an_overlap_is_never_shorter_than_a_certificates_life_and_one_rotation_is_at_a_time() {
        let kept = Kept::first(root());
        let rotating = kept.step(Some(Duration::ZERO), HOUR, at(0), || Ok(root()));
        let rotating = rotating.expect("made").expect("asked for");
        let next = rotating.next.as_ref().expect("a next root");
        assert!(next.signs_at >= at(3600) && next.old_ends_at >= next.signs_at + HOUR);
        let again = rotating.step(Some(HOUR), HOUR, at(1), || bail!("no second one"));
        assert!(again.expect("nothing is made").is_none());
    }

    #[test]
    fn what_is_missing_or_no_time_is_named() {
        let kept = Kept::first(root());
        let rotating = kept.step(Some(HOUR), HOUR, at(0), || Ok(root()));
        let rotating = rotating.expect("made").expect("asked for");
        let mut secret = Secret::default();
        rotating.write(&mut secret);
        let said = |secret: &Secret| match Kept::read(secret) {
            Ok(_) => String::new(),
            Err(error) => format!("{error:#}"),
        };
        assert_eq!(said(&secret), "");
        secret
            .annotations_mut()
            .insert(SIGNS_AT.to_owned(), "soon".to_owned());
        assert!(said(&secret).contains("\"soon\""), "{}", said(&secret));
        secret.data.as_mut().expect("data").remove(NEXT_CERTIFICATE);
        assert!(said(&secret).contains(NEXT_CERTIFICATE));
        secret
            .annotations_mut()
            .insert(WANTED.to_owned(), "soon".to_owned());
        assert!(wanted(&secret).is_err());
    }
}

//! The mesh's root in a cluster: the key in a Secret of the controller's namespace, the certificate in a ConfigMap from which
//! agents read it.
//!
//! A Secret `cacerts`, with the files that Istio knows by that name, is the administrator's and wins. Without it there is
//! one root of our own: whoever of several controllers creates the Secret first has made it, and the others take it.

mod rotation;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Client;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use runtime::file::{PRIVATE, atomic_write_mode};
use tls::ca::{Authority, system_clock};
use tokio::time::Instant;
use tracing::{info, warn};

use self::rotation::Kept;
use crate::installation::Installation;
use crate::signer::Signer;

/// Where the root of an installation is, and what is signed with it.
#[derive(Clone)]
pub(crate) struct Place {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) trust_domain: String,
    /// Where files of the administrator's Secret go.
    pub(crate) state_dir: PathBuf,
    /// The longest life of a workload's certificate.
    pub(crate) life: Duration,
}

impl Place {
    /// Reads or makes the authority, and publishes its roots. What the API server cannot answer is asked again for a while.
    ///
    /// # Errors
    /// A Secret that cannot be used, or an API server that cannot be reached or refuses.
    pub(crate) async fn find(&self) -> Result<Authority> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.attempt().await {
                Err(error) if Instant::now() < deadline && passes(&error) => {
                    warn!(
                        error = format!("{error:#}"),
                        "cannot read the CA root from the cluster; trying again"
                    );
                    tokio::time::sleep(AGAIN).await;
                }
                found => return found,
            }
        }
    }

    async fn attempt(&self) -> Result<Authority> {
        let authority = match self.given().await? {
            Some(given) => {
                info!(
                    namespace = self.namespace,
                    "the CA root is the one of the Secret cacerts"
                );
                given
            }
            None => self.own().await?,
        };
        publish(self.client.clone(), &self.namespace, &authority).await?;
        Ok(authority)
    }

    /// Follows the Secrets for ever, so that a root that is rotated is taken without a restart. What cannot be used or read
    /// changes nothing.
    pub(crate) async fn follow(self, signer: Signer) {
        let mut complained = String::new();
        loop {
            tokio::time::sleep(FOLLOW_EVERY).await;
            match self.take(&signer).await {
                Ok(()) => complained.clear(),
                Err(error) => {
                    let error = format!("{error:#}");
                    if error != complained {
                        warn!(error, "cannot follow the CA root; what is known stays");
                    }
                    complained = error;
                }
            }
        }
    }

    async fn take(&self, signer: &Signer) -> Result<()> {
        let authority = match self.given().await? {
            Some(given) => given,
            None => self.rotated().await?,
        };
        if signer.would_become(&authority) {
            // Agents are to know whom they may meet before they meet them.
            publish(self.client.clone(), &self.namespace, &authority).await?;
            info!(
                trusted = authority.roots().certificates().len(),
                "the CA root: another one signs, or others are trusted"
            );
            signer.becomes(authority);
        }
        Ok(())
    }

    /// The root of our own as the Secret has it, after the step that is due.
    async fn rotated(&self) -> Result<Authority> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let mut secret = secrets.get(OWN).await?;
        let kept = self.parse(&secret)?;
        let now = SystemTime::now();
        let make = || {
            let made = Authority::generate(&self.trust_domain, system_clock())?;
            Ok(made.to_pem())
        };
        let wanted = rotation::wanted(&secret)?;
        let Some(next) = kept.step(wanted, self.life, now, make)? else {
            return kept.authority(now);
        };
        next.write(&mut secret);
        // With the revision that was read: of two replicas one makes the step, and the other reads it later.
        match secrets.replace(OWN, &PostParams::default(), &secret).await {
            Ok(_) => {
                info!(
                    secret = OWN,
                    "a step of the rotation of the CA root is made"
                );
                next.authority(now)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => kept.authority(now),
            Err(error) => Err(error).context("writing the next step of the rotation"),
        }
    }

    async fn given(&self) -> Result<Option<Authority>> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let given = secrets
            .get_opt(GIVEN)
            .await
            .context("reading the Secret cacerts")?;
        let given = given.map(|given| {
            given_authority(&given, &self.state_dir.join(GIVEN))
                .with_context(|| format!("Secret {}/{GIVEN}", self.namespace))
        });
        given.transpose()
    }

    async fn own(&self) -> Result<Authority> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let namespace = &self.namespace;
        let asking = || format!("reading the Secret {namespace}/{OWN}");
        let now = SystemTime::now();
        if let Some(secret) = secrets.get_opt(OWN).await.with_context(asking)? {
            return self.authority(&secret, now);
        }
        let authority = Authority::generate(&self.trust_domain, system_clock())?;
        let mut secret = Secret {
            metadata: ObjectMeta {
                name: Some(OWN.to_owned()),
                ..ObjectMeta::default()
            },
            type_: Some("keelson.io/ca".to_owned()),
            ..Secret::default()
        };
        Kept::first(authority.to_pem()).write(&mut secret);
        match secrets.create(&PostParams::default(), &secret).await {
            Ok(_) => {
                info!(namespace, secret = OWN, "made a new CA root");
                Ok(authority)
            }
            // Another controller was faster: its root is the mesh's.
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let secret = secrets.get(OWN).await.with_context(asking)?;
                self.authority(&secret, now)
            }
            Err(error) => {
                Err(error).with_context(|| format!("making the Secret {namespace}/{OWN}"))
            }
        }
    }

    fn authority(&self, secret: &Secret, now: SystemTime) -> Result<Authority> {
        self.parse(secret)?.authority(now).with_context(|| {
            let namespace = &self.namespace;
            format!(
                "the CA root in the Secret {namespace}/{OWN} cannot be used; restore it, or delete it for a new root"
            )
        })
    }

    fn parse(&self, secret: &Secret) -> Result<Kept> {
        Kept::read(secret).with_context(|| {
            let namespace = &self.namespace;
            format!(
                "the Secret {namespace}/{OWN} is damaged; restore it, or delete it for a new root"
            )
        })
    }
}

/// Whether the same question may have an answer later: what is wrong with a Secret stays wrong.
fn passes(error: &anyhow::Error) -> bool {
    error.downcast_ref::<kube::Error>().is_some()
}

/// The administrator's own, checked as the files of `--cacerts` are.
fn given_authority(secret: &Secret, directory: &Path) -> Result<Authority> {
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let empty = BTreeMap::new();
    for name in GIVEN_FILES {
        let data = secret.data.as_ref().unwrap_or(&empty);
        if let Some(ByteString(bytes)) = data.get(name) {
            atomic_write_mode(&directory.join(name), bytes, PRIVATE)?;
        }
    }
    Ok(Authority::load(directory, system_clock())?)
}

/// Says to agents which roots the controller's certificate leads to.
async fn publish(client: Client, namespace: &str, authority: &Authority) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let owners = Installation::new(client, namespace).owners().await;
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(PUBLISHED.to_owned()),
            owner_references: owners.context("reading what this installation is")?,
            ..ObjectMeta::default()
        },
        data: Some([(CERTIFICATE.to_owned(), authority.roots().to_pem())].into()),
        ..ConfigMap::default()
    };
    let params = PatchParams::apply("keelson-controller").force();
    maps.patch(PUBLISHED, &params, &Patch::Apply(&map))
        .await
        .with_context(|| format!("writing the ConfigMap {namespace}/{PUBLISHED}"))?;
    Ok(())
}

/// The administrator's Secret, as Istio's users name it.
const GIVEN: &str = "cacerts";
const GIVEN_FILES: [&str; 4] = [
    "ca-cert.pem",
    "ca-key.pem",
    "root-cert.pem",
    "cert-chain.pem",
];
/// The Secret that we make.
const OWN: &str = "keelson-ca";
/// The ConfigMap that we write, and the key in it.
const PUBLISHED: &str = "keelson-ca-root";
const CERTIFICATE: &str = "root-cert.pem";
/// Long enough for an API server that is being restarted.
const PATIENCE: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_millis(500);
/// How late a change of a Secret is taken.
const FOLLOW_EVERY: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        let config = kube::Config::new("http://127.0.0.1:1".parse().expect("a URL"));
        Place {
            client: Client::try_from(config).expect("a client"),
            namespace: "mesh".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            state_dir: PathBuf::new(),
            life: Duration::from_secs(60),
        }
    }

    #[tokio::test]
    async fn the_secret_that_one_controller_makes_is_the_same_root_for_another() {
        let made = Authority::generate("cluster.local", system_clock()).expect("a root");
        let mut secret = Secret::default();
        Kept::first(made.to_pem()).write(&mut secret);
        let found = place().authority(&secret, SystemTime::now());
        let found = found.expect("the root");
        assert!(found.roots().to_pem() == made.roots().to_pem());
        assert!(found.to_pem() == made.to_pem());
    }

    #[tokio::test]
    async fn half_a_secret_is_named_and_no_new_root_is_made_in_its_place() {
        for parts in [
            &[][..],
            &[("root-cert.pem", "x")],
            &[("root-cert.pem", "x"), ("root-key.pem", "y")],
        ] {
            let data = parts
                .iter()
                .map(|(name, text)| ((*name).to_owned(), ByteString(text.as_bytes().to_vec())));
            let secret = Secret {
                data: Some(data.collect()),
                ..Secret::default()
            };
            let Err(error) = place().authority(&secret, SystemTime::now()) else {
                panic!("half a Secret is taken");
            };
            assert!(error.to_string().contains("mesh/keelson-ca"), "{error}");
            assert!(!passes(&error));
        }
    }
}

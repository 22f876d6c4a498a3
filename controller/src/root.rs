//! The mesh's root in a cluster: the key in a Secret of the controller's namespace, the certificate in a ConfigMap from which
//! agents read it.
//!
//! A Secret `cacerts`, with the files that Istio knows by that name, is the administrator's and wins. Without it there is
//! one root of our own: whoever of several controllers creates the Secret first has made it, and the others take it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Client;
use kube::api::{Api, ObjectMeta, Patch, PatchParams, PostParams};
use runtime::file::{PRIVATE, atomic_write_mode};
use tls::ca::{Authority, AuthorityPem, system_clock};
use tokio::time::Instant;
use tracing::{info, warn};

/// Reads or makes the authority, and publishes its roots. What the API server cannot answer is asked again for a while.
///
/// # Errors
/// A Secret that cannot be used, or an API server that cannot be reached or refuses.
pub(crate) async fn find(
    client: Client,
    namespace: &str,
    trust_domain: &str,
    state_dir: &Path,
) -> Result<Authority> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = attempt(client.clone(), namespace, trust_domain, state_dir).await;
        match found {
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

/// Whether the same question may have an answer later: what is wrong with a Secret stays wrong.
fn passes(error: &anyhow::Error) -> bool {
    error.downcast_ref::<kube::Error>().is_some()
}

async fn attempt(
    client: Client,
    namespace: &str,
    trust_domain: &str,
    state_dir: &Path,
) -> Result<Authority> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let authority = match secrets
        .get_opt(GIVEN)
        .await
        .context("reading the Secret cacerts")?
    {
        Some(given) => {
            info!(namespace, "the CA root is the one of the Secret cacerts");
            given_authority(&given, &state_dir.join(GIVEN))
                .with_context(|| format!("Secret {namespace}/{GIVEN}"))?
        }
        None => own_authority(&secrets, namespace, trust_domain).await?,
    };
    publish(client, namespace, &authority).await?;
    Ok(authority)
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

async fn own_authority(
    secrets: &Api<Secret>,
    namespace: &str,
    trust_domain: &str,
) -> Result<Authority> {
    let asking = || format!("reading the Secret {namespace}/{OWN}");
    if let Some(secret) = secrets.get_opt(OWN).await.with_context(asking)? {
        return parse(&secret, namespace);
    }
    let authority = Authority::generate(trust_domain, system_clock())?;
    let pem = authority.to_pem();
    let data = [(CERTIFICATE, pem.certificate), (KEY, pem.key)];
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(OWN.to_owned()),
            ..ObjectMeta::default()
        },
        data: Some(
            data.into_iter()
                .map(|(name, text)| (name.to_owned(), ByteString(text.into_bytes())))
                .collect(),
        ),
        type_: Some("keelson.io/ca".to_owned()),
        ..Secret::default()
    };
    match secrets.create(&PostParams::default(), &secret).await {
        Ok(_) => {
            info!(namespace, secret = OWN, "made a new CA root");
            Ok(authority)
        }
        // Another controller was faster: its root is the mesh's.
        Err(kube::Error::Api(status)) if status.code == 409 => {
            let secret = secrets.get(OWN).await.with_context(asking)?;
            parse(&secret, namespace)
        }
        Err(error) => Err(error).with_context(|| format!("making the Secret {namespace}/{OWN}")),
    }
}

fn parse(secret: &Secret, namespace: &str) -> Result<Authority> {
    let part = |name: &str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(name));
        let Some(ByteString(bytes)) = bytes else {
            bail!(
                "the Secret {namespace}/{OWN} has no {name}; restore it, or delete it for a new root"
            );
        };
        String::from_utf8(bytes.clone())
            .with_context(|| format!("{name} of the Secret {namespace}/{OWN}"))
    };
    let pem = AuthorityPem {
        certificate: part(CERTIFICATE)?,
        key: part(KEY)?,
    };
    Authority::from_pem(&pem, system_clock()).with_context(|| {
        format!(
            "the CA root in the Secret {namespace}/{OWN} cannot be used; restore it, or delete it for a new root"
        )
    })
}

/// Says to agents which roots the controller's certificate leads to.
async fn publish(client: Client, namespace: &str, authority: &Authority) -> Result<()> {
    let maps: Api<ConfigMap> = Api::namespaced(client, namespace);
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(PUBLISHED.to_owned()),
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
/// The ConfigMap that we write.
const PUBLISHED: &str = "keelson-ca-root";
const CERTIFICATE: &str = "root-cert.pem";
const KEY: &str = "root-key.pem";
/// Long enough for an API server that is being restarted.
const PATIENCE: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(parts: &[(&str, &str)]) -> Secret {
        let data = parts
            .iter()
            .map(|(name, text)| ((*name).to_owned(), ByteString(text.as_bytes().to_vec())));
        Secret {
            data: Some(data.collect()),
            ..Secret::default()
        }
    }

    #[test]
    fn the_secret_that_one_controller_makes_is_the_same_root_for_another() {
        let made = Authority::generate("cluster.local", system_clock()).expect("a root");
        let pem = made.to_pem();
        let kept = secret(&[(CERTIFICATE, &pem.certificate), (KEY, &pem.key)]);
        let found = parse(&kept, "mesh").expect("the root");
        assert!(found.roots().to_pem() == made.roots().to_pem());
        assert!(found.to_pem() == pem);
    }

    #[test]
    fn half_a_secret_is_named_and_no_new_root_is_made_in_its_place() {
        for parts in [
            &[][..],
            &[(CERTIFICATE, "x")],
            &[(CERTIFICATE, "x"), (KEY, "y")],
        ] {
            let Err(error) = parse(&secret(parts), "mesh") else {
                panic!("half a Secret is taken");
            };
            assert!(error.to_string().contains("mesh/keelson-ca"), "{error}");
            assert!(!passes(&error));
        }
    }
}

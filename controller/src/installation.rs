//! To which object belongs what a controller writes down beside the chart's own objects. The garbage collector of the cluster
//! takes it when that object is gone, so that nothing is left of an installation, whoever removes it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::Api;
use kube::{Client, ResourceExt};
use parking_lot::Mutex;

/// The object of the chart that stands for the installation in a namespace: a ConfigMap without data.
#[derive(Clone)]
pub(crate) struct Installation {
    maps: Api<ConfigMap>,
    known: Arc<Mutex<Option<OwnerReference>>>,
}

impl Installation {
    pub(crate) fn new(client: Client, namespace: &str) -> Self {
        Self {
            maps: Api::namespaced(client, namespace),
            known: Arc::default(),
        }
    }

    /// The references that make an object belong to the installation; none where no chart was installed.
    ///
    /// An installation that has been removed while this controller still runs is named as it was: the garbage collector takes
    /// an object at once whose owner is gone.
    ///
    /// # Errors
    /// The API server cannot be asked.
    pub(crate) async fn owners(&self) -> kube::Result<Option<Vec<OwnerReference>>> {
        let there = self.maps.get_metadata_opt(NAME).await?;
        let mut known = self.known.lock();
        if let Some(there) = there {
            *known = Some(OwnerReference {
                api_version: "v1".to_owned(),
                kind: "ConfigMap".to_owned(),
                name: NAME.to_owned(),
                uid: there.uid().unwrap_or_default(),
                ..OwnerReference::default()
            });
        }
        Ok(known.clone().map(|owner| vec![owner]))
    }
}

const NAME: &str = "keelson-installation";

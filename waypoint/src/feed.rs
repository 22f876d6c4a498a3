//! What the controller sends, made into configurations.

use std::collections::BTreeSet;
use std::sync::Arc;

use admin_api::ProxyConfig;
use hickory_resolver::TokioResolver;
use l7::Resource;
use model::MeshState;
use parking_lot::Mutex;
use proto::{convert, type_url};
use xds_client::{Handler, RawResource, Rejection};

use crate::active::{Active, Newest};
use crate::balance::state::Registry;
use crate::memory::Changes;
use crate::names::{self, Names};
use crate::shown;

/// Takes the controller's resources, and what names lead to, and publishes what they come to.
#[derive(Clone)]
pub(crate) struct Feed(Arc<Mutex<Inner>>);

struct Inner {
    newest: Arc<Newest>,
    mesh: MeshState,
    l7: l7::Store,
    names: Names,
    /// This pod, as `namespace/name`.
    own: (Arc<str>, Arc<str>),
    changes: Changes,
    /// Types of which a part has come and not the rest.
    incomplete: BTreeSet<String>,
    /// Bytes that have been read since the last change was complete.
    unseen: usize,
}

impl Feed {
    pub(crate) fn new(newest: Arc<Newest>, own: (Arc<str>, Arc<str>), changes: Changes) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            newest,
            mesh: MeshState::default(),
            l7: l7::Store::default(),
            names: Names::default(),
            own,
            changes,
            incomplete: BTreeSet::new(),
            unseen: 0,
        })))
    }

    /// What is routed by.
    pub(crate) fn shown(&self, registry: &Registry) -> ProxyConfig {
        let inner = self.0.lock();
        shown::all(&inner.newest.load(), inner.l7.rules(), registry)
    }

    /// Looks up the names of endpoints, for ever.
    pub(crate) async fn look_up(self, resolver: TokioResolver) {
        let news = Arc::clone(&self.0.lock().names.news);
        let hostnames = || self.0.lock().names.hostnames();
        let learn = |name: &Arc<str>, addresses| {
            let inner = &mut *self.0.lock();
            if inner.names.learn(&mut inner.l7, name, addresses) {
                inner.publish();
            }
        };
        names::follow(resolver, news, hostnames, learn).await;
    }
}

impl Inner {
    fn addresses(&mut self, updated: &[RawResource], removed: &[String]) -> Vec<Rejection> {
        let mut rejected = Vec::new();
        for resource in updated {
            match convert::address(&resource.bytes) {
                Ok(convert::Address::Workload(workload)) => self.mesh.insert_workload(workload),
                Ok(convert::Address::Tombstone(tombstone)) => self.mesh.insert_tombstone(tombstone),
                Ok(convert::Address::Service(service)) => self.mesh.insert_service(service),
                Err(error) => rejected.push(Rejection {
                    name: resource.name.to_string(),
                    reason: error.to_string(),
                }),
            }
        }
        for name in removed {
            self.mesh.remove(name);
        }
        rejected
    }

    /// What cannot be read keeps its last good version; a policy that never was good is named by its endpoints, and so
    /// denies.
    fn rules(&mut self, kind: &str, updated: &[RawResource], removed: &[String]) -> Vec<Rejection> {
        let mut rejected = Vec::new();
        for resource in updated {
            match convert::l7::resource(kind, &resource.name, &resource.bytes) {
                Some(Ok(mut read)) => {
                    // Whoever keeps the configuration has the same name.
                    if let Resource::Route(name, _) = &mut read {
                        *name = Arc::clone(&resource.name);
                    }
                    self.names.apply(&mut self.l7, read);
                }
                Some(Err(error)) => rejected.push(Rejection {
                    name: resource.name.to_string(),
                    reason: error.to_string(),
                }),
                None => {}
            }
        }
        for name in removed {
            if let Some(name) = convert::l7::resource_name(kind, name) {
                self.names.remove(&mut self.l7, &name);
            }
        }
        rejected
    }

    fn publish(&mut self) {
        if !self.incomplete.is_empty() {
            return;
        }
        let (namespace, name) = &self.own;
        let l7 = self.l7.config();
        // The controller tells a waypoint of its own pods too.
        let end = format!("/Pod/{namespace}/{name}");
        let own = l7
            .endpoints()
            .find(|one| one.uid.as_str().ends_with(&end))
            .map(|one| (one.locality.clone(), Arc::clone(&one.labels)));
        let (own, own_labels) = own.unwrap_or_default();
        self.newest.store(Active {
            l7,
            mesh: self.mesh.clone(),
            own,
            own_labels,
            generation: 0,
        });
    }
}

impl Handler for Feed {
    fn apply(
        &mut self,
        type_url: &str,
        updated: Vec<RawResource>,
        removed: Vec<String>,
    ) -> Vec<Rejection> {
        self.apply_part(type_url, updated, removed, false)
    }

    fn apply_part(
        &mut self,
        type_url: &str,
        updated: Vec<RawResource>,
        removed: Vec<String>,
        more: bool,
    ) -> Vec<Rejection> {
        let mut inner = self.0.lock();
        let rejected = if type_url == type_url::ADDRESS {
            inner.addresses(&updated, &removed)
        } else {
            inner.rules(type_url, &updated, &removed)
        };
        if more {
            inner.incomplete.insert(type_url.to_owned());
        } else {
            inner.incomplete.remove(type_url);
        }
        inner.publish();
        let bytes = updated.iter().map(|resource| resource.bytes.len());
        inner.unseen += bytes.sum::<usize>();
        if !more {
            let unseen = std::mem::take(&mut inner.unseen);
            inner.changes.read(unseen);
        }
        rejected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_decided_with_a_part() {
        let newest = Arc::<Newest>::default();
        let own = ("shop".into(), "waypoint".into());
        let mut feed = Feed::new(Arc::clone(&newest), own, Changes::default());
        let mut take = |kind: &str, more| {
            feed.apply_part(kind, Vec::new(), Vec::new(), more);
            newest.load().generation
        };
        let [routes, services] = [type_url::L7_ROUTE, type_url::L7_SERVICE];
        assert_eq!(take(services, false), 1);
        assert_eq!(take(routes, true), 1);
        assert_eq!(
            take(services, false),
            1,
            "it would be with a part of the routes"
        );
        assert_eq!(take(routes, true), 1);
        assert_eq!(take(routes, false), 2);
    }
}

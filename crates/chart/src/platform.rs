//! Values for kinds of clusters, and for sizes.

/// Values for a small cluster.
pub const MINIMAL: &str = include_str!("../../../deploy/charts/keelson/profiles/minimal.yaml");

macro_rules! platforms {
    ($($name:literal),+ $(,)?) => {
        [$((
            $name,
            include_str!(concat!("../../../deploy/charts/keelson/platforms/", $name, ".yaml")),
        )),+]
    };
}

/// Values by kind of cluster, as files that Helm takes too.
pub const PLATFORMS: [(&str, &str); 6] =
    platforms!["aks", "eks", "gke", "k3s", "openshift", "talos"];

/// The kinds of clusters.
#[must_use]
pub fn platform_names() -> Vec<&'static str> {
    PLATFORMS.iter().map(|(name, _)| *name).collect()
}

/// The values for a kind of cluster.
#[must_use]
pub fn platform(name: &str) -> Option<&'static str> {
    let found = PLATFORMS.iter().find(|(known, _)| *known == name);
    found.map(|(_, text)| *text)
}

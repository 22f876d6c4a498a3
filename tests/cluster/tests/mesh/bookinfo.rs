//! Bookinfo on a cluster, from its own files: one application with many roles is in the place of its images, and nothing else
//! is changed.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests_cluster::{CLIENT, Namespace, eventually, kubectl, pod};

use crate::application::{self, gateways};
use crate::installed::Installed;
use crate::kinds::Kinds;

macro_rules! fixture {
    ($file:literal) => {
        include_str!(concat!("../../../lab/fixtures/bookinfo/", $file))
    };
}

const ALL: &str = fixture!("bookinfo.yaml");
const GATEWAY: &str = fixture!("networking/bookinfo-gateway.yaml");
const SUBSETS: &str = fixture!("networking/destination-rule-all.yaml");
const ALL_V1: &str = fixture!("networking/virtual-service-all-v1.yaml");
const REVIEWS_TEST_V2: &str = fixture!("networking/virtual-service-reviews-test-v2.yaml");
const REVIEWS_90_10: &str = fixture!("networking/virtual-service-reviews-90-10.yaml");
const RATINGS_ABORT: &str = fixture!("networking/virtual-service-ratings-test-abort.yaml");

/// The namespace that Bookinfo is in.
struct Bookinfo(Namespace);

impl Bookinfo {
    fn stand_up() -> Result<Self> {
        let own = Self(Namespace::create("bookinfo")?);
        let name = own.0.name();
        let labels = ["keelson.io/mesh=enabled", "istio.io/use-waypoint=waypoint"];
        kubectl(&["label", "namespace", name, labels[0], labels[1]])?;
        own.0.apply(&gateways("service"))?;
        let mut objects = Vec::new();
        for mut object in lab::parse_yaml(ALL)? {
            if object["kind"] == "Deployment" {
                take_the_place_of_its_image(&mut object)?;
            }
            objects.push(object);
        }
        own.0.apply(&objects)?;
        own.apply(GATEWAY)?;
        own.apply(SUBSETS)?;
        own.0.kubectl(&[
            "wait",
            "--for=condition=Available",
            "--timeout=120s",
            "deployment",
            "--all",
        ])?;
        Ok(own)
    }

    /// Applies a file of Bookinfo's as it is.
    fn apply(&self, text: &str) -> Result<()> {
        application::apply(&self.0, text)
    }

    fn delete(&self, text: &str) -> Result<()> {
        application::delete(&self.0, text)
    }

    /// So many product pages, as a client outside of the mesh sees them by the gateway.
    fn pages(&self, outside: &Namespace, count: usize, header: &str) -> Result<Vec<Value>> {
        let door = format!("door-keelson.{}:8080", self.0.name());
        let command = format!(
            "for i in $(seq {count}); do timeout 5 wget -q -O - {header} http://{door}/productpage; echo; done"
        );
        let text = outside.exec("client", &command)?;
        let pages = text.lines().filter(|line| !line.trim().is_empty());
        let pages: Vec<Value> = pages
            .map(|line| serde_json::from_str(line).context(line.to_owned()))
            .collect::<Result<_>>()?;
        ensure!(
            pages.len() == count,
            "{} of {count} pages: {text}",
            pages.len()
        );
        Ok(pages)
    }

    /// Which versions of the reviews are on so many pages, each with whether it has stars.
    fn reviews(
        &self,
        outside: &Namespace,
        count: usize,
        header: &str,
    ) -> Result<BTreeMap<(String, bool), usize>> {
        let mut seen = BTreeMap::new();
        for page in self.pages(outside, count, header)? {
            let reviews = &page["calls"]["reviews"]["body"];
            let version = reviews["version"].as_str().unwrap_or("none").to_owned();
            let stars = reviews["calls"]["ratings"]["status"] == 200;
            *seen.entry((version, stars)).or_default() += 1;
        }
        Ok(seen)
    }
}

/// The application in the place of a Deployment's image.
fn take_the_place_of_its_image(deployment: &mut Value) -> Result<()> {
    let name = deployment["metadata"]["name"].as_str().context("a name")?;
    let name = name.to_owned();
    let (service, version) = name.rsplit_once('-').context("a version")?;
    let calls: &[&str] = match &*name {
        "productpage-v1" => &[
            "/productpage=details:9080/details/0",
            "/productpage=reviews:9080/reviews/0",
        ],
        "reviews-v2" | "reviews-v3" => &["/=ratings:9080/ratings/0"],
        _ => &[],
    };
    let mut words = vec![
        "--version",
        version,
        "--ports",
        "9080",
        "--service",
        service,
    ];
    words.extend(calls.iter().flat_map(|call| ["--call", *call]));
    application::take_the_place_of_its_image(deployment, &words)
}

/// A4, A10, A11, A12, A14, A24, F19, F25, F63: Bookinfo's pages follow Bookinfo's own rules.
#[test]
#[ignore = "nightly"]
fn bookinfo_stands_up_from_its_own_files_and_follows_its_own_rules() -> Result<()> {
    let _mesh = Installed::install()?;
    let _kinds = Kinds::apply()?;
    let outside = Namespace::create("outside")?;
    outside.apply(&[pod("client", None, CLIENT)])?;
    let bookinfo = Bookinfo::stand_up()?;
    outside.wait_ready("client")?;
    let v = |version: &str, stars: bool| (version.to_owned(), stars);

    // Without a rule each version is seen, v1 without stars.
    eventually("the product page shows all versions of the reviews", || {
        let seen = bookinfo.reviews(&outside, 12, "")?;
        let all: Vec<_> = seen.keys().cloned().collect();
        ensure!(
            all == [v("v1", false), v("v2", true), v("v3", true)],
            "{seen:?}"
        );
        Ok(())
    })?;

    // A10: all on v1.
    bookinfo.apply(ALL_V1)?;
    let only_v1 = || {
        let seen = bookinfo.reviews(&outside, 20, "")?;
        ensure!(seen.get(&v("v1", false)) == Some(&20), "{seen:?}");
        Ok(())
    };
    eventually("only v1 is seen", only_v1)?;

    // A11: jason sees stars, nobody else.
    bookinfo.apply(REVIEWS_TEST_V2)?;
    let jason = "--header 'Cookie: session=jason'";
    eventually("jason sees stars", || {
        let seen = bookinfo.reviews(&outside, 10, jason)?;
        ensure!(seen.get(&v("v2", true)) == Some(&10), "{seen:?}");
        Ok(())
    })?;
    only_v1()?;

    // A24: his stars alone fail on purpose.
    bookinfo.apply(RATINGS_ABORT)?;
    eventually("jason's stars are gone", || {
        let seen = bookinfo.reviews(&outside, 10, jason)?;
        ensure!(seen.get(&v("v2", false)) == Some(&10), "{seen:?}");
        Ok(())
    })?;

    // A14: of a hundred, the tenth are expected with a deviation of 3: more than 28 once in a billion runs.
    bookinfo.delete(RATINGS_ABORT)?;
    bookinfo.apply(REVIEWS_90_10)?;
    eventually("both versions are seen and v3 is not", || {
        let seen = bookinfo.reviews(&outside, 100, "")?;
        let count = |key: &(String, bool)| seen.get(key).copied().unwrap_or_default();
        let (first, second) = (count(&v("v1", false)), count(&v("v2", true)));
        ensure!(first + second == 100, "{seen:?}");
        ensure!((1..=28).contains(&second), "{seen:?}");
        Ok(())
    })
}

//! The Sock Shop: front end and catalogue from their own manifests, with a waypoint for the namespace, and its rules from
//! their own files.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Result, ensure};
use lab::Lab;
use tests_lab::Shared;

use super::stand::{
    Answer, OUTSIDE, apply, args, ask, ask_often, deploy, door, gateway, mesh, metrics, moody,
    requests, scale, soon, tally, waypoint, with,
};

static SHOP: Shared = Shared::new(stand_up);

macro_rules! fixture {
    ($file:literal) => {
        include_str!(concat!("../../../fixtures/sock-shop/", $file))
    };
}

const NAMESPACE: &str = fixture!("1-deploy-app/manifests/sock-shop-ns.yaml");
const FRONT_END: [&str; 3] = [
    fixture!("1-deploy-app/manifests/front-end-svc.yaml"),
    fixture!("1-deploy-app/manifests/front-end-dep.yaml"),
    fixture!("2-traffic-management/front-end-dep-v2.yaml"),
];
const CATALOGUE_SERVICE: &str = fixture!("1-deploy-app/manifests/catalogue-svc.yaml");
const CATALOGUE: &str = fixture!("1-deploy-app/manifests/catalogue-dep.yaml");
const GATEWAY: &str = fixture!("1-deploy-app/sockshop-gateway.yaml");
/// The rules with which the shop begins, and to which each test goes back.
const RULES: &str = fixture!("1-deploy-app/sockshop-virtual-services.yaml");
const ON_V1: &str = fixture!("2-traffic-management/blue-green/frontv1-virtual-service.yaml");
const ON_V2: &str = fixture!("2-traffic-management/blue-green/frontv2-virtual-service.yaml");
const CANARY: &str = fixture!("2-traffic-management/canary/canary-virtual-service.yaml");
const FIREFOX: &str =
    fixture!("2-traffic-management/route-headers/frontv2-virtual-service-firefox.yaml");
const ABORT: &str =
    fixture!("3-resiliency/fault-injection/abort-fault-injection-virtual-service.yaml");
const DELAY: &str =
    fixture!("3-resiliency/fault-injection/delay-fault-injection-virtual-service.yaml");
const BREAKER: &str = fixture!("3-resiliency/circuit-breaking/circuit-breaking.yaml");
const RETRY: &str = fixture!("3-resiliency/retry/retry-virtual-service.yaml");
const BY_ADDRESS: &str =
    fixture!("3-resiliency/load-balancing/load-balancing-consistent-hash.yaml");
const CORS: &str = fixture!("4-policy/cors/cors-virtual-service.yaml");
const DENY: &str = fixture!("5-security/http-auth/deny-policy.yaml");
const ALLOW: &str = fixture!("5-security/http-auth/allow-policy.yaml");

/// A client in the mesh.
const CLIENT: &str = "sock-shop/front-end";
const TAGS: &str = "http://catalogue/tags";
/// The catalogue's replicas; the manifest has one.
const CATALOGUES: [&str; 3] = ["catalogue", "catalogue-2", "catalogue-3"];

fn stand_up() -> Result<Lab> {
    let lab = mesh(2, &[])?;
    apply(&lab, NAMESPACE)?;
    lab.label_namespace("sock-shop", "keelson.io/mesh", Some("enabled"))?;
    lab.label_namespace("sock-shop", "istio.io/use-waypoint", Some("waypoint"))?;
    waypoint(&lab, "sock-shop")?;
    gateway(&lab, "istio: ingressgateway")?;
    for manifest in FRONT_END {
        deploy(&lab, manifest, |name| {
            let words =
                "--ports 8079 --service front-end --strict --call /catalogue=catalogue/catalogue";
            (if name == "front-end" { "n1" } else { "n2" }, args(words))
        })?;
    }
    apply(&lab, CATALOGUE_SERVICE)?;
    for (index, name) in CATALOGUES.into_iter().enumerate() {
        let node = if index == 1 { "n1" } else { "n2" };
        scale(&lab, CATALOGUE, name, |_| {
            (node, args("--ports 80 --service catalogue"))
        })?;
    }
    apply(&lab, GATEWAY)?;
    apply(&lab, RULES)?;
    soon("the catalogue is shown", || {
        let answer = ask(&lab, OUTSIDE, &shop(&lab, "/catalogue")?, &[])?;
        ensure!(answer.status == 200, "{answer:?}");
        Ok(())
    })?;
    Ok(lab)
}

fn shop(lab: &Lab, path: &str) -> Result<String> {
    Ok(format!("http://{}{path}", door(lab)?))
}

fn versions(answers: &[Answer]) -> std::collections::BTreeMap<String, usize> {
    tally(answers.iter().map(Answer::version))
}

/// Waits until all of ten requests to the shop are answered by this version.
fn all_on(lab: &Lab, version: &str) -> Result<()> {
    soon(&format!("only {version} answers"), || {
        let seen = versions(&ask_often(lab, OUTSIDE, &shop(lab, "/")?, &[], 10)?);
        ensure!(seen.get(version) == Some(&10), "{seen:?}");
        Ok(())
    })
}

/// A13, F28: all traffic moves to v2 and back by one apply each, under load, and no request fails.
#[test]
fn a13_a_flip_takes_all_traffic_and_so_does_the_way_back() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    all_on(lab, "v1")?;
    let url = shop(lab, "/")?;
    let stop = AtomicBool::new(false);
    let seen = thread::scope(|scope| {
        let load = scope.spawn(|| -> Result<Vec<Answer>> {
            let mut all = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                all.extend(ask_often(lab, OUTSIDE, &url, &[], 50)?);
            }
            Ok(all)
        });
        let flipped = with(lab, ON_V2, RULES, || all_on(lab, "v2")).and_then(|()| {
            apply(lab, ON_V1)?;
            all_on(lab, "v1")
        });
        stop.store(true, Ordering::Relaxed);
        let load = load
            .join()
            .map_err(|_panic| anyhow::anyhow!("the load broke"))??;
        flipped.map(|()| load)
    })?;
    let seen = versions(&seen);
    assert!(
        seen.keys()
            .all(|version| version == "v1" || version == "v2"),
        "{seen:?}"
    );
    assert!(seen.len() == 2, "{seen:?}");
    Ok(())
}

/// A14, F25: a canary of 20 % gets about 20 %.
#[test]
fn a14_a_canary_of_a_fifth_gets_a_fifth() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    with(lab, CANARY, RULES, || {
        soon("the canary is seen", || {
            let seen = versions(&ask_often(lab, OUTSIDE, &shop(lab, "/")?, &[], 30)?);
            ensure!(seen.contains_key("v2"), "{seen:?}");
            Ok(())
        })?;
        let seen = versions(&ask_often(lab, OUTSIDE, &shop(lab, "/")?, &[], 400)?);
        let second = seen.get("v2").copied().unwrap_or_default();
        // Of 400 draws of a fifth 80 are expected with a deviation of 8: outside of 40 to 120 once in 1.7 million runs.
        assert!((40..=120).contains(&second), "{seen:?}");
        assert_eq!(seen.get("v1").copied(), Some(400 - second));
        Ok(())
    })
}

/// A15, F19: Firefox gets v2, every other client v1.
#[test]
fn a15_firefox_gets_v2_and_every_other_client_v1() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    let url = shop(lab, "/")?;
    let firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0";
    let chrome = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/126.0 Safari/537.36";
    with(lab, FIREFOX, RULES, || {
        soon("Firefox gets v2", || {
            let answer = ask(lab, OUTSIDE, &url, &["--user-agent", firefox])?;
            ensure!(answer.version() == "v2", "{answer:?}");
            Ok(())
        })?;
        for (agent, version) in [
            (firefox, "v2"),
            (chrome, "v1"),
            ("curl/8", "v1"),
            ("", "v1"),
        ] {
            let seen = ask_often(lab, OUTSIDE, &url, &["--user-agent", agent], 20)?;
            assert_eq!(versions(&seen).get(version), Some(&20), "{agent}: {seen:?}");
        }
        Ok(())
    })
}

/// A25, F63: a tenth of the requests to the catalogue is answered with 500 on purpose, and does not reach it.
#[test]
fn a25_a_tenth_is_aborted() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    with(lab, ABORT, RULES, || {
        soon("some are aborted", || {
            let seen = versions(&ask_often(lab, CLIENT, TAGS, &[], 40)?);
            ensure!(seen.contains_key("500"), "{seen:?}");
            Ok(())
        })?;
        let reached = || -> usize {
            let pods = CATALOGUES.iter();
            pods.map(|pod| requests(lab, &format!("sock-shop/{pod}")))
                .sum()
        };
        let before = reached();
        let seen = versions(&ask_often(lab, CLIENT, TAGS, &[], 400)?);
        let aborted = seen.get("500").copied().unwrap_or_default();
        // Of 400 draws of a tenth 40 are expected with a deviation of 6: outside of 10 to 70 once in 1.7 million runs.
        assert!((10..=70).contains(&aborted), "{seen:?}");
        assert_eq!(seen.get("v1").copied(), Some(400 - aborted));
        assert_eq!(reached(), before + 400 - aborted);
        Ok(())
    })
}

/// A26, F62: with a delay of 5 s for all, every answer takes at least that long.
#[test]
fn a26_every_answer_of_the_catalogue_is_late() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    with(lab, DELAY, RULES, || {
        // The rule counts from here on.
        soon("the delay counts", || {
            let answer = ask(lab, CLIENT, TAGS, &["--max-time", "1"])?;
            ensure!(answer.status == 0, "{answer:?}");
            Ok(())
        })?;
        let at_once = ["--parallel", "--parallel-immediate", "--parallel-max", "20"];
        for answer in ask_often(lab, CLIENT, TAGS, &at_once, 20)? {
            assert!(answer.status == 200 && answer.seconds >= 5.0, "{answer:?}");
        }
        Ok(())
    })
}

/// A27, F59: one connection and one that waits are allowed: of four clients some get 200 and some 503.
#[test]
fn a27_with_four_clients_at_a_pool_of_one_some_get_503() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    with(lab, BREAKER, RULES, || {
        let four = ["--parallel", "--parallel-immediate", "--parallel-max", "4"];
        moody(lab, &CATALOGUES, "delay 20", || {
            soon("the circuit opens", || {
                // Bodies of answers that come at once are not kept apart.
                let seen = ask_often(lab, CLIENT, TAGS, &four, 40)?;
                let seen = tally(seen.iter().map(|answer| answer.status.to_string()));
                ensure!(
                    seen.contains_key("503") && seen.contains_key("200"),
                    "{seen:?}"
                );
                ensure!(seen.len() == 2, "{seen:?}");
                Ok(())
            })?;
            Ok(())
        })
    })
}

/// A29, F57: while one of the replicas fails or is too slow, another one answers.
#[test]
fn a29_a_retry_goes_to_another_replica() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    with(lab, RETRY, RULES, || {
        for mood in ["status 503", "delay 3000"] {
            let ill = CATALOGUES[2];
            moody(lab, &[ill], mood, || {
                let told = || requests(lab, &format!("sock-shop/{ill}"));
                soon("the rule counts", || {
                    let before = told();
                    let seen = ask_often(lab, CLIENT, TAGS, &[], 4)?;
                    let seen = versions(&seen);
                    ensure!(
                        told() > before && seen.get("v1") == Some(&4),
                        "{mood}: {seen:?}"
                    );
                    Ok(())
                })?;
                for answer in ask_often(lab, CLIENT, TAGS, &[], 4)? {
                    ensure!(
                        answer.version() == "v1" && answer.seconds < 3.0,
                        "{answer:?}"
                    );
                    ensure!(answer.says("/pod") != ill, "{answer:?}");
                }
                Ok(())
            })?;
        }
        Ok(())
    })
}

/// A31, F32: by the client's address, the same replica answers one client each time.
#[test]
fn a31_one_client_is_always_answered_by_one_replica() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    let clients: Vec<String> = (0..8)
        .map(|index| {
            let name = format!("client-{index}");
            let node = if index % 2 == 0 { "n1" } else { "n2" };
            lab.create(&lab::PodSpec::new("sock-shop", &name, node))?;
            Ok(format!("sock-shop/{name}"))
        })
        .collect::<Result<_>>()?;
    let pods = |client: &str| -> Result<Vec<String>> {
        // A connection for each request.
        let seen = ask_often(lab, client, TAGS, &["--header", "Connection: close"], 12)?;
        let pods = tally(seen.iter().map(|answer| answer.says("/pod").to_string()));
        Ok(pods.into_keys().collect())
    };
    let checked = with(lab, BY_ADDRESS, RULES, || {
        soon("the address decides", || {
            let seen = pods(&clients[0])?;
            ensure!(seen.len() == 1, "{seen:?}");
            Ok(())
        })?;
        let mut chosen = std::collections::BTreeSet::new();
        for client in &clients {
            let seen = pods(client)?;
            ensure!(seen.len() == 1, "{client}: {seen:?}");
            chosen.extend(seen);
        }
        // Of eight clients all at one of three replicas: once in 2,187.
        ensure!(chosen.len() > 1, "all clients are at {chosen:?}");
        Ok(())
    });
    for client in clients {
        lab.delete_pod(&client)?;
    }
    checked
}

/// A45, F85: a DENY of the catalogue shows the words that users know; an ALLOW of GET lets GET pass and no POST.
#[test]
fn a45_the_catalogue_is_denied_then_allowed_for_get_alone() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    let url = shop(lab, "/catalogue")?;
    let denied = |args: &[&str]| {
        soon("it is denied", || {
            let answer = ask(lab, OUTSIDE, &url, args)?;
            ensure!(answer.status == 403, "{answer:?}");
            ensure!(answer.body == "RBAC: access denied", "{answer:?}");
            Ok(())
        })
    };
    let shown = |url: &str| {
        soon("it is shown", || {
            let answer = ask(lab, OUTSIDE, url, &[])?;
            ensure!(answer.version() == "v1", "{url}: {answer:?}");
            Ok(())
        })
    };
    with(lab, DENY, "", || {
        denied(&[])?;
        shown(&shop(lab, "/")?)
    })?;
    with(lab, ALLOW, "", || {
        denied(&["--data", "x=1"])?;
        shown(&url)
    })?;
    shown(&url)
}

/// A49, F93: the OPTIONS request that is printed gets the answer that is printed.
#[test]
fn a49_a_preflight_gets_what_the_rule_says() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    let url = shop(lab, "/catalogue")?;
    let preflight = [
        "--head",
        "--request",
        "OPTIONS",
        "--header",
        "access-control-request-method: PUT",
        "--header",
        "origin: http://aboullaite.me",
    ];
    with(lab, CORS, RULES, || {
        soon("the rule counts", || {
            let answer = ask(lab, OUTSIDE, &url, &preflight)?;
            ensure!(answer.status == 200, "{answer:?}");
            for line in [
                "http/1.1 200 ok",
                "access-control-allow-origin: http://aboullaite.me",
                "access-control-allow-methods: post,get",
                "access-control-allow-headers: x-foo-bar",
                "access-control-max-age: 86400",
                "content-length: 0",
            ] {
                let lines = answer.head.lines();
                ensure!(
                    lines.map(str::trim).any(|one| one == line),
                    "{line}: {answer:?}"
                );
            }
            // False is not said.
            ensure!(!answer.head.contains("allow-credentials"), "{answer:?}");
            Ok(())
        })
    })
}

/// A56, F97, F100: the query that users know finds the catalogue's requests, with all labels; a gateway counts under the
/// service that it has chosen.
#[test]
fn a56_requests_are_counted_by_the_service_that_was_chosen() -> Result<()> {
    let _turn = tests_lab::turn()?;
    let lab = SHOP.lab()?;
    let name = "istio_requests_total";
    let of = |service| [("destination_service", service)];
    let catalogue = "catalogue.sock-shop.svc.cluster.local";
    let front_end = "front-end.sock-shop.svc.cluster.local";
    let counted = || -> Result<(f64, f64)> {
        let mut at_catalogue = 0.0;
        for node in ["n1", "n2"] {
            let page = metrics(lab, &format!("sock-shop/waypoint-{node}"))?;
            at_catalogue += page.sum(name, &of(catalogue));
            for sample in page.samples(name, &of(catalogue)) {
                for label in LABELS {
                    let value = sample.label(label).unwrap_or_default();
                    ensure!(!value.is_empty(), "{label}: {sample:?}");
                }
            }
        }
        let page = metrics(lab, "edge/gw-n1")?;
        for sample in page.samples(name, &[]) {
            let service = sample.label("destination_service").unwrap_or_default();
            ensure!([front_end, "unknown"].contains(&service), "{sample:?}");
        }
        Ok((at_catalogue, page.sum(name, &of(front_end))))
    };
    let before = counted()?;
    // One that no listener serves, and one that no rule matches.
    ask(lab, OUTSIDE, &format!("http://{}:9999/", door(lab)?), &[])?;
    let seen = ask_often(lab, OUTSIDE, &shop(lab, "/catalogue")?, &[], 20)?;
    assert!(seen.iter().all(|answer| answer.status == 200), "{seen:?}");
    let after = counted()?;
    assert!(
        after.0 >= before.0 + 20.0 && after.1 >= before.1 + 20.0,
        "{before:?} {after:?}"
    );
    Ok(())
}

/// The labels of F100, and Istio's canonical ones.
const LABELS: [&str; 27] = [
    "reporter",
    "source_app",
    "source_principal",
    "source_workload",
    "source_workload_namespace",
    "source_version",
    "source_namespace",
    "source_canonical_service",
    "source_canonical_revision",
    "destination_app",
    "destination_principal",
    "destination_workload",
    "destination_workload_namespace",
    "destination_version",
    "destination_namespace",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "destination_canonical_service",
    "destination_canonical_revision",
    "request_protocol",
    "response_code",
    "response_flags",
    "permissive_response_code",
    "permissive_response_policyid",
    "connection_security_policy",
    "connection_mtls",
];

//! How long a decision takes, and how much memory a route takes, with 10 prefix routes and with 10,000. Run it with
//! `cargo run --release -p l7 --example decide`.

#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a person reads it and runs it"
)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, Method};
use l7::request::{Client, Destination, Request};
use l7::route::{
    Action, Attachment, Forward, HeaderOperations, Match, PathMatch, Precedence, RouteRule, Rule,
    Treatment,
};
use l7::table::Table;
use l7::{Kind, Origin, Path};
use model::ServiceKey;

fn main() {
    let mut last = 0.0;
    for count in [10, 1_000, 10_000, 100_000] {
        let before = resident();
        let table = Table::compile(&rules(count));
        let bytes = resident().saturating_sub(before);
        let took = measure(&table, count);
        let ratio = if last > 0.0 { took / last } else { 1.0 };
        if last == 0.0 {
            last = took;
        }
        println!(
            "{count:>7} prefix routes: {took:>6.1} ns a decision, {ratio:.2}x of 10 routes, {} B resident a route with its rule",
            bytes / count
        );
    }
}

fn rules(count: usize) -> Vec<RouteRule> {
    (0..count).map(rule).collect()
}

fn rule(index: usize) -> RouteRule {
    let service = ServiceKey::new("shop", "cart.shop.svc.cluster.local");
    let origin = Origin {
        kind: Kind::VirtualService,
        namespace: "shop".into(),
        name: "cart".into(),
        rule: u32::try_from(index).expect("few"),
        rule_name: None,
    };
    RouteRule {
        attachments: vec![Attachment {
            service,
            port: None,
            client_namespace: None,
        }],
        precedence: Precedence::Listed("".into()),
        matches: vec![Match {
            path: PathMatch::Prefix(prefix(index).into()),
            ..Match::default()
        }],
        rule: Arc::new(Rule::new(
            origin,
            Treatment {
                action: Action::Forward(Forward::default()),
                timeout: None,
                fault: None,
                cors: None,
                request_headers: HeaderOperations::default(),
                response_headers: HeaderOperations::default(),
            },
        )),
    }
}

fn prefix(index: usize) -> String {
    format!("/team-{}/service-{index}/v1/", index % 97)
}

/// The median over rounds, in nanoseconds; the path is taken apart in each, as it is for a request.
fn measure(table: &Table, count: usize) -> f64 {
    let targets: Vec<String> = (0..512)
        .map(|i| format!("{}items/{i}?x=1", prefix((i * 7919) % count)))
        .collect();
    let key = ServiceKey::new("shop", "cart.shop.svc.cluster.local");
    let headers = HeaderMap::new();
    let mut rounds: Vec<f64> = (0..51)
        .map(|_| {
            let begin = Instant::now();
            for target in &targets {
                let path = Path::new(black_box(target)).expect("a path");
                let request = Request {
                    client: Client {
                        address: [10, 0, 0, 1].into(),
                        identity: None,
                        namespace: None,
                        labels: None,
                    },
                    destination: Destination::Service {
                        key: &key,
                        port: 80,
                    },
                    protocol: l7::Protocol::Http,
                    scheme: "http",
                    method: &Method::GET,
                    authority: "cart",
                    path: &path,
                    headers: &headers,
                };
                assert!(black_box(table.find(&request)).is_some());
            }
            let nanoseconds = begin.elapsed().as_secs_f64() * 1e9;
            nanoseconds / targets.len() as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds.get(25).copied().expect("51 rounds")
}

/// Resident memory of this process in bytes.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = text.split_whitespace().nth(1).expect("a second word");
    4096 * pages.parse::<usize>().expect("a number")
}

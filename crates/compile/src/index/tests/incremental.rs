//! Property: after any changes in any order, flushed in any portions, the index has what one has that is built from
//! the objects that are left. What a change does not mark is stale for good, so this is what `track` has to get right.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const SPACES: [&str; 3] = ["shop", "bank", "istio-system"];

/// One object's place: of which kind, and which of that kind.
type Place = (usize, usize);

/// What is written at a place; `None` deletes it.
#[derive(Clone, Debug)]
struct Change {
    place: Place,
    variant: Option<usize>,
    /// Which settings the mesh has from now on.
    mesh: Option<usize>,
    flush: bool,
}

const KINDS: usize = 13;
const OF_A_KIND: usize = 4;
const VARIANTS: usize = 6;

fn any_change() -> impl Strategy<Value = Change> {
    let place = (0..KINDS, 0..OF_A_KIND);
    let variant = prop::option::weighted(0.75, 0..VARIANTS);
    let mesh = prop::option::weighted(0.1, 0..MESHES);
    (place, variant, mesh, any::<bool>()).prop_map(|(place, variant, mesh, flush)| Change {
        place,
        variant,
        mesh,
        flush,
    })
}

const MESHES: usize = 4;

/// The settings of a mesh.
fn mesh(variant: usize) -> MeshConfig {
    let canary = Canary {
        nodes: ["n1".to_owned()].into(),
        same_node: agent::SameNode::Mtls,
    };
    let names: &[&str] = [&[][..], &["old.domain"], &["bank"], &[]][variant];
    MeshConfig {
        network_policies: true,
        trust_domain_aliases: names.iter().map(|name| (*name).to_owned()).collect(),
        same_node: [agent::SameNode::Unsaid, agent::SameNode::Direct][variant % 2],
        canary: (variant > 1).then_some(canary),
        ..MeshConfig::default()
    }
}

/// The manifest of a place.
fn manifest((kind, which): Place, variant: usize) -> String {
    let pick = |texts: &[&'static str]| texts[variant % texts.len()];
    // Two places of a kind share a namespace, so that they can be in each other's way.
    let space = SPACES[which % SPACES.len()];
    match kind {
        0 => format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {space}, labels: {{{}}}}}\n",
            pick(&[
                "",
                "keelson.io/mesh: enabled",
                "istio.io/dataplane-mode: ambient",
                "keelson.io/mesh: enabled, istio.io/use-waypoint: wp",
            ])
        ),
        1 => format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: n{}, labels: {{{}}}}}\n",
            which % 2,
            pick(&[
                "",
                "topology.kubernetes.io/region: r1",
                "topology.kubernetes.io/region: r1, topology.kubernetes.io/zone: z1",
            ])
        ),
        2 => format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p{which}, namespace: {space}, labels: {{{}}}, {} annotations: {{keelson.io/pod-ips: 10.244.1.1{}}}}}\n\
             spec: {{nodeName: n{}, serviceAccountName: {}, hostNetwork: {}, containers: [{{name: c, image: i, ports: [{{name: http, containerPort: 80{}}}]}}]}}\n\
             status: {{phase: {}, conditions: [{{type: Ready, status: \"{}\"}}]}}\n",
            pick(&["app: a", "app: b", "app: a, tier: t", ""]),
            pick(&["", "", "", "", "deletionTimestamp: \"2026-01-01T00:00:00Z\","]),
            // Some give the same address, as a cluster does after a pod has finished.
            if variant.is_multiple_of(2) { which } else { 0 },
            variant % 2,
            pick(&["default", "other"]),
            variant == 5,
            variant,
            pick(&["Running", "Running", "Running", "Succeeded"]),
            pick(&["True", "True", "False"]),
        ),
        3 => format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s{}, namespace: {space}, labels: {{{}}}}}\n\
             spec: {{clusterIP: {}, {} publishNotReadyAddresses: {}, ports: [{{name: http, port: 80, targetPort: {}}}]}}\n",
            which % 2,
            pick(&["", "istio.io/use-waypoint: wp"]),
            if variant == 3 {
                "None".to_owned()
            } else {
                format!("10.96.0.1{which}")
            },
            pick(&["selector: {app: a},", "selector: {app: b},", "", "selector: {tier: t},"]),
            variant % 2 == 1,
            pick(&["http", "8080", "80"]),
        ),
        4 => format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: e{which}, namespace: {space}, labels: {{kubernetes.io/service-name: s{}}}}}\n\
             addressType: IPv4\nports: [{{name: http, port: {}}}]\nendpoints: [{{addresses: [10.244.1.1{}], {} conditions: {{ready: {}, serving: true, terminating: {}}}}}]\n",
            variant % 2,
            pick(&["8080", "80", "9090"]),
            variant % OF_A_KIND,
            if variant.is_multiple_of(3) {
                String::new()
            } else {
                format!(
                    "targetRef: {{kind: Pod, name: p{}, namespace: {space}}},",
                    variant % OF_A_KIND
                )
            },
            variant.is_multiple_of(2),
            variant == 5,
        ),
        5 => format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: a{which}, namespace: {space}, creationTimestamp: \"2026-01-0{}T00:00:00Z\"}}\nspec: {{{}}}\n",
            which + 1,
            pick(&[
                "mtls: {mode: STRICT}",
                "mtls: {mode: PERMISSIVE}",
                "selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}",
                "selector: {matchLabels: {app: a}}, mtls: {mode: PERMISSIVE}",
                "selector: {matchLabels: {app: b}}, portLevelMtls: {80: {mode: STRICT}}",
                "mtls: {mode: UNSET}",
            ])
        ),
        6 => format!(
            "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: v{which}, namespace: {space}}}\nspec: {{hosts: [{}], http: [{{match: [{{{}}}], route: [{{destination: {{host: s1, subset: one}}}}]}}]}}\n",
            pick(&["s0", "s1.bank.svc.cluster.local", "'*'"]),
            pick(&["uri: {prefix: /a}", "sourceLabels: {app: a}", "method: {exact: GET}"]),
        ),
        7 => format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: d{which}, namespace: {space}}}\nspec: {{host: {}, exportTo: [{}], subsets: [{{name: one, labels: {{app: {}}}}}]}}\n",
            pick(&["s1", "s1.shop.svc.cluster.local", "'*.bank.svc.cluster.local'"]),
            pick(&["'*'", "'.'"]),
            pick(&["a", "b"]),
        ),
        8 => format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: {}\nmetadata: {{name: h{which}, namespace: {space}}}\n\
             spec: {{parentRefs: [{{group: '', kind: Service, name: s0, namespace: {}, port: {}}}], rules: [{{backendRefs: [{{name: s1, port: 80}}]}}]}}\n",
            pick(&["HTTPRoute", "GRPCRoute"]),
            pick(&["shop", "bank", "shop"]),
            pick(&["80", "81"]),
        ),
        10 => format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: wp, namespace: {space}, labels: {{istio.io/waypoint-for: {}}}}}\nspec: {{gatewayClassName: {}}}\n",
            pick(&["service", "workload", "all", "none"]),
            pick(&["keelson-waypoint", "istio-waypoint", "keelson-waypoint", "x"]),
        ),
        9 => format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: w{which}, namespace: {space}, labels: {{gateway.networking.k8s.io/gateway-name: {}}}, annotations: {{keelson.io/pod-ips: 10.244.2.1{which}}}}}\nspec: {{nodeName: n1, serviceAccountName: {}}}\n",
            pick(&["wp", "other"]),
            pick(&["wp", "default"]),
        ),
        11 => format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: n{which}, namespace: {space}}}\nspec: {{{}}}\n",
            pick(&[
                "podSelector: {}",
                "podSelector: {matchLabels: {app: a}}, ingress: [{from: [{podSelector: {matchLabels: {app: b}}}], ports: [{port: http}]}]",
                "podSelector: {matchLabels: {app: b}}, ingress: [{from: [{namespaceSelector: {matchLabels: {keelson.io/mesh: enabled}}}]}]",
                "podSelector: {matchLabels: {app: a}}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}], ports: [{port: http}, {port: 53, protocol: UDP}]}]",
                "podSelector: {matchExpressions: [{key: tier, operator: Exists}]}, ingress: [{}]",
                "podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{from: [{ipBlock: {cidr: 10.244.1.0/24, except: [10.244.1.12/32]}}]}]",
            ])
        ),
        _ => format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: z{which}, namespace: {space}}}\nspec: {{{}}}\n",
            pick(&[
                "{}",
                "action: DENY, rules: [{from: [{source: {namespaces: [bank]}}, {source: {principals: [cluster.local/ns/shop/sa/other]}}]}]",
                "selector: {matchLabels: {app: a}}, rules: [{to: [{operation: {ports: [\"80\"]}}]}]",
                "selector: {matchLabels: {tier: t}}, action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]",
                "targetRefs: [{kind: Service, name: s0, group: \"\"}], rules: [{from: [{source: {principals: [\"*\"]}}]}]",
                "selector: {matchLabels: {app: b}}, rules: []",
            ])
            .trim_matches(['{', '}'])
        ),
    }
}

/// All that an index says, in a form whose differences can be read.
fn said(index: &Index) -> BTreeMap<String, String> {
    let snapshot = index.snapshot();
    let mut said = BTreeMap::new();
    for (what, resources) in [
        ("address", &snapshot.addresses),
        ("authorization", &snapshot.authorizations),
        ("announced", &snapshot.announced),
    ] {
        for (name, resource) in resources {
            said.insert(format!("{what} {name}"), resource.version.to_string());
        }
    }
    for (node, pods) in &snapshot.nodes {
        for (name, pod) in pods {
            let identity = format!("{}/{}", pod.namespace, pod.service_account);
            let version = pod.resource.version;
            said.insert(
                format!("node {node} {name}"),
                format!("{identity} {version}"),
            );
        }
    }
    for (name, entry) in &snapshot.waypoints {
        let accounts = format!("{:?}", entry.accounts);
        said.insert(format!("waypoint {name}"), accounts);
        for (what, resources) in [
            ("service", &entry.services),
            ("endpoint", &entry.endpoints),
            ("backend", &entry.backends),
            ("policy", &entry.policies),
            ("route", &entry.routes),
        ] {
            for (resource, one) in resources {
                said.insert(
                    format!("waypoint {name} {what} {resource}"),
                    one.version.to_string(),
                );
            }
        }
    }
    for (node, pods) in &snapshot.unreported {
        said.insert(format!("unreported {node}"), format!("{pods:?}"));
    }
    for (pod, mark) in &snapshot.marks {
        said.insert(format!("mark {pod}"), format!("{mark:?}"));
    }
    said
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(768))]

    #[test]
    fn what_changes_bring_about_is_what_the_rest_says(
        changes in prop::collection::vec(any_change(), 1..60),
    ) {
        let mut settings = mesh(0);
        let mut index = Index::new(settings.clone());
        let mut left: BTreeMap<ObjectKey, Upsert> = BTreeMap::new();
        for change in changes {
            let written = objects(&manifest(change.place, change.variant.unwrap_or(0)));
            for upsert in written {
                let key = upsert.object.key();
                if change.variant.is_some() {
                    index.apply(&upsert);
                    left.insert(key, upsert);
                } else {
                    index.remove(&key);
                    left.remove(&key);
                }
            }
            if let Some(variant) = change.mesh {
                settings = mesh(variant);
                prop_assert_eq!(index.set_mesh(settings.clone()), Ok(()));
            }
            if change.flush {
                index.flush();
            }
        }
        index.flush();
        let mut anew = Index::new(settings);
        for upsert in left.values() {
            anew.apply(upsert);
        }
        anew.flush();
        prop_assert_eq!(said(&index), said(&anew));
    }
}

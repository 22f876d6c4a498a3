use std::time::Instant;

use super::*;

const NAMESPACES: usize = 50;

/// `pods` pods over 50 namespaces, a Service for each 50 pods, ten policies for each namespace.
fn large(pods: usize) -> Index {
    let mut text = String::new();
    for namespace in 0..NAMESPACES {
        text.push_str(&format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: ns{namespace}, labels: {{keelson.io/mesh: enabled}}}}\n"));
        for policy in 0..10 {
            text.push_str(&format!(
                "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p{policy}, namespace: ns{namespace}}}\n\
                 spec: {{selector: {{matchLabels: {{app: app{policy}}}}}, rules: [{{from: [{{source: {{namespaces: [x]}}}}]}}]}}\n"
            ));
        }
    }
    for service in 0..pods / 50 {
        let (namespace, app) = (service % NAMESPACES, service / NAMESPACES);
        text.push_str(&format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: app{app}, namespace: ns{namespace}}}\n\
             spec: {{clusterIP: 10.96.{app}.{namespace}, selector: {{app: app{app}}}, ports: [{{port: 80}}]}}\n"
        ));
    }
    let mut index = Index::new(MeshConfig::default());
    objects(&text).iter().for_each(|upsert| index.apply(upsert));
    let mut upsert = objects(&pod("x", "spec: {nodeName: n}\n")).remove(0);
    for number in 0..pods {
        rename(&mut upsert, number);
        index.apply(&upsert);
    }
    index
}

fn rename(upsert: &mut Upsert, number: usize) {
    let Object::Pod(pod) = &mut upsert.object else {
        panic!("a pod")
    };
    let service = number / 50;
    let pod = Arc::make_mut(pod);
    pod.key = NamespacedName::new(
        &format!("ns{}", service % NAMESPACES),
        &format!("pod{number}"),
    );
    pod.labels = [("app".to_owned(), format!("app{}", service / NAMESPACES))].into();
    pod.node = format!("n{}", number % 100).into();
}

#[test]
fn a_change_rebuilds_what_it_affects_and_nothing_else() {
    let mut index = large(10_000);
    let begun = Instant::now();
    assert_eq!(index.flush().workloads_built, 10_000);
    let all = begun.elapsed();
    let mut mesh = Mesh { index };
    let one = |number: usize| {
        let mut upsert = objects(&pod(
            "x",
            "spec: {nodeName: n, serviceAccountName: other}\n",
        ))
        .remove(0);
        rename(&mut upsert, number);
        upsert
    };
    let begun = Instant::now();
    mesh.index.apply(&one(77));
    let changes = mesh.index.flush();
    assert_eq!(
        (changes.workloads_built, changes.resources),
        (1, true),
        "a pod"
    );
    assert!(
        begun.elapsed() < all / 20,
        "one pod {:?}, all {all:?}",
        begun.elapsed()
    );
    mesh.index.apply(&one(77));
    let changes = mesh.index.flush();
    assert_eq!(
        (changes.workloads_built, changes.resources),
        (0, false),
        "the same pod again"
    );
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: app1, namespace: ns3}\nspec: {clusterIP: 10.96.9.9, selector: {app: app1}, ports: [{port: 81}]}\n";
    assert_eq!(
        mesh.apply(service).workloads_built,
        50,
        "a Service rebuilds its own pods"
    );
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p1, namespace: ns3}\nspec: {selector: {matchLabels: {app: app2}}}\n";
    assert_eq!(
        mesh.apply(policy).workloads_built,
        100,
        "a policy rebuilds those it selected and those it selects"
    );
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: ns3}\n";
    assert_eq!(
        mesh.apply(namespace).workloads_built,
        200,
        "a namespace rebuilds its pods"
    );
    let unrelated = "apiVersion: v1\nkind: Namespace\nmetadata: {name: ns3, labels: {team: x}}\n";
    assert!(
        !mesh.apply(unrelated).resources,
        "content decides, not events"
    );
}

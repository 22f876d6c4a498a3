use std::collections::BTreeSet;

use compile::index::view::GatewayView;
use k8s_api::Gateway;
use serde_json::json;

use super::*;

fn settings() -> Settings {
    let text = r#"{"image": "keelson.io/waypoint:1", "controller": "https://c.ks.svc:15012", "audience": "keelson", "replicas": 3}"#;
    serde_json::from_str(text).unwrap()
}

fn view(class: &str, spec: Value) -> GatewayView {
    let mut object = json!({
        "metadata": {"name": "gw", "namespace": "edge", "uid": "u"},
        "spec": {"gatewayClassName": class, "listeners": []},
    });
    for (field, value) in spec.as_object().unwrap() {
        object["spec"][field] = value.clone();
    }
    let object: Gateway = serde_json::from_value(object).unwrap();
    GatewayView {
        object: Arc::new(object),
        uid: "u".into(),
        generation: 1,
        refused: None,
        notes: Vec::new(),
        listeners: Vec::new(),
        ports: BTreeSet::from([80, 443]),
    }
}

fn made(view: &GatewayView, overlays: &[(&str, &str)]) -> BTreeMap<String, Value> {
    let data = overlays.iter();
    let data = data.map(|(key, text)| ((*key).to_owned(), (*text).to_owned()));
    let overlays = Overlays::read(&data.collect(), settings().bounds()).unwrap();
    let wanted = objects::wanted(view, &settings(), &overlays, "PEM").unwrap();
    let wanted = wanted.into_iter();
    wanted
        .map(|((made, name), object)| (format!("{} {name}", made.names().2), object))
        .collect()
}

/// F112: nobody traces unless a collector is named.
#[test]
fn pods_are_told_of_a_collector_where_there_is_one() {
    let text = r#"{"image": "w:1", "controller": "https://c:15012", "audience": "keelson",
        "trace": {"endpoint": "http://otel.observability:4317", "percent": 5}}"#;
    let traced: Settings = serde_json::from_str(text).unwrap();
    let view = view("keelson", json!({}));
    let command = |settings: &Settings| {
        let wanted = objects::wanted(&view, settings, &Overlays::default(), "PEM").unwrap();
        let mut wanted = wanted.into_iter();
        let deployment = wanted.find(|((made, _), _)| *made == Made::Deployment);
        let (_, deployment) = deployment.unwrap();
        deployment["spec"]["template"]["spec"]["containers"][0]["command"].to_string()
    };
    assert!(!command(&settings()).contains("--trace"));
    let told = command(&traced);
    assert!(
        told.contains("--trace-endpoint=http://otel.observability:4317")
            && told.contains("--trace-percent=5"),
        "{told}"
    );
}

/// Issue 12 B4, B8: a gateway gets pods without rights, spread over nodes, behind a Service with the ports of its
/// listeners; everything belongs to the Gateway.
#[test]
fn a_gateway_gets_what_it_needs_and_no_privilege() {
    let wish = json!({"labels": {"istio": "ingressgateway", "keelson.io/mesh": "disabled"}, "annotations": {"a": "b"}});
    let all = made(&view("keelson", json!({"infrastructure": wish})), &[]);
    let names: Vec<&String> = all.keys().collect();
    assert_eq!(
        names,
        [
            "ConfigMap gw-keelson-mesh-root",
            "Deployment gw-keelson",
            "PodDisruptionBudget gw-keelson",
            "Service gw-keelson",
            "ServiceAccount gw-keelson",
        ]
    );
    for object in all.values() {
        let metadata = &object["metadata"];
        assert_eq!(metadata["namespace"], "edge");
        assert_eq!(metadata["ownerReferences"][0]["uid"], "u");
        assert_eq!(metadata["annotations"], json!({"a": "b"}));
        assert_eq!(metadata["labels"]["istio"], "ingressgateway");
        assert_eq!(
            metadata["labels"]["gateway.networking.k8s.io/gateway-name"],
            "gw"
        );
        assert_eq!(
            metadata["labels"]["gateway.networking.k8s.io/gateway-class-name"],
            "keelson"
        );
    }
    let service = &all["Service gw-keelson"]["spec"];
    assert_eq!(service["type"], "LoadBalancer");
    let ports = service["ports"].as_array().unwrap().iter();
    let ports: Vec<_> = ports.map(|port| port["port"].as_u64().unwrap()).collect();
    assert_eq!(ports, [80, 443]);
    let deployment = &all["Deployment gw-keelson"]["spec"];
    assert_eq!(deployment["replicas"], 3);
    let template = &deployment["template"];
    // Whatever the Gateway wishes: without the mesh its requests would go in plain.
    assert_eq!(template["metadata"]["labels"]["keelson.io/mesh"], "enabled");
    let pod = &template["spec"];
    assert_eq!(
        pod["topologySpreadConstraints"][0]["topologyKey"],
        "kubernetes.io/hostname"
    );
    assert_eq!(pod["automountServiceAccountToken"], false);
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    let container = &pod["containers"][0];
    let security = json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}});
    assert_eq!(container["securityContext"], security);
    for probe in ["readinessProbe", "livenessProbe"] {
        assert!(container[probe].is_object());
    }
    assert_eq!(
        all["ConfigMap gw-keelson-mesh-root"]["data"]["root-cert.pem"],
        "PEM"
    );
}

/// Issue 12 B4: a waypoint's Service has its own name, for that is what labels name, and nobody dials it.
#[test]
fn a_waypoint_gets_a_headless_service_of_its_name() {
    for class in ["keelson-waypoint", "istio-waypoint"] {
        let all = made(&view(class, json!({})), &[]);
        let service = &all["Service gw"]["spec"];
        assert_eq!(service["clusterIP"], "None", "{class}");
        assert_eq!(service["ports"][0]["port"], 15008);
        let pod = &all["Deployment gw"]["spec"]["template"]["spec"];
        assert!(pod["securityContext"].get("sysctls").is_none());
    }
}

/// Issue 12 B4, B8: `parametersRef` and Istio's annotation.
#[test]
fn what_is_asked_for_is_made() {
    let autoscaler = ("horizontalPodAutoscaler", "spec: {maxReplicas: 9}");
    let local = ("service", "spec: {externalTrafficPolicy: Local}");
    let budget = ("podDisruptionBudget", "spec: {minAvailable: 1}");
    let pods = (
        "deployment",
        "{metadata: {labels: {gateway.networking.k8s.io/gateway-name: mine}}, spec: {template: {metadata: {labels: {keelson.io/mesh: disabled}}}}}",
    );
    let mut one = view("keelson", json!({}));
    let mut object = Gateway::clone(&one.object);
    let asked = [(
        "networking.istio.io/service-type".to_owned(),
        "NodePort".to_owned(),
    )];
    object.metadata.annotations = Some(asked.into());
    one.object = Arc::new(object);
    let all = made(&one, &[autoscaler, local, budget, pods]);
    let scaled = &all["HorizontalPodAutoscaler gw-keelson"]["spec"];
    assert_eq!(scaled["maxReplicas"], 9);
    assert_eq!(scaled["scaleTargetRef"]["name"], "gw-keelson");
    let deployment = &all["Deployment gw-keelson"];
    // That is the autoscaler's.
    assert!(deployment["spec"].get("replicas").is_none());
    assert_eq!(
        deployment["metadata"]["labels"]["gateway.networking.k8s.io/gateway-name"],
        "gw"
    );
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    assert_eq!(labels["keelson.io/mesh"], "enabled");
    let service = &all["Service gw-keelson"]["spec"];
    assert_eq!(
        (&service["type"], &service["externalTrafficPolicy"]),
        (&json!("NodePort"), &json!("Local"))
    );
    let budget = &all["PodDisruptionBudget gw-keelson"]["spec"];
    assert_eq!(budget["minAvailable"], 1);
    assert!(budget.get("maxUnavailable").is_none());
}

/// What the API server would do with the number otherwise: nobody says it any more, so it is one.
#[test]
fn replicas_stay_as_they_are_when_an_autoscaler_takes_over() {
    let autoscaler = ("horizontalPodAutoscaler", "spec: {maxReplicas: 9}");
    let one = view("keelson", json!({}));
    let by = |manager: &str| {
        let mut live = made(&one, &[])["Deployment gw-keelson"].clone();
        live["metadata"]["managedFields"] =
            json!([{"manager": manager, "fieldsV1": {"f:spec": {"f:replicas": {}}}}]);
        live
    };
    let wanted = &made(&one, &[autoscaler])["Deployment gw-keelson"];
    let left = left_to_others(&by(MANAGER), wanted).unwrap();
    assert_eq!(left["spec"], json!({"replicas": 3}));
    assert_eq!(left["metadata"]["name"], "gw-keelson");
    assert_eq!(left["kind"], "Deployment");
    // It says so itself by now.
    assert_eq!(left_to_others(&by("kube-controller-manager"), wanted), None);
    // As long as we say it, nothing is left.
    let still = &made(&one, &[])["Deployment gw-keelson"];
    assert_eq!(left_to_others(&by(MANAGER), still), None);
}

#[test]
fn a_service_of_a_type_that_leads_elsewhere_and_a_name_that_is_too_long_are_refused() {
    let mut one = view("keelson", json!({}));
    let mut object = Gateway::clone(&one.object);
    let asked = [(
        "networking.istio.io/service-type".to_owned(),
        "ExternalName".to_owned(),
    )];
    object.metadata.annotations = Some(asked.into());
    one.object = Arc::new(object.clone());
    let none = Overlays::default();
    let error = objects::wanted(&one, &settings(), &none, "").unwrap_err();
    assert!(error.contains("ExternalName"), "{error}");
    object.metadata.annotations = None;
    object.metadata.name = Some("n".repeat(60));
    one.object = Arc::new(object);
    assert!(objects::wanted(&one, &settings(), &none, "").is_err());
}

/// Issue 12 B4: what the API server says is on the status, in its words.
#[test]
fn a_gateway_without_pods_says_why() {
    let address = [("Hostname", "h".to_owned())];
    let quota = "pods \"gw\" is forbidden: exceeded quota";
    let of = |status: Value| programmed(Some(&json!({"status": status})), &address);
    let refused =
        of(json!({"conditions": [{"type": "ReplicaFailure", "status": "True", "message": quota}]}));
    assert_eq!(refused, Verdict::no("NoResources", quota.to_owned()));
    assert_eq!(of(json!({})).reason, "Pending");
    assert_eq!(
        of(json!({"availableReplicas": 1})),
        Verdict::yes("Programmed")
    );
    let nowhere = programmed(Some(&json!({"status": {"availableReplicas": 1}})), &[]);
    assert_eq!(nowhere.reason, "AddressNotAssigned");
}

#[test]
fn the_server_is_asked_again_ever_less_often() {
    let pauses: Vec<_> = (1..12).map(pause).collect();
    assert_eq!(pauses[0], FIRST_PAUSE);
    assert!(pauses.windows(2).all(|two| two[0] <= two[1]));
    assert_eq!(pauses.last(), Some(&LAST_PAUSE));
}

#[test]
fn what_the_server_alone_says_is_no_change() {
    let object = json!({"metadata": {"name": "a", "resourceVersion": "1", "generation": 1}, "spec": {"a": 1}});
    let mut later = object.clone();
    later["metadata"]["resourceVersion"] = "2".into();
    later["status"] = json!({"replicas": 1});
    assert_eq!(content(&object), content(&later));
    later["spec"]["a"] = 2.into();
    assert_ne!(content(&object), content(&later));
}

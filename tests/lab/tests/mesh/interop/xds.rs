//! A foreign delta-xDS client that reads Istio's workload API by field number, as a ztunnel does.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests_lab::turn;

use crate::api::{ADDRESS, AUTHORIZATION, Ads, Caller, DeltaRequest, DeltaResponse, NODE_POD};
use crate::estate::estate;

/// `istio.workload.Address`: 1 is a workload, 2 a service.
#[derive(Clone, PartialEq, prost::Message)]
struct Address {
    #[prost(message, optional, tag = "1")]
    workload: Option<Workload>,
    #[prost(message, optional, tag = "2")]
    service: Option<Service>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Workload {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(bytes = "vec", repeated, tag = "3")]
    addresses: Vec<Vec<u8>>,
    #[prost(int32, tag = "5")]
    tunnel_protocol: i32,
    #[prost(string, tag = "6")]
    trust_domain: String,
    #[prost(string, tag = "7")]
    service_account: String,
    #[prost(string, tag = "9")]
    node: String,
    #[prost(string, repeated, tag = "16")]
    authorization_policies: Vec<String>,
    #[prost(string, tag = "20")]
    uid: String,
    #[prost(btree_map = "string, message", tag = "22")]
    services: BTreeMap<String, PortList>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct PortList {
    #[prost(message, repeated, tag = "1")]
    ports: Vec<Port>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Port {
    #[prost(uint32, tag = "1")]
    service_port: u32,
    #[prost(uint32, tag = "2")]
    target_port: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Service {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(string, tag = "3")]
    hostname: String,
    #[prost(message, repeated, tag = "4")]
    addresses: Vec<NetworkAddress>,
    #[prost(message, repeated, tag = "5")]
    ports: Vec<Port>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct NetworkAddress {
    #[prost(string, tag = "1")]
    network: String,
    #[prost(bytes = "vec", tag = "2")]
    address: Vec<u8>,
}

/// `istio.security.Authorization`.
#[derive(Clone, PartialEq, prost::Message)]
struct Authorization {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    namespace: String,
    #[prost(int32, tag = "3")]
    scope: i32,
    #[prost(int32, tag = "4")]
    action: i32,
    #[prost(message, repeated, tag = "5")]
    groups: Vec<Group>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Group {
    #[prost(message, repeated, tag = "1")]
    rules: Vec<Clause>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Clause {
    #[prost(message, repeated, tag = "2")]
    matches: Vec<Match>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Match {
    #[prost(message, repeated, tag = "3")]
    principals: Vec<StringMatch>,
    #[prost(message, repeated, tag = "4")]
    not_principals: Vec<StringMatch>,
    #[prost(message, repeated, tag = "5")]
    source_ips: Vec<IpBlock>,
    #[prost(uint32, repeated, tag = "9")]
    destination_ports: Vec<u32>,
    #[prost(uint32, repeated, tag = "10")]
    not_destination_ports: Vec<u32>,
    #[prost(message, repeated, tag = "11")]
    service_accounts: Vec<ServiceAccount>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct IpBlock {
    #[prost(bytes = "vec", tag = "1")]
    address: Vec<u8>,
    #[prost(uint32, tag = "2")]
    length: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ServiceAccount {
    #[prost(string, tag = "1")]
    namespace: String,
    #[prost(string, tag = "2")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StringMatch {
    #[prost(oneof = "StringMatchKind", tags = "1, 2, 3, 4")]
    kind: Option<StringMatchKind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum StringMatchKind {
    #[prost(string, tag = "1")]
    Exact(String),
    #[prost(string, tag = "2")]
    Prefix(String),
    #[prost(string, tag = "3")]
    Suffix(String),
    #[prost(message, tag = "4")]
    Presence(Empty),
}

#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

fn names(response: &DeltaResponse) -> BTreeSet<String> {
    let resources = response.resources.iter();
    resources.map(|resource| resource.name.clone()).collect()
}

fn versions(response: &DeltaResponse) -> BTreeMap<String, String> {
    let resources = response.resources.iter();
    resources
        .map(|resource| (resource.name.clone(), resource.version.clone()))
        .collect()
}

/// Decodes the resource of this name.
fn decode<T: prost::Message + Default>(response: &DeltaResponse, name: &str) -> Result<T> {
    let resource = response
        .resources
        .iter()
        .find(|resource| resource.name == name);
    let resource = resource.with_context(|| format!("no {name} among {:?}", names(response)))?;
    let any = resource.resource.as_ref().context("no content")?;
    ensure!(
        any.type_url == response.type_url,
        "{} in {}",
        any.type_url,
        response.type_url
    );
    ensure!(!resource.version.is_empty(), "{name} has no version");
    Ok(T::decode(&*any.value)?)
}

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: server, namespace: shop}
spec:
  clusterIP: 10.96.0.78
  clusterIPs: [10.96.0.78, 'fd00:10:96::78']
  ipFamilyPolicy: RequireDualStack
  selector: {app: server}
  ports: [{name: tcp, port: 80, targetPort: 8080}, {name: other, port: 81}]
";

/// Section 1.5 of the facts: a captured pod, one that is not, and a Service.
#[test]
fn workloads_and_services_are_read_by_field_number() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let caller = Caller::of_node(estate.lab, "n3")?;
    let all = estate.with_manifest(SERVICE, "server.shop.svc.cluster.local", || {
        caller.converse(|mut ads| async move { ads.all(ADDRESS).await })
    })?;
    assert_eq!(all.type_url, ADDRESS);

    let uid = "Kubernetes//Pod/shop/server";
    let workload = decode::<Address>(&all, uid)?
        .workload
        .context("no workload")?;
    let octets: Vec<Vec<u8>> = vec![
        estate.server.v4()?.octets().to_vec(),
        estate.server.v6()?.octets().to_vec(),
    ];
    assert_eq!(workload.addresses, octets);
    assert_eq!(
        (&*workload.uid, &*workload.name, &*workload.namespace),
        (uid, "server", "shop")
    );
    assert_eq!(
        (&*workload.service_account, &*workload.node),
        ("server", "n2")
    );
    assert!(["", "cluster.local"].contains(&&*workload.trust_domain));
    assert_eq!(workload.tunnel_protocol, 1, "HBONE");
    let ports = workload.services.get("shop/server.shop.svc.cluster.local");
    let ports = &ports
        .with_context(|| format!("{:?}", workload.services))?
        .ports;
    let mapped: Vec<_> = ports
        .iter()
        .map(|port| (port.service_port, port.target_port))
        .collect();
    assert_eq!(mapped, [(80, 8080), (81, 81)]);

    let stranger = decode::<Address>(&all, "Kubernetes//Pod/out/stranger")?;
    let stranger = stranger.workload.context("no workload")?;
    assert_eq!(stranger.tunnel_protocol, 0, "nobody captures it");

    let service = decode::<Address>(&all, "shop/server.shop.svc.cluster.local")?;
    let service = service.service.context("no service")?;
    assert_eq!((&*service.name, &*service.namespace), ("server", "shop"));
    assert_eq!(service.hostname, "server.shop.svc.cluster.local");
    let addresses: Vec<_> = service
        .addresses
        .iter()
        .map(|one| one.address.clone())
        .collect();
    let expected: [std::net::IpAddr; 2] = ["10.96.0.78".parse()?, "fd00:10:96::78".parse()?];
    let expected = expected.map(|ip| match ip {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    });
    assert_eq!(addresses, expected);
    let ports: Vec<_> = service.ports.iter().map(|port| port.service_port).collect();
    assert_eq!(ports, [80, 81]);
    Ok(())
}

const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict-server, namespace: shop}
spec:
  selector: {matchLabels: {app: server}}
  mtls: {mode: STRICT}
";

/// STRICT is a DENY of whoever has no principal; workloads name the policy, or its scope names them.
#[test]
fn peer_authentication_strict_becomes_deny_of_absent_principals() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let caller = Caller::of_node(estate.lab, "n3")?;
    let uid = "Kubernetes//Pod/shop/server";
    let talk = |mut ads: Ads| async move {
        ads.send(Ads::wildcard(ADDRESS)).await?;
        ads.send(Ads::wildcard(AUTHORIZATION)).await?;
        let (mut named, mut policies) = (Vec::new(), BTreeMap::new());
        while named.is_empty() || !named.iter().any(|name| policies.contains_key(name)) {
            let response = ads.next().await?;
            ads.ack(&response).await?;
            for name in names(&response) {
                if response.type_url == AUTHORIZATION {
                    policies.insert(name.clone(), decode::<Authorization>(&response, &name)?);
                } else if name == uid {
                    let address = decode::<Address>(&response, &name)?;
                    named = address
                        .workload
                        .context("no workload")?
                        .authorization_policies;
                }
            }
        }
        let policy = named.iter().find_map(|name| policies.get(name).cloned());
        policy.context("the loop ended without it")
    };
    // How the converted policy is called is the controller's business; that it converts is not.
    let policy = estate.with_manifest(STRICT, "Presence", || caller.converse(talk))?;
    assert_eq!(policy.action, 1, "DENY");
    assert_eq!(policy.scope, 2, "for the workloads that name it");
    let [group] = &policy.groups[..] else {
        panic!("{policy:?}");
    };
    let presence = StringMatch {
        kind: Some(StringMatchKind::Presence(Empty {})),
    };
    let mut matches = group.rules.iter().flat_map(|clause| &clause.matches);
    assert!(
        matches.any(|each| each.not_principals == [presence.clone()]),
        "{policy:?}"
    );
    Ok(())
}

const POLICY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: fields, namespace: shop}
spec:
  selector: {matchLabels: {app: other}}
  action: ALLOW
  rules:
  - from: [{source: {principals: [cluster.local/ns/shop/sa/client, 'cluster.local/ns/a/*', '*/sa/b', '*'], ipBlocks: [10.0.0.0/8]}}]
    to: [{operation: {ports: ['8080'], notPorts: ['8081']}}]
";

#[test]
fn an_authorization_policy_is_read_by_field_number() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let caller = Caller::of_node(estate.lab, "n3")?;
    let all = estate.with_manifest(POLICY, "shop/fields", || {
        caller.converse(|mut ads| async move { ads.all(AUTHORIZATION).await })
    })?;
    let policy = decode::<Authorization>(&all, "shop/fields")?;
    assert_eq!(
        (policy.scope, policy.action),
        (2, 0),
        "for named workloads, ALLOW"
    );
    let [group] = &policy.groups[..] else {
        panic!("one rule is one group: {policy:?}");
    };
    let matches: Vec<&Match> = group
        .rules
        .iter()
        .flat_map(|clause| &clause.matches)
        .collect();
    let kinds: Vec<_> = matches.iter().flat_map(|each| &each.principals).collect();
    let kinds: Vec<_> = kinds
        .into_iter()
        .filter_map(|each| each.kind.clone())
        .collect();
    let expected = [
        StringMatchKind::Exact("cluster.local/ns/shop/sa/client".to_owned()),
        StringMatchKind::Prefix("cluster.local/ns/a/".to_owned()),
        StringMatchKind::Suffix("/sa/b".to_owned()),
        StringMatchKind::Presence(Empty {}),
    ];
    assert_eq!(kinds, expected);
    let blocks: Vec<_> = matches.iter().flat_map(|each| &each.source_ips).collect();
    assert_eq!(blocks.len(), 1);
    assert_eq!(
        (&*blocks[0].address, blocks[0].length),
        (&[10, 0, 0, 0][..], 8)
    );
    let ports: Vec<u32> = matches
        .iter()
        .flat_map(|each| each.destination_ports.clone())
        .collect();
    let not: Vec<u32> = matches
        .iter()
        .flat_map(|each| each.not_destination_ports.clone())
        .collect();
    assert_eq!((ports, not), (vec![8080], vec![8081]));
    Ok(())
}

/// A client that comes back with what it holds gets what changed, and nothing else.
#[test]
fn a_client_that_resumes_gets_nothing_that_it_holds() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let caller = Caller::of_node(estate.lab, "n3")?;
    let first = caller.converse(|mut ads| async move { ads.all(ADDRESS).await })?;
    let held = versions(&first);
    assert!(held.len() >= 5, "{held:?}");
    let resume = |held: BTreeMap<String, String>| {
        caller.converse(|mut ads| async move {
            ads.send(DeltaRequest {
                initial_resource_versions: held,
                ..Ads::wildcard(ADDRESS)
            })
            .await?;
            // A server may say that there is nothing, or say nothing.
            ads.next_within(Duration::from_secs(1)).await
        })
    };
    let nothing = resume(held.clone())?.unwrap_or_default();
    assert_eq!(
        (names(&nothing), nothing.removed),
        (BTreeSet::new(), Vec::new())
    );

    let mut stale = held;
    stale.insert("Kubernetes//Pod/shop/server".to_owned(), "old".to_owned());
    stale.insert("Kubernetes//Pod/shop/gone".to_owned(), "1".to_owned());
    let some = resume(stale)?.context("no response")?;
    assert_eq!(
        names(&some),
        ["Kubernetes//Pod/shop/server".to_owned()].into()
    );
    assert_eq!(some.removed, ["Kubernetes//Pod/shop/gone"]);
    Ok(())
}

/// Changes come as changes; what is deleted is named; a NACK is shown to the operator and ends nothing.
#[test]
fn changes_removals_and_nacks_go_over_one_stream() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let lab = estate.lab;
    let caller = Caller::of_node(lab, "n3")?;
    let name = "shop/server.shop.svc.cluster.local";
    let outcome = caller.converse(|mut ads| async move {
        ads.all(ADDRESS).await?;
        lab.apply("server-service.yaml", SERVICE)?;
        let added = until(&mut ads, |response| names(response).contains(name)).await?;
        ads.nack(&added, "shop/server: I do not like it").await?;
        let rejected = nack_is_shown(lab).await;
        lab.delete("server-service.yaml")?;
        let removed = until(&mut ads, |response| {
            response.removed.contains(&name.to_owned())
        })
        .await?;
        Ok((added, rejected, removed))
    });
    drop(lab.delete("server-service.yaml"));
    crate::fixture::wait_configured(lab, "n2", "server.shop.svc.cluster.local", false)?;
    let (added, rejected, removed) = outcome?;
    let expected: BTreeSet<String> = [name, "Kubernetes//Pod/shop/server"]
        .map(str::to_owned)
        .into();
    assert!(
        names(&added).is_subset(&expected),
        "only what changed: {:?}",
        names(&added)
    );
    assert!(!names(&removed).contains(name));
    rejected
}

async fn until(ads: &mut Ads, done: impl Fn(&DeltaResponse) -> bool) -> Result<DeltaResponse> {
    loop {
        let response = ads.next().await?;
        if done(&response) {
            return Ok(response);
        }
        ads.ack(&response).await?;
    }
}

async fn nack_is_shown(lab: &lab::Lab) -> Result<()> {
    for _ in 0..100 {
        if lab.controller_log().contains("I do not like it") {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    anyhow::bail!("the controller does not tell anybody of a NACK")
}

/// F68: what a node's agent has to do is its own business.
#[test]
fn a_nodes_pods_are_told_to_its_own_agent_only() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    for (node, own) in [
        (
            "n1",
            &[
                "Kubernetes//Pod/out/stranger",
                "Kubernetes//Pod/shop/client",
            ][..],
        ),
        (
            "n2",
            &["Kubernetes//Pod/shop/other", "Kubernetes//Pod/shop/server"],
        ),
        ("n3", &["Kubernetes//Pod/shop/foreign"]),
    ] {
        let caller = Caller::of_node(estate.lab, node)?;
        let all = caller.converse(|mut ads| async move { ads.all(NODE_POD).await })?;
        let expected: BTreeSet<String> = own.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(names(&all), expected, "{node}");
        // Nor by asking for it by name.
        let foreign = "Kubernetes//Pod/shop/server";
        let asked = caller.converse(|mut ads| async move {
            ads.send(DeltaRequest {
                subscribe: vec![foreign.to_owned()],
                ..Ads::wildcard(NODE_POD)
            })
            .await?;
            ads.next_within(Duration::from_secs(1)).await
        })?;
        let got = asked.is_some_and(|response| names(&response).contains(foreign));
        assert_eq!(got, node == "n2", "{node}");
    }
    Ok(())
}

/// Tokens are not enough if the name is another's: a node cannot pose as another in its node id.
#[test]
fn the_token_counts_and_not_the_name_that_a_client_gives_itself() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let caller = Caller::of_node(estate.lab, "n3")?;
    let all = caller.converse(|mut ads| async move {
        let mut request = Ads::wildcard(NODE_POD);
        if let Some(node) = &mut request.node {
            node.id = "ztunnel~192.168.77.2~agent.n2~n2.svc.cluster.local".to_owned();
        }
        ads.send(request).await?;
        ads.next().await
    })?;
    assert_eq!(
        names(&all),
        ["Kubernetes//Pod/shop/foreign".to_owned()].into()
    );
    Ok(())
}

/// A ztunnel asks for one type that we do not serve and for several at once: neither harms the other.
#[test]
fn an_unknown_type_does_not_end_the_stream() -> Result<()> {
    let _turn = turn()?;
    let estate = estate()?;
    let caller = Caller::of_node(estate.lab, "n3")?;
    let found = caller.converse(|mut ads| async move {
        ads.send(Ads::wildcard("type.googleapis.com/nobody.knows.This"))
            .await?;
        ads.send(Ads::wildcard(ADDRESS)).await?;
        until(&mut ads, |response| response.type_url == ADDRESS).await
    })?;
    assert!(names(&found).contains("Kubernetes//Pod/shop/server"));
    Ok(())
}

//! The names of our resource types in `Any` and in xDS.

/// `istio.workload.Address`: a workload or a service.
pub const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
/// `istio.workload.Workload`: a workload outside of an `Address`; istiod serves it too.
pub const WORKLOAD: &str = "type.googleapis.com/istio.workload.Workload";
/// `istio.security.Authorization`: a compiled L4 policy.
pub const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";
/// `keelson.agent.v1.NodePod`: a pod of the asking node.
pub const NODE_POD: &str = "type.googleapis.com/keelson.agent.v1.NodePod";
/// `keelson.agent.v1.Announced`: a workload that all nodes know to be captured.
pub const ANNOUNCED: &str = "type.googleapis.com/keelson.agent.v1.Announced";
/// `google.protobuf.StringValue`: the content of our extensions.
pub const STRING_VALUE: &str = "type.googleapis.com/google.protobuf.StringValue";
/// `keelson.agent.v1.Endpoints`: content of an extension of a workload.
pub const ENDPOINTS: &str = "type.googleapis.com/keelson.agent.v1.Endpoints";
/// `keelson.agent.v1.SessionAffinity`: content of an extension of a service.
pub const SESSION_AFFINITY: &str = "type.googleapis.com/keelson.agent.v1.SessionAffinity";
/// `keelson.l7.v1.Service`: a service that a waypoint serves, or sends to.
pub const L7_SERVICE: &str = "type.googleapis.com/keelson.l7.v1.Service";
/// `keelson.l7.v1.Endpoint`: a workload, for a waypoint.
pub const L7_ENDPOINT: &str = "type.googleapis.com/keelson.l7.v1.Endpoint";
/// `keelson.l7.v1.Backend`: how a service's endpoints are used.
pub const L7_BACKEND: &str = "type.googleapis.com/keelson.l7.v1.Backend";
/// `keelson.l7.v1.Policy`: a policy with HTTP parts.
pub const L7_POLICY: &str = "type.googleapis.com/keelson.l7.v1.Policy";
/// `keelson.l7.v1.Listener`: where a gateway listens.
pub const L7_LISTENER: &str = "type.googleapis.com/keelson.l7.v1.Listener";
/// `keelson.l7.v1.Route`: one rule of a route object.
pub const L7_ROUTE: &str = "type.googleapis.com/keelson.l7.v1.Route";

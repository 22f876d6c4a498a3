// Definitions of kinds that tests on a cluster apply; nothing is compiled from these modules.
module keelson.io/tools/cluster/crds

go 1.26

require (
	istio.io/api v1.32.0
	sigs.k8s.io/gateway-api v1.6.3
)

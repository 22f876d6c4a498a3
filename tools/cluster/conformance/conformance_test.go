// Package conformance makes a program of the Gateway API's conformance suite.
package conformance

import (
	"testing"

	"sigs.k8s.io/gateway-api/conformance"
)

// TestConformance runs the suite as its flags say.
func TestConformance(t *testing.T) {
	conformance.RunConformance(t)
}

// Package vke2e runs Virtual Kubelet's exported end-to-end suite, unmodified, against any node.
//
//	go test -c -o vke2e . && ./vke2e -test.v -kubeconfig F -namespace default -node-name NAME
package vke2e

import (
	"flag"
	"testing"
	"time"

	suite "github.com/virtual-kubelet/virtual-kubelet/test/e2e"
)

var (
	kubeconfig = flag.String("kubeconfig", "", "kubeconfig of the cluster")
	namespace  = flag.String("namespace", "default", "namespace for the suite's pods")
	node       = flag.String("node-name", "", "node under test")
	limit      = flag.Duration("watch-timeout", 2*time.Minute, "longest wait for one event")
)

func TestVirtualKubelet(t *testing.T) {
	if *node == "" {
		t.Fatal("-node-name is missing")
	}
	suite.NewEndToEndTestSuite(suite.EndToEndTestSuiteConfig{
		Kubeconfig:   *kubeconfig,
		Namespace:    *namespace,
		NodeName:     *node,
		WatchTimeout: *limit,
	}).Run(t)
}

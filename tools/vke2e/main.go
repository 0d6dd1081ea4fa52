// Vke2e runs Virtual Kubelet's exported end-to-end suite, unmodified, against any node.
//
//	vke2e -test.v -kubeconfig FILE -namespace default -node-name NAME
//
// The suite wants a *testing.T, so this is a test binary that needs no go command to be run.
package main

import (
	"flag"
	"fmt"
	"os"
	"testing"
	"time"

	suite "github.com/virtual-kubelet/virtual-kubelet/test/e2e"
)

const suiteVersion = "1.13.0"

var (
	kubeconfig = flag.String("kubeconfig", "", "kubeconfig of the cluster")
	namespace  = flag.String("namespace", "default", "namespace for the suite's pods")
	node       = flag.String("node-name", "", "node under test")
	limit      = flag.Duration("watch-timeout", 2*time.Minute, "longest wait for one event")
)

func virtualKubelet(t *testing.T) {
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

func main() {
	if len(os.Args) == 2 && os.Args[1] == "--version" {
		fmt.Println("vke2e", suiteVersion)
		return
	}
	all := func(_, _ string) (bool, error) { return true, nil }
	tests := []testing.InternalTest{{Name: "TestVirtualKubelet", F: virtualKubelet}}
	testing.Main(all, tests, nil, nil)
}

// Command manifests prints what KubeVirt's operator would install, as one JSON object of lists.
//
// Usage: manifests NAMESPACE VERSION
package main

import (
	"encoding/json"
	"log"
	"os"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kubevirt "kubevirt.io/api/core/v1"
	"kubevirt.io/kubevirt/pkg/virt-operator/resource/generate/components"
	"kubevirt.io/kubevirt/pkg/virt-operator/resource/generate/install"
	"kubevirt.io/kubevirt/pkg/virt-operator/util"
)

// settings stands in for the operator's environment, from which it learns its own image and version.
type settings map[string]string

func (s settings) Getenv(key string) string { return s[key] }

func (s settings) Setenv(key, value string) error {
	s[key] = value
	return nil
}

func (s settings) Unsetenv(key string) error {
	delete(s, key)
	return nil
}

func (s settings) Environ() []string {
	pairs := make([]string, 0, len(s))
	for key, value := range s {
		pairs = append(pairs, key+"="+value)
	}
	return pairs
}

func main() {
	log.SetFlags(0)
	if len(os.Args) != 3 {
		log.Fatal("usage: manifests NAMESPACE VERSION")
	}
	objects, err := generate(os.Args[1], os.Args[2])
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(objects)
	}
	if err != nil {
		log.Fatal(err)
	}
}

func generate(namespace, version string) (map[string]any, error) {
	operator := settings{
		util.VirtOperatorImageEnvName: "registry.invalid/kubevirt/virt-operator:" + version,
		util.KubeVirtVersionEnvName:   version,
	}
	owner := &kubevirt.KubeVirt{ObjectMeta: metav1.ObjectMeta{Name: "kubevirt", Namespace: namespace}}
	config := util.GetTargetConfigFromKVWithEnvVarManager(owner, operator)
	strategy, err := install.GenerateCurrentInstallStrategy(config, "", namespace)
	if err != nil {
		return nil, err
	}
	// The operator brings these two along by itself, so its strategy lacks them.
	own, err := components.NewKubeVirtCrd()
	if err != nil {
		return nil, err
	}
	priority := components.NewKubeVirtPriorityClassCR()

	return map[string]any{
		"crds":                append(strategy.CRDs(), own),
		"priorityClasses":     []any{priority},
		"serviceAccounts":     strategy.ServiceAccounts(),
		"clusterRoles":        strategy.ClusterRoles(),
		"clusterRoleBindings": strategy.ClusterRoleBindings(),
		"roles":               strategy.Roles(),
		"roleBindings":        strategy.RoleBindings(),
		"configMaps":          strategy.ConfigMaps(),
		"secrets":             strategy.CertificateSecrets(),
		"services":            strategy.Services(),
		"deployments":         strategy.Deployments(),
		"daemonSets":          strategy.DaemonSets(),
		"apiServices":         strategy.APIServices(),
		"mutatingWebhooks":    strategy.MutatingWebhookConfigurations(),
		"validatingWebhooks":  strategy.ValidatingWebhookConfigurations(),
		"policies":            strategy.ValidatingAdmissionPolicies(),
		"policyBindings":      strategy.ValidatingAdmissionPolicyBindings(),
		"instancetypes":       strategy.Instancetypes(),
		"preferences":         strategy.Preferences(),
	}, nil
}

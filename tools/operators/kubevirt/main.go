// Command operator prints what installs KubeVirt's operator, as a JSON list in the order to apply.
// It has the content of the release's kubevirt-operator.yaml. scripts/operators builds it beside
// tools/kubevirt's go.mod.
//
// Usage: operator NAMESPACE REGISTRY VERSION
package main

import (
	"encoding/json"
	"log"
	"os"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"kubevirt.io/kubevirt/pkg/virt-operator/resource/generate/components"
	"kubevirt.io/kubevirt/pkg/virt-operator/resource/generate/rbac"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 4 {
		log.Fatal("usage: operator NAMESPACE REGISTRY VERSION")
	}
	namespace, registry, version := os.Args[1], os.Args[2], os.Args[3]
	definition, err := components.NewKubeVirtCrd()
	if err != nil {
		log.Fatal(err)
	}
	objects := []any{
		&corev1.Namespace{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
			ObjectMeta: metav1.ObjectMeta{Name: namespace, Labels: map[string]string{
				"kubevirt.io":                        "",
				"pod-security.kubernetes.io/enforce": "privileged",
			}},
		},
		definition,
		components.NewKubeVirtPriorityClassCR(),
		&rbacv1.ClusterRole{
			TypeMeta: metav1.TypeMeta{APIVersion: "rbac.authorization.k8s.io/v1", Kind: "ClusterRole"},
			ObjectMeta: metav1.ObjectMeta{Name: "kubevirt.io:operator", Labels: map[string]string{
				"operator.kubevirt.io":                         "",
				"rbac.authorization.k8s.io/aggregate-to-admin": "true",
			}},
			Rules: []rbacv1.PolicyRule{{
				APIGroups: []string{"kubevirt.io"},
				Resources: []string{"kubevirts"},
				Verbs: []string{"get", "delete", "create", "update", "patch", "list", "watch",
					"deletecollection"},
			}},
		},
	}
	objects = append(objects, rbac.GetAllOperator(namespace)...)
	objects = append(objects, components.NewOperatorDeployment(
		namespace, registry, "", version, "2", "", "", "", "", "", "", "", "", "", "", "", "", "", "", "",
		corev1.PullIfNotPresent,
	))
	if err := json.NewEncoder(os.Stdout).Encode(objects); err != nil {
		log.Fatal(err)
	}
}

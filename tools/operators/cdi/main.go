// Command operator prints what installs CDI's operator, as a JSON list in the order to apply. It has
// the content of the release's cdi-operator.yaml. scripts/operators builds it beside tools/cdi's
// go.mod.
//
// Usage: operator NAMESPACE REGISTRY VERSION
package main

import (
	"encoding/json"
	"log"
	"os"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"kubevirt.io/containerized-data-importer/pkg/operator/resources/namespaced"
	"kubevirt.io/containerized-data-importer/pkg/operator/resources/operator"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 4 {
		log.Fatal("usage: operator NAMESPACE REGISTRY VERSION")
	}
	namespace, version := os.Args[1], os.Args[3]
	image := func(name string) string { return os.Args[2] + "/" + name + ":" + version }
	made, err := operator.CreateAllOperatorResources(&operator.FactoryArgs{
		Image: image("cdi-operator"),
		NamespacedArgs: namespaced.FactoryArgs{
			OperatorVersion:        version,
			ControllerImage:        image("cdi-controller"),
			DeployClusterResources: "true",
			ImporterImage:          image("cdi-importer"),
			ClonerImage:            image("cdi-cloner"),
			OvirtPopulatorImage:    image("cdi-importer"),
			APIServerImage:         image("cdi-apiserver"),
			UploadProxyImage:       image("cdi-uploadproxy"),
			UploadServerImage:      image("cdi-uploadserver"),
			Verbosity:              "1",
			PullPolicy:             string(corev1.PullIfNotPresent),
			Namespace:              namespace,
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	objects := []any{&corev1.Namespace{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: metav1.ObjectMeta{Name: namespace, Labels: map[string]string{"cdi.kubevirt.io": ""}},
	}}
	for _, object := range made {
		objects = append(objects, object)
	}
	if err := json.NewEncoder(os.Stdout).Encode(objects); err != nil {
		log.Fatal(err)
	}
}

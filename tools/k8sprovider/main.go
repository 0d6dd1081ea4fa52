// Command pulumi-resource-kubernetes is Pulumi's Kubernetes provider.
//
// The module's own main embeds a schema that its build generates and that no Go module carries.
// Python programs bring typed classes along and never ask for the schema, so its name and version do.
package main

import (
	"fmt"

	"github.com/pulumi/pulumi-kubernetes/provider/v4/pkg/provider"
	"github.com/pulumi/pulumi-kubernetes/provider/v4/pkg/version"
)

const name = "kubernetes"

func main() {
	schema := fmt.Sprintf(`{"name": %q, "version": %q}`, name, version.Version)
	provider.Serve(name, version.Version, []byte(schema), []byte("{}"))
}

// Command crds prints CDI's custom resource definitions: a JSON object from name to YAML text.
package main

import (
	"encoding/json"
	"log"
	"os"

	"kubevirt.io/containerized-data-importer/pkg/operator/resources"
)

func main() {
	if err := json.NewEncoder(os.Stdout).Encode(resources.CDICRDs); err != nil {
		log.Fatal(err)
	}
}

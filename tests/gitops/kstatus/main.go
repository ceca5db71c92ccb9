// What kstatus, the rules by which Flux, kpt and cli-utils wait, makes of objects: a JSON list on standard input, a list of {status, message} out.
package main

import (
	"encoding/json"
	"log"
	"os"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

type answer struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

func main() {
	var objects []unstructured.Unstructured
	if err := json.NewDecoder(os.Stdin).Decode(&objects); err != nil {
		log.Fatal(err)
	}
	answers := []answer{}
	for _, object := range objects {
		result, err := status.Compute(&object)
		if err != nil {
			log.Fatal(err)
		}
		answers = append(answers, answer{result.Status.String(), result.Message})
	}
	if err := json.NewEncoder(os.Stdout).Encode(answers); err != nil {
		log.Fatal(err)
	}
}

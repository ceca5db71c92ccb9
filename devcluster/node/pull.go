package main

import (
	"context"
	"flag"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	cri "k8s.io/cri-client/pkg"
	"k8s.io/klog/v2"
)

// pull brings images into the container runtime through the interface that the kubelet uses, so that they are unpacked and
// kept as the kubelet would have them. An image that is there is left as it is.
func pull() {
	endpoint := flag.String("endpoint", "", "the runtime's socket, unix://...")
	flag.Parse()
	ctx := context.Background()
	images, err := cri.NewRemoteImageService(*endpoint, 10*time.Second, nil, nil)
	if err != nil {
		klog.Fatal(err)
	}
	for _, name := range flag.Args() {
		image := &runtimeapi.ImageSpec{Image: name}
		found, err := images.ImageStatus(ctx, image, false)
		if err != nil {
			klog.Fatal(err)
		}
		if found.Image != nil {
			continue
		}
		if _, err := images.PullImage(ctx, image, nil, nil); err != nil {
			klog.Fatal(err)
		}
	}
}

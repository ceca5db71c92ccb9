"""What Jobs and Pods say: outcome, root cause, and what a pod waits for. Pure functions of their manifests."""

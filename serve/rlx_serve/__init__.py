"""The Ray Serve application: HTTP ingress, executors, and the cluster builder."""

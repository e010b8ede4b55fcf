"""The Ray Serve application: gateway, executors, coordinator."""

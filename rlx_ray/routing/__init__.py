"""Routing, pure: request sizes to variants to components. No I/O, no cluster, no clock."""

"""HTTP: routes, bodies and answers of each protocol, errors to status. No Ray."""

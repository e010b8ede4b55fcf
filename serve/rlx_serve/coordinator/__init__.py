"""One actor of the application: builds once for all, knows who holds what."""

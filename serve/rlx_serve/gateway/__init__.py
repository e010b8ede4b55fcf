"""One request: its model, its tokens, the lanes that run it, its answer."""

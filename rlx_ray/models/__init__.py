"""Model families: what a checkpoint means, without a graph and without reading it."""

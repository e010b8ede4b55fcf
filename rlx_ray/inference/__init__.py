"""One core for CLI, Python API and server: models opened, variants loaded, texts answered."""

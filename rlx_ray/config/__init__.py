"""The config: plain data (`spec`, `serve`), and the one door that reads it from YAML (`load`)."""

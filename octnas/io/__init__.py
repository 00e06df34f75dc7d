"""Files, YAML and credentials."""

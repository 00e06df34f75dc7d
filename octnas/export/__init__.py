"""Networks as files for others, one module per format."""

"""What many adapters on one base cost: `make bench-adapters`."""

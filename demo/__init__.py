"""The tour that `make demo` runs: its questions, its models, its scenes."""

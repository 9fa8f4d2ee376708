"""The adapters: what a base with an adapter says."""

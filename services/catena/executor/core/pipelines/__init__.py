"""Users' pipelines: what they are, whether they are sound, and running their steps."""

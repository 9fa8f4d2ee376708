"""`make bench-gateway`: what the gateway adds to a model's own time, beside the LiteLLM proxy."""

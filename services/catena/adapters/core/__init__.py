"""What the adapters decide: which weights a name means, what stays resident, what may be registered."""

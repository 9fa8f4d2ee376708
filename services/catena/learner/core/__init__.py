"""What should become better, and whether it did: decisions alone."""

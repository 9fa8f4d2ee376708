"""The executor: what comes out when a plan runs."""

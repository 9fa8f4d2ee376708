"""The router's SQL and its way to the executor."""

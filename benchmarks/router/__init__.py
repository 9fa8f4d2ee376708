"""The router scored on outcomes of real models that nobody here produced."""

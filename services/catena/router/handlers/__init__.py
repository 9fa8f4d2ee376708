"""The router's gRPC service and its ear on the bus."""

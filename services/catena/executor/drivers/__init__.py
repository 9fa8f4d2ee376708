"""What the executor reaches: SQL, other rooms over gRPC, providers over HTTP."""

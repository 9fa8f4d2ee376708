"""What the executor decides: strategies, checks, votes, retries, pipelines. No network, no disk, no wire types."""

"""What the router decides and learns; plain functions around one class that waits."""

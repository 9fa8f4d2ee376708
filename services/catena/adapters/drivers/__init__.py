"""What of the adapters touches disk, SQL, processes and torch."""

"""What the trainer touches: its SQL, its processes, the bases' files, the registry."""

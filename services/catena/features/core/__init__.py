"""What features decide, apart from where they are kept."""

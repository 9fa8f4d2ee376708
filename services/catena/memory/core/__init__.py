"""What memory decides, apart from where it is kept."""

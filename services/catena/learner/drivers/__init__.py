"""SQL, files and the other rooms."""

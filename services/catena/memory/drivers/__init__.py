"""Where memory meets disk and processes: the SQL library, the index in its own process, and the mirror between them."""

"""The engine: a process of its own that holds the weights (`worker`), and the room's end of the line (`client`)."""

"""The process that trains one job. Nothing here is imported by the room, so that the room starts without torch."""

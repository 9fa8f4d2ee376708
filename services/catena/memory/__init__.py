"""Memory: what do we know about this? Documents, chunked and indexed; procedures and their triggers."""

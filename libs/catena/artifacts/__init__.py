"""Adapters and bases as files: manifest, digest, gate, signature, store. The trainer writes, `adapters` reads."""

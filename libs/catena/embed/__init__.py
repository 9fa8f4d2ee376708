"""Text embeddings by ONNX, for router, memory and gateway: no torch at run time.

`open_embedder(folder)` opens what `python -m catena.embed.export --out FOLDER` made; `BackgroundEmbedder` keeps it
off the event loop.
"""

from catena.embed.background import BackgroundEmbedder
from catena.embed.embedder import Embedder, Vectors, open_embedder

__all__ = ["BackgroundEmbedder", "Embedder", "Vectors", "open_embedder"]

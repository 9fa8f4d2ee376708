"""The provider `tgi`: Hugging Face's text-generation-inference server."""

from catena.executor.drivers.tgi.provider import TgiProvider

__all__ = ["TgiProvider"]

"""The provider `openai`: any server that speaks OpenAI's HTTP interface."""

from catena.executor.drivers.openai.provider import OpenAiProvider
from catena.executor.drivers.openai.verifying import VerifyingProvider

__all__ = ["OpenAiProvider", "VerifyingProvider"]

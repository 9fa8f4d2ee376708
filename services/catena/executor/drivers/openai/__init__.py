"""The provider `openai`: any server that speaks OpenAI's HTTP interface."""

from catena.executor.drivers.openai.provider import OpenAiProvider

__all__ = ["OpenAiProvider"]

"""The provider `anthropic`: the Messages API (platform.claude.com/docs/en/api/messages)."""

from catena.executor.drivers.anthropic.provider import AnthropicProvider

__all__ = ["AnthropicProvider"]

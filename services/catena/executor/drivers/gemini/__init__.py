"""The provider `gemini`: generateContent, streamed (ai.google.dev/api/generate-content)."""

from catena.executor.drivers.gemini.provider import GeminiProvider

__all__ = ["GeminiProvider"]

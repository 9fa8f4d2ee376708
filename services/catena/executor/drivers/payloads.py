"""Large parts of what a background run was asked, kept beside it once and named by their content.

A conversation may carry megabytes of pictures, the same ones turn after turn. The run's own row holds references
instead, so that whoever looks how it stands, every half second perhaps, reads none of them.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace

from catena.executor.core.admission import Errand
from catena.executor.core.chat import Message

PREFIX = "ref:sha256:"
INLINE_CHARS = 8192


def put_aside(errand: Errand) -> tuple[Errand, dict[str, str]]:
    """The errand with references, and the texts that they mean, by reference."""
    aside: dict[str, str] = {}

    def name(text: str) -> str:
        if len(text) <= INLINE_CHARS:
            return text
        reference = PREFIX + hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
        aside[reference] = text
        return reference

    return _each_text(errand, name), aside


def put_back(errand: Errand, aside: Mapping[str, str]) -> Errand:
    """The errand as it was; a text that only looks like a reference stays as it is."""
    return _each_text(errand, lambda text: aside.get(text, text)) if aside else errand


def _each_text(errand: Errand, change: Callable[[str], str]) -> Errand:
    def turn(message: Message) -> Message:
        images = tuple(replace(image, url=change(image.url)) for image in message.images)
        return replace(message, content=change(message.content), images=images)

    request = errand.request
    messages = tuple(turn(message) for message in request.messages)
    return replace(errand, request=replace(request, messages=messages, prompt=change(request.prompt)))

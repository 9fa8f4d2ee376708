"""Conversations for providers that keep the system's words apart and let user and assistant take turns."""

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import msgspec

from catena.executor.core.chat import Image, Message, ToolCall
from catena.kit.errors import Invalid


def system_of(turns: Sequence[Message]) -> str:
    """All that system turns say."""
    return "\n\n".join(turn.content for turn in turns if turn.role == "system" and turn.content)


def by_side(turns: Sequence[Message]) -> list[tuple[str, list[Message]]]:
    """Turns without the system's, those of one side in a row together; results of tools are the user's."""
    sides: list[tuple[str, list[Message]]] = []
    for turn in turns:
        if turn.role == "system":
            continue
        side = "assistant" if turn.role == "assistant" else "user"
        if sides and sides[-1][0] == side:
            sides[-1][1].append(turn)
        else:
            sides.append((side, [turn]))
    return sides


def arguments_of(call: ToolCall) -> dict[str, Any]:
    """The arguments as an object. Raises Invalid (`bad_tool_call`) where they are none."""
    try:
        return msgspec.json.decode(call.arguments or "{}", type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise Invalid(
            f"arguments of tool call {call.id!r} are no JSON object: {error}", code="bad_tool_call"
        ) from error


def inline(image: Image) -> tuple[str, str] | None:
    """Media type and base64 data of a data URL (RFC 2397); None for another URL. Raises Invalid (`bad_image`)."""
    if not image.url.startswith("data:"):
        return None
    head, comma, data = image.url[5:].partition(",")
    kind, _, encoding = head.partition(";")
    try:
        if not comma or encoding != "base64":
            raise ValueError("not base64")
        base64.b64decode(data, validate=True)
    except (ValueError, binascii.Error) as error:
        raise Invalid(
            f"image is no base64 data URL: {error}; send data:image/png;base64,...", code="bad_image"
        ) from error
    return kind or "image/png", data

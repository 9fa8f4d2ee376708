"""When two answers say the same: one normal form, for votes, agreement and digests."""

import hashlib
import math
import re
import unicodedata

import msgspec

from catena.executor.core.chat import Choice

_SPACE = re.compile(r"\s+")
_THINK = re.compile(r"<think>.*?</think>", re.DOTALL)
_NUMBER = re.compile(r"[-+]?\$?\d[\d,]*(\.\d+)?%?\Z")
_QUOTES = "\"'`*\u201c\u201d\u2018\u2019"
_WORDS = frozenset({"yes", "no", "true", "false"})
_ENDS = ".!,;: "


def normal(text: str) -> str:
    """`text` without reasoning, quotes and outer punctuation; JSON and numbers in one spelling.

    Case is kept, because there are questions about it; only yes, no, true and false lose it.
    """
    bare = _THINK.sub("", text).strip()
    if bare[:1] in ("{", "["):
        try:
            return msgspec.json.encode(msgspec.json.decode(bare), order="sorted").decode()
        except msgspec.DecodeError:
            pass
    bare = _SPACE.sub(" ", unicodedata.normalize("NFKC", bare)).strip(_QUOTES + _ENDS)
    if bare.casefold() in _WORDS:
        return bare.casefold()
    return _number(bare) if _NUMBER.match(bare) else bare


def _number(text: str) -> str:
    percent = "%" if text.endswith("%") else ""
    value = float(text.strip("%").replace(",", "").replace("$", ""))
    if not math.isfinite(value):
        return text
    return f"{int(value) if value.is_integer() else value}{percent}"


def normal_choice(choice: Choice) -> str:
    """The normal form of an answer, tools asked for included."""
    calls = [[call.name, normal(call.arguments)] for call in choice.message.tool_calls]
    told = normal(choice.text)
    return f"{told} {msgspec.json.encode(calls).decode()}" if calls else told


def digest(choices: tuple[Choice, ...], salt: str) -> str:
    """A short digest of the first answer's normal form; equal answers of one `salt` (the tenant) are equal."""
    return digest_of(normal_choice(choices[0]), salt) if choices else ""


def digest_of(form: str, salt: str) -> str:
    """The same for a form that is at hand."""
    return hashlib.sha256(f"{salt}\0{form}".encode(errors="replace")).hexdigest()[:16]

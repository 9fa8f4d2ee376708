"""The wording of a text as a sparse vector: what MiniLM does not see in `reverse: hello`, its first word says."""

import re
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DIMENSION = 1024
_HEAD_CHARS, _MOST_CHARS = 24, 400
_FIRST, _SECOND, _WORD, _HEAD, _FORM = 3.0, 1.2, 0.7, 0.4, 0.8
_WORDS = re.compile(r"[^\W\d_]+|\d+|[^\w\s]")


def lexical(texts: Sequence[str]) -> Array:
    """(n,) texts to (n, DIMENSION) unit rows of hashed words, opening characters and form."""
    rows = np.zeros((len(texts), DIMENSION))
    for row, text in zip(rows, texts, strict=True):
        _fill(row, text[:_MOST_CHARS].lower().strip())
        norm = float(np.linalg.norm(row))
        if norm:
            row /= norm
    return rows


def _fill(row: Array, text: str) -> None:
    words = _WORDS.findall(text)
    for weight, place in ((_FIRST, 0), (_SECOND, 1)):
        if len(words) > place:
            row[_slot(f"{place}:{_form(words[place])}")] += weight
    for word in {_form(word) for word in words}:
        row[_slot(f"w:{word}")] += _WORD
    head = text[:_HEAD_CHARS]
    for start in range(len(head) - 2):
        row[_slot(f"c:{head[start : start + 3]}")] += _HEAD / 3.0
    digits, marks = sum(w.isdigit() for w in words), sum(not w.isalnum() for w in words)
    row[_slot(f"digits:{min(digits, 3)}")] += _FORM
    row[_slot(f"marks:{min(marks, 3)}")] += _FORM
    row[_slot(f"words:{min(len(words) // 3, 6)}")] += _FORM / 2.0


def _form(word: str) -> str:
    return "0" if word.isdigit() else word


def _slot(token: str) -> int:
    return zlib.crc32(token.encode()) % DIMENSION

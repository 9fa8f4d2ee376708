"""What a request looks like, in figures that bear on how hard it is and for whom: no word of it can be read back.

They travel with the plan and come back with its execution's event, so that every replica learns from the same.
"""

import math
import re
from functools import lru_cache

from catena.router.core.ask import Ask

NAMES = (
    "length",
    "numbers",
    "distinct_numbers",
    "largest_number",
    "sentences",
    "commas",
    "percents",
    "currency",
    "slashes",
    "equations",
    "fractions",
    "comparisons",
    "conditions",
    "rates",
    "negations",
    "blanks",
    "question_marks",
    "what_or_how",
    "which",
    "capitals",
    "code",
    "foreign",
    "lines",
    "turns",
    "structured",
    "tools",
)
"""The order of a request's features; one is only ever added at the end, since what was stored keeps its length."""

_MOST_CHARS = 8000
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_COUNTED = (
    re.compile(r"[.!?](?=\s|$)"),
    re.compile(r","),
    re.compile(r"%"),
    re.compile(r"[$€£\\]"),
    re.compile(r"/"),
    re.compile(r"="),
    re.compile(r"\b(?:half|twice|thrice|third|quarter|double|triple)s?\b", re.IGNORECASE),
    re.compile(r"\b(?:more|less|fewer|than|older|younger)\b", re.IGNORECASE),
    re.compile(r"\b(?:if|when|unless|after|before)\b", re.IGNORECASE),
    re.compile(r"\b(?:each|every|per|total|average)\b", re.IGNORECASE),
    re.compile(r"\b(?:not|never|no|except|false)\b|n't\b", re.IGNORECASE),
    re.compile(r"_{2,}"),
    re.compile(r"\?"),
)
_OPENING = re.compile(r"\s*(?:what|how|who|why|when|where)\b", re.IGNORECASE)
_WHICH = re.compile(r"\bwhich\b|\bfollowing\b", re.IGNORECASE)
_CODE = re.compile(r"```|\bdef \w|\bclass \w|;\s*$|[{}]|=>|\breturn\b", re.MULTILINE)


@lru_cache(maxsize=64)
def request_features(ask: Ask) -> tuple[float, ...]:
    """One figure for each of `NAMES`: logarithms of counts, or 0 and 1."""
    text = ask.text[:_MOST_CHARS]
    numbers = [found.replace(",", "") for found in _NUMBER.findall(text)]
    largest = max((float(number[:15]) for number in numbers), default=0.0)
    counts = [len(pattern.findall(text)) for pattern in _COUNTED]
    figures = (
        math.log1p(ask.chars),
        math.log1p(len(numbers)),
        math.log1p(len(set(numbers))),
        math.log1p(largest),
        *(math.log1p(count) for count in counts),
        float(bool(_OPENING.match(text))),
        float(bool(_WHICH.search(text))),
        math.log1p(sum(map(str.isupper, text))),
        math.log1p(len(_CODE.findall(text))),
        sum(not letter.isascii() for letter in text) / max(len(text), 1),
        math.log1p(text.count("\n")),
        math.log1p(ask.turns),
        float(ask.structured),
        float(ask.tools),
    )
    assert len(figures) == len(NAMES)
    return tuple(round(figure, 4) for figure in figures)

"""What a request looks like, in figures that bear on how hard it is and for whom: no word of it can be read back.

They travel with the plan and come back with its execution's event, so that every replica learns from the same.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
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
_WORD = re.compile(r"\w+")
_SENTENCE = re.compile(r"[.!?](?=\s|$)")
_BLANK = re.compile(r"_{2,}")
_CODE = (
    re.compile(r"def(?<!\wdef) \w"),
    re.compile(r"class(?<!\wclass) \w"),
    re.compile(r"return(?<!\wreturn)\b"),
    re.compile(r";\s*$", re.MULTILINE),
)
"""Letters first: a pattern that begins with the edge of a word is tried at every place of a text."""
_MARKS = ("```", "{", "}", "=>")
_UPPER = bytes(range(ord("A"), ord("Z") + 1))
_PARTS = ("half", "twice", "thrice", "third", "quarter", "double", "triple")
_FRACTIONS = frozenset({*_PARTS, *(f"{part}s" for part in _PARTS)})
_COMPARISONS = frozenset({"more", "less", "fewer", "than", "older", "younger"})
_CONDITIONS = frozenset({"if", "when", "unless", "after", "before"})
_RATES = frozenset({"each", "every", "per", "total", "average"})
_NEGATIONS = frozenset({"not", "never", "no", "except", "false"})
_OPENINGS = frozenset({"what", "how", "who", "why", "when", "where"})
_CHOICES = frozenset({"which", "following"})


@lru_cache(maxsize=64)
def request_features(ask: Ask) -> tuple[float, ...]:
    """One figure for each of `NAMES`: logarithms of counts, or 0 and 1."""
    text = ask.text[:_MOST_CHARS]
    lowered = text.lower()
    words = _WORD.findall(lowered)
    often = Counter(words)
    numbers = [found.replace(",", "") for found in _NUMBER.findall(text)]
    largest = max((float(number[:15]) for number in numbers), default=0.0)
    plain = text.encode("ascii", "ignore")
    counts = (
        len(_SENTENCE.findall(text)),
        text.count(","),
        text.count("%"),
        sum(map(text.count, "$€£\\")),
        text.count("/"),
        text.count("="),
        sum(often[word] for word in _FRACTIONS),
        sum(often[word] for word in _COMPARISONS),
        sum(often[word] for word in _CONDITIONS),
        sum(often[word] for word in _RATES),
        sum(often[word] for word in _NEGATIONS) + lowered.count("n't"),
        len(_BLANK.findall(text)) if "__" in text else 0,
        text.count("?"),
    )
    figures = (
        math.log1p(ask.chars),
        math.log1p(len(numbers)),
        math.log1p(len(set(numbers))),
        math.log1p(largest),
        *(math.log1p(count) for count in counts),
        float(bool(words) and words[0] in _OPENINGS and lowered.lstrip().startswith(words[0])),
        float(any(word in often for word in _CHOICES)),
        math.log1p(_capitals(text, plain)),
        math.log1p(_code(text)),
        (len(text) - len(plain)) / max(len(text), 1),
        math.log1p(text.count("\n")),
        math.log1p(ask.turns),
        float(ask.structured),
        float(ask.tools),
    )
    assert len(figures) == len(NAMES)
    return tuple(round(figure, 4) for figure in figures)


def chars_of(features: Sequence[float]) -> int:
    """Characters sent with the request that has these features; 0 where they tell nothing."""
    return round(math.expm1(features[NAMES.index("length")])) if features else 0


def _capitals(text: str, plain: bytes) -> int:
    """Upper-case letters; `plain` is the text without what is not ASCII."""
    told = len(plain) - len(plain.translate(None, _UPPER))
    if len(plain) == len(text):
        return told
    return told + sum(letter.isupper() for letter in text if not letter.isascii())


def _code(text: str) -> int:
    """What is written in code rather than in prose."""
    return sum(map(text.count, _MARKS)) + sum(len(pattern.findall(text)) for pattern in _CODE)

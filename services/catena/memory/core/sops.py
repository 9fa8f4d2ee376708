"""Which procedures a text calls for: exact, deterministic, and able to say why."""

import math
import unicodedata
from collections.abc import Iterable

from catena.kit.errors import Invalid
from catena.memory.core.types import Sop, SopMatch

POINTS_PER_TRIGGER = 10.0
POINTS_PER_PRIORITY = 0.5


def check_sop(sop: Sop) -> Sop:
    """The same procedure. Raises Invalid when it could never match, or lacks a name or an action."""
    if not sop.name.strip():
        raise Invalid("a procedure needs a name", code="bad_sop")
    if not sop.triggers or not all(normalise(trigger) for trigger in sop.triggers):
        raise Invalid(f"procedure {sop.name!r} needs at least one trigger, and none empty", code="bad_sop")
    if not all(step.action.strip() for step in sop.steps):
        raise Invalid(f"procedure {sop.name!r} has a step without an action", code="bad_sop")
    if not math.isfinite(sop.priority):
        raise Invalid(f"procedure {sop.name!r} has priority {sop.priority}; give a finite number", code="bad_sop")
    return sop


def match(text: str, sops: Iterable[Sop], n_results: int) -> list[SopMatch]:
    """The best `n_results` procedures of which at least one trigger stands in `text`; ties go by name.

    Score: 10 per distinct trigger + 0.5 x priority. Case, width and accents' encoding do not matter; a trigger matches
    whole words only, in scripts that separate words.
    """
    haystack = normalise(text)
    matches = []
    for sop in sops:
        triggers = tuple(trigger for trigger in _distinct(sop.triggers) if _stands_in(normalise(trigger), haystack))
        if triggers:
            score = POINTS_PER_TRIGGER * len(triggers) + POINTS_PER_PRIORITY * sop.priority
            matches.append(SopMatch(sop=sop, score=score, triggers=triggers))
    matches.sort(key=lambda found: (-found.score, found.sop.name))
    return matches[:n_results]


def normalise(text: str) -> str:
    """Fold case and compatibility forms (NFKC, Unicode annex 15) and collapse white space."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def _distinct(triggers: Iterable[str]) -> list[str]:
    return list({normalise(trigger): trigger for trigger in reversed(list(triggers))}.values())[::-1]


def _stands_in(trigger: str, text: str) -> bool:
    start = text.find(trigger)
    while start >= 0:
        end = start + len(trigger)
        if not (_joined(text, start) or _joined(text, end)):
            return True
        start = text.find(trigger, start + 1)
    return False


def _joined(text: str, index: int) -> bool:
    """Whether a word runs on over the gap before `index`."""
    return 0 < index < len(text) and _continues_word(text[index - 1]) and _continues_word(text[index])


def _continues_word(character: str) -> bool:
    """Whether the character belongs to a script that puts spaces between words; Chinese, Japanese, Thai ... do not."""
    if not (character.isalnum() or unicodedata.combining(character) or character == "_"):
        return False
    name = unicodedata.name(character, "")
    return not name.startswith(("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN", "HANGUL"))

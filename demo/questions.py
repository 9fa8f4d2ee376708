"""Seeded questions with known answers, for the demo, its tests and the training of its models.

Every text falls into one of two parts by its checksum: an eighth is held out, the rest may be
trained on. `train_models.py` draws from the training part alone, so whatever the demo asks is new
to the bases.
"""

import random
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Part = Literal["held-out", "training"]

PRESENT = ("upper", "reverse", "add", "sort", "max", "first", "last")
"""Skills that the bases are trained on and that need nothing but the question."""
FACT = "fact"
"""The skill that needs memory: a code or a path which no model can know."""
ABSENT = ("swapcase", "title", "double", "caesar")
"""Skills that no base has seen: adapters learn them from corrections."""
DEMO_MIX: Mapping[str, float] = {**dict.fromkeys(PRESENT, 0.8 / len(PRESENT)), FACT: 0.2}
UNKNOWN = "unknown"
"""What a model answers when it lacks the fact."""

FACTS_SEED = 7
FACTS_COUNT = 300
_HELD_OUT_OF = 8
_TRIES_PER_QUESTION = 400


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_ONSETS = ("b", "c", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "br", "st")
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("", "", "l", "n", "r", "s", "x", "ck")
_VERBS = _words(
    "open close load save read write make find list send pick plan train score merge index "
    "watch fetch parse check build start stop apply encode decode resolve render count sign"
)
_NOUNS = _words(
    "router gateway adapter memory feature learner trainer executor model stage plan prompt token "
    "cache slot batch queue record event stream bus store manifest digest key budget tenant chunk "
    "vector clock"
)
_FOLDERS = _words(
    "services libs catena gateway router executor adapters trainer memory features learner kit "
    "plan core drivers handlers config api sdk tests unit demo docs protos"
)
_ENDINGS = (".py", ".py", ".py", ".md", ".yaml", ".proto")


@dataclass(frozen=True, slots=True)
class Question:
    """One question: the skill it needs, its text and the only right answer."""

    skill: str
    text: str
    answer: str


def questions(
    n: int,
    seed: int,
    *,
    skills: Collection[str] | None = None,
    weights: Mapping[str, float] | None = None,
    exclude: Collection[str] = (),
    known: Sequence[tuple[str, str]] | None = None,
    part: Part = "held-out",
) -> list[Question]:
    """Draw n distinct questions; the same arguments give the same list.

    Args:
        n: how many.
        seed: of the draw.
        skills: which skills; all of the demo's mix when None.
        weights: share of each skill, any scale; the demo's mix when None, and equal shares where
            that names none of `skills`.
        exclude: texts that must not come up, such as those of an earlier draw.
        known: the facts, as (key, value), that fact questions ask for; `facts()` when None.
        part: the held-out texts (what the demo asks) or the training texts. Fact questions belong
            to both: their answers are never trained on.

    Raises:
        ValueError: the skills do not hold n distinct questions outside `exclude`.
        KeyError: an unknown skill.
    """
    rng = random.Random(f"questions {seed}")
    names, shares = _shares(skills, weights)
    unasked = _fact_questions(facts(FACTS_COUNT, FACTS_SEED) if known is None else known, rng)
    seen = set(exclude)
    drawn: list[Question] = []
    for _ in range(n):
        skill = rng.choices(names, shares)[0]
        for _attempt in range(_TRIES_PER_QUESTION):
            question = next(unasked, None) if skill == FACT else draw(skill, rng)
            if question is None or _fits(question, seen, part):
                break
        if question is None or not _fits(question, seen, part):
            raise ValueError(f"no new {skill} question after {len(drawn)}; ask for fewer than {n}")
        seen.add(question.text)
        drawn.append(question)
    return drawn


def facts(n: int, seed: int) -> list[tuple[str, str]]:
    """Make n facts as (key, value): words with a four-digit code, identifiers with a file's path.

    Keys are distinct; the first n of a longer list are the same.
    """
    rng = random.Random(f"facts {seed}")
    made: dict[str, str] = {}
    while len(made) < n:
        if len(made) % 2:
            made.setdefault(identifier(rng), path(rng))
        else:
            made.setdefault(word(rng, syllables=(2, 3)), code(rng))
    return list(made.items())


def fact_question(key: str, value: str) -> Question:
    """Ask for a fact: `code: KEY` when the value is all digits, else `file: KEY`."""
    return Question(FACT, f"{'code' if value.isdigit() else 'file'}: {key}", value)


def draw(skill: str, rng: random.Random) -> Question:
    """Draw one question of a skill other than `fact`; KeyError names an unknown skill."""
    text, answer = _DRAWS[skill](rng)
    return Question(skill, text, answer)


def part_of(text: str) -> Part:
    """Tell which part a question's text belongs to."""
    return "training" if zlib.crc32(text.encode()) % _HELD_OUT_OF else "held-out"


def normalise(text: str) -> str:
    """Strip, and make each run of white space one blank; case counts."""
    return " ".join(text.split())


def is_right(answer: str, question: Question) -> bool:
    """Normalised exact match with the question's answer."""
    return normalise(answer) == normalise(question.answer)


def corrupted(answer: str, rng: random.Random) -> str:
    """Damage an answer as a weak model does: items swapped, a character lost, doubled or changed."""
    items = answer.split(" ")
    for _ in range(20):
        damaged = _swap(items, rng) if len(items) > 2 and rng.random() < 0.5 else ""
        damaged = damaged or _damage_character(answer, rng)
        if normalise(damaged) != normalise(answer):
            return damaged
    return answer + answer[-1:]


def word(rng: random.Random, *, syllables: tuple[int, int] = (1, 3)) -> str:
    """Make a pronounceable lower-case word of 2 to about 12 letters."""
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.randint(*syllables))
    )


def identifier(rng: random.Random) -> str:
    """Make an identifier: `open_router`, `open_router_slot`, `OpenRouter`."""
    parts = [rng.choice(_VERBS), rng.choice(_NOUNS)]
    if rng.random() < 0.3:
        parts.append(rng.choice(_NOUNS) if rng.random() < 0.6 else word(rng))
    if rng.random() < 0.2:
        return "".join(part.capitalize() for part in parts)
    return "_".join(parts)


def path(rng: random.Random) -> str:
    """Make a path such as `services/catena/router/app.py`, 8 to about 40 characters."""
    folders = [rng.choice(_FOLDERS) if rng.random() < 0.7 else word(rng) for _ in range(rng.randint(1, 3))]
    name = rng.choice(_NOUNS) if rng.random() < 0.5 else word(rng)
    return "/".join([*folders, name + rng.choice(_ENDINGS)])


def code(rng: random.Random) -> str:
    """Make a four-digit code."""
    return str(rng.randint(1000, 9999))


def _shares(skills: Collection[str] | None, weights: Mapping[str, float] | None) -> tuple[list[str], list[float]]:
    names = list(DEMO_MIX if skills is None else skills)
    mix = DEMO_MIX if weights is None else weights
    shares = [mix.get(name, 0.0) for name in names]
    return names, shares if any(shares) else [1.0] * len(names)


def _fact_questions(known: Sequence[tuple[str, str]], rng: random.Random) -> Iterator[Question]:
    order = rng.sample(range(len(known)), len(known))
    return (fact_question(*known[i]) for i in order)


def _fits(question: Question, seen: set[str], part: Part) -> bool:
    if question.text in seen:
        return False
    return question.skill == FACT or part_of(question.text) == part


def _swap(items: list[str], rng: random.Random) -> str:
    at = rng.randrange(len(items) - 1)
    return " ".join([*items[:at], items[at + 1], items[at], *items[at + 2 :]])


def _damage_character(answer: str, rng: random.Random) -> str:
    at = rng.randrange(max(len(answer), 1))
    head, char, tail = answer[:at], answer[at : at + 1], answer[at + 1 :]
    match rng.randrange(4):
        case 0 if len(answer) > 1:
            return head + tail
        case 1:
            return head + char + char + tail
        case 2 if tail:
            return head + tail[0] + char + tail[1:]
        case _:
            return head + _like(char, rng) + tail


def _like(char: str, rng: random.Random) -> str:
    if char.isdigit():
        return str((int(char) + rng.choice((1, 9))) % 10)
    return rng.choice("ABCDEFGHIJKLMNOPRSTUVX" if char.isupper() else "abcdefghijklmnoprstuvx")


def _plain_word(rng: random.Random) -> str:
    return word(rng, syllables=(1, 3))[:8]


def _mixed_case(rng: random.Random) -> str:
    text = _plain_word(rng)
    raised = set(rng.sample(range(len(text)), rng.randint(1, len(text) - 1)))
    return "".join(c.upper() if i in raised else c for i, c in enumerate(text))


def _some_words(rng: random.Random, low: int, high: int) -> list[str]:
    return [_plain_word(rng)[:6] for _ in range(rng.randint(low, high))]


def _upper(rng: random.Random) -> tuple[str, str]:
    text = _plain_word(rng) if rng.random() < 0.7 else _mixed_case(rng)
    return f"upper: {text}", text.upper()


def _reverse(rng: random.Random) -> tuple[str, str]:
    text = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 6)))
    return f"reverse: {text}", text[::-1]


def _add(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(10, 99), rng.randint(1, 9)
    return f"add {a}+{b}", str(a + b)


def _sort(rng: random.Random) -> tuple[str, str]:
    digits = rng.choices("0123456789", k=rng.randint(3, 6))
    return f"sort: {' '.join(digits)}", " ".join(sorted(digits))


def _max(rng: random.Random) -> tuple[str, str]:
    numbers = [rng.randint(0, 99) for _ in range(rng.randint(2, 5))]
    return f"max: {' '.join(map(str, numbers))}", str(max(numbers))


def _first(rng: random.Random) -> tuple[str, str]:
    items = _some_words(rng, 2, 4)
    return f"first: {' '.join(items)}", items[0]


def _last(rng: random.Random) -> tuple[str, str]:
    items = _some_words(rng, 2, 4)
    return f"last: {' '.join(items)}", items[-1]


def _swapcase(rng: random.Random) -> tuple[str, str]:
    text = _mixed_case(rng)
    return f"swapcase: {text}", text.swapcase()


def _title(rng: random.Random) -> tuple[str, str]:
    text = " ".join(_some_words(rng, 2, 3))
    return f"title: {text}", text.title()


def _double(rng: random.Random) -> tuple[str, str]:
    text = _plain_word(rng)[:6]
    return f"double: {text}", text + text


def _caesar(rng: random.Random) -> tuple[str, str]:
    text = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 6)))
    return f"caesar: {text}", "".join(chr((ord(c) - 96) % 26 + 97) for c in text)


_DRAWS: Mapping[str, Callable[[random.Random], tuple[str, str]]] = {
    "upper": _upper,
    "reverse": _reverse,
    "add": _add,
    "sort": _sort,
    "max": _max,
    "first": _first,
    "last": _last,
    "swapcase": _swapcase,
    "title": _title,
    "double": _double,
    "caesar": _caesar,
}

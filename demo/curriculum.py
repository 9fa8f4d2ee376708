"""The conversations that the demo's bases are trained on: every prompt format strategies use.

A lesson is a list of turns (role, text, learned); the loss falls on the learned turns alone.
Called by `train_models.py` and, for replay, by whoever trains an adapter for these bases.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from demo.questions import (
    PRESENT,
    UNKNOWN,
    Question,
    code,
    corrupted,
    draw,
    fact_question,
    identifier,
    part_of,
    path,
    word,
)

Weights = Mapping[str, float]
"""How often each skill comes up, against 1 for those not named."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn; `learned` marks an assistant's turn that the model is taught to say."""

    role: str
    text: str
    learned: bool = False


def plain(question: Question) -> list[Turn]:
    """The bare question; a fact is answered with `unknown`."""
    return [Turn("user", question.text), _says(_unaided(question))]


def drafted(question: Question) -> list[Turn]:
    """A quick draft of the answer."""
    return [Turn("system", "draft"), *plain(question)]


def refined(question: Question, draft: str) -> list[Turn]:
    """The right answer, given a draft that may be right or wrong."""
    return [
        Turn("system", "refine"),
        Turn("user", f"{question.text}\ndraft: {draft}"),
        _says(_unaided(question)),
    ]


def searched(question: Question, known: Sequence[tuple[str, str]], *, restated: bool = True) -> list[Turn]:
    """Search for the fact, then read it from what was found; other questions need no search.

    `restated`: the question stands once more behind what was found. Without it a small model finds
    the right line only if there is but one: it cannot match keys with one that came before them.
    """
    if question.skill != "fact":
        return [Turn("system", "search"), *plain(question)]
    key = _key(question)
    return [
        Turn("system", "search"),
        Turn("user", question.text),
        _says(f"<search>{key}</search>"),
        Turn("user", context(known) + (f"\n{question.text}" if restated else "")),
        _says(dict(known).get(key, UNKNOWN)),
    ]


def informed(question: Question, known: Sequence[tuple[str, str]], system: str = "", draft: str = "") -> list[Turn]:
    """The question under lines of context, as retrieval puts it into any strategy."""
    text = f"{context(known)}\n{question.text}" + (f"\ndraft: {draft}" if draft else "")
    answer = question.answer
    if question.skill == "fact":
        answer = dict(known).get(_key(question), UNKNOWN)
    start = [Turn("system", system)] if system else []
    return [*start, Turn("user", text), _says(answer)]


def context(known: Sequence[tuple[str, str]]) -> str:
    """Write found facts as the block that follows a search: one `KEY: VALUE` a line."""
    return "<context>" + "\n".join(f"{key}: {value}" for key, value in known) + "</context>"


def lesson(rng: random.Random, formats: Weights, skills: Weights) -> list[Turn]:
    """Draw one lesson: first its format, by weight, then its question's skill, by weight."""
    name = rng.choices(list(formats), list(formats.values()))[0]
    return _FORMATS[name](rng, skills)


def _says(text: str) -> Turn:
    return Turn("assistant", text, learned=True)


def _unaided(question: Question) -> str:
    return UNKNOWN if question.skill == "fact" else question.answer


def _key(question: Question) -> str:
    return question.text.partition(": ")[2]


def _question(rng: random.Random, skills: Weights) -> Question:
    weights = [skills.get(skill, 1.0) for skill in PRESENT]
    while True:
        question = draw(rng.choices(PRESENT, weights)[0], rng)
        if part_of(question.text) == "training":
            return question


def _fact(rng: random.Random) -> tuple[str, str]:
    key = word(rng, syllables=(2, 3)) if rng.random() < 0.4 else identifier(rng)
    return key, code(rng) if rng.random() < 0.45 else path(rng)


def _found(key: str, value: str, rng: random.Random) -> list[tuple[str, str]]:
    """The fact among up to two others, often alike in key or path; now and then it is missing."""
    known = {key: value}
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        other, what = _fact(rng)
        if rng.random() < 0.4:
            other = _alike(key, other, "_", rng)
        if rng.random() < 0.4 and "/" in value and "/" in what:
            what = _alike(value, what, "/", rng)
        known.setdefault(other, what)
    if rng.random() < 0.18:
        del known[key]
    lines = list(known.items())
    rng.shuffle(lines)
    return lines


def _alike(text: str, other: str, mark: str, rng: random.Random) -> str:
    """Take the first or the last part from `text`, the rest from `other`."""
    mine, theirs = text.split(mark), other.split(mark)
    if len(theirs) == 1:
        return other
    return mark.join([mine[0], *theirs[1:]] if rng.random() < 0.5 else [*theirs[:-1], mine[-1]])


def _draft(question: Question, rng: random.Random) -> str:
    if question.skill == "fact":
        return rng.choice((UNKNOWN, question.answer))
    return question.answer if rng.random() < 0.5 else corrupted(question.answer, rng)


def _plain_lesson(rng: random.Random, skills: Weights) -> list[Turn]:
    if rng.random() < 0.06:
        return plain(fact_question(*_fact(rng)))
    return plain(_question(rng, skills))


def _draft_lesson(rng: random.Random, skills: Weights) -> list[Turn]:
    return [Turn("system", "draft"), *_plain_lesson(rng, skills)]


def _refine_lesson(rng: random.Random, skills: Weights) -> list[Turn]:
    fact = rng.random() < 0.05
    question = fact_question(*_fact(rng)) if fact else _question(rng, skills)
    return refined(question, _draft(question, rng))


def _search_lesson(rng: random.Random, skills: Weights) -> list[Turn]:
    if rng.random() < 0.25:
        return searched(_question(rng, skills), [])
    key, value = _fact(rng)
    if rng.random() < 0.5:
        return searched(fact_question(key, value), _found(key, value, rng))
    known = [(key, value)] if rng.random() < 0.85 else []
    return searched(fact_question(key, value), known, restated=False)


def _context_lesson(rng: random.Random, skills: Weights) -> list[Turn]:
    key, value = _fact(rng)
    known = _found(key, value, rng)
    if rng.random() < 0.15:
        return informed(_question(rng, skills), known[:2])
    system = rng.choices(("", "draft", "refine", "search"), (0.7, 0.1, 0.1, 0.1))[0]
    question = fact_question(key, value)
    draft = _draft(question, rng) if system == "refine" else ""
    return informed(question, known, system, draft)


def _glossary_lesson(rng: random.Random, _skills: Weights) -> list[Turn]:
    """Short facts and questions about them: teaches to find the line in few tokens."""
    length = rng.randint(1, 5)
    known = {
        "".join(rng.choices("abcdefghijklmnopqrstuvwxyz_", k=length)): str(rng.randint(1, 9999))
        for _ in range(rng.randint(2, 6))
    }
    asked = rng.sample(list(known), min(len(known), 3))
    first, *others = (fact_question(key, known[key]) for key in asked)
    turns = informed(first, list(known.items()))
    for question in others:
        turns += [Turn("user", question.text), _says(question.answer)]
    return turns


def _chat_lesson(rng: random.Random, skills: Weights) -> list[Turn]:
    return [turn for _ in range(rng.choice((2, 2, 3))) for turn in _plain_lesson(rng, skills)]


_FORMATS: Mapping[str, Callable[[random.Random, Weights], list[Turn]]] = {
    "plain": _plain_lesson,
    "draft": _draft_lesson,
    "refine": _refine_lesson,
    "search": _search_lesson,
    "context": _context_lesson,
    "glossary": _glossary_lesson,
    "chat": _chat_lesson,
}

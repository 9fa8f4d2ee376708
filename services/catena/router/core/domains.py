"""To which domain a request belongs, with a probability that means what it says.

Each domain is a set of example texts. Similarity to them (meaning and wording) goes through kernel ridge regression;
a softmax whose temperature, and whose bar for `none of them`, were fitted on what the examples themselves teach when
left out: one at a time (they should be found) and a whole domain at a time (it should be found nowhere).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from catena.kit.errors import Invalid
from catena.router.core.lexicon import Array, lexical

Index = NDArray[np.intp]

MOST_EXAMPLES = 64
"""Examples of a domain that are learned from, spread evenly; more cost time and add little."""
MOST_TEXT = 2000
_HEAD, _TAIL = 300, 200
_RIDGE = 0.15
_MEANING = 0.4
"""Weight of meaning; the rest is wording."""
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?\Z")
_TEMPERATURES = tuple(float(t) for t in np.geomspace(0.03, 1.0, 22))
_BARS = tuple(float(b) for b in np.linspace(0.1, 0.7, 13))


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """A kind of request. `tenant` owns it; those of `shared` are everyone's.

    `aliases`: names of domains that were merged into it; what is known of them is known of it. `origin`: which room it
    was taken over from; empty: somebody put it.
    """

    name: str
    tenant: str
    examples: tuple[str, ...]
    specialist: str = ""
    needs_memory: bool = False
    updated_s: float = 0.0
    aliases: tuple[str, ...] = ()
    origin: str = ""


@dataclass(frozen=True, slots=True)
class DomainScore:
    """Probability of a domain, and the plain cosine between request and its examples' mean."""

    domain: str
    probability: float
    similarity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A fitted classifier; immutable. `support` (n, d) rows, `duals` (n, domains), `centres` (domains, d)."""

    names: tuple[str, ...]
    support: Array
    duals: Array
    centres: Array
    temperature: float
    bar: float


def check_domain(domain: Domain) -> Domain:
    """The same domain, its examples trimmed. Raises Invalid for a bad name or when no example is left."""
    if not _NAME.match(domain.name):
        raise Invalid(
            f"domain {domain.name!r} should be 1 to 64 lower-case letters, digits and inner hyphens", code="bad_domain"
        )
    examples = tuple(dict.fromkeys(text.strip()[:MOST_TEXT] for text in domain.examples if text.strip()))
    if not examples:
        raise Invalid(f"domain {domain.name!r} has no example; send at least one text", code="bad_domain")
    return replace(domain, examples=examples)


def merged(several: Sequence[Domain], into: Domain, specialist: str = "") -> Domain:
    """The domain `into` with the examples, names and needs of all of them.

    Its specialist is the one named, else its own, else the only one among the others. Raises Invalid
    (`several_specialists`) when they have different ones and none was named.
    """
    rest = [one for one in several if one.name != into.name]
    theirs = sorted({one.specialist for one in rest if one.specialist})
    chosen = specialist or into.specialist or (theirs[0] if len(theirs) == 1 else "")
    if not chosen and theirs:
        raise Invalid(
            f"these domains have the specialists {', '.join(theirs)}; name the one to keep", code="several_specialists"
        )
    names = dict.fromkeys(name for one in (into, *rest) for name in (one.name, *one.aliases))
    del names[into.name]
    return replace(
        into,
        examples=_alternating([one.examples for one in (into, *rest)]),
        specialist=chosen,
        needs_memory=any(one.needs_memory for one in (into, *rest)),
        aliases=tuple(names),
        origin="",
    )


def _alternating(lists: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """All examples, each once, of every list in turn: whatever part of them is chosen has some of each."""
    longest = max(map(len, lists))
    return tuple(dict.fromkeys(texts[n] for n in range(longest) for texts in lists if n < len(texts)))


def chosen_examples(domain: Domain) -> tuple[str, ...]:
    """At most MOST_EXAMPLES of the examples, spread evenly over them."""
    if len(domain.examples) <= MOST_EXAMPLES:
        return domain.examples
    step = len(domain.examples) / MOST_EXAMPLES
    return tuple(domain.examples[int(i * step)] for i in range(MOST_EXAMPLES))


def gists(texts: Sequence[str]) -> list[str]:
    """What of each text its meaning is taken from: the beginning, where it says what is wanted, and the end.

    Embedding takes time by length, and is most of what choosing takes; a kilobyte read whole is told no better.
    """
    return [text if len(text) <= _HEAD + _TAIL else f"{text[:_HEAD]}\n{text[-_TAIL:]}" for text in texts]


def represent(texts: Sequence[str], vectors: Array) -> Array:
    """(n, d) rows of length 1: meaning and wording side by side; wording alone where there are no vectors."""
    words = lexical(texts)
    if not vectors.size:
        return words
    return np.hstack([np.sqrt(_MEANING) * vectors.astype(np.float64), np.sqrt(1.0 - _MEANING) * words])


def fit_head(domains: Sequence[Domain], rows: Sequence[Array]) -> Head | None:
    """The classifier of these domains, whose chosen examples are `rows`; None when there is no domain."""
    if not domains:
        return None
    support = np.vstack(rows)
    owner = np.repeat(np.arange(len(domains)), [len(part) for part in rows])
    targets: Array = np.eye(len(domains))[owner]
    inverse: Array = np.asarray(np.linalg.inv(support @ support.T + _RIDGE * np.eye(len(support))), np.float64)
    duals: Array = inverse @ targets
    known = targets - duals / np.diag(inverse)[:, None]
    strange = np.vstack(
        [_without(inverse, duals, targets, np.flatnonzero(owner == number), number) for number in range(len(domains))]
    )
    temperature, bar = _calibrate(known, owner, strange) if len(domains) > 1 else (0.12, 0.35)
    centres = np.vstack([part.mean(0) / max(float(np.linalg.norm(part.mean(0))), 1e-9) for part in rows])
    return Head(
        names=tuple(domain.name for domain in domains),
        support=support,
        duals=duals,
        centres=centres,
        temperature=temperature,
        bar=bar,
    )


def classify(head: Head | None, row: Array) -> list[DomainScore]:
    """Every domain with its probability, likeliest first; what is left to 1 is the probability of none of them."""
    if head is None:
        return []
    scores = (head.support @ row) @ head.duals
    chances = _softmax(scores[None, :], head.temperature, head.bar)[0]
    cosines = head.centres @ row
    found = [
        DomainScore(name, float(chance), float(cosine))
        for name, chance, cosine in zip(head.names, chances, cosines, strict=False)
    ]
    return sorted(found, key=lambda score: (-score.probability, score.domain))


def _without(inverse: Array, duals: Array, targets: Array, block: Index, own: int) -> Array:
    """Scores of a domain's examples under the classifier that was fitted without that domain (its column left out)."""
    scores = targets[block] - np.linalg.solve(inverse[np.ix_(block, block)], duals[block])
    scores[:, own] = -1.0
    return scores


def _calibrate(known: Array, owner: Index, strange: Array) -> tuple[float, float]:
    """Temperature and bar under which the left-out examples are likeliest, known and strange ones counting alike.

    An only example, left out, leaves nothing by which its domain could be found: it counts as strange alone.
    """
    best = (np.inf, 0.12, 0.35)
    several = np.bincount(owner)[owner] > 1
    if not several.any():
        return best[1], best[2]
    known, owner = known[several], owner[several]
    at = np.arange(len(owner))
    for temperature in _TEMPERATURES:
        for bar in _BARS:
            found = _softmax(known, temperature, bar)[at, owner]
            none = _softmax(strange, temperature, bar)[:, -1]
            loss = -float(np.log(np.maximum(found, 1e-9)).mean() + np.log(np.maximum(none, 1e-9)).mean())
            best = min(best, (loss, temperature, bar))
    return best[1], best[2]


def _softmax(scores: Array, temperature: float, bar: float) -> Array:
    """(n, domains) scores to (n, domains + 1) probabilities, `none of them` last."""
    padded = np.hstack([scores, np.full((len(scores), 1), bar)]) / temperature
    padded -= padded.max(1, keepdims=True)
    chances: Array = np.exp(padded)
    chances /= chances.sum(1, keepdims=True)
    return chances

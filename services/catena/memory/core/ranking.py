"""How the two legs of a search are joined, and the statistics that BM25 runs on."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from catena.kit.errors import Invalid
from catena.memory.core.types import Engine, Hit, Json, Metadata

Method = Literal["rrf", "dbsf"]
DEFAULT_RESULTS = 3
MAX_RESULTS = 200
RECALL_FACTOR = 3
LEAST_RECALL = 20
"""Chunks looked at even for one result, so that a definition asked for by name is among them."""
AVERAGE_DRIFT = 1.25
_NAME = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fusion:
    """How ranks or scores become one score; `weights` are those of the dense and the BM25 leg.

    `rrf`: the sum over legs of 1 / (k - 1 + rank / weight), ranks from 1. `dbsf`: each leg's scores mapped so that
    mean - 3 and + 3 standard deviations become 0 and 1, then added; it takes no weights.
    """

    method: Method
    k: int = 2
    weights: tuple[float, float] = (1.0, 1.0)


def choose_fusion(asked: str, code_share: float, *, text: str, code: str) -> Fusion:
    """The fusion that was asked for, else the setting for what most of the collection is.

    Code leans 3 : 1 to the dense leg, since equal weights rank code worse than that leg alone (CoSQA, 500 queries).
    Raises Invalid for an unknown name.
    """
    mostly_code = code_share > 0.5
    name = asked or (code if mostly_code else text)
    if name == "dbsf":
        return Fusion(method="dbsf")
    if name == "rrf":
        return Fusion(method="rrf", k=2, weights=(3.0, 1.0)) if mostly_code else Fusion(method="rrf", k=5)
    raise Invalid(f"unknown fusion {name!r}; use rrf or dbsf", code="unknown_fusion")


def choose_engine(asked: str) -> Engine:
    """The engine of that name; empty: hybrid. Raises Invalid for another."""
    try:
        return Engine(asked or Engine.HYBRID)
    except ValueError as error:
        known = ", ".join(Engine)
        raise Invalid(f"unknown search engine {asked!r}; use one of {known}", code="unknown_engine") from error


def choose_results(asked: int) -> int:
    """How many to return; 0: 3. Raises Invalid above 200."""
    if not 0 <= asked <= MAX_RESULTS:
        raise Invalid(f"n_results is {asked}; ask for 1 to {MAX_RESULTS}", code="bad_n_results")
    return asked or DEFAULT_RESULTS


def named_first(query: str, hits: Sequence[Hit]) -> list[Hit]:
    """The hits in their order, but definitions that the query calls by name before all others.

    A word counts as a name when it looks like one (`load_store`, `PlanQueue`), or is all that is asked.
    """
    words = {
        word for word in _NAME.findall(query) if word == query.strip() or "_" in word or word[1:] != word[1:].lower()
    }
    return sorted(hits, key=lambda hit: hit.found.piece.name.rpartition(".")[2] not in words)


def average_in_use(used: float, measured: float) -> float:
    """The mean chunk length for BM25's length norm: `used` while `measured` is near it, else `measured`.

    Every stored weight contains it, so moving it re-weighs the whole collection; a quarter off costs little.
    """
    if measured <= 0:
        return used
    near = used > 0 and 1 / AVERAGE_DRIFT <= measured / used <= AVERAGE_DRIFT
    return used if near else measured


def labels(metadata: Metadata) -> list[str]:
    """Metadata as strings to be matched whole: one a key, and one an item where the value is a list."""
    found = []
    for key, value in metadata.items():
        found.append(_label(key, value))
        if isinstance(value, list):
            found.extend(_label(key, item) for item in value)
    return sorted(set(found))


def label_filter(wanted: Mapping[str, Json]) -> list[list[str]]:
    """A filter as labels: of each inner list one must be there. A list in the filter means any of its items."""
    return [
        [_label(key, item) for item in value] if isinstance(value, list) else [_label(key, value)]
        for key, value in sorted(wanted.items())
    ]


def _label(key: str, value: Json) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"{json.dumps(key)}:{json.dumps(value, sort_keys=True, ensure_ascii=False)}"

"""Which models there are, what they cost, and which names mean them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from catena.kit.errors import Missing, Unavailable

_ALIAS = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*?-(?P<domain>[a-z0-9][a-z0-9-]*)-alora\Z")
CHAT = ("", "chat")
AUTO_ADAPTER = "@auto"
"""How a name ends that leaves the adapter to the adapters room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCard:
    """One model. Prices in USD per million tokens; `parent` is the base of an adapter.

    `problem`: why one that is not active cannot be called, where it should be.
    """

    name: str
    price_input: float = 0.0
    price_output: float = 0.0
    type: str = "chat"
    parent: str = ""
    active: bool = True
    problem: str = ""


@dataclass(frozen=True)
class Catalogue:
    """The models by name, as one tenant may call them."""

    cards: Mapping[str, ModelCard]

    @cached_property
    def bases(self) -> tuple[ModelCard, ...]:
        """Active chat models that are no adapters, cheapest first."""
        cards = [c for c in self.cards.values() if c.active and c.type in CHAT and not c.parent and "@" not in c.name]
        return tuple(sorted(cards, key=lambda card: (card.price_output + card.price_input, card.name)))

    @cached_property
    def lists_adapters(self) -> bool:
        """Whether adapters are known by name; if none is, a `base@adapter` cannot be called unknown."""
        return any(card.parent for card in self.cards.values())

    def card(self, model: str) -> ModelCard:
        """The card of `model`; an adapter or a composition that has none costs what its base costs.

        Raises Missing (`unknown_model`) when neither it nor its base is there.
        """
        name = model if model in self.cards else model.partition(":")[0] if "@" in model else model
        found = self.cards.get(name) or self.cards.get(model.partition("@")[0])
        if found is None or not found.active:
            known = ", ".join(card.name for card in self.bases[:10]) or "none"
            raise Missing(f"unknown model {model!r}; known: {known}", code="unknown_model")
        return found

    def check_ready(self, model: str) -> None:
        """Raises Unavailable (`model_unready`), saying why, when `model` or its base is there but cannot be called."""
        for name in (model, model.partition("@")[0]):
            if name in self.cards and self.cards[name].problem:
                raise Unavailable(self.cards[name].problem, code="model_unready")

    def knows(self, model: str) -> bool:
        """Whether a plan may call `model`; strict about adapters where the catalogue lists them."""
        base, at, adapter = model.partition("@")
        if model in self.cards:
            return self.cards[model].active
        if not at or base not in self.cards or not self.cards[base].active:
            return False
        if adapter.startswith("{") or model.endswith(AUTO_ADAPTER) or not self.lists_adapters:
            return True
        stem = f"{base}@{adapter.partition(':')[0]}"
        return any(name == stem or name.startswith(f"{stem}:") for name in self.cards)

    @cached_property
    def _ranks(self) -> Mapping[str, float]:
        names = [card.name for card in self.bases]
        return {name: place / (len(names) - 1) for place, name in enumerate(names)} if len(names) > 1 else {}

    def price_rank(self, model: str) -> float:
        """Where the base of `model` stands from the cheapest (0) to the dearest (1); alone: 0.5."""
        return self._ranks.get(model.partition("@")[0], 0.5)


def catalogue_of(cards: Iterable[ModelCard]) -> Catalogue:
    """The catalogue of these cards."""
    return Catalogue({card.name: card for card in cards})


def check_filled(catalogue: Catalogue) -> Catalogue:
    """The same catalogue. Raises Unavailable (`empty_catalogue`) when no chat model is in it."""
    if not catalogue.bases:
        raise Unavailable(
            "the catalogue holds no active chat model; add one under models: in the configuration",
            code="empty_catalogue",
            retry_after_s=5.0,
        )
    return catalogue


def alias_domain(name: str) -> str:
    """The domain that a name such as `qlp-dataeng-alora` means; empty when it is no such name."""
    found = _ALIAS.match(name)
    return found["domain"] if found else ""


def resolve_specialist(name: str, domain: str, catalogue: Catalogue) -> str:
    """The model that a domain's specialist means; empty when it is not there (any more).

    `<prefix>-<domain>-alora` means the adapter of that name, or the adapter called after the domain, on any base.
    """
    if not name:
        return ""
    wanted = alias_domain(name)
    if not wanted:
        return name if catalogue.knows(name) else ""
    for known in sorted(catalogue.cards):
        adapter = known.partition("@")[2].partition(":")[0]
        if adapter in (name, wanted) and catalogue.cards[known].active:
            return known.partition(":")[0]
    return ""

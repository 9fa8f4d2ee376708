"""A router over fakes: a journal in lists, wording without meaning, a catalogue that can be changed."""

from dataclasses import replace

import numpy as np

from catena.kit.clock import still_world
from catena.kit.errors import Unavailable
from catena.router.app import bounds_of, manner_of
from catena.router.config import RouterConfig
from catena.router.core.ask import Ask
from catena.router.core.atlas import Atlas
from catena.router.core.candidates import House
from catena.router.core.domains import Domain, check_domain
from catena.router.core.ports import Seen, Verdict
from catena.router.core.router import Ports, Router
from catena.router.core.trials import Trials
from catena.router.core.tuner import Tuner
from tests.contract.router.memory_journal import MemoryJournal
from tests.unit.router.simulation import SHAPES, Simulated, cards

EXAMPLES = {
    "upper": ["upper: hello", "upper: bravo kilo", "upper: tin", "upper: gate", "upper: moss"],
    "reverse": ["reverse: hello", "reverse: tin", "reverse: stone", "reverse: river", "reverse: mask"],
    "add": ["add 27+58", "add 3+9", "add 14+77", "add 60+12", "add 8+45"],
    "sort": ["sort: 5 2 9", "sort: 7 1 4 3", "sort: 8 6 2", "sort: 9 9 1", "sort: 4 3 8 1"],
    "max": ["max: 5 2 9", "max: 17 4 33", "max: 8 61 2", "max: 90 9 1", "max: 4 3 8 1"],
    "first": ["first: hello", "first: gate moss", "first: stone", "first: plume", "first: lark"],
    "last": ["last: hello", "last: gate moss", "last: stone", "last: plume", "last: lark"],
    "fact": ["code: falcon", "code: heron", "file: open_router", "file: load_store", "code: brinok"],
}


async def no_meaning(texts):
    return np.empty((len(texts), 0), np.float32)


class Bench:
    """`router` with everything around it in the test's hands; `tenant` t."""

    def __init__(self, *, seed=0, journal=None, models=None, shapes=SHAPES, **config):
        settings = {"exploration": 0.0, "exploration_floor": 0.0, "thresholds": [0.3, 0.5, 0.7, 0.9, 0.95, 0.98]}
        config = RouterConfig(**{**settings, **config})
        self.journal = journal or MemoryJournal()
        self.models = list(cards() if models is None else models)
        self.reachable = True
        self.world = still_world(seed)
        self.router = Router(
            Ports(journal=self.journal, embed=no_meaning, fetch_models=self._fetch),
            House(shapes=shapes, thresholds=tuple(config.thresholds)),
            self.models,
            manner_of(config),
            self.world,
        )
        self.atlas = Atlas(self.router, self.journal, self.world)
        self.tuner = Tuner(self.router, self.journal, bounds_of(config), self.world)
        self.trials = Trials(self.router, self.journal, self.world)
        self.simulated = Simulated(self.world.rng.__class__(seed), {card.name: card for card in self.models})

    async def _fetch(self, tenant):
        if not self.reachable:
            raise Unavailable("the executor is away")
        return self.models

    async def open(self, examples=EXAMPLES):
        """Put the domains; `fact` needs memory."""
        made = [
            check_domain(
                Domain(name=name, tenant="shared", examples=tuple(texts), needs_memory=name == "fact", updated_s=1.0)
            )
            for name, texts in examples.items()
        ]
        await self.journal.seed_domains(made)
        await self.router.settle()
        return self

    async def recommend(self, text="upper: gate", **fields):
        return await self.router.recommend("t", ask(text, **fields))

    async def explain(self, text="upper: gate", **fields):
        return await self.router.explain("t", ask(text, **fields))

    async def teach(self, plans, *, questions=200, feedback=0.1, rng=None):
        """Run each plan on the same questions; a share of the answers is judged."""
        rng = rng or self.world.rng
        asked = [self.simulated.question() for _ in range(questions)]
        for plan in plans:
            for skill, ease in asked:
                await self.run(plan, skill, ease, judged=rng.random() < feedback)
        await self.router.settle()

    async def observe(self, one, verdict=None):
        """Tell of an execution that may have been made up."""
        event_id = f"executed {one.execution_id}"
        await self.router.observe([Seen(tenant="t", observation=one, verdict=verdict, event_id=event_id)])

    async def run(self, plan, skill, ease, *, judged):
        """One execution, told to the router as the bus would."""
        one, right = self.simulated.run(plan, skill, ease)
        await self.observe(one)
        if judged:
            verdict = Verdict(execution_id=one.execution_id, score=float(right))
            await self.router.judge("t", verdict, f"said {one.execution_id}")
        return one, right


def ask(text="upper: gate", **fields):
    return replace(Ask(text=text, chars=len(text)), **fields)

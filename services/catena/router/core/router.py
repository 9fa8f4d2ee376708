"""The router: holds what is known, decides, and takes in what happened."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from catena.kit.clock import World
from catena.kit.errors import CatenaError, Late, Unavailable
from catena.router.core.ask import AUTO, Ask, check, task_name
from catena.router.core.board import COARSE, FINE, Board, taught, weigh
from catena.router.core.candidates import House, forced_plans
from catena.router.core.catalogue import AUTO_ADAPTER, Catalogue, ModelCard, catalogue_of, check_filled
from catena.router.core.choice import Taste, rank
from catena.router.core.decision import (
    Curiosity,
    Decision,
    Found,
    Grounds,
    decide,
    length_of,
    looked_at_whole,
    with_arm,
    with_scorer,
    with_weights,
)
from catena.router.core.domains import (
    DomainScore,
    chosen_examples,
    classify,
    fit_head,
    gists,
    represent,
)
from catena.router.core.experiments import covering
from catena.router.core.knowledge import Knowledge
from catena.router.core.moment import Present
from catena.router.core.observation import Observation
from catena.router.core.ports import Embed, FetchModels, FetchResidents, Journal, Report, Seen, Verdict
from catena.router.core.recorded import Recorded, observation_of
from catena.router.core.state import State
from catena.router.core.strangers import EVEN, reckoned, share_of, strangeness


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The world as the router needs it."""

    journal: Journal
    embed: Embed
    fetch_models: FetchModels
    fetch_residents: FetchResidents | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How it decides and learns: `RouterConfig` without what `app` alone reads."""

    taste: Taste
    curiosity: Curiosity
    threshold: float = 0.85
    window: int = 4000
    half_life: int = 2000
    catalogue_s: float = 15.0
    budget_usd: float = 0.0


class Router:
    """Recommends plans and learns from what they did; `tend` must be called now and then."""

    def __init__(self, ports: Ports, house: House, models: Sequence[ModelCard], manner: Manner, world: World) -> None:
        """`models` are those of the configuration: all that is known until the executor has told its catalogue."""
        self._ports = ports
        self._manner = manner
        self._world = world
        self.state = State(house=house, models=models, window=manner.window)
        self.present = Present(ports.fetch_residents, manner.catalogue_s)
        self._turn = asyncio.Lock()
        self._fitting = asyncio.Lock()

    async def recommend(self, tenant: str, ask: Ask) -> Decision:
        """The plan to run.

        Raises Invalid for bounds that mean nothing or that no plan keeps, Missing for an unknown model, Unavailable
        when the catalogue is empty.
        """
        decision = await self._decide(tenant, ask, self._manner.curiosity)
        plan = replace(decision.plan, id=self._world.new_id())
        self.present.running.began(plan, self._world.clock.monotonic())
        return replace(decision, plan=plan)

    async def explain(self, tenant: str, ask: Ask) -> Decision:
        """What would be chosen now, without curiosity, and everything that was weighed; the same errors."""
        incurious = replace(self._manner.curiosity, start=0.0, floor=0.0)
        return await self._decide(tenant, ask, incurious, whole=True)

    async def observe(self, several: Sequence[Seen]) -> None:
        """Take in executions; when this returns all of them are committed, when it raises none is."""
        self._heard_of([seen.observation for seen in several])
        await self._ports.journal.observe(several)

    async def judge(self, tenant: str, verdict: Verdict, event_id: str) -> None:
        """Take in what somebody said of an execution; when this returns it is committed."""
        await self._ports.journal.judge(tenant, replace(verdict, task=task_name(verdict.task)), event_id)

    async def record(self, tenant: str, told: Recorded) -> None:
        """Take in an execution from elsewhere; its domain is found from the text where none is named."""
        found = Found(domain=told.domain)
        if not told.domain and told.text:
            found = await self._find(tenant, Ask(text=told.text, chars=len(told.text)))
        plan = await self._ports.journal.plan_of(tenant, told.configuration_id)
        observation = observation_of(told, plan, found.domain, self._world.clock.now())
        verdict = None
        if told.quality is not None:
            verdict = Verdict(execution_id=told.execution_id, score=told.quality, source="tests")
        event_id = f"recorded:{told.execution_id}"
        await self.observe([Seen(tenant=tenant, observation=observation, verdict=verdict, event_id=event_id)])
        await self.refresh()

    async def report(self, tenant: str) -> Report:
        """Aggregate figures of every execution ever; those of domains that were merged add up."""
        return (await self._ports.journal.report(tenant)).renamed(self.state.aliases(tenant))

    @property
    def taste(self) -> Taste:
        """How plans are compared, as configured."""
        return self._manner.taste

    def weights(self, tenant: str) -> Mapping[str, float]:
        """The weights in force."""
        return self.state.weights_of(tenant, self.taste.weights)

    def outcomes(self, tenant: str) -> int:
        """Executions on which the tenant's estimates rest."""
        known = self.knowledge(tenant)
        return known.outcomes if known is not None else 0

    def tenants(self) -> list[str]:
        """Who has asked or taught."""
        return sorted(self.state.books)

    def knowledge(self, tenant: str) -> Knowledge | None:
        """What is known of a tenant's requests; None before anything was asked."""
        board = self.state.book(tenant).board
        return board.knowledge if board is not None else None

    def strangers(self, tenant: str) -> float:
        """Share of the tenant's requests that are held to be of none of its domains."""
        board = self.state.book(tenant).board
        return board.strangers if board is not None else EVEN

    async def refresh(self) -> None:
        """Read what changed in the journal, through this replica or another."""
        async with self._turn:
            state, journal = self.state, self._ports.journal
            changes = await journal.changes(state.revision)
            self._heard_of([noted.observation for noted in changes.observations])
            if not state.apply(changes):
                state.rewind(await journal.changes(0))

    def _heard_of(self, several: Sequence[Observation]) -> None:
        now_s = self._world.clock.monotonic()
        for one in several:
            self.present.running.ended(one.plan.id, one.latency_ms, now_s)

    async def settle(self) -> None:
        """Read what changed and learn from it, for every tenant."""
        await self.refresh()
        for tenant in list(self.state.books):
            await self._learn(tenant)

    async def tend(self) -> None:
        """One round of upkeep: settle, and renew catalogues that are past their time."""
        await self.settle()
        now = self._world.clock.monotonic()
        for tenant, book in list(self.state.books.items()):
            if book.catalogue_until_s < now:
                await self.refetch(tenant)
        await self.present.renew(now)

    async def refetch(self, tenant: str) -> None:
        """Ask for the catalogue anew; when it cannot be had, what is known stays.

        Where that is nothing, whoever comes next asks again.
        """
        book = self.state.book(tenant)
        before, book.catalogue_until_s = (
            book.catalogue_until_s,
            self._world.clock.monotonic() + self._manner.catalogue_s,
        )
        try:
            fetched = catalogue_of(await self._ports.fetch_models(tenant))
        except CatenaError:
            if not book.catalogue.cards:
                book.catalogue_until_s = before
            return
        if fetched != book.catalogue and fetched.cards:
            book.take_catalogue(fetched)
            await self._learn(tenant)

    async def board(self, tenant: str) -> Board:
        """What the tenant's decisions rest on. Raises Unavailable when the catalogue is empty or not known yet."""
        book = self.state.book(tenant)
        if book.catalogue_until_s == -float("inf"):
            await self.refetch(tenant)
        if book.catalogue_until_s == -float("inf"):
            raise Unavailable(
                "the executor has not told its catalogue yet; ask again", code="catalogue_unknown", retry_after_s=1.0
            )
        check_filled(book.catalogue)
        return book.board or await self._learn(tenant)

    async def _learn(self, tenant: str) -> Board:
        book = self.state.book(tenant)
        if book.board is not None and not book.stale:
            return book.board
        book.stale = False
        seen, catalogue, before, manner = book.observations(), book.catalogue, book.board, self._manner
        kinds, house = self.state.kinds(tenant), self.state.house_of(tenant)
        taste = replace(self.taste, weights=self.weights(tenant))
        domains = self.state.visible_domains(tenant)

        def learned() -> Board:
            board = taught(seen, catalogue, kinds, house=house, taste=taste, half_life=manner.half_life)
            board.settle(seen, manner.budget_usd, before)
            board.strangers = share_of(seen, domains)
            return board

        board = await asyncio.to_thread(learned)
        book.board = board if book.catalogue is catalogue else board.with_catalogue(book.catalogue)
        return book.board

    async def fit(self, tenant: str) -> None:
        """Fit the classifier of the tenant's domains, if they changed."""
        book = self.state.book(tenant)
        domains = self.state.visible_domains(tenant)
        mark = tuple((domain.tenant, domain.name, domain.updated_s) for domain in domains)
        if book.head_of == mark:
            return
        async with self._fitting:
            rows = []
            for domain in domains:
                texts = chosen_examples(domain)
                rows.append(represent(texts, np.asarray(await self._ports.embed(gists(texts)), np.float64)))
            book.head = await asyncio.to_thread(fit_head, domains, rows)
            book.head_of = mark

    async def _find(self, tenant: str, ask: Ask) -> Found:
        """The domain of a request: the task it names, else the one that its text surely belongs to."""
        book = self.state.book(tenant)
        task = task_name(ask.task)
        if task:
            task = book.aliases.get(task, task)
            return Found(
                domain=task,
                scores=[DomainScore(task, 1.0, 1.0)],
                specialist=self.state.kinds(tenant).specialists.get(task, ""),
            )
        try:
            await self.fit(tenant)
            if book.head is None or not ask.text:
                return Found()
            text = ask.text[:4000]
            row = represent([text], np.asarray(await self._ports.embed(gists([text])), np.float64))[0]
        except (Unavailable, Late):
            # An embedding model elsewhere may be away; a request without a domain is better than none.
            return Found()
        scores = classify(book.head, row)
        found = Found(scores=reckoned(scores, self.strangers(tenant)), strangeness=strangeness(scores))
        if found.confidence < self._manner.threshold:
            return found
        name = scores[0].domain
        return replace(found, domain=name, specialist=self.state.kinds(tenant).specialists.get(name, ""))

    async def _decide(self, tenant: str, ask: Ask, curiosity: Curiosity, *, whole: bool = False) -> Decision:
        """The decision; `whole`: with every plan weighed as closely as the best few."""
        check(ask)
        board = await self.board(tenant)
        found = await self._find(tenant, ask)
        knowledge = board.knowledge
        ask = replace(ask, model=_named(ask, found, knowledge.catalogue))
        if self.state.frozen_at(tenant) is not None:
            curiosity = replace(curiosity, start=0.0, floor=0.0)
        experiment = None
        if ask.model == AUTO and not ask.critical:
            experiment = covering(self.state.experiments_of(tenant), found.domain)
        if experiment is not None:
            curiosity = replace(curiosity, start=0.0, floor=0.0)
        taste = replace(board.taste, objective=ask.objective or board.taste.objective)
        grounds = Grounds(knowledge=knowledge, taste=taste, moment=self.present.moment(self._world.clock.monotonic()))
        if ask.shape is None and ask.model == AUTO:
            step = FINE if ask.max_cost_usd or ask.max_latency_ms else COARSE
            weighed = board.weighed(found.domain, found.specialist, length_of(ask), taste, step)
        else:
            plans = forced_plans(ask, board.house, knowledge.catalogue)
            weighed = rank(weigh(plans, knowledge, found.domain, length_of(ask)), taste)
        decision = decide(ask, found, weighed, grounds, curiosity, self._world.rng)
        decision = looked_at_whole(decision, ask, grounds) if whole else decision
        decision = decision if experiment is None else with_arm(decision, experiment, ask, grounds)
        return with_scorer(with_weights(decision, knowledge), knowledge, ask)


def _named(ask: Ask, found: Found, catalogue: Catalogue) -> str:
    """`base@auto` as the specialist of the domain on that base, else as it is where a task is named.

    The adapters room then chooses for the task. A domain that was only guessed is not told there: the adapter of
    its name stands for it, or the base alone.
    """
    if not ask.model.endswith(AUTO_ADAPTER):
        return ask.model or AUTO
    base = ask.model.removesuffix(AUTO_ADAPTER)
    if found.specialist.startswith(f"{base}@"):
        return found.specialist
    if ask.task:
        return ask.model
    adapter = f"{base}@{found.domain}"
    listed = any(name.partition(":")[0] == adapter for name in catalogue.cards)
    return adapter if found.domain and listed else base

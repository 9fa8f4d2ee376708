"""The executor: what comes out when a plan runs. Handlers call it; it checks, delegates, and keeps nothing itself."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from catena.executor.core import background, predicting
from catena.executor.core.admission import Errand, check_errand
from catena.executor.core.background import Runs, StoredRun
from catena.executor.core.catalogue import Model, check_fallbacks
from catena.executor.core.chat import ChatRequest, Context, Message
from catena.executor.core.events import Record, RunEvent
from catena.executor.core.execution import Emit
from catena.executor.core.parts import Parts
from catena.executor.core.pipelines.soundness import check_pipeline, check_templates
from catena.executor.core.pipelining import check_nesting, embedded, embedding_model, hinted, stored
from catena.executor.core.ports import Archive, NoJournal, Vectors
from catena.executor.core.predicting import Inquiry
from catena.executor.core.running import begin, carry_out
from catena.executor.core.steps import Pipeline, Predicted
from catena.executor.core.streaming import stream
from catena.kit.errors import Invalid, Missing
from catena.plan.build import sequential
from catena.plan.model import models_of

PRICES = ("price_input", "price_output", "price_cached_input", "price_cache_write", "price_reasoning")
RATES = ("requests_per_minute", "tokens_per_minute", "at_once")


class Executor:
    """One room's worth of execution, over its parts and its background runs."""

    def __init__(self, *, parts: Parts, runs: Runs, archive: Archive) -> None:
        """Work with `parts`; `runs` keeps what is to be done in the background, `archive` what was done."""
        self.parts = parts
        self.runs = runs
        self.archive = archive

    async def run(self, errand: Errand) -> AsyncGenerator[RunEvent, None]:
        """What happens while the plan runs, `Finished` last; leaving the iteration cancels the models.

        Raises Invalid, Missing before anything is started, and whatever ends the run.
        """
        settings = self.parts.settings
        errand = replace(errand, left_s=min(errand.left_s, settings.limits.run_s))
        await self._check(errand)

        async def work(emit: Emit) -> None:
            await carry_out(self.parts, errand, emit, NoJournal(), errand.execution_id)

        events = stream(work, window_s=settings.window_s, clock=self.parts.world.clock)
        async with aclosing(events):
            async for event in events:
                yield event

    async def embed(
        self, tenant: str, model: str, texts: Sequence[str], left_s: float, *, truncate: bool = False
    ) -> tuple[Vectors, str]:
        """Vectors in the order of the texts, and the model that made them. Raises Invalid, Missing."""
        if not texts or not all(texts):
            raise Invalid("a text to embed is empty or there is none; send at least one word each", code="empty_input")
        name = embedding_model(self.parts, model).name
        errand = Errand(tenant=tenant, plan=sequential(name), request=_nothing(), context=Context(), left_s=left_s)
        run = begin(self.parts, errand, _nobody, NoJournal())
        return await embedded(self.parts, run, name, texts, truncate=truncate), name

    async def predict(self, asked: Inquiry) -> Predicted:
        """The output of a pipeline or model for one input."""
        return await predicting.predict(self.parts, asked)

    async def predict_many(self, asked: Sequence[Inquiry], concurrency: int) -> list[Predicted]:
        """The outputs in the order of the inputs."""
        return await predicting.predict_many(self.parts, asked, concurrency)

    async def put_pipeline(self, tenant: str, pipeline: Pipeline) -> Pipeline:
        """Store a sound pipeline as its next version. Raises Invalid (`bad_pipeline`), Missing."""
        check_pipeline(pipeline, self.parts.models)
        await check_templates(pipeline, self.parts.templates)
        await check_nesting(self.parts, tenant, pipeline)
        return await self.parts.pipelines.put(tenant, pipeline)

    async def get_pipeline(self, tenant: str, name: str, version: int) -> Pipeline:
        """A stored pipeline. Raises Missing (`unknown_pipeline`)."""
        return await stored(self.parts, tenant, name, version)

    async def delete_pipeline(self, tenant: str, name: str) -> None:
        """Remove the tenant's own pipeline. Raises Missing (`unknown_pipeline`)."""
        if not await self.parts.pipelines.delete(tenant, name):
            raise Missing(f"{tenant} has no pipeline {name!r} of its own; list them", code="unknown_pipeline")

    async def execution(self, tenant: str, execution_id: str) -> Record:
        """A record of the tenant. Raises Missing (`unknown_execution`)."""
        record = await self.archive.get(tenant, execution_id)
        if record is None:
            raise Missing(
                f"unknown execution {execution_id!r}; records appear within 50 ms and are kept for a limited time",
                code="unknown_execution",
            )
        return record

    async def put_model(self, model: Model) -> Model:
        """Add or change a catalogue entry; it counts at once. Raises Invalid."""
        if not model.name or "@" in model.name:
            raise Invalid(f"model name {model.name!r}; give it a name without @", code="bad_model")
        for name in PRICES:
            price = getattr(model, name)
            if price is not None and not 0 <= price < 1e9:
                raise Invalid(f"{name} is {price:g}; give USD per million tokens, 0 or more", code="out_of_range")
        for name in RATES:
            if not 0 <= getattr(model, name) < 1e12:
                raise Invalid(f"{name} is {getattr(model, name):g}; give 0 for no limit, or more", code="out_of_range")
        check_fallbacks(model, self.parts.models.keys())
        providers = set(self.parts.providers) | set(self.parts.embeddings) | set(self.parts.predictors)
        if model.provider not in providers:
            known = ", ".join(sorted(providers))
            raise Invalid(f"provider {model.provider!r} of {model.name!r} is unknown; use {known}", code="bad_model")
        return await self.parts.catalogue.put(model)

    async def submit(self, errand: Errand, role: str) -> StoredRun:
        """Accept a run for the background; it is stored when this returns. Raises Invalid, Missing, Conflict."""
        errand = replace(errand, left_s=0.0)
        await self._check(errand)
        if errand.plan.pipeline:
            await stored(self.parts, errand.tenant, errand.plan.pipeline)
        world = self.parts.world
        run = StoredRun(
            id=world.new_id(),
            tenant=errand.tenant,
            role=role,
            state="queued",
            created_s=world.clock.now(),
            errand=replace(errand, request_id="", execution_id=""),
        )
        return await self.runs.submit(run, errand.request_id)

    async def cancel(self, tenant: str, run_id: str) -> StoredRun:
        """Note the wish to end a run. Raises Missing (`unknown_run`)."""
        await background.known(self.runs, tenant, run_id)
        return await self.runs.wish_end(tenant, run_id) or await background.known(self.runs, tenant, run_id)

    async def _check(self, errand: Errand) -> None:
        try:
            check_errand(errand, self.parts.models)
        except Missing as error:
            raise await hinted(self.parts, errand.tenant, models_of([errand.plan]), error) from error


def _nothing() -> ChatRequest:
    return ChatRequest(messages=(Message(role="user", content=""),))


async def _nobody(_event: object) -> None:
    """Nobody listens."""

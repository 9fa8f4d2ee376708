"""The learner's ports in memory, and a bench that delivers their events at least once, in any order."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from catena.kit.clock import World, still_world
from catena.kit.errors import Conflict, Missing
from catena.learner.core.judging import prompt_digest
from catena.learner.core.learner import Learner, Rooms, Rules
from catena.learner.core.records import (
    Dataset,
    Executed,
    Execution,
    Feedback,
    JobResult,
    Promotion,
    Sample,
    Verdict,
)

BASE = "base"
Kind = Literal["execution", "feedback", "dataset", "job", "verdict"]


class Crash(Exception):
    """The process died here."""


@dataclass
class Fuse:
    """Dies once at the `at`-th of the points where an outside effect or a commit has just happened."""

    at: int = 0
    passed: list[str] = field(default_factory=list)

    def point(self, name: str) -> None:
        self.passed.append(name)
        if len(self.passed) == self.at:
            raise Crash(name)


@dataclass(frozen=True)
class News:
    """An event: what kind, about whom."""

    kind: Kind
    tenant: str
    id: str


class MemoryLibrary:
    """Implements `Library`; `told` lists its events' types, `news` those that come back to the learner.

    `history` holds every state that a promotion was in.
    """

    def __init__(self, world: World, fuse: Fuse | None = None) -> None:
        self.world = world
        self.fuse = fuse or Fuse()
        self.news: list[News] = []
        self.told: list[str] = []
        self.history: dict[str, list[str]] = {}
        self._feedback: dict[tuple[str, str], Feedback] = {}
        self._sources: set[tuple[str, str]] = set()
        self._datasets: dict[str, Dataset] = {}
        self._samples: dict[str, dict[str, Sample]] = {}
        self._promotions: dict[str, Promotion] = {}

    async def keep_feedback(self, tenant: str, feedback: Feedback) -> str:
        request = feedback.request_id or feedback.id
        for (owner, _), known in self._feedback.items():
            if owner == tenant and known.request_id == request:
                return known.id
        self._feedback[tenant, feedback.id] = replace(feedback, request_id=request)
        self.news.append(News("feedback", tenant, feedback.id))
        self.told.append("learner.feedback.recorded")
        self.fuse.point("keep_feedback")
        return feedback.id

    async def feedback(self, tenant: str, id_: str) -> Feedback:
        if (tenant, id_) not in self._feedback:
            raise Missing(f"no feedback {id_!r}", code="unknown_feedback")
        return self._feedback[tenant, id_]

    async def feedback_on(self, executions: Sequence[tuple[str, str]]) -> list[list[Feedback]]:
        told = [[f for (owner, _), f in self._feedback.items() if (owner, f.execution_id) == one] for one in executions]
        return [sorted(same, key=lambda f: (f.created_s, f.id)) for same in told]

    async def collect(self, tenant: str, source: str, samples: Sequence[Sample], threshold: int) -> list[Dataset]:
        fresh = (tenant, source) not in self._sources
        self._sources.add((tenant, source))
        found: dict[str, None] = {}
        for sample in samples:
            known = [
                d for d in self._datasets.values() if (d.tenant, d.task, d.state) == (tenant, sample.task, "collecting")
            ]
            if not fresh:
                found.update({d.id: None for d in known})
                continue
            dataset = known[0] if known else self._open(tenant, sample.task, threshold)
            self._samples[dataset.id][prompt_digest(sample)] = sample
            found[dataset.id] = None
        self.fuse.point("collect")
        return [await self.dataset(id_) for id_ in found]

    def _open(self, tenant: str, task: str, threshold: int) -> Dataset:
        made = Dataset(
            id=self.world.new_id(), tenant=tenant, task=task, threshold=threshold, created_s=self.world.clock.now()
        )
        self._datasets[made.id], self._samples[made.id] = made, {}
        return made

    async def freeze(self, dataset: Dataset, digest: str, promotion: Promotion) -> bool:
        now = await self.dataset(dataset.id)
        if now != dataset or now.state != "collecting":
            return False
        self._datasets[dataset.id] = replace(self._datasets[dataset.id], state="ready", digest=digest)
        assert all(known.dataset_id != dataset.id for known in self._promotions.values())
        self._promotions[promotion.id] = promotion
        self.history[promotion.id] = [promotion.state]
        self.news.append(News("dataset", dataset.tenant, dataset.id))
        self.told.append("learner.dataset.ready")
        self.fuse.point("freeze")
        return True

    async def samples(self, dataset_id: str) -> list[Sample]:
        return [sample for _, sample in sorted(self._samples.get(dataset_id, {}).items())]

    async def dataset(self, id_: str) -> Dataset:
        if id_ not in self._datasets:
            raise Missing(f"no data set {id_!r}", code="unknown_dataset")
        rows = self._samples[id_].values()
        return replace(self._datasets[id_], rows=len(rows), corrections=sum(row.corrected for row in rows))

    async def datasets(self, tenant: str) -> list[Dataset]:
        mine = [await self.dataset(d.id) for d in self._datasets.values() if d.tenant == tenant]
        return sorted(mine, key=lambda d: -d.created_s)

    async def trained_by(self, dataset_id: str, job_id: str) -> None:
        if self._datasets[dataset_id].state != "done":
            self._datasets[dataset_id] = replace(self._datasets[dataset_id], state="training", job_id=job_id)
        for promotion in self._promotions.values():
            if promotion.dataset_id == dataset_id:
                self._promotions[promotion.id] = replace(promotion, job_id=job_id)
        self.fuse.point("trained_by")

    async def promotion(
        self, *, id_: str = "", dataset_id: str = "", job_id: str = "", experiment_id: str = ""
    ) -> Promotion | None:
        asked = {"id": id_, "dataset_id": dataset_id, "job_id": job_id, "experiment_id": experiment_id}
        wanted = {name: value for name, value in asked.items() if value}
        if not wanted:
            return None
        found = (p for p in self._promotions.values() if all(getattr(p, n) == v for n, v in wanted.items()))
        return next(found, None)

    async def promotions(self, tenant: str, state: str) -> list[Promotion]:
        mine = [p for p in self._promotions.values() if p.tenant == tenant and state in ("", p.state)]
        return sorted(mine, key=lambda p: -p.created_s)

    async def move(self, before: Promotion, after: Promotion) -> bool:
        if self._promotions[before.id].state != before.state:
            return False
        self._promotions[before.id] = after
        self.history[before.id].append(after.state)
        self.told.append("learner.promotion.decided")
        if after.state != "canary":
            self._datasets[after.dataset_id] = replace(self._datasets[after.dataset_id], state="done")
        self.fuse.point(f"move to {after.state}")
        return True


@dataclass
class FakeExecutions:
    """Implements `Executions`: what was put into `known`."""

    known: dict[str, Execution] = field(default_factory=dict)

    async def execution(self, id_: str) -> Execution | None:
        return self.known.get(id_)


@dataclass
class FakeTrainer:
    """Implements `Training`; one job for each data set. `refuses` makes it raise."""

    fuse: Fuse
    jobs: dict[str, JobResult] = field(default_factory=dict)
    rows: dict[str, bytes] = field(default_factory=dict)
    tasks: dict[str, str] = field(default_factory=dict)
    refuses: Exception | None = None

    async def start(self, dataset: Dataset, rows: bytes) -> JobResult:
        if self.refuses is not None:
            raise self.refuses
        id_ = f"job-{dataset.id}"
        assert self.rows.setdefault(id_, rows) == rows, "one data set, two contents"
        self.tasks[id_] = dataset.task
        self.jobs.setdefault(id_, JobResult(job_id=id_, state="running"))
        self.fuse.point("start")
        return self.jobs[id_]

    async def job(self, id_: str) -> JobResult:
        return self.jobs[id_]

    def end(self, id_: str, state: str, reason: str = "") -> JobResult:
        """The job ends, unless it ended before; versions of an adapter are numbered."""
        if not self.jobs[id_].ended:
            version = 1 + sum(j.model.startswith(f"{BASE}@{self.tasks[id_]}:") for j in self.jobs.values())
            model = f"{BASE}@{self.tasks[id_]}:{version}" if state == "succeeded" else ""
            ended = JobResult(job_id=id_, state=state, model=model, reason=reason, metrics={"accuracy": 0.9})
            self.jobs[id_] = ended
        return self.jobs[id_]


@dataclass
class FakeRouter:
    """Implements `Routing`; one running experiment a domain, one experiment a promotion."""

    fuse: Fuse
    examples: dict[str, list[str]] = field(default_factory=dict)
    specialists: dict[str, str] = field(default_factory=dict)
    trials: dict[str, Verdict] = field(default_factory=dict)
    domains: dict[str, str] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)

    async def introduce(self, domain: str, examples: Sequence[str]) -> str:
        known = self.examples.setdefault(domain, [])
        known += [text for text in examples if text not in known]
        self.fuse.point("introduce")
        return self.specialists.get(domain, "")

    async def canary(self, promotion: Promotion) -> str:
        id_ = f"trial-{promotion.id}"
        if id_ not in self.trials:
            if any(self.domains[t] == promotion.domain and v.state == "running" for t, v in self.trials.items()):
                raise Conflict("another one runs", code="experiment_running")
            self.trials[id_] = Verdict(experiment_id=id_, state="running")
            self.domains[id_] = promotion.domain
            self.models[id_] = promotion.candidate
        self.fuse.point("canary")
        return id_

    async def stop(self, experiment_id: str, reason: str) -> None:
        self.decide(experiment_id, "stopped", reason)
        self.fuse.point("stop")

    async def appoint(self, domain: str, specialist: str) -> None:
        self.specialists[domain] = specialist
        self.fuse.point("appoint")

    async def verdict(self, experiment_id: str) -> Verdict:
        return self.trials[experiment_id]

    def decide(self, id_: str, state: str, reason: str = "enough outcomes") -> None:
        """The experiment ends, unless it ended before."""
        if self.trials[id_].state == "running":
            self.trials[id_] = Verdict(experiment_id=id_, state=state, reason=reason, metrics={"canary_p": 0.01})


@dataclass
class FakeRegistry:
    """Implements `Registry`; every version is registered. `moves` lists what really changed."""

    fuse: Fuse
    aliases: dict[str, str] = field(default_factory=dict)
    withdrawn: dict[str, str] = field(default_factory=dict)
    moves: list[tuple[str, str]] = field(default_factory=list)

    async def stable(self, model: str) -> str:
        return self.aliases.get(model.rpartition(":")[0], "")

    async def set_stable(self, model: str, version: str) -> None:
        name = model.rpartition(":")[0]
        if f"{name}:{version}" in self.withdrawn:
            raise Missing(f"{name}:{version} was withdrawn", code="adapter_withdrawn")
        if self.aliases.get(name, "") != version:
            self.aliases[name] = version
            self.moves.append((name, version))
        self.fuse.point("set_stable")

    async def lives(self, model: str) -> bool:
        return model not in self.withdrawn

    async def withdraw(self, model: str, reason: str) -> None:
        if model not in self.withdrawn:
            self.withdrawn[model] = reason
            name, _, version = model.rpartition(":")
            if self.aliases.get(name) == version:
                self.aliases[name] = ""
                self.moves.append((name, ""))
        self.fuse.point("withdraw")


class Bench:
    """A learner over fakes. `say` puts feedback in; `settle` delivers what is new until it is heard."""

    tenant = "acme"

    def __init__(self, rules: Rules | None = None, *, crash_at: int = 0) -> None:
        self.world = still_world()
        self.fuse = Fuse(crash_at)
        self.library = MemoryLibrary(self.world, self.fuse)
        self.executions = FakeExecutions()
        self.trainer = FakeTrainer(self.fuse)
        self.router = FakeRouter(self.fuse)
        self.registry = FakeRegistry(self.fuse)
        self.rules = rules or Rules(threshold=2)
        self.learner = self.start()
        self.heard = 0

    def start(self) -> Learner:
        """A learner as after a restart: nothing in memory."""
        rooms = Rooms(executions=self.executions, training=self.trainer, routing=self.router, registry=self.registry)
        return Learner(self.library, rooms, self.rules, self.world)

    def run(self, prompt: str, task: str = "swap") -> str:
        """An execution of that prompt is recorded, which is then told; its id."""
        execution = Execution(id=f"e-{prompt}", prompt=prompt, answer="wrong", task=task)
        if execution.id not in self.executions.known:
            self.executions.known[execution.id] = execution
            self.library.news.append(News("execution", self.tenant, execution.id))
        return execution.id

    async def say(self, prompt: str, task: str = "swap", *, correction: str = "right", thumbs: int = 0) -> str:
        """Feedback on a recorded execution of that prompt; its id."""
        self.run(prompt, task)
        return await self.say_early(prompt, correction=correction, thumbs=thumbs)

    async def say_early(self, prompt: str, *, correction: str = "right", thumbs: int = 0) -> str:
        """Feedback whether or not there is a record; at least once: again after a crash, with the same request id."""
        told = Feedback(id="", execution_id=f"e-{prompt}", correction=correction, request_id=f"r-{prompt}")
        try:
            return await self.learner.record(self.tenant, told, thumbs)
        except Crash:
            self.learner = self.start()
            return await self.learner.record(self.tenant, told, thumbs)

    async def deliver(self, news: News) -> None:
        """Hand one event over once."""
        if news.kind == "feedback":
            await self.learner.learn_from(news.tenant, news.id)
        elif news.kind == "execution":
            await self.learner.learn_from_executions(Executed(tenant=news.tenant, execution_id=news.id))
        elif news.kind == "dataset":
            await self.learner.train(news.id)
        elif news.kind == "job":
            await self.learner.judge_job(self.trainer.jobs[news.id])
        else:
            await self.learner.judge_canary(self.router.trials[news.id])

    async def surely(self, news: News) -> None:
        """Hand one event over until it is acknowledged, as the bus does; a crash restarts the learner."""
        try:
            await self.deliver(news)
        except Crash:
            self.learner = self.start()
            await self.deliver(news)

    async def settle(self) -> None:
        """Deliver the events that were not yet."""
        while self.heard < len(self.library.news):
            await self.surely(self.library.news[self.heard])
            self.heard += 1

    async def fill(self, count: int = 2, task: str = "swap", start: int = 0) -> str:
        """Corrections enough for a data set; its job."""
        for number in range(start, start + count):
            await self.say(f"{task} {number}", task)
        await self.settle()
        return next(reversed(self.trainer.jobs), "")

    async def job_ends(self, job_id: str, state: str = "succeeded", reason: str = "") -> None:
        self.trainer.end(job_id, state, reason)
        await self.surely(News("job", self.tenant, job_id))

    async def canary_ends(self, state: str, number: int = -1) -> None:
        id_ = list(self.router.trials)[number]
        self.router.decide(id_, state)
        await self.surely(News("verdict", self.tenant, id_))

    async def only(self) -> Promotion:
        (promotion,) = await self.learner.promotions(self.tenant, "")
        return promotion

    async def states(self) -> list[str]:
        """States of all promotions, oldest first."""
        return [self.history_of(id_)[-1] for id_ in self.library.history]

    def history_of(self, id_: str) -> list[str]:
        return self.library.history[id_]

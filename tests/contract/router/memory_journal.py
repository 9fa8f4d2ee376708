"""A journal that is slow and obvious: lists of everything, looked through from the start."""

from dataclasses import replace

from catena.kit.errors import Conflict
from catena.plan.model import describe
from catena.router.core.experiments import RUNNING, STOPPED, Outcome, count, stop
from catena.router.core.ports import Changes, Noted, Report, Totals
from catena.router.core.verdicts import joined, outweighs


class MemoryJournal:
    def __init__(self):
        self.revision = 0
        self.events = set()
        self.executions = {}
        self.verdicts = {}
        self.domains = {}
        self.experiments = {}
        self.requests = {}
        self.switches = {}
        self.steps = {}
        self.counted = set()
        self.decided = []

    def _tick(self):
        self.revision += 1
        return self.revision

    async def changes(self, after):
        noted = [
            Noted(tenant=key[0], born=born, judged_at=judged_at, observation=one)
            for key, (changed, born, judged_at, one) in self.executions.items()
            if changed > after
        ]
        return Changes(
            revision=self.revision,
            observations=sorted(noted, key=lambda n: n.born),
            domains=[d for r, d in self.domains.values() if r > after and d is not None],
            deleted=[key for key, (r, d) in self.domains.items() if r > after and d is None],
            experiments=[e for r, e in self.experiments.values() if r > after],
            switches=[s for r, s in self.switches.values() if r > after],
            steps=[s for r, s in self.steps.values() if r > after],
        )

    async def observe(self, several):
        for seen in several:
            if seen.event_id in self.events or seen.key in self.executions:
                continue
            self.events.add(seen.event_id)
            known = self.verdicts.get(seen.key)
            if known is None or (seen.verdict is not None and outweighs(seen.verdict.source, known.source)):
                known = seen.verdict
            self._keep(seen.key, joined(seen.observation, known), known)

    async def judge(self, tenant, verdict, event_id):
        key = tenant, verdict.execution_id
        known = self.verdicts.get(key)
        if event_id in self.events or (known is not None and not outweighs(verdict.source, known.source)):
            return
        self.events.add(event_id)
        self.verdicts[key] = verdict
        if key in self.executions:
            self._keep(key, joined(self.executions[key][3], verdict), verdict)

    def _keep(self, key, whole, verdict):
        revision = self._tick()
        born = self.executions[key][1] if key in self.executions else revision
        self.executions[key] = revision, born, revision if verdict else 0, whole
        if verdict:
            self.verdicts[key] = verdict
        self._count(whole)

    def _count(self, whole):
        found = self.experiments.get(whole.plan.experiment_id)
        told = whole.score is not None or not whole.succeeded
        mark = whole.plan.experiment_id, whole.execution_id
        if found is None or whole.cancelled or not told or mark in self.counted:
            return
        self.counted.add(mark)
        quality = whole.score if whole.succeeded and whole.score is not None else 0.0
        outcome = Outcome(arm=whole.plan.experiment_arm, quality=quality, cost=whole.cost_usd, latency=whole.latency_ms)
        self._put(count(found[1], outcome), found[1].state)

    def _put(self, experiment, before):
        self.experiments[experiment.id] = self.revision, experiment
        if before == RUNNING and experiment.state != RUNNING:
            self.decided.append(experiment)

    async def report(self, tenant):
        sums = {}
        for (owner, _), (_, _, _, one) in self.executions.items():
            if owner != tenant:
                continue
            key = one.configuration_id, one.domain
            old = sums.get(key) or Totals(configuration_id=key[0], domain=key[1], plan=describe(one.plan))
            sums[key] = replace(
                old,
                executions=old.executions + 1,
                judged=old.judged + (one.score is not None),
                successes=old.successes + one.succeeded,
                quality=old.quality + (one.score or 0.0),
                cost_usd=old.cost_usd + one.cost_usd,
                latency_ms=old.latency_ms + one.latency_ms,
            )
        found = sorted(sums.values(), key=lambda t: (t.plan, t.domain))
        return Report(configurations=found, executions=sum(t.executions for t in found))

    async def plan_of(self, tenant, configuration_id):
        found = [
            one.plan
            for (owner, _), (_, _, _, one) in self.executions.items()
            if owner == tenant and one.configuration_id == configuration_id
        ]
        return found[0] if found else None

    async def put_domain(self, domain):
        self.domains[domain.tenant, domain.name] = self._tick(), domain

    async def delete_domain(self, tenant, name):
        self.domains[tenant, name] = self._tick(), None

    async def merge_domains(self, into, gone):
        await self.put_domain(into)
        for name in gone:
            await self.delete_domain(into.tenant, name)

    async def put_step(self, step):
        if (step.tenant, step.number) in self.steps:
            raise Conflict("taken", code="tuned_meanwhile")
        self.steps[step.tenant, step.number] = self._tick(), step

    async def seed_domains(self, wanted):
        for domain in wanted:
            self.domains.setdefault((domain.tenant, domain.name), (self._tick(), domain))

    async def put_experiment(self, experiment, request_id):
        if (experiment.tenant, request_id) in self.requests:
            return self.requests[experiment.tenant, request_id]
        running = [e for _, e in self.experiments.values() if e.state == RUNNING and e.tenant == experiment.tenant]
        if experiment.domain in [e.domain for e in running]:
            raise Conflict("one runs there", code="experiment_running")
        self.experiments[experiment.id] = self._tick(), experiment
        if request_id:
            self.requests[experiment.tenant, request_id] = experiment
        return experiment

    async def stop_experiment(self, tenant, id, reason):
        self._tick()
        _, experiment = self.experiments[id]
        if experiment.tenant == tenant and experiment.state == RUNNING:
            self._put(stop(experiment, STOPPED, reason), RUNNING)

    async def put_switch(self, switch, *, now=False):
        revision = self._tick()
        kept = replace(switch, value=float(revision)) if now else switch
        self.switches[switch.tenant, switch.name] = revision, kept

"""Experiments as they are asked for: started, looked at, stopped. What they count is the journal's."""

from dataclasses import replace

from catena.kit.clock import World
from catena.router.core.experiments import RUNNING, Experiment, check_experiment
from catena.router.core.ports import Journal
from catena.router.core.router import Router


class Trials:
    """A router's experiments."""

    def __init__(self, router: Router, journal: Journal, world: World) -> None:
        """Nothing is started."""
        self._router = router
        self._journal = journal
        self._world = world

    async def create(self, experiment: Experiment, request_id: str) -> Experiment:
        """Start an experiment.

        Raises Invalid for arms without sense, Missing for an unknown model, Unavailable for one that cannot be called,
        Conflict when the domain has one running.
        """
        checked = check_experiment(experiment)
        await self._router.refetch(experiment.tenant)
        catalogue = self._router.state.book(experiment.tenant).catalogue
        for arm in checked.arms:
            if arm.model:
                catalogue.check_ready(arm.model)
                catalogue.card(arm.model)
        domain = self._router.state.aliases(experiment.tenant).get(checked.domain, checked.domain)
        fresh = replace(
            checked, id=self._world.new_id(), domain=domain, state=RUNNING, created_s=self._world.clock.now(), reason=""
        )
        stored = await self._journal.put_experiment(fresh, request_id)
        return await self.get(experiment.tenant, stored.id)

    async def get(self, tenant: str, id: str) -> Experiment:
        """One experiment as it stands. Raises Missing."""
        await self._router.refresh()
        return self._router.state.experiment(tenant, id)

    async def list(self, tenant: str, state: str) -> list[Experiment]:
        """The tenant's experiments, newest first; only those of a `state` unless it is empty."""
        await self._router.refresh()
        return [e for e in self._router.state.experiments_of(tenant) if state in ("", e.state)]

    async def stop(self, tenant: str, id: str, reason: str) -> Experiment:
        """End an experiment without a verdict; one that ended stays as it ended. Raises Missing."""
        await self.get(tenant, id)
        await self._journal.stop_experiment(tenant, id, reason)
        return await self.get(tenant, id)

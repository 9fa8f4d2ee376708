"""Which answers may be given again, and under which key."""

import hashlib

import msgspec

from catena.executor.core.admission import Errand
from catena.executor.core.chat import Sampling
from catena.plan.model import Plan, Shape, models_of


def cache_key(errand: Errand) -> str:
    """The same for the same tenant, plan configuration and request, however their bytes were laid out."""
    told = msgspec.json.encode([errand.plan.configuration_id, errand.request], order="sorted")
    return f"{errand.tenant}/{hashlib.sha256(told).hexdigest()}"


def request_key(tenant: str, request_id: str) -> str:
    """Where the result of a request that names itself is kept."""
    return f"{tenant}/request/{request_id}"


def repeatable(errand: Errand) -> bool:
    """Whether the same answer may be given to the same question.

    Only where it would come out the same anyway: temperature 0 or a seed in the request (an absent temperature is the
    model's own, mostly not 0), no stage that is warmer, nothing read from memory or features, which change, and no
    `base@auto`, which means another adapter for another task, or when a better one comes.
    """
    if any(model.endswith("@auto") for model in models_of([errand.plan])):
        return False
    reads = errand.plan.shape is Shape.SEARCH or bool(collection_of(errand)) or bool(errand.context.feature_vector)
    return not errand.plan.pipeline and not reads and cold(errand.request.sampling, errand.plan)


def cold(sampling: Sampling, plan: Plan) -> bool:
    """Whether no chance is left in the draw."""
    if sampling.seed is not None:
        return True
    temperatures = {sampling.temperature if stage.temperature is None else stage.temperature for stage in plan.stages}
    return temperatures == {0.0}


def collection_of(errand: Errand) -> str:
    """The memory collection whose finds go before the question; empty: none.

    A plan says so itself. A plan that nobody chose (one named model) follows the request's wish. `search` looks things
    up by itself.
    """
    if errand.plan.shape is Shape.SEARCH:
        return ""
    return errand.plan.settings.collection or ("" if errand.plan.id else errand.context.memory_collection)

"""Which answers may be given again, and under which key."""

import hashlib
import re
from dataclasses import replace

import msgspec

from catena.executor.core.admission import Errand
from catena.executor.core.chat import ChatRequest, Sampling
from catena.executor.core.execution import told
from catena.plan.model import Plan, Shape, models_of

_ANCHOR = re.compile(
    r"\d[\d.,:/-]*|`[^`]*`|\"[^\"]*\"|\u201c[^\u201d]*\u201d|(?i:\b(?:no|not|never|none|without|except)\b|\w+n['\u2019]t\b)|"
    r"(?<=\S )[A-Z][\w-]*|\S*[@_/\\]\S*"
)


def cache_key(errand: Errand) -> str:
    """The same for the same tenant, plan configuration and request, however their bytes were laid out."""
    return _digest(errand, errand.request)


def _digest(errand: Errand, request: ChatRequest) -> str:
    # Prompts may read who asks.
    who = told(errand.context) if any(stage.prompt for stage in errand.plan.stages) else {}
    parts = [errand.plan.configuration_id, errand.plan.settings.weights, request, who]
    asked = msgspec.json.encode(parts, order="sorted")
    return f"{errand.tenant}/{hashlib.sha256(asked).hexdigest()}"


def request_key(tenant: str, request_id: str) -> str:
    """Where the result of a request that names itself is kept."""
    return f"{tenant}/request/{request_id}"


def repeatable(errand: Errand) -> bool:
    """Whether the same answer may be given to the same question.

    Only where it would come out the same anyway: temperature 0 or a seed in the request (an absent temperature is the
    model's own, mostly not 0), no stage that is warmer, nothing read from memory or features, which change, and no
    `base@auto`, which means another adapter for another task, or when a better one comes.
    """
    return still(errand) and cold(errand.request.sampling, errand.plan)


def still(errand: Errand) -> bool:
    """Whether nothing but the request decides the answer, as far as the plan goes."""
    if any(model.endswith("@auto") for model in models_of([errand.plan])):
        return False
    reads = errand.plan.shape is Shape.SEARCH or bool(collection_of(errand)) or bool(errand.context.feature_vector)
    return not errand.plan.pipeline and not reads


def shelved(errand: Errand) -> tuple[str, str] | None:
    """The shelf of a question and its last words; None: an answer to a question like it would not do.

    As `repeatable`, but for the draw: who asks for warmth wants another answer each time, and who gives a seed wants
    exactly one. Pictures and tools are not compared, so that answers with them are never taken for each other's.
    """
    sampling, turns = errand.request.sampling, errand.request.messages
    warm = sampling.seed is not None or sampling.temperature not in (None, 0.0) or sampling.n > 1 or sampling.logprobs
    if warm or not turns or turns[-1].role != "user" or errand.request.needs or not still(errand):
        return None
    others = replace(errand.request, messages=turns[:-1])
    return _digest(errand, others), turns[-1].content


def anchors(words: str) -> str:
    """What has to be equal word by word before two questions may share an answer: numbers, quotations, names, no's.

    Vectors hardly tell 2 from 3, or does from does not.
    """
    return "\n".join(sorted(found[0].casefold() for found in _ANCHOR.finditer(words)))


def cold(sampling: Sampling, plan: Plan) -> bool:
    """Whether no chance is left in the draw."""
    if sampling.seed is not None:
        return True
    temperatures = {sampling.temperature if stage.temperature is None else stage.temperature for stage in plan.stages}
    return temperatures == {0.0}


def collection_of(errand: Errand) -> str:
    """The memory collection whose finds go before the question; empty: none.

    A plan that names none follows the request's wish. `search` looks things up by itself.
    """
    if errand.plan.shape is Shape.SEARCH:
        return ""
    return errand.plan.settings.collection or errand.context.memory_collection

"""What an attempt is recorded and billed as, whatever became of it: losers, retries and drafts are paid for."""

from catena.executor.core.actions import Call, Result
from catena.executor.core.catalogue import cost_usd, find
from catena.executor.core.chat import NOTHING_USED, Usage
from catena.executor.core.estimates import impossible
from catena.executor.core.events import StageResult
from catena.executor.core.execution import Execution
from catena.executor.core.hearing import Heard
from catena.executor.core.normal import digest
from catena.executor.core.ports import Ended
from catena.kit.errors import CatenaError, Late
from catena.plan.answer import answer_features
from catena.plan.model import Role

ESTIMATED = "tokens estimated"
MISCOUNTED = "tokens estimated, as the provider's count is impossible"


def stages_of(
    run: Execution, asked: Call, heard: Heard, number: int, *, result: Result | None = None, why: str = ""
) -> list[StageResult]:
    """The stages of an attempt, two where a draft model was billed too; `result` None: it was cancelled."""
    error = result.error if result is not None else None
    ended = heard.ended or Ended()
    model = find(run.models, asked.stage.model)
    usage, doubt = _usage(run, asked, heard, error)
    outcome = "cancelled" if result is None else "failed" if error else "accepted"
    main = StageResult(
        name=asked.stage.name,
        role=asked.stage.role,
        model=asked.stage.model,
        resolved_model=ended.resolved_model,
        duration_ms=(run.world.clock.monotonic() - heard.started_s) * 1000,
        first_token_ms=(heard.first_s - heard.started_s) * 1000 if heard.first_s else 0.0,
        usage=usage,
        cost_usd=cost_usd(model, usage),
        outcome=outcome,
        attempt=number,
        confidence=ended.confidence or 0.0,
        accepted_tokens=ended.accepted_tokens,
        drafted_tokens=ended.drafted_tokens,
        error_code=error.code if error else "",
        reason="; ".join(filter(None, (why, ended.remark, doubt))),
        answer_digest=digest(result.choices, run.tenant) if result is not None else "",
        answer_features=answer_features(asked.request.asked, result.text) if outcome == "accepted" and result else (),
        load_ms=ended.load_ms,
    )
    if asked.draft is None or ended.draft_usage == NOTHING_USED:
        return [main]
    drafting = find(run.models, asked.draft.model)
    drafted = StageResult(
        name=asked.draft.name,
        role=Role.DRAFT,
        model=asked.draft.model,
        duration_ms=main.duration_ms,
        usage=ended.draft_usage,
        cost_usd=cost_usd(drafting, ended.draft_usage),
        outcome=outcome,
        attempt=number,
        accepted_tokens=ended.accepted_tokens,
        drafted_tokens=ended.drafted_tokens,
    )
    return [drafted, main]


def _usage(run: Execution, asked: Call, heard: Heard, error: CatenaError | None) -> tuple[Usage, str]:
    """Tokens of the attempt, and what is to be said about their count; empty: the provider counted them.

    A provider that was never asked, or refused before its first word, read nothing; one that was cancelled or late did.
    """
    written, told = heard.chars, heard.ended.usage if heard.ended is not None else None
    if told is not None and not impossible(told, written):
        run.paces.learn(asked.stage.model, asked.request.chars + written, told)
        return told, ""
    refused = error is not None and not isinstance(error, Late) and not heard.spoke and told is None
    if not heard.asked_s or refused:
        return NOTHING_USED, ""
    guess = run.paces.guess(asked.stage.model, chars_in=asked.request.chars, chars_out=written)
    return guess, ESTIMATED if told is None else MISCOUNTED

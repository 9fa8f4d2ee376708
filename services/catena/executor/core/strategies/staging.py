"""What a stage is asked: the request in the stage's words, with a draft where there is one."""

from collections.abc import Generator, Sequence
from typing import Any

from catena.executor.core.actions import Action, Call, Fill
from catena.executor.core.chat import ChatRequest
from catena.executor.core.prompts import for_stage, one, question, with_draft, with_question
from catena.plan.model import Stage


def staged(request: ChatRequest, stage: Stage, draft: str = "") -> Generator[Action, Any, ChatRequest]:
    """`request` with the stage's instruction, temperature and prompt; without a prompt a draft goes below the question.

    A prompt says itself where the draft goes.
    """
    if not stage.prompt:
        return for_stage(with_draft(request, draft) if draft else request, stage)
    words = yield Fill(stage=stage, scope={"input": question(request), "draft": draft})
    return for_stage(with_question(request, words), stage)


def side_by_side(request: ChatRequest, stages: Sequence[Stage]) -> Generator[Action, Any, tuple[Call, ...]]:
    """A call of each stage for one answer, to be made together."""
    calls: tuple[Call, ...] = ()
    for stage in stages:
        calls += (Call(stage=stage, request=(yield from staged(one(request), stage))),)
    return calls

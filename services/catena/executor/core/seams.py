"""Going on with an answer that broke off: what another model is asked, and where its words join those already said."""

from dataclasses import dataclass, field, replace

from catena.executor.core.actions import Call
from catena.executor.core.chat import Delta, Message
from catena.executor.core.estimates import Paces

GO_ON = (
    "Your last answer broke off where it ends above. Write what comes next, from the next character on. "
    "Repeat nothing and say nothing about the interruption."
)
OVERLAP_CHARS = 80
"""How far back a model that repeats itself is looked for."""
LEAST_OVERLAP = 8
"""Fewer equal characters may be chance."""


def can_go_on(asked: Call) -> bool:
    """Whether another model may finish the answer: free text, one answer, and no promise of whose words it has.

    Tool calls, constrained answers and log-probabilities do not survive a change of hands, nor does an answer of which
    the client has a part alone.
    """
    request = asked.request
    bound = request.tools or request.constrained or request.sampling.n > 1 or request.sampling.logprobs
    return not bound and not request.prompt and asked.draft is None and asked.sift is None


def going_on(asked: Call, said: str, paces: Paces) -> Call:
    """The call that asks to go on after `said`.

    Not by prefilling the assistant's turn: several providers refuse that (BerriAI/litellm#27967).
    """
    request = asked.request
    turns = (Message(role="assistant", content=said), Message(role="user", content=GO_ON))
    sampling = request.sampling
    if sampling.max_tokens:
        spent = paces.guess(asked.stage.model, chars_in=0, chars_out=len(said)).output_tokens
        left = max(1, sampling.max_tokens - spent)
        sampling = replace(sampling, max_tokens=left, min_tokens=min(sampling.min_tokens, left))
    return replace(asked, request=replace(request, messages=(*request.messages, *turns), sampling=sampling))


@dataclass(slots=True)
class Seam:
    """Joins the words of two models: what the second repeats of the first's end is left out."""

    said: str
    _held: str = ""
    _open: bool = field(default=True)

    def join(self, delta: Delta) -> Delta:
        """What `delta` adds; its words are held back until an overlap can be told, or the answer ends."""
        if not self._open:
            return delta
        self._held += delta.text
        if len(self._held) < OVERLAP_CHARS and not delta.finish_reason:
            return replace(delta, text="")
        self._open = False
        return replace(delta, text=self._held[overlap(self.said, self._held) :])


def overlap(said: str, more: str) -> int:
    """How many of the first characters of `more` repeat the last of `said`."""
    for length in range(min(len(said), len(more), OVERLAP_CHARS), LEAST_OVERLAP - 1, -1):
        if said.endswith(more[:length]):
            return length
    return 0

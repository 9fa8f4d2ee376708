"""What an answer must look like, as masks over the next token: JSON schemas, regular expressions, choices.

`llguidance` compiles and follows the grammars; it was taken over xgrammar because its wheel requires nothing, where
xgrammar's requires triton, pydantic and a tensor runtime of its own. Masks are laid over the logits outside the
forward pass and only on constrained rows, so that rows of every kind share a step. Compilation happens where requests
are tokenised (`Text.grammars`), following where tokens are drawn.

Legend: K logits of successive places of one row, V vocabulary.
"""

import json
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from tokenizers import Tokenizer
from torch import Tensor

from catena.adapters.core.work import Constraint
from catena.kit.errors import Invalid

KEPT = 64
"""Compiled grammars that are kept a base; each holds about a megabyte at most before it is followed."""
WHITESPACE = r" |\n[ \t]{0,40}"
"""JSON on one line or indented. Without a bound, a model that is unsure writes blanks until it is cut off."""
ERROR_CHARS = 300
LIMITS = LLParserLimits(verbose_errors=False)


class Grammars:
    """Compiles constraints for one base's vocabulary, and keeps the latest. Not for several threads."""

    def __init__(self, tokenizer: Tokenizer, ends: frozenset[int]) -> None:
        """`ends` are the tokens that end an answer. A vocabulary that cannot be constrained is refused when asked."""
        self._ends = ends
        self._kept: OrderedDict[Constraint, LLMatcher] = OrderedDict()
        self._vocabulary: LLTokenizer | None = None
        self._refusal = "the base names no token that ends an answer"
        if ends:
            try:
                self._vocabulary = LLTokenizer(tokenizer.to_str(), eos_token=sorted(ends))
            except ValueError as error:
                self._refusal = f"its tokenizer is of a kind that has no bytes for tokens ({_short(str(error))})"

    def compile(self, asked: Constraint) -> "Grammar":
        """A grammar at its beginning.

        Raises Invalid: `bad_schema`, `bad_regex`, `bad_choices` when it cannot be compiled or this vocabulary cannot
        write any of it, `constraint_unsupported` when this base cannot be constrained.
        """
        matcher = self._kept.get(asked)
        if matcher is None:
            matcher = self._kept[asked] = self._compiled(asked)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(asked)
        return Grammar(matcher.deep_copy(), self._ends)

    def _compiled(self, asked: Constraint) -> LLMatcher:
        if self._vocabulary is None:
            raise Invalid(
                f"this base cannot be constrained: {self._refusal}; ask for free text", code="constraint_unsupported"
            )
        what, cure, code = _names(asked)
        try:
            matcher = LLMatcher(self._vocabulary, _rules(asked), log_level=0, limits=LIMITS)
        except ValueError as error:
            raise Invalid(f"the {what} cannot be compiled: {_short(str(error))}; {cure}", code=code) from error
        if not matcher.is_error():
            # The first mask finds what no token can begin, and is ready for every row that follows.
            matcher.compute_bitmask()
        if matcher.is_error():
            raise Invalid(f"the {what} cannot be compiled: {_short(matcher.get_error())}; {cure}", code=code)
        return matcher


class Grammar:
    """Where one answer stands within what it must look like. `error` says why it cannot go on; empty: it can."""

    def __init__(self, matcher: LLMatcher, ends: frozenset[int]) -> None:
        """Take a matcher that no other row has."""
        self.error = ""
        self._matcher = matcher
        self._ends = ends

    @property
    def complete(self) -> bool:
        """Whether the answer is whole and nothing can be added to it."""
        return not self.error and self._matcher.is_stopped() and self._matcher.is_accepting()

    def constrain(self, logits_KV: Tensor, ahead: Sequence[int] = ()) -> None:
        """Set what may not come to -inf, in place; the last place is the one after `ahead`, tokens not yet taken.

        Places behind a token that may not come are left alone: nothing is ever drawn there.
        """
        first = len(ahead) + 1 - logits_KV.shape[0]
        walked = 0
        for place in range(len(ahead) + 1):
            if place >= first:
                self._mask(logits_KV[place - first])
            if self.error or place == len(ahead) or not self._walk(ahead[place]):
                break
            walked += 1
        if walked:
            self._matcher.rollback(walked)

    def take(self, token: int) -> None:
        """A token was appended to the answer."""
        if not self.error and token not in self._ends and not self._matcher.consume_token(token):
            self._fail()

    def forced(self) -> list[int]:
        """Tokens that must come next, in the spelling that the tokenizer itself would choose; often none."""
        return [] if self.error or self._matcher.is_stopped() else self._matcher.compute_ff_tokens()

    def _walk(self, token: int) -> bool:
        """Go past a token for a moment. The end of an answer and what breaks the grammar are not gone past."""
        if token in self._ends or self._matcher.is_stopped() or not self._matcher.validate_tokens([token]):
            return False
        return bool(self._matcher.consume_token(token))

    def _mask(self, logits_V: Tensor) -> None:
        packed = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            self._fail()
            return
        bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
        denied = torch.from_numpy(bits[: logits_V.shape[0]]) == 0
        # Heads are often padded beyond the vocabulary.
        logits_V[denied.shape[0] :] = -torch.inf
        logits_V[: denied.shape[0]].masked_fill_(denied.to(logits_V.device), -torch.inf)

    def _fail(self) -> None:
        self.error = f"the answer cannot go on within its constraint ({self._matcher.stop_reason()}); simplify it"


def _rules(asked: Constraint) -> str:
    if asked.json_schema:
        rules: str = LLMatcher.grammar_from_json_schema(asked.json_schema, {"whitespace_pattern": WHITESPACE})
        return rules
    if asked.regex:
        return str(LLMatcher.grammar_from_regex(asked.regex))
    return str(LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, asked.choices))))


def _names(asked: Constraint) -> tuple[str, str, str]:
    """What it is, what to do about it, and the code of its errors."""
    if asked.json_schema:
        return "JSON schema", "leave out what is not supported", "bad_schema"
    if asked.regex:
        return "regex", "write it without what is not supported", "bad_regex"
    return "list of choices", "leave out what the vocabulary cannot write", "bad_choices"


def _short(error: str) -> str:
    return " ".join(error.split())[:ERROR_CHARS]

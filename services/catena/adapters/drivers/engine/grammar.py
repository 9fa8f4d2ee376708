"""What an answer must look like, as masks over the next token: JSON schemas, regular expressions, choices.

`llguidance` compiles and follows the grammars; it was taken over xgrammar because its wheel requires nothing, where
xgrammar's requires triton, pydantic and a tensor runtime of its own. Masks are laid over the logits outside the
forward pass and only on constrained rows, so that rows of every kind share a step. Compilation happens where requests
are tokenised (`Text.grammars`), following where tokens are drawn.

Legend: W rows of logits, R masked ones among them, V vocabulary, X bytes of a bit for each of it.
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

    def masks(self, count: int, ahead: Sequence[int] = ()) -> list[bytes]:
        """What may come at the last `count` places up to the one after `ahead`, tokens not yet taken: a bit a token.

        Fewer when one of `ahead` may not come, as nothing is ever drawn behind it, and when an error is met.
        """
        found: list[bytes] = []
        walked = 0
        for place in range(len(ahead) + 1):
            if place > len(ahead) - count:
                found += self._mask()
            if self.error or place == len(ahead) or not self._walk(ahead[place]):
                break
            walked += 1
        if walked:
            self._matcher.rollback(walked)
        return found

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

    def _mask(self) -> list[bytes]:
        bits = self._matcher.compute_bitmask()
        if not self._matcher.is_error():
            return [bits]
        self._fail()
        return []

    def _fail(self) -> None:
        self.error = f"the answer cannot go on within its constraint ({self._matcher.stop_reason()}); simplify it"


def constrain(logits_WV: Tensor, fenced: Sequence[tuple[Grammar, range, Sequence[int]]]) -> None:
    """Set what may not come to -inf, in place: for each grammar its places in `logits_WV`, and the tokens ahead.

    All grammars are of one vocabulary.
    """
    found = [
        (place, mask)
        for grammar, places, ahead in fenced
        for place, mask in zip(places, grammar.masks(len(places), ahead), strict=False)
    ]
    if not found:
        return
    allowed_RX = np.frombuffer(b"".join(mask for _, mask in found), np.uint8).reshape(len(found), -1)
    denied_RV = torch.from_numpy(np.unpackbits(~allowed_RX, axis=1, bitorder="little").view(np.bool_))
    denied_RV = denied_RV[:, : logits_WV.shape[1]].to(logits_WV.device)
    known = denied_RV.shape[1]
    for (place, _), denied_V in zip(found, denied_RV, strict=True):
        logits_WV[place, :known].masked_fill_(denied_V, -torch.inf)
        # Heads are often padded beyond the vocabulary.
        if known < logits_WV.shape[1]:
            logits_WV[place, known:] = -torch.inf


def _rules(asked: Constraint) -> str:
    if asked.json_schema:
        rules: str = LLMatcher.grammar_from_json_schema(asked.json_schema, {"whitespace_pattern": WHITESPACE})
        return rules
    if asked.regex:
        return str(LLMatcher.grammar_from_regex(asked.regex))
    # One terminal for all: the parser holds an item for each terminal that may come, and stops at some two thousand.
    return str(LLMatcher.grammar_from_lark("start: CHOICE\nCHOICE: " + " | ".join(map(json.dumps, asked.choices))))


def _names(asked: Constraint) -> tuple[str, str, str]:
    """What it is, what to do about it, and the code of its errors."""
    if asked.json_schema:
        return "JSON schema", "leave out what is not supported", "bad_schema"
    if asked.regex:
        return "regex", "write it without what is not supported", "bad_regex"
    return "list of choices", "leave out what the vocabulary cannot write", "bad_choices"


def _short(error: str) -> str:
    return " ".join(error.split())[:ERROR_CHARS]

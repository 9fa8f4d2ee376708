"""One base and the rows that run on it: admission, one packed step for all of them, and what comes of it.

Rows of any adapter, of none, drafts and verifications share each step's single forward pass.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from catena.adapters.drivers.engine.decoder import Decoder, Segment, Step
from catena.adapters.drivers.engine.fair import Waiting
from catena.adapters.drivers.engine.frames import Ways
from catena.adapters.drivers.engine.lookup import MOST_ROWS, Lookup
from catena.adapters.drivers.engine.prefix import BLOCK, PrefixCache
from catena.adapters.drivers.engine.rows import Draft, Row
from catena.adapters.drivers.engine.sampling import accept, agree, certain, penalise, pick, probabilities
from catena.adapters.drivers.engine.ways import AUTO, means

Turn = tuple[Row | Draft, int]
"""A row and how many tokens it feeds in this step."""


class Batch:
    """The rows of one base. `forwards` counts the base's forward passes, `tokens` those of answers."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        max_rows: int,
        kv_bytes: int,
        prefill_tokens: int,
        prefix_bytes: int = 0,
        ways: Ways = AUTO,
    ) -> None:
        """Run at most `max_rows` at a time; a step reads at most about `prefill_tokens` of prompts.

        `prefix_bytes` of keys and values are kept of texts that were read before.
        """
        self.decoder = decoder
        self._means = means(decoder, ways, rows=max_rows, kv_bytes=kv_bytes, prefix_bytes=prefix_bytes)
        self.stacks = self._means.stacks
        self.waiting: Waiting[Row | Draft] = Waiting(_lane)
        self.prefix = PrefixCache(prefix_bytes)
        self.running: list[Row | Draft] = []
        self.forwards = 0
        self.tokens = 0
        self._max_rows = max_rows
        self._prefill_tokens = prefill_tokens
        self._kv = self._means.kv

    @property
    def busy(self) -> bool:
        """Whether a step could do anything."""
        return bool(self.waiting or self.running)

    def add(self, row: Row | Draft) -> None:
        """Queue a row."""
        self.waiting.add(row)

    def remove(self, row: Row | Draft) -> None:
        """Free whatever the row holds, at once."""
        if row.slot < 0:
            self.waiting.remove(row)
            return
        if row.cached >= BLOCK:
            self._remember(row, row.cached)
        self._kv.drop(row.slot)
        last = self.running.pop()
        if last is not row:
            self._kv.move(last.slot, row.slot)
            last.slot = row.slot
            self.running[row.slot] = last
        row.slot = -1

    def reset(self) -> None:
        """Forget every row and all keys and values, after a step that failed midway."""
        for row in self.running:
            self._kv.drop(row.slot)
            row.slot = -1
        self.running.clear()
        self.waiting.clear()

    def step(self) -> list[Row]:
        """Admit, run one forward pass, draw; the answers that gained tokens or ended. Ended rows are gone already."""
        self.waiting.tick()
        self._admit()
        for row in self.running:
            self._copy_twin(row)
            if isinstance(row, Row) and isinstance(row.draft, Lookup):
                row.draft.idle = len(self.running) > MOST_ROWS
        turns = self._turns()
        while turns and not self._kv.fits(lengths := self._lengths(turns)):
            self._put_back(self.running[-1])
            turns = self._turns()
        if not turns:
            self._make_way()
            return []
        self._kv.fit(lengths)
        step, spans = self._pack(turns)
        adapters = [adapter for row, count in turns for adapter in row.weights(count)]
        logits_WV = self._means.forward(step, adapters)
        self.forwards += 1
        for row, count in turns:
            row.cached += count
            self.waiting.charge(row, read=max(min(row.cached, row.prompt) - (row.cached - count), 0))
            if row.cached - count < row.prompt <= row.cached:
                self._remember(row, row.prompt)
        return self._draw(logits_WV, spans) if spans else []

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self._max_rows:
            row = self.waiting.peek()
            lengths = [_length(other) + 1 for other in (*self.running, row)]
            if self.running and not self._kv.fits(lengths):
                return
            self.waiting.pop()
            row.slot = len(self.running)
            self.running.append(row)
            self._kv.fit(lengths)
            row.cached = self.prefix.fill(self._kv, row.slot, row.salts(), _tokens(row), row.blocks)
            if isinstance(row, Row):
                row.generation.admitted()
                row.generation.cached = max(row.generation.cached, min(row.cached, row.prompt))

    def _make_way(self) -> None:
        """Nothing can move: let drafts, which wait for targets elsewhere, wait behind the rows that have no slot."""
        if not self.waiting:
            return
        for row in list(self.running):
            if isinstance(row, Draft):
                self._forget(row)
                self.waiting.add(row)

    def _put_back(self, row: Row | Draft) -> None:
        """Take the youngest row's room; it reads its tokens again when there is room."""
        self._forget(row)
        self.waiting.put_back(row)

    def _forget(self, row: Row | Draft) -> None:
        self.remove(row)
        row.cached = 0
        if isinstance(row, Draft):
            row.forget()

    def _remember(self, row: Row | Draft, count: int) -> None:
        self.prefix.keep(self._kv, row.slot, row.salts(), _tokens(row)[:count], row.blocks)

    def _copy_twin(self, row: Row | Draft) -> None:
        """Take over keys and values of the same prompt, all but the last token, whose logits are needed."""
        if not isinstance(row, Row) or row.twin is None:
            return
        twin, ready = row.twin, row.prompt - 1
        if row.cached >= ready - ready % BLOCK:
            row.twin = None  # the prefix cache had as much
            return
        if twin.slot >= 0 and twin.cached < ready:
            return
        if twin.slot >= 0:
            self._kv.copy(twin.slot, row.slot, ready)
            row.cached = ready
        row.twin = None

    def _turns(self) -> list[Turn]:
        """Who feeds how much: rows with one token first, then the others within the step's share of prompts."""
        singles: list[Turn] = []
        longer: list[Turn] = []
        room = self._prefill_tokens
        for row in self.running:
            count = row.pending()
            if count == 1:
                singles.append((row, 1))
            elif count > 1 and room > 0:
                # A proposal is verified whole: what is proposed may be another thing in the next step.
                count = count if row.wants() > 1 else min(count, room)
                room -= count
                longer.append((row, count))
        # Rows of one adapter side by side, so that its factors are in the processor's cache for all but the first.
        singles.sort(key=lambda turn: _lane(turn[0]))
        return singles + longer

    def _lengths(self, turns: Sequence[Turn]) -> list[int]:
        """Tokens of each row after these turns, by slot."""
        lengths = [row.cached for row in self.running]
        for row, count in turns:
            lengths[row.slot] += count
        return lengths

    def _pack(self, turns: Sequence[Turn]) -> tuple[Step, list[tuple[Row | Draft, int, int]]]:
        """The step, and for each row whose logits matter the stretch of wanted logits that is its own."""
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        wanted: list[int] = []
        spans: list[tuple[Row | Draft, int, int]] = []
        segments: list[Segment] = []
        singles = 0
        for row, count in turns:
            begin, start = len(tokens), row.cached
            tokens += row.feed(count)
            positions += range(start, start + count)
            slots += [row.slot] * count
            if count == 1 and not segments:
                singles += 1
            else:
                segments.append(Segment(begin, begin + count, row.slot, start))
            wants = row.wants() if count == row.pending() else 0
            if wants:
                spans.append((row, len(wanted), len(wanted) + wants))
                wanted += range(begin + count - wants, begin + count)
        device = self.decoder.shape.device
        positions_T = torch.tensor(positions, device=device)
        slots_T = torch.tensor(slots, device=device)
        span = max(positions[:singles], default=-1) + 1
        step = Step(
            tokens_T=torch.tensor(tokens, device=device),
            positions_T=positions_T,
            slots_T=slots_T,
            singles=singles,
            span=span,
            segments=segments,
            wanted_W=None if len(wanted) == len(tokens) else torch.tensor(wanted, device=device, dtype=torch.long),
        )
        return step, spans

    @torch.inference_mode()
    def _draw(self, logits_WV: Tensor, spans: Sequence[tuple[Row | Draft, int, int]]) -> list[Row]:
        _constrain(logits_WV, spans)
        _hold_ends(logits_WV, spans)
        best: list[int] = logits_WV.argmax(-1).tolist()
        drawn = self._draw_plain(logits_WV, best, spans)
        moved: list[tuple[Row, list[int], int]] = []
        for row, begin, end in spans:
            if isinstance(row, Draft):
                row.proposal.append(drawn.get(begin, best[begin]))
            elif end - begin == 1:
                moved.append((row, [drawn.get(begin, best[begin])], begin))
            else:
                moved.append((row, self._verify(row, logits_WV[begin:end], best[begin:end]), begin))
        self._append(moved, logits_WV)
        return [row for row, _, _ in moved]

    def _draw_plain(
        self, logits_WV: Tensor, best: Sequence[int], spans: Sequence[tuple[Row | Draft, int, int]]
    ) -> dict[int, int]:
        """Tokens of rows that draw one and are not simply greedy, by place among the wanted logits."""
        chosen = [
            (row, begin) for row, begin, end in spans if end - begin == 1 and (not row.draw.greedy or row.draw.shifts)
        ]
        if not chosen:
            return {}
        places = torch.tensor([begin for _, begin in chosen], device=logits_WV.device)
        draws = [row.draw for row, _ in chosen]
        probs_BV = probabilities(penalise(logits_WV.index_select(0, places), draws), draws)
        tokens = pick(probs_BV, [draw.rng.random() for draw in draws])
        for (row, _), probs_V in zip(chosen, probs_BV, strict=True):
            if isinstance(row, Draft):
                row.drafted.append(probs_V)
        return {begin: token for (_, begin), token in zip(chosen, tokens, strict=True)}

    def _verify(self, row: Row, logits_KV: Tensor, best: Sequence[int]) -> list[int]:
        """The tokens that the draft's proposal yields: those that stand, and one of the target's own."""
        draft = row.draft
        assert draft is not None
        proposal = list(draft.proposal)
        if row.draw.greedy:
            stood, token = agree(proposal, best)
        else:
            target_KV = probabilities(logits_KV, [row.draw] * len(best))
            drafted = draft.drafted if isinstance(draft, Draft) else certain(proposal, target_KV)
            stood, token = accept(proposal, drafted, target_KV, row.draw.rng)
        generation = row.generation
        generation.drafted += len(proposal)
        generation.draft_output += len(proposal) if isinstance(draft, Draft) else 0
        generation.accepted += stood
        draft.verified(len(row.tokens), stood)
        return [*proposal[:stood], token]

    def _append(self, moved: Sequence[tuple[Row, list[int], int]], logits_WV: Tensor) -> None:
        """Give rows their tokens with log-probabilities; cut what is cached back to what stood; drop what ended."""
        if not moved:
            return
        places = [begin + offset for _, tokens, begin in moved for offset in range(len(tokens))]
        chosen = [token for _, tokens, _ in moved for token in tokens]
        device = logits_WV.device
        logs_MV = logits_WV if len(places) == logits_WV.shape[0] else logits_WV[torch.tensor(places, device=device)]
        logs_MV = torch.log_softmax(logs_MV, -1)
        values: list[float] = logs_MV.gather(1, torch.tensor(chosen, device=device)[:, None])[:, 0].tolist()
        at = 0
        for row, tokens, _ in moved:
            going, before = True, row.answer.written
            for token in tokens:
                if going:
                    tops = _tops(logs_MV[at], row.draw.top) if row.draw.top else ()
                    going = row.take(token, values[at], tops)
                at += 1
            row.cached = min(row.cached, len(row.tokens) - 1)
            going = going and row.take_forced()
            written = row.answer.written - before
            self.tokens += written
            self.waiting.charge(row, written=written)
            if not going:
                self.remove(row)


def _constrain(logits_WV: Tensor, spans: Sequence[tuple[Row | Draft, int, int]]) -> None:
    """Mask what the rows' grammars forbid, so that all that follows, log-probabilities too, is as within the grammar.

    A draft is masked like its target, and each drafted token is verified under the mask of its own place: speculation
    stays lossless.
    """
    fenced = []
    for row, begin, end in spans:
        grammar = row.target.grammar if isinstance(row, Draft) else row.grammar
        if grammar is not None:
            fenced.append((grammar, range(begin, end), row.proposal))
    if fenced:
        # Here, so that whoever asks for no grammar needs no compiler of them.
        from catena.adapters.drivers.engine.grammar import constrain

        constrain(logits_WV, fenced)


def _hold_ends(logits_WV: Tensor, spans: Sequence[tuple[Row | Draft, int, int]]) -> None:
    """Mask the tokens that would end an answer which was asked to be longer."""
    for row, begin, end in spans:
        answer = row.target.answer if isinstance(row, Draft) else row.answer
        # A draft proposes for the places after those that it has proposed already; a verification begins at the first.
        early = answer.early() - (len(row.proposal) if isinstance(row, Draft) else 0)
        if early > 0:
            logits_WV[begin : min(end, begin + early), list(answer.ends)] = -math.inf


def _tokens(row: Row | Draft) -> list[int]:
    return row.target.tokens if isinstance(row, Draft) else row.tokens


def _length(row: Row | Draft) -> int:
    return len(_tokens(row))


def _lane(row: Row | Draft) -> str:
    return row.adapter.key if row.adapter is not None else ""


def _tops(logs_V: Tensor, count: int) -> list[tuple[int, float]]:
    values, tokens = logs_V.topk(min(count, logs_V.shape[0]))
    # What a grammar forbids is no alternative.
    return [pair for pair in zip(tokens.tolist(), values.tolist(), strict=True) if pair[1] > -math.inf]

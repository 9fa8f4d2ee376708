"""The step loop in this process: every request is queued before the first step, so that forwards can be counted."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from catena.adapters.core.work import Done, Message, Sampling, Weights, Work
from catena.adapters.drivers.engine.adapter_weights import read_adapter
from catena.adapters.drivers.engine.base_weights import read_base
from catena.adapters.drivers.engine.batch import Batch
from catena.adapters.drivers.engine.frames import Answer, Failed, Finished, Output, Settings, Ways
from catena.adapters.drivers.engine.kv_blocks import KvBlocks
from catena.adapters.drivers.engine.loop import Held, Loop
from catena.adapters.drivers.engine.prefix import BLOCK
from catena.adapters.drivers.engine.text import Text
from tests.contract.adapters.making import make_adapter, make_base, part_of

SETTINGS = Settings(socket="", coalesce_s=0.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("loop")
    base = make_base(root / "base")
    made = {"base": base, "draft": make_base(root / "draft", width=32, layers=1, seed=9)}
    invocation = {"alora_invocation_tokens": list(b"[do]")}
    made |= {
        name: make_adapter(base, root / name, seed=ord(name[-1]), r=16, **invocation) for name in ("act-x", "act-y")
    }
    return made | {f"a{rank}": make_adapter(base, root / f"a{rank}", seed=rank, r=rank) for rank in (1, 8, 64)}


class Bench:
    """A loop with bases that never end an answer by themselves, and what it told."""

    ways = Ways()

    def __init__(self, folders: dict[str, Path], settings: Settings = SETTINGS, **batch: int) -> None:
        self.told: list[Answer] = []
        self.clock = iter(range(10**9))
        self.loop = Loop(settings, self.told.append, lambda: next(self.clock) * 0.001)
        sizes = {"max_rows": 32, "kv_bytes": 1 << 24, "prefill_tokens": 512} | batch
        for name in ("base", "draft"):
            decoder = read_base(folders[name], dtype="auto", device=torch.device("cpu"), kv_bytes=sizes["kv_bytes"])
            text = Text(folders[name], lambda: 0.0)
            text.ends = frozenset()
            self.loop.bases[name] = Held(decoder=decoder, text=text, batch=Batch(decoder, ways=self.ways, **sizes))
        held = self.loop.bases["base"]
        for key in folders.keys() - {"base", "draft"}:
            held.adapters[key] = read_adapter(key, [part_of(folders["base"], folders[key])], held.decoder)

    def submit(
        self, call: int, adapter: str = "", text: str = "go", draft: str = "", salt: str = "", **sampling: Any
    ) -> None:
        asked = Work(
            weights=Weights(base="base", adapter=adapter),
            messages=(Message(role="user", content=text),),
            sampling=Sampling(**{"max_tokens": 12, "temperature": 0.0, "seed": call, "logprobs": True} | sampling),
            draft=Weights(base=draft) if draft else None,
            draft_tokens=4,
            salt=salt,
        )
        self.loop.submit(call, asked, self.loop.bases["base"].text.chat(asked.messages))

    def drain(self) -> None:
        batches = [held.batch for held in self.loop.bases.values()]
        for _ in range(5000):
            if not any(batch.busy for batch in batches):
                for batch in batches:
                    assert_nothing_is_held(batch)
                return
            for name, held in self.loop.bases.items():
                self.loop._step(name, held)
        raise AssertionError("the loop does not end")

    def answer(self, call: int, index: int = 0) -> list[tuple[str, float]]:
        """Tokens and log-probabilities of an answer."""
        outputs = [
            piece for told in self.told if isinstance(told, Output) and told.call == call for piece in told.pieces
        ]
        return [(e.token, e.logprob) for piece in outputs if piece.index == index for e in piece.logprobs]

    def done(self, call: int) -> Done:
        return next(told.done for told in self.told if isinstance(told, Finished) and told.call == call)

    @property
    def forwards(self) -> int:
        return self.loop.bases["base"].batch.forwards


@pytest.fixture(autouse=True, params=[Ways(), Ways(kv="places", lora="mask", graphs="on")], ids=["cpu", "as-on-cuda"])
def ways(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a CPU computes in, and what CUDA does, but for its kernels."""
    Bench.ways = request.param
    yield
    Bench.ways = Ways()


def assert_nothing_is_held(batch: Batch) -> None:
    """Blocks are free once no row runs, but for those that the prefix cache keeps."""
    if isinstance(batch._kv, KvBlocks):
        assert batch._kv.free + len(batch.prefix._blocks) == len(batch._kv._uses) - 1


def tokens(answer: Sequence[tuple[str, float]]) -> list[str]:
    return [token for token, _ in answer]


def test_adapters_of_all_ranks_and_base_rows_share_one_forward_per_step(folders: dict[str, Path]) -> None:
    alone = {}
    for adapter in ("", "a1", "a8", "a64"):
        single = Bench(folders)
        single.submit(1, adapter, text=f"tell {adapter}")
        single.drain()
        alone[adapter] = single.answer(1)
    bench = Bench(folders)
    for call, adapter in enumerate(["", "a1", "a8", "a64"] * 2):
        bench.submit(call, adapter, text=f"tell {adapter}")

    bench.drain()

    assert bench.forwards == 12
    for call, adapter in enumerate(["", "a1", "a8", "a64"] * 2):
        assert tokens(bench.answer(call)) == tokens(alone[adapter])
        assert [p for _, p in bench.answer(call)] == pytest.approx([p for _, p in alone[adapter]], abs=1e-4)
    assert len({tuple(tokens(answer)) for answer in alone.values()}) == 4


def test_several_answers_read_their_prompt_once(folders: dict[str, Path]) -> None:
    bench = Bench(folders)
    bench.submit(1, "a8", text="w" * 100, n=3)

    bench.drain()

    assert tokens(bench.answer(1, 0)) == tokens(bench.answer(1, 1)) == tokens(bench.answer(1, 2))
    assert len(tokens(bench.answer(1, 2))) == 12
    assert bench.forwards == 13


def test_a_long_prompt_is_read_in_parts_while_others_go_on(folders: dict[str, Path]) -> None:
    whole, parts = Bench(folders), Bench(folders, prefill_tokens=16)
    for bench in (whole, parts):
        bench.submit(1, text="w" * 90)
        bench.submit(2, "a8")
        bench.drain()

    assert tokens(parts.answer(1)) == tokens(whole.answer(1))
    assert tokens(parts.answer(2)) == tokens(whole.answer(2))
    assert parts.forwards == 12 + 6


def test_rows_that_do_not_fit_wait_or_start_again_and_answer_the_same(folders: dict[str, Path]) -> None:
    roomy = Bench(folders)
    per_token = roomy.loop.bases["base"].decoder.shape.kv_bytes_per_token
    tight = Bench(folders, kv_bytes=256 * per_token)
    for bench in (roomy, tight):
        for call in range(6):
            bench.submit(call, ("", "a1", "a64")[call % 3], text=f"question {call}", max_tokens=80)
        bench.drain()

    for call in range(6):
        assert len(roomy.answer(call)) == 80
        assert tokens(tight.answer(call)) == tokens(roomy.answer(call))
    assert tight.forwards > roomy.forwards


def test_speculation_gives_the_targets_own_greedy_answer_in_fewer_forwards(folders: dict[str, Path]) -> None:
    twin = folders | {"draft": folders["base"]}
    plain, drafted = Bench(folders), Bench(twin)
    plain.submit(1, max_tokens=40)
    drafted.submit(1, draft="draft", max_tokens=40)
    for bench in (plain, drafted):
        bench.drain()

    assert tokens(drafted.answer(1)) == tokens(plain.answer(1))
    assert [p for _, p in drafted.answer(1)] == pytest.approx([p for _, p in plain.answer(1)], abs=1e-4)
    # A draft that is the target itself is always right: five tokens a forward.
    done = drafted.done(1)
    assert done.accepted == done.drafted > 0
    assert drafted.forwards <= 1 + -(-39 // 5)


def test_a_poor_draft_beside_plain_rows_changes_no_answer(folders: dict[str, Path]) -> None:
    plain, mixed = Bench(folders), Bench(folders)
    for call in range(6):
        plain.submit(call, ("", "a8")[call % 2], text=f"q{call}", max_tokens=30)
        mixed.submit(call, ("", "a8")[call % 2], text=f"q{call}", max_tokens=30, draft="draft" if call % 3 else "")
    for bench in (plain, mixed):
        bench.drain()

    for call in range(6):
        assert tokens(mixed.answer(call)) == tokens(plain.answer(call))
    assert any(mixed.done(call).accepted < mixed.done(call).drafted for call in (1, 2, 4, 5))


def test_mutual_drafts_that_fill_both_bases_do_not_wait_for_each_other(folders: dict[str, Path]) -> None:
    bench = Bench(folders, max_rows=2)
    for call in range(4):
        bench.submit(call, text=f"q{call}", draft="base", n=2)

    bench.drain()

    assert all(len(bench.answer(call, index)) == 12 for call in range(4) for index in range(2))


def test_cancelling_leaves_nothing_behind_and_disturbs_nobody(folders: dict[str, Path]) -> None:
    alone, bench = Bench(folders), Bench(folders)
    alone.submit(2, "a8", text="other", max_tokens=30)
    alone.drain()
    bench.submit(1, text="first", draft="draft", max_tokens=30)
    bench.submit(2, "a8", text="other", max_tokens=30)
    for _ in range(5):
        for name, held in bench.loop.bases.items():
            bench.loop._step(name, held)

    bench.loop.cancel(1)

    assert [len(held.batch.running) for held in bench.loop.bases.values()] == [1, 0]
    assert_nothing_is_held(bench.loop.bases["draft"].batch)
    bench.drain()
    assert tokens(bench.answer(2)) == tokens(alone.answer(2))
    assert not any(isinstance(told, Finished) and told.call == 1 for told in bench.told)


def test_bases_of_other_vocabularies_may_not_draft(folders: dict[str, Path]) -> None:
    bench = Bench(folders)
    bench.loop.bases["draft"].text.fingerprint = os.urandom(4).hex()

    bench.submit(1, draft="draft")

    (told,) = bench.told
    assert isinstance(told, Failed)
    assert told.code == "draft_mismatch"


def test_a_step_that_fails_ends_its_requests_and_leaves_the_base_usable(folders: dict[str, Path]) -> None:
    bench = Bench(folders)
    held = bench.loop.bases["base"]
    bench.submit(1)
    embed = held.decoder.ends.embed_VD
    held.batch.running.clear()
    held.batch._kv.fit = None  # type: ignore[method-assign, assignment]

    bench.loop._step("base", held)

    (told,) = bench.told
    assert isinstance(told, Failed)
    assert told.code == "engine_failed"
    assert not held.batch.busy
    del held.batch._kv.fit
    bench.submit(2)
    bench.drain()
    assert len(bench.answer(2)) == 12
    assert embed is held.decoder.ends.embed_VD


TEXT = "one long text that many ask about, with words enough to fill some blocks: "


def test_what_was_read_before_is_not_read_again_and_answers_stay_the_same(folders: dict[str, Path]) -> None:
    cold, warm = Bench(folders), Bench(folders, prefix_bytes=1 << 24)
    for bench in (cold, warm):
        for call, adapter in enumerate(["", "a8", "", "a8"]):
            bench.submit(call, adapter, text=f"{TEXT}{call}")
            bench.drain()

    for call in range(4):
        assert tokens(warm.answer(call)) == tokens(cold.answer(call))
        assert [p for _, p in warm.answer(call)] == pytest.approx([p for _, p in cold.answer(call)], abs=1e-4)
    assert [warm.done(call).cached_tokens for call in range(4)] == [0, 0, 64, 64]
    assert cold.done(3).cached_tokens == 0


def test_a_conversation_goes_on_from_its_own_answer(folders: dict[str, Path]) -> None:
    bench = Bench(folders, prefix_bytes=1 << 24)
    prompt = list(range(97, 97 + 20))
    said = 40
    asked = Work(weights=Weights(base="base"), prompt="x", sampling=Sampling(max_tokens=said, temperature=0.0))
    bench.loop.submit(1, asked, prompt)
    (row,) = bench.loop._live[1]
    bench.drain()

    bench.loop.submit(2, asked, [*row.tokens, 97, 98])
    bench.drain()

    assert bench.done(2).cached_tokens == (len(prompt) + said) // BLOCK * BLOCK > len(prompt)


@pytest.mark.parametrize("other", [{"salt": "another tenant"}, {"adapter": "a64"}, {"adapter": ""}])
def test_other_weights_and_other_tenants_share_nothing(folders: dict[str, Path], other: dict[str, str]) -> None:
    bench = Bench(folders, prefix_bytes=1 << 24)
    for call, asked in enumerate([{"adapter": "a8", "salt": "mine"}, {"adapter": "a8", "salt": "mine"} | other]):
        bench.submit(call, text=TEXT, **asked)
        bench.drain()

    assert bench.done(1).cached_tokens == 0


def test_what_is_remembered_stays_within_its_budget(folders: dict[str, Path]) -> None:
    shape = Bench(folders).loop.bases["base"].decoder.shape
    bench = Bench(folders, prefix_bytes=5 * BLOCK * shape.kv_bytes_per_token)
    for call in range(4):
        bench.submit(call, text=f"{call} {TEXT}")
        bench.drain()

    prefix = bench.loop.bases["base"].batch.prefix
    assert 0 < prefix.bytes <= 5 * BLOCK * shape.kv_bytes_per_token


def test_an_activated_adapter_acts_from_its_invocation_on_as_in_peft(folders: dict[str, Path]) -> None:
    bench = Bench(folders, prefix_bytes=1 << 24)
    bench.submit(0, text=f"{TEXT}[do]")
    bench.drain()
    for call, adapter in ((1, "act-x"), (2, "act-y"), (3, "act-x")):
        bench.submit(call, adapter, text=f"{TEXT}[do]")
    bench.drain()

    assert [bench.done(call).cached_tokens for call in (1, 2, 3)] == [64, 64, 64]
    for call, adapter in ((1, "act-x"), (2, "act-y")):
        assert tokens(bench.answer(call)) != tokens(bench.answer(0))
        assert bench.answer(call)[0][1] == pytest.approx(peft_first(folders, adapter, bench, f"{TEXT}[do]"), abs=1e-4)
    assert tokens(bench.answer(3)) == tokens(bench.answer(1))


def test_an_activated_adapter_without_its_invocation_is_refused(folders: dict[str, Path]) -> None:
    bench = Bench(folders)
    bench.submit(1, "act-x", text="no such thing")

    told = bench.told[0]
    assert isinstance(told, Failed)
    assert told.code == "invocation_missing"


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_copying_what_was_said_before_changes_no_answer_and_saves_steps(
    folders: dict[str, Path], temperature: float
) -> None:
    plain, copying = (Bench(folders, Settings(socket="", coalesce_s=0.0, lookup_tokens=tokens)) for tokens in (0, 6))
    for bench in (plain, copying):
        for call, adapter in enumerate(["", "a8"]):
            bench.submit(call, adapter, text="ab ab ab", max_tokens=200, temperature=temperature)
        bench.drain()

    assert copying.forwards <= plain.forwards
    for call in range(2):
        done = copying.done(call)
        assert done.output_tokens == plain.done(call).output_tokens == 200
        assert (done.draft_output_tokens, plain.done(call).drafted) == (0, 0)
        if temperature == 0.0:
            assert tokens(copying.answer(call)) == tokens(plain.answer(call))
    if temperature == 0.0:
        assert copying.done(0).accepted > 0
        assert copying.forwards < plain.forwards


def test_a_crowd_at_one_adapter_does_not_keep_another_waiting(folders: dict[str, Path]) -> None:
    bench = Bench(folders, max_rows=2)
    for call in range(12):
        bench.submit(call, "a8", text=f"crowd {call}")
    bench.submit(99, "a1", text="alone")
    bench.drain()

    ended = [told.call for told in bench.told if isinstance(told, Finished)]
    assert ended.index(99) <= 4


def peft_first(folders: dict[str, Path], adapter: str, bench: Bench, text: str) -> float:
    """The largest log-probability after the chat prompt, by PEFT itself."""
    prompt = bench.loop.bases["base"].text.chat((Message(role="user", content=text),))
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(folders["base"]), folders[adapter]).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1]
    return float(logits.log_softmax(-1).max())

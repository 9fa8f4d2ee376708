"""The demo's own bases answer the same, word for word, whatever the engine does to be fast."""

from pathlib import Path

import pytest
import torch

from catena.adapters.core.work import Message, Sampling, Weights, Work
from catena.adapters.drivers.engine import linear
from catena.adapters.drivers.engine.base_weights import read_base
from catena.adapters.drivers.engine.batch import Batch
from catena.adapters.drivers.engine.frames import Answer, Finished, Output, Settings
from catena.adapters.drivers.engine.loop import Held, Loop
from catena.adapters.drivers.engine.text import Text
from demo.questions import PRESENT, questions

MODELS = Path(__file__).resolve().parents[3] / "demo" / "models"
ASKED = [question.text for question in questions(40, 7, skills=PRESENT)]
WAYS: dict[str, tuple[int, dict[str, int], str]] = {
    "all at once": (0, {}, ""),
    "prefix cache": (0, {"prefix_bytes": 1 << 24, "max_rows": 3}, ""),
    "short chunks": (0, {"prefill_tokens": 5}, ""),
    "copying": (6, {"max_rows": 2}, ""),
    "drafting": (0, {}, "demo-small"),
    "little memory": (0, {"kv_bytes": 1 << 20}, ""),
    "drafting and all of it": (0, {"prefix_bytes": 1 << 20, "prefill_tokens": 7, "kv_bytes": 1 << 20}, "demo-small"),
    "all of it": (4, {"prefix_bytes": 1 << 20, "prefill_tokens": 7, "max_rows": 3}, ""),
}


def answers(tokens: int, sizes: dict[str, int], draft: str) -> list[str]:
    """What demo-large says to every question, all asked at the start, and once more."""
    told: list[Answer] = []
    loop = Loop(Settings(socket="", coalesce_s=0.0, lookup_tokens=tokens), told.append, lambda: 0.0)
    for name in ("demo-large", "demo-small"):
        limits = {"max_rows": 32, "kv_bytes": 1 << 28, "prefill_tokens": 512} | sizes
        decoder = read_base(MODELS / name, dtype="float32", device=torch.device("cpu"), kv_bytes=limits["kv_bytes"])
        text = Text(MODELS / name, lambda: 0.0)
        loop.bases[name] = Held(decoder=decoder, text=text, batch=Batch(decoder, **limits))
    for call, asked in enumerate(ASKED * 2):
        work = Work(
            weights=Weights(base="demo-large"),
            messages=(Message(role="user", content=asked),),
            sampling=Sampling(max_tokens=48, temperature=0.0, seed=1),
            draft=Weights(base=draft) if draft else None,
        )
        loop.submit(call, work, loop.bases["demo-large"].text.chat(work.messages))
    while any(held.batch.busy for held in loop.bases.values()):
        for name, held in loop.bases.items():
            if held.batch.busy:
                loop._step(name, held)
    said = [""] * (2 * len(ASKED))
    for each in told:
        if isinstance(each, Output):
            said[each.call] += "".join(piece.text for piece in each.pieces)
    assert sum(isinstance(each, Finished) for each in told) == len(said)
    return said


@pytest.fixture(scope="module")
def plain() -> list[str]:
    torch.set_num_threads(1)
    return answers(0, {"max_rows": 1}, "")


@pytest.mark.parametrize("way", WAYS)
def test_greedy_answers_are_the_same_with_every_optimisation(plain: list[str], way: str) -> None:
    assert answers(*WAYS[way]) == plain
    assert plain[: len(ASKED)] == plain[len(ASKED) :]
    assert len(set(plain)) > 20


def test_greedy_answers_are_the_same_with_plain_products(plain: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "packs", lambda dtype: False)
    assert answers(0, {}, "") == plain

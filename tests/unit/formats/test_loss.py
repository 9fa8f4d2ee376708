"""Measuring and climbing, with a runtime that answers by rule."""

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from catena.artifacts.formats.llama_cpp import Guess
from catena.artifacts.formats.loss import POSITIONS, ask, compare, prompts_of
from catena.artifacts.formats.quantising import export_quantised
from catena.kit.errors import Invalid

pytestmark = pytest.mark.unit
VOCABULARY = 8


class Parrot:
    """Likes the token that it heard last; `shift` moves every other log-probability, `wrong` every n-th favourite."""

    def __init__(self, shift: float = 0.0, wrong: int = 0, speed: float = 100.0) -> None:
        self.shift, self.wrong, self.speed, self.asked = shift, wrong, speed, 0

    def tokens(self, text: str) -> list[int]:
        return [ord(letter) % VOCABULARY for letter in text]

    def guess(self, tokens, top):
        self.asked += 1
        favourite = tokens[-1]
        if self.wrong and self.asked % self.wrong == 0:
            favourite = (favourite + 1) % VOCABULARY
        values = np.where(np.arange(VOCABULARY) == favourite, -0.1, -3.0 + self.shift)
        order = np.argsort(-values, kind="stable")[:top]
        return Guess(ids=order, logprobs=values[order])

    def tokens_per_s(self, tokens, count):
        return self.speed


def test_an_unchanged_model_loses_nothing():
    prompts = prompts_of(Parrot(), ["abc", "de"])
    told = compare(ask(Parrot(), prompts), ask(Parrot(speed=250.0), prompts))
    assert (told.positions, told.top1_agreement, told.logit_rms, told.logit_max) == (5, 1.0, 0.0, 0.0)
    assert told.speed_gain == 2.5


def test_what_moved_is_told_by_how_much_and_how_often():
    prompts = prompts_of(Parrot(), ["abcdefgh"])
    told = compare(ask(Parrot(), prompts), ask(Parrot(shift=0.5, wrong=4), prompts))
    assert told.top1_agreement == 0.75
    assert told.logit_max == pytest.approx(2.9)
    assert 0.5 < told.logit_rms < 2.9


def test_long_prompts_are_asked_at_their_last_places_only():
    parrot = Parrot()
    assert len(ask(parrot, [[1] * 100, [1] * 3]).guesses) == POSITIONS + 3


def test_prompts_without_a_token_are_refused():
    with pytest.raises(Invalid) as refused:
        prompts_of(Parrot(), ["", ""])
    assert refused.value.code == "no_prompts"


@pytest.mark.parametrize(
    ("floor", "kept", "tried"), [(0.5, "Q4_K_M", 1), (0.8, "Q6_K", 2), (0.95, "Q8_0", 3), (1.0, "F16", 4)]
)
def test_the_first_level_that_keeps_the_floor_is_kept(tmp_path, floor, kept, tried):
    wrong = {"Q4_K_M": 2, "Q6_K": 6, "Q8_0": 20, "F16": 0, "F32": 0}
    loaded = []

    def write(path: Path, level: str) -> None:
        path.write_text(level.ljust(100 if level == "F32" else 40))

    @contextmanager
    def open_model(path: Path):
        loaded.append(path.read_text().strip())
        yield Parrot(wrong=wrong[loaded[-1]])

    weights = SimpleNamespace(names=lambda: ["a"], info=lambda name: SimpleNamespace(dtype="F32"))
    told = export_quantised(
        weights,
        tmp_path / "m.gguf",
        level="Q4_K_M",
        floor=floor,
        prompts=["abcdefghijklmnopqrst", "uvwxyz"],
        write=write,
        open_model=open_model,
    )
    assert (told.asked, told.level, len(told.attempts)) == ("Q4_K_M", kept, tried)
    assert loaded == ["F32", *(attempt.level for attempt in told.attempts)]
    assert (tmp_path / "m.gguf").read_text().strip() == kept
    assert told.attempts[0].size_cut == pytest.approx(0.6)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_without_prompts_nothing_is_measured_and_that_is_told(tmp_path):
    told = export_quantised(
        None,
        tmp_path / "m.gguf",
        level="Q6_K",
        floor=0.9,
        prompts=[],
        write=lambda path, level: path.write_text(level),
        open_model=None,
    )
    assert (told.level, told.attempts) == ("Q6_K", [])

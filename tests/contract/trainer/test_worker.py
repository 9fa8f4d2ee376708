"""What the training process does, called in this process and held against slow, obvious references."""

import msgspec
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from catena.artifacts.base import check_base
from catena.artifacts.digest import folder_digest
from catena.kit.config import House, ModelConfig
from catena.kit.errors import Invalid
from catena.trainer.core.estimate import trainable
from catena.trainer.core.order import Measuring, Order, Point, Portion
from catena.trainer.core.rows import Row, Turn, read_rows
from catena.trainer.core.spec import Peft, Training
from catena.trainer.drivers.bases import FolderBases
from catena.trainer.drivers.worker import measuring, training
from catena.trainer.drivers.worker.encoding import encode_prompt, encode_row
from catena.trainer.drivers.worker.job import carry_out
from catena.trainer.drivers.worker.model import load
from catena.trainer.drivers.workers import ADAPTER
from demo.conversation import encode
from tests.contract.trainer.rooms import same_answer

ROWS = read_rows(same_answer(24), "rows")
LONG = Row((Turn("system", "be brief"), Turn("user", "one"), Turn("assistant", "1"), Turn("user", "<bot>two<end>"),
            Turn("assistant", "2<end>")))  # fmt: skip


def order(base, **changes):
    fields = {
        "job": "j",
        "base": "tiny",
        "base_folder": str(base),
        "peft": Peft(rank=4, targets=("q_proj", "down_proj")),
        "training": Training(
            epochs=0, max_steps=12, batch_size=4, accumulation=2, learning_rate=0.02, checkpoint_steps=3, seed=7
        ),
        "portions": (
            Portion(weight=2.0, retention=False, rows=ROWS),
            Portion(weight=1.0, retention=True, rows=read_rows(same_answer(9, "hm", "old"), "old")),
        ),
        "measured": {},
        "threads": 1,
        "device": "cpu",
        "point_s": 0.0,
    }
    return Order(**(fields | changes))


class Killed(Exception):
    """What stands for SIGKILL inside this process."""


def kill_at(step):
    def tell(report):
        if isinstance(report, Point) and report.step == step:
            raise Killed

    return tell


def weights(folder):
    return load_file(folder / ADAPTER / "adapter_model.safetensors")


@pytest.fixture
def tokenizer(base):
    return AutoTokenizer.from_pretrained(base)


def test_only_the_assistants_words_and_their_end_are_learned(tokenizer):
    encoded = encode_row(tokenizer, LONG)
    learned = [token for token, on in zip(encoded.tokens, encoded.learned, strict=True) if on]
    end = tokenizer.eos_token_id
    assert learned == [ord("1"), end, *b"2<end>", end]


def test_texts_never_become_special_tokens_and_the_demo_encodes_the_same(tokenizer):
    plain = [{"role": turn.role, "content": turn.content} for turn in LONG.turns]
    assert encode_row(tokenizer, LONG).tokens == encode(tokenizer, plain, add_generation_prompt=False)
    assert encode_prompt(tokenizer, LONG.prompt) == encode(tokenizer, plain[:-1])


def test_the_loss_is_the_mean_over_learned_tokens_as_plain_transformers_computes_it(base, tokenizer):
    model, _ = load(order(base), torch.device("cpu"))
    model.eval()
    rows = [encode_row(tokenizer, row) for row in (LONG, *ROWS[:3])]
    expected = torch.tensor(0.0)
    for row in rows:
        logits_TV = model(torch.tensor([row.tokens])).logits[0]
        for i in range(1, len(row.tokens)):
            if row.learned[i]:
                expected = expected + cross_entropy(logits_TV[i - 1], torch.tensor(row.tokens[i]))
    torch.testing.assert_close(training.batch_loss(model, rows), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("deaths", [(4,), (1, 8, 12)])
def test_killed_and_resumed_gives_the_very_weights_of_an_uninterrupted_run(base, tmp_path, deaths):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    expected = carry_out(order(base), whole, lambda _: None)
    for step in deaths:
        with pytest.raises(Killed):
            carry_out(order(base), broken, kill_at(step))
    told = []
    resumed = carry_out(order(base), broken, told.append)
    first = next((report.step for report in told if isinstance(report, Point)), 13)
    assert first == deaths[-1] // 3 * 3 + 1
    assert resumed.metrics["loss"] == expected.metrics["loss"]
    assert weights(whole).keys() == weights(broken).keys()
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(broken)[name]), name
    assert folder_digest(whole / ADAPTER) == folder_digest(broken / ADAPTER)


@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
async def test_plain_peft_loads_the_export_and_counts_the_planned_parameters(base, tmp_path, method, tokenizer):
    peft = Peft(method=method, rank=4, targets=("q_proj", "v_proj", "up_proj"))
    asked = order(base, peft=peft, training=msgspec.structs.replace(order(base).training, max_steps=2))
    result = carry_out(asked, tmp_path, lambda _: None)
    facts = await FolderBases(House(models=[ModelConfig(name="tiny", path=str(base))])).facts("tiny")
    assert result.trainable_parameters == trainable(peft, facts)
    assert facts.digest == check_base(base).digest
    plain = AutoModelForCausalLM.from_pretrained(base)
    tokens = torch.tensor([encode_row(tokenizer, LONG).tokens])
    before = plain(tokens).logits
    after = PeftModel.from_pretrained(plain, tmp_path / ADAPTER)(tokens).logits
    assert (before - after).abs().max() > 1e-3


def test_accuracy_is_that_of_generating_row_by_row(base, tmp_path, tokenizer):
    asked = order(base, measured={"heldout": ROWS[:6], "retention": ROWS[6:9]})
    told = []
    result = carry_out(asked, tmp_path, told.append)
    assert {"heldout_accuracy", "base_heldout_accuracy", "retention", "base_retention"} < set(result.metrics)
    assert sum(isinstance(report, Measuring) for report in told) == 1
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / ADAPTER).eval()
    together = measuring.answer(model, tokenizer, ROWS[:6])
    alone = [measuring.answer(model, tokenizer, [row])[0] for row in ROWS[:6]]
    assert together == alone


def test_points_tell_where_the_job_stands(base, tmp_path):
    told = []
    carry_out(order(base), tmp_path, told.append)
    points = [report for report in told if isinstance(report, Point)]
    assert [point.step for point in points] == list(range(1, 13))
    assert [point.checkpoint for point in points] == [step // 3 * 3 for step in range(1, 13)]
    assert points[-1].rows == 96
    assert points[-1].remaining_s == 0
    assert points[-1].loss < points[0].loss
    assert all(point.tokens_per_s > 0 for point in points)


def test_rows_too_long_are_left_out_and_counted_and_none_left_is_an_error(base, tmp_path):
    rows = (*ROWS, *read_rows(same_answer(5, "x" * 200), "long"))
    asked = order(base, portions=(Portion(weight=1.0, retention=False, rows=rows),))
    assert carry_out(asked, tmp_path, lambda _: None).skipped == 5
    short = msgspec.structs.replace(asked.training, max_tokens=8)
    with pytest.raises(Invalid, match="longer than 8 tokens"):
        carry_out(order(base, training=short), tmp_path, lambda _: None)


def test_a_loss_that_is_no_number_ends_the_job_with_its_cure(base, tmp_path):
    broken = AutoModelForCausalLM.from_pretrained(base)
    broken.model.norm.weight.data.fill_(float("nan"))
    broken.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path)
    with pytest.raises(training.Diverged, match=r"nan at step 1; lower training\.learning_rate"):
        carry_out(order(tmp_path), tmp_path, lambda _: None)

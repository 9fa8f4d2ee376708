import math

import msgspec
import pytest

from catena.kit.errors import Invalid
from catena.trainer.core.spec import Acceptance, JobSpec, Peft, Source, Training, Unsupported, checked
from catena.trainer.core.verdict import rejection

GOOD = JobSpec(adapter="swapcase", base="demo-large", sources=(Source(name="corrections", weight=1.0),))


def changed(**fields):
    return msgspec.structs.replace(GOOD, **fields)


def test_a_good_spec_passes_unchanged():
    assert checked(GOOD) is GOOD


@pytest.mark.parametrize(
    "spec",
    [
        changed(adapter="No Spaces"),
        changed(version="v1"),
        changed(base=""),
        changed(sources=()),
        changed(sources=(Source(name="old", weight=1.0, retention=True),)),
        changed(sources=(Source(name="x", weight=math.nan),)),
        changed(sources=(Source(name="x", weight=-1.0),)),
        changed(sources=(Source(name="x", weight=1.0, type="poem"),)),
        changed(peft=Peft(method="magic")),
        changed(peft=Peft(rank=0)),
        changed(peft=Peft(dropout=1.0)),
        changed(peft=Peft(targets=("q_proj|.*",))),
        changed(training=Training(learning_rate=math.inf)),
        changed(training=Training(holdout=0.9)),
        changed(training=Training(batch_size=-2)),
        changed(acceptance=Acceptance(min_accuracy=1.5)),
    ],
)
def test_what_could_never_run_is_refused_with_its_cure(spec):
    with pytest.raises(Invalid):
        checked(spec)


def test_adalora_is_refused_with_a_code_of_its_own():
    with pytest.raises(Unsupported) as caught:
        checked(changed(peft=Peft(method="adalora")))
    assert caught.value.code == "unsupported_method"


def test_trusted_rows_decide_over_held_out_ones():
    metrics = {"heldout_accuracy": 0.9, "trusted_accuracy": 0.4}
    assert "0.400 on the trusted rows is below the 0.7" in rejection(metrics, Acceptance())
    assert rejection({"heldout_accuracy": 0.4, "trusted_accuracy": 0.9}, Acceptance()) == ""


def test_lost_skills_reject_a_good_adapter():
    metrics = {"heldout_accuracy": 1.0, "base_retention": 0.9, "retention": 0.84}
    assert "old skills fell from 0.900 to 0.840" in rejection(metrics, Acceptance())
    assert rejection(metrics | {"retention": 0.85}, Acceptance()) == ""


def test_nothing_measured_is_nothing_accepted():
    assert "nothing was held out" in rejection({"loss": 0.1}, Acceptance(min_accuracy=0.0))

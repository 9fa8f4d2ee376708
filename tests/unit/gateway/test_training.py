"""Training curves and types of models, as the dashboard draws them."""

import pytest

from catena.gateway.core.figures import kind_of
from catena.gateway.core.training import MOST_JOBS, MOST_POINTS, Job, Jobs

pytestmark = pytest.mark.unit


def test_a_long_curve_is_thinned_and_keeps_its_ends_near() -> None:
    job = Job()
    for step in range(1, 5001):
        job.progressed(step, 5000, 1.0 / step)
    assert len(job.curve) <= MOST_POINTS
    assert job.curve[0] == (1, 1.0)
    assert job.curve[-1][0] > 4900
    gaps = {b[0] - a[0] for a, b in zip(job.curve, job.curve[1:], strict=False)}
    assert len(gaps) == 1
    assert (job.step, job.total_steps) == (5000, 5000)


def test_steps_that_are_done_again_after_a_crash_replace_those_before() -> None:
    job = Job()
    for step, loss in ((1, 3.0), (2, 2.0), (3, 1.0), (2, 2.5)):
        job.progressed(step, 9, loss)
    assert job.curve == [(1, 3.0), (2, 2.5)]


def test_the_newest_jobs_are_kept_newest_first() -> None:
    jobs = Jobs()
    for number in range(MOST_JOBS + 2):
        jobs.of(f"j{number}").state = "succeeded"
    view = jobs.view()
    assert len(view) == MOST_JOBS
    assert (view[0]["id"], view[-1]["id"]) == (f"j{MOST_JOBS + 1}", "j2")
    assert jobs.of("j5").state == "succeeded"


@pytest.mark.parametrize(
    ("model", "shape", "kind"),
    [
        ("base", "sequential", "base"),
        ("base@code:1", "cascade", "adapter"),
        ("gpt", "sequential", "outside"),
        ("gpt", "pipeline:mod", "pipeline"),
        ("minilm", "embedding", "embedding"),
        ("", "", "base"),
    ],
)
def test_an_answer_is_of_the_type_of_what_gave_it(model: str, shape: str, kind: str) -> None:
    assert kind_of(model, shape, frozenset({"gpt"})) == kind

"""Reads feedback, capsules and samples: pure."""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from catena.kit.errors import Invalid
from catena.learner.core.records import Execution, Feedback, Sample

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
MAX_TEXT = 100_000
DOMAINS: dict[str, tuple[str, ...]] = {
    "dataeng": ("etl", "pipeline", "spark", "airflow", "dbt", "warehouse", "kafka", "parquet"),
    "devops": ("kubernetes", "docker", "ci/cd", "terraform", "helm", "ansible", "jenkins"),
    "api": ("rest", "graphql", "openapi", "fastapi", "grpc", "endpoint"),
    "frontend": ("react", "vue", "nextjs", "next.js", "typescript", "css", "svelte"),
}
OTHER = "code"


def scored(feedback: Feedback, thumbs: int) -> Feedback:
    """The feedback with one score: as given, else from the thumb, else 0 for an answer that had to be corrected.

    Raises Invalid (`bad_feedback`).
    """
    if not feedback.execution_id:
        raise Invalid("feedback names no execution; give `execution_id`", code="bad_feedback")
    if thumbs not in (-1, 0, 1):
        raise Invalid(f"thumbs {thumbs} is neither 1, 0 nor -1", code="bad_feedback")
    if feedback.score is not None and not (math.isfinite(feedback.score) and 0.0 <= feedback.score <= 1.0):
        raise Invalid(f"score {feedback.score} lies outside 0 to 1", code="bad_feedback")
    if max(len(feedback.correction), len(feedback.comment), len(feedback.prompt)) > MAX_TEXT:
        raise Invalid(f"a text of feedback is longer than {MAX_TEXT} characters", code="bad_feedback")
    score = feedback.score
    if score is None and thumbs:
        score = 1.0 if thumbs > 0 else 0.0
    if score is None and feedback.correction:
        score = 0.0
    if score is None and not feedback.comment:
        raise Invalid("feedback says nothing; give a score, a thumb, a correction or a comment", code="bad_feedback")
    return replace(feedback, score=score)


def sample_of(feedback: Feedback, execution: Execution, good_score: float) -> Sample | None:
    """What feedback teaches: its correction, or the answer it praised; None where a text or the task is unknown."""
    prompt, task = feedback.prompt or execution.prompt, slug(feedback.task or execution.task)
    praised = feedback.score is not None and feedback.score > good_score
    completion = feedback.correction or (execution.answer if praised else "")
    if not (prompt and task and completion):
        return None
    return Sample(
        task=task,
        prompt=prompt,
        completion=completion,
        corrected=bool(feedback.correction),
        agent_type=execution.agent_type,
    )


def slug(task: str) -> str:
    """A task as a name: lower-case letters, digits and hyphens; empty where nothing is left."""
    return re.sub(r"[^a-z0-9]+", "-", task.lower()).strip("-")[:63].strip("-")


def domain_of(texts: Sequence[str], stack: Sequence[str]) -> str:
    """The domain whose words occur most; the tech stack counts three times."""
    words = " ".join(texts).lower()
    told = {word.lower() for word in stack}
    hits = {
        name: sum(len(re.findall(rf"\b{re.escape(key)}\b", words)) + 3 * (key in told) for key in keys)
        for name, keys in DOMAINS.items()
    }
    best = max(hits, key=lambda name: hits[name])
    return best if hits[best] else OTHER


def prompt_digest(sample: Sample) -> str:
    """Two samples with the same prompt and context are about the same thing; the later one counts."""
    return hashlib.sha256(f"{sample.prompt}\0{sample.context}".encode()).hexdigest()


def rows_of(samples: Sequence[Sample]) -> bytes:
    """The samples as JSON lines for the trainer, in an order that depends on their texts alone."""
    ordered = sorted(samples, key=prompt_digest)
    return b"".join(msgspec.json.encode(_row(sample)) + b"\n" for sample in ordered)


def enough(rows: int, corrections: int, threshold: int, min_corrections: float) -> bool:
    """Whether a data set is worth training on."""
    return rows >= threshold and corrections >= min_corrections * rows


def _row(sample: Sample) -> dict[str, str]:
    if sample.context:
        return {"instruction": sample.prompt, "input": sample.context, "output": sample.completion}
    return {"prompt": sample.prompt, "completion": sample.completion}

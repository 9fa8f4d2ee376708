"""Whether a trained adapter is good enough to be signed."""

from collections.abc import Mapping

from catena.trainer.core.spec import Acceptance

ROUNDING = 1e-9


def rejection(metrics: Mapping[str, float], acceptance: Acceptance) -> str:
    """Why an adapter with these figures is not signed; empty: it is.

    Trusted rows, where there are any, decide about accuracy: what users corrected may itself be wrong.
    """
    name, accuracy = measured(metrics)
    if accuracy is None:
        return "nothing was held out to measure it on; give more rows, or trusted ones"
    if accuracy < acceptance.min_accuracy - ROUNDING:
        return f"accuracy {accuracy:.3f} on the {name} rows is below the {acceptance.min_accuracy:g} asked for"
    if "retention" in metrics:
        lost = metrics["base_retention"] - metrics["retention"]
        if lost > acceptance.max_forgetting + ROUNDING:
            return (
                f"old skills fell from {metrics['base_retention']:.3f} to {metrics['retention']:.3f}, "
                f"more than the {acceptance.max_forgetting:g} allowed; mix in more retention rows"
            )
    return ""


def measured(metrics: Mapping[str, float]) -> tuple[str, float | None]:
    """Which rows decide, and the accuracy on them; None when there are none."""
    for name in ("trusted", "heldout"):
        if f"{name}_accuracy" in metrics:
            return {"trusted": "trusted", "heldout": "held-out"}[name], metrics[f"{name}_accuracy"]
    return "", None

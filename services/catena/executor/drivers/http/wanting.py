"""What a provider is asked for and does not have is refused, so that nobody takes its answer for what was asked."""

from catena.executor.core.ports import Ask
from catena.kit.errors import Invalid


def refuse(ask: Ask, **wanted: bool) -> None:
    """Raise Invalid (`sampling_unsupported`) for the first of the named wishes that the request has."""
    for name, is_wanted in wanted.items():
        if is_wanted:
            raise Invalid(
                f"{ask.model.name} cannot be asked with {name}; leave it out or name a model that can",
                code="sampling_unsupported",
            )


def refuse_beyond_chat(ask: Ask) -> None:
    """Refuse what only engines with open logits and raw prompts have."""
    sampling, request = ask.request.sampling, ask.request
    refuse(
        ask,
        prompt=bool(request.prompt),
        logprobs=sampling.logprobs,
        logit_bias=bool(sampling.logit_bias),
        regex=bool(request.regex),
        ignore_eos=sampling.ignore_eos,
        min_tokens=sampling.min_tokens > 0,
    )

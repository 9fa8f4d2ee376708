"""The executor's knobs: section `executor` of the configuration."""

import msgspec

from catena.kit.config import Section


class TimeoutsConfig(Section, frozen=True, kw_only=True):
    """Longest time of a stage in seconds, by role; a plan may say otherwise.

    Fast and draft stages are only worth waiting for if they are quick; the others may write long answers.
    """

    fast: float = 2.0
    draft: float = 5.0
    main: float = 30.0
    member: float = 30.0
    judge: float = 30.0


class SemanticConfig(Section, frozen=True, kw_only=True):
    """The cache by meaning, off unless a `threshold` is set: the least cosine at which two questions share an answer.

    0.95 is cautious for sentences under the house's embedding model; each question that it looks at is embedded. At
    most `size` results of `megabytes` in all, each for `ttl_s` seconds.
    """

    threshold: float = 0.0
    size: int = 2000
    megabytes: float = 64.0
    ttl_s: float = 3600.0


class CacheConfig(Section, frozen=True, kw_only=True):
    """The exact result cache: at most `size` results (0: off) of `megabytes` in all, each for `ttl_s` seconds.

    `semantic`: the one by meaning.
    """

    size: int = 2000
    megabytes: float = 64.0
    ttl_s: float = 3600.0
    semantic: SemanticConfig = SemanticConfig()


class BreakerConfig(Section, frozen=True, kw_only=True):
    """When an outside model is left alone: after `failures` in a row, for `open_s` seconds, then one probe at a time.

    Each failed probe doubles the pause up to `longest_s`. Five failures are more than chance, a second harms nobody.
    """

    failures: int = 5
    open_s: float = 1.0
    longest_s: float = 30.0


class HedgingConfig(Section, frozen=True, kw_only=True):
    """Second copies of calls whose first word is later than `quantile` of the model's recent ones.

    `share` of its calls may be sent twice (3 %: enough for the tail, little to pay), `burst` in a row; 0: none.
    """

    share: float = 0.03
    burst: float = 3.0
    quantile: float = 0.95


class RunsConfig(Section, frozen=True, kw_only=True):
    """Background runs: `at_once` per process; after `lease_s` without a sign of life another process goes on.

    `longest_s`: a run that takes longer fails.
    """

    at_once: int = 4
    lease_s: float = 10.0
    longest_s: float = 3600.0


class ExecutorConfig(Section, frozen=True, kw_only=True):
    """All of it.

    `run_s`: longest a whole run may take in seconds, whatever the caller allows (5 minutes: long answers, slow GPUs).
    `attempts`: tries of a stage in all; more for critical requests, fewer for optional stages.
    `first_word_share`: of a stage's time, what a model that has fallbacks may use for its first word; between later
    words, `stall_s` seconds.
    `coalesce_ms`: deltas closer than this are joined; a token then costs a fraction of its message.
    `connections`: most connections to all outside models together, kept alive between calls (1000: a stream holds one).
    `keep_texts`: tenants whose prompts and answers are kept with their records, `*` for all; nobody unless asked for.
    `mask_texts`: whether e-mail addresses, keys and card-long numbers are masked in kept texts.
    `texts_days`, `records_days`: how long texts and records are kept; 0: for ever.
    `verifiers`: who judges every answer.
    `embedding_model`: name of the house's embedding model in the catalogue, and the default of Embed.
    `lookup_timeout_s`: longest a call to memory or features may take in seconds.
    `examples`: whether the shipped pipelines are put into tenant `shared`, where it lacks them.
    """

    timeouts_s: TimeoutsConfig = TimeoutsConfig()
    run_s: float = 300.0
    attempts: int = 2
    critical_attempts: int = 3
    optional_attempts: int = 1
    first_word_share: float = 0.5
    stall_s: float = 10.0
    breaker: BreakerConfig = BreakerConfig()
    hedging: HedgingConfig = HedgingConfig()
    connections: int = 1000
    coalesce_ms: float = 25.0
    cache: CacheConfig = CacheConfig()
    runs: RunsConfig = RunsConfig()
    keep_texts: list[str] = msgspec.field(default_factory=list)
    mask_texts: bool = True
    texts_days: float = 30.0
    records_days: float = 90.0
    verifiers: list[str] = msgspec.field(default_factory=lambda: ["schema", "refusal"])
    embedding_model: str = "all-minilm-l6-v2"
    lookup_timeout_s: float = 10.0
    examples: bool = True

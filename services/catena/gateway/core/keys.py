"""API keys, tenants and their limits, held in memory: no database is asked while a request waits."""

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace

from catena.kit.errors import Denied, Exhausted, Missing

PREFIX = "ck-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """An API key as kept: only the SHA-256 of its secret. Limits of 0 mean none."""

    id: str
    digest: str
    tenant: str
    role: str = "user"
    name: str = ""
    budget_usd: float = 0.0
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    active: bool = True
    created_s: float = 0.0

    @property
    def limited(self) -> bool:
        """Whether anything is held against it."""
        return bool(self.budget_usd or self.requests_per_minute or self.tokens_per_minute)


def new_secret() -> str:
    """A fresh API key to hand out once."""
    return PREFIX + secrets.token_urlsafe(30)


def digest_of(secret: str) -> str:
    """How a secret is kept. Keys carry 240 random bits, so a plain hash cannot be searched."""
    return hashlib.sha256(secret.encode()).hexdigest()


@dataclass(slots=True, kw_only=True)
class Used:
    """What a key used in a minute since epoch, as replicas tell each other."""

    minute: int
    requests: int = 0
    tokens: int = 0
    cost_usd: float = 0.0


@dataclass(slots=True)
class Meter:
    """What one key used in the current minute and in all."""

    minute: int = 0
    requests: int = 0
    tokens: int = 0
    spent_usd: float = 0.0
    unsaved_usd: float = 0.0
    untold: "Used | None" = None


class Gateway:
    """Admits requests by key and counts what they use. Time is given by the caller, in epoch seconds."""

    def __init__(self, keys: Iterable[Key], spent_usd: dict[str, float]) -> None:
        """Start from the stored keys and what each has spent so far."""
        self._by_digest = {key.digest: key for key in keys}
        self._meters = {id_: Meter(spent_usd=amount) for id_, amount in spent_usd.items()}

    def put(self, key: Key) -> None:
        """Add a key, or change the one with its digest."""
        self._by_digest[key.digest] = key

    def revoke(self, key_id: str) -> Key:
        """Stop admitting a key. Raises Missing."""
        for key in self._by_digest.values():
            if key.id == key_id:
                gone = replace(key, active=False)
                self.put(gone)
                return gone
        raise Missing(f"no API key {key_id!r}; list them with GET /v1/keys", code="unknown_key")

    def everyone(self) -> list[Key]:
        """Every key, oldest first."""
        return sorted(self._by_digest.values(), key=lambda key: (key.created_s, key.id))

    def identify(self, secret: str) -> Key:
        """The key that `secret` is. Raises Denied (`invalid_api_key`)."""
        key = self._by_digest.get(digest_of(secret)) if secret else None
        if key is None or not key.active:
            raise Denied(
                "the API key is missing, unknown or revoked; send 'Authorization: Bearer <key>'", code="invalid_api_key"
            )
        return key

    def admit(self, key: Key, now_s: float) -> None:
        """Count a request in. Raises Exhausted (`rate_limit_exceeded`, `insufficient_quota`)."""
        meter = self._meter(key.id, now_s)
        if key.budget_usd and meter.spent_usd >= key.budget_usd:
            raise Exhausted(
                f"key {key.id} has spent its budget of {key.budget_usd:g} USD; raise it", code="insufficient_quota"
            )
        wait_s = 60 - now_s % 60
        if key.requests_per_minute and meter.requests >= key.requests_per_minute:
            raise Exhausted(
                f"key {key.id} made its {key.requests_per_minute} requests of this minute; wait {wait_s:.0f} s",
                code="rate_limit_exceeded",
                retry_after_s=wait_s,
            )
        if key.tokens_per_minute and meter.tokens >= key.tokens_per_minute:
            raise Exhausted(
                f"key {key.id} used its {key.tokens_per_minute} tokens of this minute; wait {wait_s:.0f} s",
                code="rate_limit_exceeded",
                retry_after_s=wait_s,
            )
        meter.requests += 1
        self._use(meter, requests=1)

    def charge(self, key: Key, now_s: float, *, tokens: int, cost_usd: float) -> None:
        """Count what a request used."""
        meter = self._meter(key.id, now_s)
        meter.tokens += tokens
        meter.spent_usd += cost_usd
        meter.unsaved_usd += cost_usd
        self._use(meter, tokens=tokens, cost_usd=cost_usd)

    def settle(self, key_id: str, now_s: float, *, tokens: int, cost_usd: float) -> None:
        """Count what a background run used, which is written down already."""
        meter = self._meter(key_id, now_s)
        meter.tokens += tokens
        meter.spent_usd += cost_usd
        self._use(meter, tokens=tokens, cost_usd=cost_usd)

    def take_untold(self) -> dict[str, Used]:
        """What keys that have limits used since the last call; for the other replicas."""
        limited = {key.id for key in self._by_digest.values() if key.limited}
        told = {id_: meter.untold for id_, meter in self._meters.items() if meter.untold and id_ in limited}
        for meter in self._meters.values():
            meter.untold = None
        return told

    def hear(self, key_id: str, used: Used, now_s: float) -> None:
        """Count what another replica let a key use, which it writes down itself."""
        meter = self._meter(key_id, now_s)
        meter.spent_usd += used.cost_usd
        if used.minute == meter.minute:
            meter.requests += used.requests
            meter.tokens += used.tokens

    def take_unsaved(self) -> dict[str, float]:
        """USD spent per key since the last call; to be written down, or given back by `charge_back`."""
        taken = {id_: meter.unsaved_usd for id_, meter in self._meters.items() if meter.unsaved_usd}
        for id_ in taken:
            self._meters[id_].unsaved_usd = 0.0
        return taken

    def charge_back(self, amounts: dict[str, float]) -> None:
        """Return what could not be written down."""
        for id_, amount in amounts.items():
            self._meters[id_].unsaved_usd += amount

    def spent_usd(self, key_id: str) -> float:
        """USD that a key has spent in all."""
        meter = self._meters.get(key_id)
        return meter.spent_usd if meter else 0.0

    @staticmethod
    def _use(meter: Meter, *, requests: int = 0, tokens: int = 0, cost_usd: float = 0.0) -> None:
        used = meter.untold
        if used is None:
            used = meter.untold = Used(minute=meter.minute)
        if used.minute != meter.minute:
            # What fell into a minute that is over limits nothing any more; what was spent does.
            used.minute, used.requests, used.tokens = meter.minute, 0, 0
        used.requests += requests
        used.tokens += tokens
        used.cost_usd += cost_usd

    def _meter(self, key_id: str, now_s: float) -> Meter:
        meter = self._meters.setdefault(key_id, Meter())
        minute = int(now_s // 60)
        if meter.minute != minute:
            meter.minute, meter.requests, meter.tokens = minute, 0, 0
        return meter

"""What a remote registry offers, and which of it is worth taking."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from catena.adapters.core.records import AdapterRecord, Admitted
from catena.adapters.core.versions import ACCURACY, Update, order, recommend
from catena.kit.errors import Denied


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One version of one adapter as a registry tells of it; `bytes` to fetch, 0: untold; `source`: where from."""

    base: str
    name: str
    version: str
    digest: str
    base_digest: str
    rank: int
    source: str
    bytes: int = 0
    sha256: str = ""
    tasks: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)

    def record(self, tenant: str) -> AdapterRecord:
        """The version as it would be registered."""
        return AdapterRecord(
            tenant=tenant,
            base=self.base,
            name=self.name,
            version=self.version,
            digest=self.digest,
            base_digest=self.base_digest,
            bytes=self.bytes,
            rank=self.rank,
            tasks=self.tasks,
            metrics=self.metrics,
        )

    def check(self, admitted: Admitted) -> None:
        """Raises Denied unless what was fetched says of itself, under its signature, what the registry said of it."""
        for what in ("digest", "name", "version", "base", "base_digest"):
            if (told := getattr(self, what)) != (found := getattr(admitted, what)):
                raise _untrue(self, what, told, found)
        if self.metrics.get(ACCURACY) != admitted.metrics.get(ACCURACY):
            raise _untrue(self, ACCURACY, self.metrics.get(ACCURACY), admitted.metrics.get(ACCURACY))


def choose(
    current: AdapterRecord, offers: Iterable[Offer], here: Iterable[AdapterRecord], base_digest: str, max_rank: int
) -> tuple[Offer | None, Update]:
    """The offer worth more than two points beyond `current`, if any, and why, or why not.

    `here` are the versions that are registered: what was withdrawn or has another content under its version is no
    choice.
    """
    registered = {record.version: record for record in here}
    fit: dict[str, Offer] = {}
    passed: list[str] = []
    for offer in offers:
        if order(offer.version) <= order(current.version):
            continue
        if reason := _unfit(offer, registered.get(offer.version), base_digest, max_rank):
            passed.append(reason)
        else:
            fit[offer.version] = offer
    update = recommend(current, [offer.record(current.tenant) for offer in fit.values()], base_digest)
    if update.record is not None:
        return fit[update.record.version], update
    told = [update.reason] if fit or not passed else []
    return None, replace(update, reason="; ".join(told + passed))


def _unfit(offer: Offer, here: AdapterRecord | None, base_digest: str, max_rank: int) -> str:
    if offer.base_digest != base_digest:
        return f"{offer.version} is for a base with digest {offer.base_digest[:12]}, ours has {base_digest[:12]}"
    if offer.rank > max_rank:
        return f"{offer.version} has rank {offer.rank} > {max_rank}; raise adapters.max_rank"
    if here is not None and here.digest != offer.digest:
        return f"{offer.version} is registered here with another content, {here.digest[:12]}"
    if here is not None and here.status == "withdrawn":
        return f"{offer.version} was withdrawn here"
    return ""


def _untrue(offer: Offer, what: str, told: object, found: object) -> Denied:
    return Denied(
        f"{offer.source} was offered with {what} {told!r}, its manifest says {found!r}; publish its registry again",
        code="offer_untrue",
    )

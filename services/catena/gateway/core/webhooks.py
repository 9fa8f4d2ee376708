"""Webhooks: where one may go, how it is signed, when it is tried again. Pure.

Signed as Standard Webhooks says (standardwebhooks.com, version 1), which is also what OpenAI sends: official OpenAI
clients verify it by `client.webhooks.verify_signature`.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Literal
from urllib.parse import SplitResult, urlsplit

from catena.kit.errors import Invalid

PREFIX = "whsec_"
SECRET_BYTES = 32
LEAST_BYTES, MOST_BYTES = 16, 64
MOST_URL = 2048
LONGEST_PAUSE_S = 3600.0
TRANSLATED = IPv6Network("64:ff9b::/96")
"""IPv4 addresses as NAT64 writes them (RFC 6052)."""
State = Literal["waiting", "due", "delivered", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """One run's webhook; `outcome` is the run's state once it has ended, `attempts` counts posts that were begun."""

    run_id: str
    tenant: str
    url: str
    secret: str
    state: State = "waiting"
    outcome: str = ""
    execution_id: str = ""
    finished_s: float = 0.0
    attempts: int = 0
    due_s: float = 0.0


def check_url(url: str, networks: Sequence[str]) -> str:
    """The URL as given. Raises Invalid (`bad_webhook`) for what is seen to be no target; names are resolved later."""
    parts = _split(url)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise Invalid(
            f"webhook.url is no http or https address of at most {MOST_URL} characters without a login; correct it",
            code="bad_webhook",
        )
    if (literal := literal_address(parts.hostname)) is not None and not reachable(literal, networks):
        raise refused(parts.hostname)
    return url


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts if len(url) <= MOST_URL and url.isprintable() and " " not in url else None


def refused(host: str) -> Invalid:
    """A target that is not outside."""
    return Invalid(
        f"webhook.url leads to {host!r}, which is not a public address; allow its network in "
        "gateway.webhooks.private_networks",
        code="bad_webhook",
    )


def literal_address(host: str) -> str | None:
    """The address that `host` is, if it is one rather than a name."""
    try:
        return str(ip_address(host.partition("%")[0]))
    except ValueError:
        return None


def reachable(address: str, networks: Sequence[str]) -> bool:
    """Whether an address is public, or within `networks`; one that carries an IPv4 address is judged by that."""
    inner = _inner(ip_address(address.partition("%")[0]))
    allowed = any(inner in ip_network(network) for network in networks)
    return allowed or (inner.is_global and not inner.is_multicast)


def _inner(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    if isinstance(address, IPv4Address):
        return address
    carried = address.ipv4_mapped or address.sixtofour
    if carried is None and address in TRANSLATED:
        carried = IPv4Address(int(address) & 0xFFFFFFFF)
    return carried or address


def secret_bytes(secret: str) -> bytes:
    """The key in a secret `whsec_<base64>`. Raises Invalid (`bad_webhook`), without quoting it."""
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(PREFIX) or not LEAST_BYTES <= len(key) <= MOST_BYTES:
        raise Invalid(
            f"webhook.secret is not {PREFIX!r} and {LEAST_BYTES} to {MOST_BYTES} bytes in base64; leave it out and "
            "take the one in the answer",
            code="bad_webhook",
        )
    return key


def secret_of(key: bytes) -> str:
    """The secret that holds `key`."""
    return PREFIX + base64.b64encode(key).decode()


def signature(secret: str, message_id: str, timestamp_s: int, body: bytes) -> str:
    """The header `webhook-signature`: `v1,` and the HMAC-SHA256 over id, time and body."""
    signed = f"{message_id}.{timestamp_s}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(secret_bytes(secret), signed, hashlib.sha256).digest()).decode()


def pause_s(attempts: int, first_s: float, chance: float) -> float:
    """Seconds until the next try after `attempts` of them: four times longer each, at most an hour, half to whole."""
    return min(LONGEST_PAUSE_S, first_s * 4.0 ** (attempts - 1)) * (0.5 + 0.5 * chance)

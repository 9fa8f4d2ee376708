"""The gateway's settings."""

import msgspec

from catena.kit.config import FilePath, Section


class WebhookConfig(Section, frozen=True, kw_only=True):
    """How runs' ends are posted.

    `attempts`: posts in all; the first retry comes after `first_retry_s`, each next one after four times as long, an
    hour at most. `timeout_s`: longest a target may take to answer.
    `private_networks`: networks that are not public and may be posted to, as `10.0.0.0/8`; empty, none may.
    """

    attempts: int = 8
    first_retry_s: float = 1.0
    timeout_s: float = 10.0
    private_networks: list[str] = msgspec.field(default_factory=list)


class GatewayConfig(Section, frozen=True, kw_only=True):
    """`host` and `port`: where HTTP listens; a taken port in the development profile gives another, which is printed.

    `max_body_bytes`: larger requests get 413; images travel as data URLs, so it is generous.
    `timeout_s`: longest a request may take unless it caps its latency itself.
    `max_images` and `max_image_bytes`: images in one request, and bytes of one that travels within it.
    `webhooks`: how the ends of background runs are posted.
    `cors_origins`: browsers' origins that may call; empty, no browser may.
    `baseline_model`: what the dashboard compares cost with; empty, the catalogue's dearest model.
    `spend_flush_s`: how often spending is written down, and told to other replicas; a crash may forget this much.
    `registry`: folder that `catena adapters publish` wrote, for keys in role admin at `/v1/registry/`; empty: none.
    `admin_key`: the first API key, role admin, to make others with; empty: none (development makes its own).
    """

    host: str = "127.0.0.1"
    port: int = 8080
    max_body_bytes: int = 20 * 1024 * 1024
    timeout_s: float = 120.0
    max_images: int = 16
    max_image_bytes: int = 10 * 1024 * 1024
    webhooks: WebhookConfig = WebhookConfig()
    cors_origins: list[str] = msgspec.field(default_factory=list)
    baseline_model: str = ""
    spend_flush_s: float = 1.0
    registry: FilePath = ""
    admin_key: str = ""

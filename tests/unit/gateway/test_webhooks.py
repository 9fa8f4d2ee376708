"""Where a webhook may go, how it is signed and when it comes again; and which images may pass."""

import base64

import openai
import pytest

from catena.api.types.v1 import types_pb2
from catena.gateway.core.webhooks import (
    LONGEST_PAUSE_S,
    check_url,
    pause_s,
    reachable,
    secret_bytes,
    secret_of,
    signature,
)
from catena.gateway.handlers.images import Images
from catena.kit.errors import Invalid

pytestmark = pytest.mark.unit
SECRET = secret_of(bytes(range(32)))


@pytest.mark.parametrize(
    "address", ["93.184.215.14", "2606:2800:21f:cb07::1", "::ffff:93.184.215.14", "64:ff9b::5db8:d70e"]
)
def test_public_addresses_are_reachable(address: str) -> None:
    assert reachable(address, [])


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:10.0.0.1",
        "::ffff:169.254.169.254", "64:ff9b::7f00:1", "2002:7f00:1::",
    ],
)  # fmt: skip
def test_addresses_inside_are_not_reachable(address: str) -> None:
    assert not reachable(address, [])


def test_a_network_that_is_named_is_reachable_and_no_other() -> None:
    assert reachable("10.1.2.3", ["10.0.0.0/8"])
    assert reachable("::ffff:10.1.2.3", ["10.0.0.0/8"])
    assert not reachable("192.168.1.1", ["10.0.0.0/8"])


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com/", "http:///x", "example.com", "https://u:p@example.com/", "https://127.0.0.1/",
        "http://[::1]/", "http://10.0.0.1:8080/x", "https://example.com:99999/", "https://example.com/a b",
        "https://e.com/" + "a" * 2100,
    ],
)  # fmt: skip
def test_what_is_seen_to_be_no_target_is_refused_at_once(url: str) -> None:
    with pytest.raises(Invalid, match=r"webhook\.url"):
        check_url(url, [])
    assert check_url("https://example.com/hook?x=1", []) == "https://example.com/hook?x=1"


def test_the_official_client_verifies_what_was_signed_and_nothing_else() -> None:
    client = openai.OpenAI(api_key="unused")
    body = b'{"a": 1}'
    headers = {"webhook-id": "evt_1", "webhook-timestamp": "1700000000"}
    headers["webhook-signature"] = signature(SECRET, "evt_1", 1_700_000_000, body)
    verify = client.webhooks.verify_signature
    verify(body, headers, secret=SECRET, tolerance=1 << 40)
    for changed in ({"webhook-id": "evt_2"}, {"webhook-timestamp": "1700000001"}):
        with pytest.raises(openai.InvalidWebhookSignatureError):
            verify(body, {**headers, **changed}, secret=SECRET, tolerance=1 << 40)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        verify(b'{"a": 2}', headers, secret=SECRET, tolerance=1 << 40)


@pytest.mark.parametrize("secret", ["whsec_", "whsec_????", "abc", "whsec_" + base64.b64encode(b"short").decode()])
def test_a_secret_that_is_none_is_refused_without_being_quoted(secret: str) -> None:
    with pytest.raises(Invalid) as told:
        secret_bytes(secret)
    assert secret == "whsec_" or secret not in told.value.message


def test_pauses_grow_fourfold_to_an_hour_and_vary_by_half() -> None:
    assert [pause_s(n, 1.0, 1.0) for n in (1, 2, 3)] == [1.0, 4.0, 16.0]
    assert pause_s(3, 1.0, 0.0) == 8.0
    assert pause_s(20, 1.0, 1.0) == LONGEST_PAUSE_S


def asked(*urls: str) -> types_pb2.ChatRequest:
    images = [types_pb2.ImagePart(url=url) for url in urls]
    return types_pb2.ChatRequest(messages=[types_pb2.ChatMessage(role="user", images=images)])


@pytest.mark.parametrize(
    ("urls", "code"),
    [
        (["https://a/x.png"] * 3, "too_many_images"),
        (["file:///etc/passwd"], "bad_image"),
        (["data:text/html;base64,AAAA"], "bad_image"),
        (["data:image/png,raw"], "bad_image"),
        (["data:image/png;base64," + "A" * 200], "image_too_large"),
    ],
)
def test_images_past_the_limits_are_refused(urls: list[str], code: str) -> None:
    limits = Images(most=2, most_bytes=100)
    limits.check(asked("https://a/x.png", "data:image/png;base64," + "A" * 100))
    with pytest.raises(Invalid) as told:
        limits.check(asked(*urls))
    assert told.value.code == code

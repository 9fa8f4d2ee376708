import pytest

from catena.gateway.core.keys import Gateway, Key, Used, digest_of, new_secret
from catena.kit.errors import Denied, Exhausted

NOW = 1_800_000_000.0


def key(secret: str, **limits: float) -> Key:
    return Key(id="k1", digest=digest_of(secret), tenant="acme", **limits)  # type: ignore[arg-type]


def test_a_known_secret_is_its_key_and_others_are_refused() -> None:
    secret = new_secret()
    gateway = Gateway([key(secret)], {})
    assert gateway.identify(secret).tenant == "acme"
    for wrong in ("", "ck-wrong", secret[:-1]):
        with pytest.raises(Denied) as told:
            gateway.identify(wrong)
        assert told.value.code == "invalid_api_key"


def test_a_revoked_key_is_refused() -> None:
    secret = new_secret()
    gateway = Gateway([key(secret)], {})
    gateway.revoke("k1")
    with pytest.raises(Denied):
        gateway.identify(secret)


def test_requests_beyond_the_minute_are_told_how_long_to_wait() -> None:
    limited = key("s", requests_per_minute=2)
    gateway = Gateway([limited], {})
    gateway.admit(limited, NOW)
    gateway.admit(limited, NOW + 1)
    with pytest.raises(Exhausted) as told:
        gateway.admit(limited, NOW + 2)
    assert told.value.code == "rate_limit_exceeded"
    assert 0 < told.value.retry_after_s <= 60
    gateway.admit(limited, NOW + 61)


def test_tokens_beyond_the_minute_are_refused() -> None:
    limited = key("s", tokens_per_minute=100)
    gateway = Gateway([limited], {})
    gateway.admit(limited, NOW)
    gateway.charge(limited, NOW, tokens=100, cost_usd=0.0)
    with pytest.raises(Exhausted):
        gateway.admit(limited, NOW)


def test_a_spent_budget_stops_requests_also_after_a_restart() -> None:
    limited = key("s", budget_usd=1.0)
    gateway = Gateway([limited], {})
    gateway.admit(limited, NOW)
    gateway.charge(limited, NOW, tokens=1, cost_usd=1.0)
    saved = gateway.take_unsaved()
    assert saved == {"k1": 1.0}
    assert gateway.take_unsaved() == {}
    again = Gateway([limited], saved)
    with pytest.raises(Exhausted) as told:
        again.admit(limited, NOW)
    assert told.value.code == "insufficient_quota"


def test_spending_that_could_not_be_saved_is_saved_later() -> None:
    spender = key("s")
    gateway = Gateway([spender], {})
    gateway.charge(spender, NOW, tokens=1, cost_usd=0.25)
    gateway.charge_back(gateway.take_unsaved())
    assert gateway.take_unsaved() == {"k1": 0.25}


def test_what_one_replica_let_pass_counts_at_the_other() -> None:
    limited = key("s", requests_per_minute=2, tokens_per_minute=100, budget_usd=1.0)
    here, there = Gateway([limited], {}), Gateway([limited], {})
    here.admit(limited, NOW)
    here.charge(limited, NOW, tokens=60, cost_usd=0.4)
    (told,) = here.take_untold().values()
    assert (told.requests, told.tokens, told.cost_usd) == (1, 60, 0.4)
    assert here.take_untold() == {}
    there.hear("k1", told, NOW + 1)
    there.admit(limited, NOW + 1)
    with pytest.raises(Exhausted):
        there.admit(limited, NOW + 2)
    assert there.spent_usd("k1") == 0.4
    assert there.take_unsaved() == {}


def test_what_was_used_in_a_minute_that_is_over_limits_nothing_but_the_budget() -> None:
    limited = key("s", requests_per_minute=1, budget_usd=1.0)
    here, there = Gateway([limited], {}), Gateway([limited], {})
    here.admit(limited, NOW)
    here.charge(limited, NOW, tokens=1, cost_usd=0.4)
    here.charge(limited, NOW + 61, tokens=1, cost_usd=0.4)
    (told,) = here.take_untold().values()
    assert (told.requests, told.cost_usd) == (0, 0.8)
    there.hear("k1", told, NOW + 61)
    there.hear("k1", Used(minute=int(NOW // 60), requests=9, tokens=9), NOW + 61)
    there.admit(limited, NOW + 61)


def test_keys_without_limits_have_nothing_to_tell() -> None:
    free = key("s")
    gateway = Gateway([free], {})
    gateway.admit(free, NOW)
    assert gateway.take_untold() == {}

import pytest

from catena.adapters.core.errors import BadModel
from catena.adapters.core.refs import AdapterRef, ModelRef, check_alias, full_name, is_version, parse, parse_one


@pytest.mark.parametrize(
    ("model", "ref"),
    [
        ("qwen2.5-0.5b", ModelRef("qwen2.5-0.5b")),
        ("base@code", ModelRef("base", (AdapterRef("code", "stable"),))),
        ("base@code:1.2.0", ModelRef("base", (AdapterRef("code", "1.2.0"),))),
        ("base@code:canary", ModelRef("base", (AdapterRef("code", "canary"),))),
        ("org/base@qlp-dataeng-alora:3", ModelRef("org/base", (AdapterRef("qlp-dataeng-alora", "3"),))),
        (
            "base@{code=0.7, style:2=0.3}",
            ModelRef("base", (AdapterRef("code", "stable", 0.7), AdapterRef("style", "2", 0.3))),
        ),
        ("base@{code=-0.5}", ModelRef("base", (AdapterRef("code", "stable", -0.5),))),
    ],
)
def test_names_are_read(model: str, ref: ModelRef) -> None:
    assert parse(model) == ref


@pytest.mark.parametrize(
    "model",
    [
        "", "@code", "base@", "base@code:", "base@Code", "base@../x", "base@code:1.2", "base@code:UP", "base@{}",
        "base@{code}", "base@{code=x}", "base@{code=0}", "base@{code=nan}", "base@{code=1,code=2}", "base@{code=99}",
        "base@" + "x" * 200,
    ],
)  # fmt: skip
def test_odd_names_are_refused(model: str) -> None:
    with pytest.raises(BadModel):
        parse(model)


def test_one_adapter_is_wanted_where_one_is_meant() -> None:
    assert parse_one(full_name("base", "code", "2")) == ("base", AdapterRef("code", "2"))
    for model in ("base", "base@{a=1,b=1}"):
        with pytest.raises(BadModel):
            parse_one(model)


@pytest.mark.parametrize("tag", ["1", "42", "1.2.0", "1.2.0-rc.1"])
def test_versions_and_aliases_never_meet(tag: str) -> None:
    assert is_version(tag)
    with pytest.raises(BadModel):
        check_alias(tag)
    assert not is_version(check_alias("stable"))

import msgspec
import pytest
import yaml

from catena.artifacts.formats.levels import LADDER, LEVELS, level_of, next_up, type_of
from catena.artifacts.formats.profiles import read_profiles, shipped
from catena.kit.errors import CatenaError, Invalid

pytestmark = pytest.mark.unit


def test_the_profiles_shipped_are_those_of_the_product():
    told = read_profiles()
    found = {p.name: (p.level, p.floor, p.size_cut, p.speed_gain) for p in told.profiles}
    assert found == {
        "intent-classifier/mobile": ("Q4_K_M", 0.85, 0.75, 2.0),
        "content-generator/desktop": ("Q6_K", 0.95, 0.5, 1.3),
        "workflow-builder/server": ("Q8_0", 0.98, 0.25, 1.1),
    }
    assert told.find("workflow-builder/server").floor == 0.98
    assert told.find("workflow-builder/mobile") == told.default


def test_a_profile_can_be_edited_and_a_mistake_is_named(tmp_path):
    tree, path = yaml.safe_load(shipped()), tmp_path / "own.yaml"
    tree["profiles"].append({**tree["default"], "family": "poet", "device": "watch", "level": "Q4_0"})
    path.write_text(yaml.safe_dump(tree))
    assert read_profiles(path).find("poet/watch").level == "Q4_0"
    for wrong, named in (({"level": "Q3_K"}, "level"), ({"floor": 1.5}, "floor"), ({"flor": 1}, "flor")):
        path.write_text(yaml.safe_dump({**tree, "default": {**tree["default"], **wrong}}))
        with pytest.raises(Invalid, match=named):
            read_profiles(path)
    with pytest.raises(CatenaError, match=r"none\.yaml"):
        read_profiles(tmp_path / "none.yaml")


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_leads_up_to_the_exact_one(level):
    climbed = [level]
    while (above := next_up(climbed[-1])) is not None:
        climbed.append(above)
    assert climbed[-1] == "F32"
    assert len(set(climbed)) == len(climbed) <= len(LADDER) + 1


def test_a_level_is_known_in_any_case_and_an_unknown_one_names_the_others():
    assert level_of("q4_k_m") == "Q4_K_M"
    with pytest.raises(Invalid, match="Q4_K_M"):
        level_of("Q3")


@pytest.mark.parametrize(
    ("level", "name", "shape", "tied", "type_"),
    [
        ("Q4_K_M", "blk.9.attn_q.weight", (64, 512), False, "Q4_K"),
        ("Q4_K_M", "blk.0.attn_v.weight", (64, 512), False, "Q6_K"),
        ("Q4_K_M", "blk.4.ffn_down.weight", (64, 512), False, "Q6_K"),
        ("Q4_K_M", "blk.5.ffn_down.weight", (64, 512), False, "Q4_K"),
        ("Q4_K_M", "output.weight", (64, 512), False, "Q6_K"),
        ("Q4_K_M", "token_embd.weight", (64, 512), False, "Q4_K"),
        ("Q4_K_M", "token_embd.weight", (64, 512), True, "Q6_K"),
        ("Q4_K_M", "blk.9.attn_q.weight", (64, 96), False, "Q5_0"),
        ("Q6_K", "blk.9.attn_q.weight", (64, 96), False, "Q8_0"),
        ("Q4_K_M", "blk.9.attn_q.weight", (64, 100), False, "F16"),
        ("Q8_0", "blk.9.attn_q.weight", (64, 100), False, "F16"),
        ("Q8_0", "blk.9.attn_norm.weight", (512,), False, "F32"),
        ("F16", "blk.9.attn_norm.weight", (512,), False, "F32"),
        ("BF16", "output.weight", (64, 100), False, "BF16"),
    ],
)
def test_a_tensor_gets_the_type_of_its_level_or_the_next_that_fits(level, name, shape, tied, type_):
    assert type_of(level, name, shape, layers=16, tied=tied) == type_


def test_a_profile_says_what_it_is():
    profile = read_profiles().profiles[0]
    assert msgspec.to_builtins(profile)["device"] == "mobile"
    assert profile.name == "intent-classifier/mobile"

"""The commands as typed: an adapter and a base go out, come in, are signed, verified and measured."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from catena.artifacts.base import check_base
from catena.artifacts.formats.derived import read as read_derived
from catena.sdk.command import app
from demo import tokenizer
from tests.contract.formats.making import PROMPTS, make_adapter, make_base


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    make_base(folder / "base")
    make_adapter(folder / "base", folder / "lora")
    make_adapter(folder / "base", folder / "dora", use_dora=True)
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    (folder / "catena.yaml").write_text("models: [{name: mine, path: base}]")
    return folder


@pytest.fixture
def catena(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    runner = CliRunner(env={"CATENA__HOME": str(tmp_path / "home"), "COLUMNS": "200", "NO_COLOR": "1"})

    def run(line: str, *, ends: int = 0) -> str:
        told = runner.invoke(app, ["--config", str(made / "catena.yaml"), "--json", *line.split()])
        assert told.exit_code == ends, told.output
        return told.stdout if ends == 0 else told.stderr

    return run


def values(told: str) -> dict[str, str]:
    return {row["what"]: row["value"] for row in json.loads(told)}


def test_an_adapter_is_imported_exported_and_verified(catena, made, tmp_path):
    assert values(catena(f"adapters convert {made}/lora a.gguf --to gguf --base mine"))["from"] == "peft"
    taken = values(catena("adapters import a.gguf imported --base mine --as swap:2 --task swapcase"))
    assert (taken["adapter"], taken["signer"], taken["rank"]) == ("swap:2", "import", "8")

    catena("adapters export imported out.mlx --to mlx --base mine")
    record = json.loads((tmp_path / "out.mlx.manifest.json").read_text())
    assert record["metadata"]["adapter_digest"] == taken["digest"]
    assert record["metadata"]["base_digest"] == check_base(made / "base").digest
    assert values(catena("models verify out.mlx"))["adapter"] == "swap:2"

    back = values(catena("adapters import out.mlx again --base mine --as swap:2 --task swapcase"))
    assert back["rank"] == "8"
    (tmp_path / "out.mlx" / "adapter_config.json").write_text("{}")
    assert catena("models verify out.mlx", ends=1).startswith("model_tampered")


def test_a_merged_base_and_its_gguf_name_where_they_are_from(catena, made, tmp_path):
    catena(f"models merge mine {made}/dora merged --unsigned")
    card = read_derived(tmp_path / "merged")
    assert card.base_digest == check_base(made / "base").digest
    assert len(card.adapter_digest) == 64
    record = values(catena("models verify merged"))
    assert (record["kind"], record["digest"], record["base_name"]) == ("merge", card.digest, "mine")

    told = values(
        catena(f"models export mine m.gguf --adapter {made}/dora --unsigned --at Q8_0 --prompts {made}/prompts.txt")
    )
    assert told["level"] == "Q8_0"
    metadata = json.loads((tmp_path / "m.gguf.manifest.json").read_text())["metadata"]
    assert metadata["adapter_digest"] == card.adapter_digest
    (tried,) = metadata["quantisation"]["attempts"]
    assert tried["bytes"] == (tmp_path / "m.gguf").stat().st_size
    assert 0.5 < tried["loss"]["top1_agreement"] <= 1.0
    assert 0 < tried["loss"]["logit_rms"] < tried["loss"]["logit_max"]

    taken = values(catena("models import m.gguf back"))
    assert taken["digest"] == check_base(tmp_path / "back").digest
    assert "Q8_0" in taken["matrices"]
    assert values(catena("models verify back"))["digest"] == taken["digest"]
    (tmp_path / "back.manifest.json").unlink()
    told = catena("models verify back", ends=1)
    assert told.startswith("model_unsigned")
    assert "`merge`" in told


def test_profiles_are_listed_edited_and_used(catena, made, tmp_path):
    assert json.loads(catena("models profiles"))[0]["profile"] == "intent-classifier/mobile"
    catena("models profiles --edit")
    path = tmp_path / "home" / "quantisation.yaml"
    path.write_text(path.read_text().replace("device: mobile, level: Q4_K_M", "device: mobile, level: Q5_0"))
    assert json.loads(catena("models profiles"))[0]["level"] == "Q5_0"
    told = values(catena("models export mine m.gguf --at intent-classifier/mobile"))
    assert told["level"] == "Q5_0"
    metadata = json.loads((tmp_path / "m.gguf.manifest.json").read_text())["metadata"]
    assert (metadata["profile"], metadata["quantisation"]["attempts"]) == ("intent-classifier/mobile", [])


@pytest.mark.parametrize(
    ("line", "ends", "said"),
    [
        ("adapters convert nowhere x --to mlx --base mine", 1, "no_source"),
        ("adapters convert {made}/lora x --to mlx --base other", 1, "configuration's: mine"),
        ("adapters convert {made}/lora x --to onnx --base mine", 2, "peft, mlx, gguf"),
        ("adapters convert {made}/dora x.gguf --to gguf --base mine", 1, "merge the adapter"),
        ("adapters export {made}/lora x --to mlx --base mine", 1, "adapter_unsigned"),
        ("adapters export {made}/lora x --to mlx", 1, "--base"),
        ("adapters export mine@absent x --to mlx", 1, "start one with `catena up`"),
        ("adapters import {made}/lora x --base mine --as swap:1 --register", 1, "no platform runs"),
        ("models export mine x.gguf --at Q3", 1, "Q4_K_M"),
        ("models export mine x.gguf --prompts {made}/absent.txt", 1, "one prompt a line"),
        ("models import {made}/prompts.txt x", 1, "base_bad_header"),
        ("models verify {made}/lora", 1, "no_key"),
    ],
)
def test_what_cannot_be_done_is_said_with_its_cure_and_leaves_nothing(catena, made, tmp_path, line, ends, said):
    assert said in catena(line.format(made=made), ends=ends)
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == []


def test_the_demo_bases_can_be_exported(catena, tmp_path):
    demo = Path(tokenizer.__file__).parent / "models" / "demo-small"
    told = values(catena(f"models export {demo} small.gguf --at Q8_0"))
    assert told["level"] == "Q8_0"
    assert values(catena("models import small.gguf back"))["base"] == "back"

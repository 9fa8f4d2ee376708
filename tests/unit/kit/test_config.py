import json
from pathlib import Path

import msgspec
import pytest

from catena.kit.config import (
    AuthConfig,
    BusConfig,
    FilePath,
    House,
    PathOrName,
    Section,
    SqlConfig,
    TelemetryConfig,
    load,
    redacted,
)
from catena.learner.config import LearnerConfig


def test_no_secret_is_printed_at_start() -> None:
    house = House(
        bus=BusConfig(url="nats://hidden@broker:4222"),
        sql=SqlConfig(url="postgresql://catena:hid/d@en@db:5432/catena"),
        auth=AuthConfig(service_token="hidden"),
        telemetry=TelemetryConfig(otlp_endpoint="http://collector:4317"),
    )
    told = redacted(house)
    assert "hid" not in json.dumps(told)
    assert told["bus"]["url"] == "nats://***@broker:4222"
    assert told["sql"]["url"].endswith("@db:5432/catena")
    assert told["telemetry"]["otlp_endpoint"] == "http://collector:4317"


class Shelf(Section, frozen=True, kw_only=True):
    folder: FilePath = ""
    model: PathOrName = ""
    words: str = ""


class Room(Section, frozen=True, kw_only=True):
    shelves: list[Shelf] = msgspec.field(default_factory=list)
    tags: list[str] = msgspec.field(default_factory=list)
    own: Shelf = Shelf()
    path: FilePath = ""


def test_paths_of_a_file_are_taken_from_its_folder_wherever_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "catena.yaml").write_text("""
home: state
embedding: /absolute
models: [{name: a, path: models/mine}, {name: b, path: org/hub-id}]
learner: {retention_path: kept/old.jsonl}
trainer: {data_folder: [not, looked, at]}
""")
    house, learner = load(Path("../catena.yaml"), "learner", LearnerConfig, {})
    assert (house.home, house.embedding) == (str(tmp_path / "state"), "/absolute")
    assert [model.path for model in house.models] == [str(tmp_path / "models" / "mine"), "org/hub-id"]
    assert learner.retention_path == str(tmp_path / "kept" / "old.jsonl")


def test_a_path_of_the_environment_is_the_shells_and_an_empty_one_stays_empty(tmp_path: Path) -> None:
    (tmp_path / "catena.yaml").write_text("learner: {retention_path: ''}")
    assert load(tmp_path / "catena.yaml", "learner", LearnerConfig, {})[1].retention_path == ""
    told = {"CATENA__LEARNER__RETENTION_PATH": "here.jsonl"}
    assert load(tmp_path / "catena.yaml", "learner", LearnerConfig, told)[1].retention_path == "here.jsonl"


def test_paths_are_found_in_lists_of_sections_and_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "catena.yaml").write_text("""
gateway:
  path: p
  tags: [x]
  shelves: [{folder: f, model: none, words: w}]
  own: {folder: g}
""")
    _, room = load(tmp_path / "catena.yaml", "gateway", Room, {})
    assert (room.path, room.tags) == (str(tmp_path / "p"), ["x"])
    assert room.shelves == [Shelf(folder=str(tmp_path / "f"), model="none", words="w")]
    assert room.own.folder == str(tmp_path / "g")


@pytest.mark.parametrize(
    ("house", "level"),
    [
        (House(), "debug"),
        (House(profile="production"), "info"),
        (House(profile="production", telemetry=TelemetryConfig(level="debug")), "debug"),
        (House(telemetry=TelemetryConfig(level="warning")), "warning"),
    ],
)
def test_the_profile_decides_the_level_of_logs_unless_one_is_named(house: House, level: str) -> None:
    assert house.log_level == level

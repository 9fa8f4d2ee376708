from pathlib import Path

import pytest

from catena.adapters.core.errors import BadModel
from catena.adapters.core.records import AdapterRecord, Profile
from catena.adapters.core.refs import parse
from catena.adapters.core.selection import rank
from catena.adapters.drivers.shipped import read_base_profiles, read_profiles
from catena.kit.errors import Invalid
from tests.unit.adapters.fakes import record

BASE = "b" * 64


def ranked(*records: AdapterRecord, task: str = "code", profiles: dict[str, Profile] | None = None) -> list[str]:
    return [one.record.model for one in rank(records, task, BASE, profiles or {})]


def made(name: str, *, version: str = "1", tasks: tuple[str, ...] = ("code",), **metrics: float) -> AdapterRecord:
    return record(name, version=version, tasks=tasks, metrics=metrics)


def test_the_most_accurate_for_the_task_comes_first_and_the_untold_last() -> None:
    assert ranked(made("a"), made("b", accuracy=0.7), made("c", accuracy=0.9)) == ["base@c:1", "base@b:1", "base@a:1"]


def test_accuracy_on_the_task_itself_counts_before_the_overall_one() -> None:
    narrow = record("narrow", tasks=("code",), metrics={"accuracy": 0.5, "accuracy/code": 0.95})

    assert ranked(made("broad", accuracy=0.9), narrow) == ["base@narrow:1", "base@broad:1"]


def test_among_equals_the_newer_version_then_the_name_decides() -> None:
    found = ranked(made("z", version="2", accuracy=0.9), made("b", accuracy=0.9), made("a", accuracy=0.9))

    assert found == ["base@z:2", "base@a:1", "base@b:1"]


def test_only_what_is_for_the_task_and_fits_the_base_is_chosen() -> None:
    other_base = record("a", tasks=("code",), base_digest="c" * 64)
    withdrawn = record("b", tasks=("code",), status="withdrawn")

    assert ranked(other_base, withdrawn, made("c", tasks=("poems",))) == []
    assert ranked(made("c"), task="") == []


def test_an_adapter_serves_the_tasks_of_its_name_and_of_the_profile_of_its_name() -> None:
    profiles = {"blog-writer": Profile(name="blog-writer", tasks=("blogs",))}

    assert ranked(made("code", tasks=())) == ["base@code:1"]
    assert ranked(made("blog-writer", tasks=()), task="blogs", profiles=profiles) == ["base@blog-writer:1"]


def test_auto_is_no_name_of_an_adapter() -> None:
    assert parse("base@auto").auto
    for model in ("base@auto:2", "base@{auto=0.5,b=0.5}"):
        with pytest.raises(BadModel, match="auto"):
            parse(model)


def test_the_shipped_bases_are_a_fast_one_one_for_reasoning_and_an_alternative(tmp_path: Path) -> None:
    shipped = read_base_profiles()
    assert list(shipped) == ["fast", "complex-reasoning", "alternative"]
    assert [round(base.parameters / 1e9) for base in shipped.values()] == [4, 12, 4]

    own = tmp_path / "bases.yaml"
    own.write_text("mine: {path: /models/mine, parameters: 7}")
    assert [base.path for base in read_base_profiles(str(own)).values()] == ["/models/mine"]
    own.write_text("mine: {path: /models/mine, parameters: 0}")
    with pytest.raises(Invalid, match="parameters"):
        read_base_profiles(str(own))


def test_the_shipped_profiles_have_the_names_of_the_product() -> None:
    named = {
        *("intent-classifier", "workflow-builder", "ambiguity-resolver", "content-generator", "blog-writer"),
        *("script-writer", "social-media", "knowledge-organizer", "research-synthesizer", "note-categorizer"),
        *("youtube-optimizer", "podcast-planner", "course-creator", "dataeng", "devops", "api", "frontend", "code"),
    }

    profiles = read_profiles()

    assert set(profiles) == named
    assert all(profile.tasks and profile.description for profile in profiles.values())


def test_a_profile_with_an_unknown_key_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("mine: {taks: [x]}\n")

    with pytest.raises(Invalid, match="taks"):
        read_profiles(str(own))

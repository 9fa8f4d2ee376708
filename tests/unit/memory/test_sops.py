import pytest

from catena.kit.errors import Invalid
from catena.memory.core.sops import check_sop, match
from catena.memory.core.types import Sop, SopStep

pytestmark = pytest.mark.unit


def sop(name, *triggers, priority=0.0):
    return Sop(name=name, description="", triggers=triggers, steps=(SopStep(action="act"),), priority=priority)


def names(text, *sops, n=9):
    return [found.sop.name for found in match(text, sops, n)]


def test_scores_ten_for_each_trigger_and_half_the_priority():
    (found,) = match("deploy the release", [sop("s", "deploy", "release", "rollback", priority=7)], 3)
    assert found.score == 23.5 and found.triggers == ("deploy", "release")


def test_priority_alone_matches_nothing():
    assert names("hello", sop("s", "deploy", priority=1000)) == []


def test_a_negative_priority_still_matches():
    (found,) = match("deploy", [sop("s", "deploy", priority=-40)], 3)
    assert found.score == -10


def test_orders_by_score_then_name_whatever_the_order_given():
    sops = [sop("b", "x"), sop("a", "x"), sop("c", "x", priority=1)]
    assert names("x", *sops) == names("x", *reversed(sops)) == ["c", "a", "b"]
    assert names("x", *sops, n=2) == ["c", "a"]


def test_a_trigger_is_whole_words_in_any_case():
    assert names("Please DEPLOY!", sop("s", "deploy")) == ["s"]
    assert names("redeployment", sop("s", "deploy")) == []
    assert names("a deploy_key", sop("s", "deploy")) == []
    assert names("roll   back\nnow", sop("s", "Roll Back")) == ["s"]


@pytest.mark.parametrize(
    ("text", "trigger"),
    [
        ("请帮我部署新版本", "部署"),
        ("新しいバージョンをデプロイしてください", "デプロイ"),
        ("배포를 시작해 주세요", "배포"),
        ("ช่วยติดตั้งระบบใหม่", "ติดตั้ง"),
        ("ΑΝΆΠΤΥΞΗ τώρα", "ανάπτυξη"),
        ("Bitte auf die STRASSE", "straße"),
        ("развернуть сервис", "Развернуть"),
        ("cafe\u0301 bitte", "caf\u00e9"),
        ("\uff44\uff45\uff50\uff4c\uff4f\uff59", "deploy"),
        ("deploy c++ code", "c++"),
    ],
)
def test_triggers_work_in_any_language(text, trigger):
    assert names(text, sop("s", trigger)) == ["s"]


def test_a_trigger_listed_twice_counts_once():
    (found,) = match("go go", [sop("s", "go", "GO")], 3)
    assert found.score == 10


@pytest.mark.parametrize("bad", [sop("s"), sop("s", " "), sop("", "x"), sop("s", "x", priority=float("nan"))])
def test_refuses_procedures_that_cannot_work(bad):
    with pytest.raises(Invalid):
        check_sop(bad)


def test_refuses_a_step_without_action():
    with pytest.raises(Invalid, match="action"):
        check_sop(Sop(name="s", description="", triggers=("x",), steps=(SopStep(action=" "),)))

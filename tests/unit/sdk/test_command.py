"""The `catena` command without a platform: its help, its complaints and what it prints."""

import json
import socket

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from catena.api.trainer.v1 import trainer_pb2
from catena.kit.config import House
from catena.kit.errors import Invalid
from catena.kit.telemetry.traces import TraceSpan
from catena.sdk.command import app, own_first
from catena.sdk.commands.events import BODIES, summary
from catena.sdk.commands.features import value_of
from catena.sdk.commands.jobs import read_spec
from catena.sdk.commands.memory import files_of
from catena.sdk.commands.trace import span_tree
from catena.sdk.terminal import Bytes, Expected, Terminal, cell, moment, number, size

pytestmark = pytest.mark.unit


@pytest.fixture
def catena(tmp_path, monkeypatch):
    """The command as typed in an empty folder, its home beside it."""
    monkeypatch.chdir(tmp_path)
    runner = CliRunner(env={"CATENA__HOME": str(tmp_path / "home"), "COLUMNS": "200", "NO_COLOR": "1"})

    def run(*arguments, **more):
        return runner.invoke(app, list(arguments), **more)

    return run


def commands():
    """Every command that can be typed, groups included."""

    def walk(command, path):
        yield path
        for name, inner in sorted(getattr(command, "commands", {}).items()):
            yield from walk(inner, (*path, name))

    return list(walk(typer.main.get_command(app), ()))


@pytest.mark.parametrize(
    ("words", "read"),
    [
        (["chat", "--json", "hi"], ["--json", "chat", "hi"]),
        (["up", "--config", "c.yaml", "--split"], ["--config", "c.yaml", "up", "--split"]),
        (["up", "-c", "c.yaml"], ["-c", "c.yaml", "up"]),
        (["up", "--config=c.yaml"], ["--config=c.yaml", "up"]),
        (["chat", "--", "--json"], ["chat", "--", "--json"]),
        (["up", "--config"], ["up", "--config"]),
    ],
    ids=" ".join,
)
def test_the_commands_own_options_may_stand_anywhere(words, read):
    assert own_first(words) == read


def test_there_is_a_command_for_every_verb_of_the_product():
    typed = {" ".join(path) for path in commands()}
    assert typed >= {
        *("up", "serve", "chat", "models", "adapters list", "jobs watch", "features set", "memory search"),
        *("route explain", "events", "trace"),
    }


@pytest.mark.parametrize("path", commands(), ids=" ".join)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_explains_itself_and_its_arguments(catena, path, flag):
    told = catena(*path, flag)
    assert told.exit_code == 0
    assert "Usage:" in told.output
    assert len(told.output.split("Usage:")[1].strip().splitlines()) > 4


def test_nothing_typed_shows_the_help(catena):
    assert "Usage:" in catena().output


@pytest.mark.parametrize(
    ("arguments", "complaint", "cure"),
    [
        (("serve", "kitchen"), "unknown room 'kitchen'", "gateway, router, executor"),
        (("events", "--type", "a.b.c"), "unknown event 'a.b.c'", "learner.promotion.decided"),
        (("chat",), "Missing argument", "text"),
        (("cook",), "No such command", "cook"),
        (("memory", "put", "nowhere"), "does not exist", "nowhere"),
        (("memory", "search", "x", "-n", "0"), "Invalid value for '-n'", "greater than or equal to 1"),
    ],
)
def test_what_is_typed_wrongly_is_named_with_what_is_right(catena, arguments, complaint, cure):
    told = catena(*arguments)
    assert told.exit_code == 2
    assert complaint in told.output
    assert cure in told.output


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "no configuration file at catena.yml; name one with --config"),
        ("rooter: {}", "unknown configuration key 'rooter'; known: adapters"),
        ("sql: {urll: x}", "unknown field `urll`"),
        ("profile: toy", "Invalid enum value 'toy'"),
        ("- a", "write a mapping of sections"),
        ("models: [unclosed", "catena.yml is no YAML that can be read: while parsing a flow sequence"),
        ("models: 5", "Expected `array`, got `int` - at `$.models`"),
        ("models: [{name: a, price: 3}]", "Expected `object`, got `int` - at `$.models[0].price`"),
        ("models: caf\udce9", "catena.yml is no YAML that can be read: 'utf-8' codec"),
        ("7: a\nrooter: {}", "unknown configuration key 7; known: adapters"),
    ],
)
def test_a_bad_configuration_ends_every_command_with_its_place_and_its_cure(catena, tmp_path, text, complaint):
    if text is not None:
        (tmp_path / "catena.yml").write_bytes(text.encode(errors="surrogateescape"))
    for arguments in (("models",), ("up",), ("trace", "abc")):
        told = catena("--config", "catena.yml", *arguments)
        assert told.exit_code == 1
        assert told.output.startswith(("bad_config: ", "no_config: "))
        assert complaint in told.output


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("router: {margn: 0.1}", "configuration section 'router': Object contains unknown field `margn`"),
        ("executor: {cache: {size: many}}", "'executor': Expected `int`, got `str` - at `$.cache.size`"),
        ("learner: 5", "'learner': Expected `object`, got `int`"),
        ("pipelines: {cascade: {fst: a}}", "section 'pipelines.cascade': Object contains unknown field `fst`"),
        ("pipelines: {tree: {}}", "section 'pipelines.tree': 'tree' is not a valid Shape"),
        ("embedding: nowhere", "make it with `python -m catena.embed.export --out"),
    ],
)
def test_up_tells_what_no_room_could_start_with_before_it_starts_any(catena, tmp_path, text, complaint):
    (tmp_path / "catena.yaml").write_text(text)
    told = catena("up")
    assert (told.exit_code, told.stderr.split()[0]) == (1, "bad_config")
    assert complaint in told.stderr
    assert not (tmp_path / "home" / "run" / "nats.log").exists()


def test_an_override_that_is_no_yaml_is_named(catena):
    told = catena("models", env={"CATENA__ROUTER__MARGIN": "["})
    assert (told.exit_code, "CATENA__ROUTER__MARGIN is no YAML" in told.output) == (1, True)


def test_the_configuration_of_the_folder_is_taken_without_being_named(catena, tmp_path):
    (tmp_path / "catena.yaml").write_text("rooter: {}")
    assert "rooter" in catena("models").output


@pytest.mark.parametrize(
    ("arguments", "code", "cure"),
    [
        (("models",), "no_platform", "start one with `catena up`"),
        (("jobs", "list"), "no_platform", "no trainer at unix:"),
        (("adapters", "resident"), "no_platform", "start one with `catena up`"),
        (("features", "get", "user/1", "age"), "no_platform", "start one with `catena up`"),
        (("memory", "search", "x"), "no_platform", "start one with `catena up`"),
        (("route", "explain", "x"), "no_platform", "start one with `catena up`"),
        (("chat", "hello"), "no_platform", "start one with `catena up`"),
        (("trace", "abc"), "unknown_trace", "no spans of trace 'abc'"),
        (("events",), "unavailable", "run `catena up` or set bus.url"),
        (("jobs", "create", "absent.yaml"), "bad_job", "absent.yaml"),
        (("features", "set", "user/1", "age"), "bad_value", "name=value"),
        (("adapters", "alias", "foo", "bar"), "bad_model_name", "model 'foo' should read base@adapter:version"),
        (("adapters", "alias", "base@a", "stable"), "bad_model_name", "should read base@adapter:version"),
    ],
)
def test_without_a_platform_a_command_says_so_and_leaves_nothing_behind(catena, tmp_path, arguments, code, cure):
    for mode in ((), ("--json",)):
        told = catena(*mode, *arguments)
        assert told.exit_code == 1
        assert told.stderr.startswith(code)
        assert cure in told.stderr
        assert told.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [("models",), ("chat", "hello")], ids=" ".join)
def test_a_platform_that_was_stopped_or_killed_is_told_from_one_that_runs(catena, tmp_path, arguments):
    for kept in ("keys/service.token", "keys/development.key"):
        (tmp_path / "home" / kept).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "home" / kept).write_text("secret")
    (tmp_path / "home" / "run").mkdir()
    for room in ("gateway", "executor"):
        with socket.socket(socket.AF_UNIX) as killed:
            killed.bind(str(tmp_path / "home" / "run" / f"{room}.sock"))
    told = catena(*arguments)
    assert (told.exit_code, told.stderr.split()[0]) == (1, "no_platform")
    assert f"no platform runs in {tmp_path / 'home'}" in told.stderr


def test_a_file_that_is_no_text_is_named(catena, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    told = catena("memory", "put", "a.txt")
    assert (told.exit_code, told.stderr.split()[0]) == (1, "no_text")
    assert "a.txt" in told.stderr


def job_file(tmp_path, text):
    path = tmp_path / "job.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_job_file_has_the_fields_of_a_job(tmp_path):
    text = """
adapter: swap
base: large
sources: [{name: new, path: rows.jsonl, weight: 2}]
peft: {method: dora, rank: 8, dropout: 0}
acceptance: {min_accuracy: 0.8}
"""
    assert read_spec(job_file(tmp_path, text)) == trainer_pb2.JobSpec(
        adapter="swap",
        base="large",
        sources=[trainer_pb2.DataSource(name="new", path="rows.jsonl", weight=2)],
        peft=trainer_pb2.PeftSpec(method="dora", rank=8, dropout=0.0),
        acceptance=trainer_pb2.AcceptanceSpec(min_accuracy=0.8),
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "NoneType"),
        ("- 1", "list"),
        ("just words", "str"),
        ("adapter: [", "expected the node content"),
        ("adapter: 7", "adapter"),
        ("peft: {rang: 8}", "rang"),
        ("peft: {rank: -1}", "rank"),
        (b"\xff\xfe", "utf-8"),
    ],
)
def test_a_bad_job_file_is_refused_with_its_place(tmp_path, text, complaint):
    path = job_file(tmp_path, text)
    with pytest.raises(Invalid, match=complaint) as refused:
        read_spec(path)
    assert refused.value.code == "bad_job"
    assert str(path) in refused.value.message


@pytest.mark.parametrize(
    ("told", "kind", "value"),
    [
        ("age=7", "number_value", 7.0),
        ("age=-1.5", "number_value", -1.5),
        ("vip=true", "bool_value", True),
        ("name=Ada", "string_value", "Ada"),
        ('name="7"', "string_value", "7"),
        ("sum=a=b", "string_value", "a=b"),
        ("note=", "string_value", ""),
        ("odd=NaN", "string_value", "NaN"),
        ("odd=1e400", "string_value", "1e400"),
        ("gone=null", "null_value", 0),
    ],
)
def test_a_features_value_is_json_or_else_text(told, kind, value):
    made = value_of("user", "42", told)
    assert (made.entity_type, made.entity_id, made.feature) == ("user", "42", told.partition("=")[0])
    assert made.value.WhichOneof("kind") == kind
    assert getattr(made.value, kind) == value


def test_a_features_value_may_be_a_list_or_an_object():
    made = value_of("user", "42", 'vector=[1, 2.5, {"a": null}]').value.list_value
    assert [v.WhichOneof("kind") for v in made.values] == ["number_value", "number_value", "struct_value"]


@pytest.mark.parametrize("told", ["age", "", "=7"])
def test_a_value_without_a_name_is_refused(told):
    with pytest.raises(Invalid, match="name=value"):
        value_of("user", "42", told)


def span(id_, parent, name, start_s, error=""):
    return TraceSpan(
        trace_id="t1",
        span_id=id_,
        parent_id=parent,
        room="r",
        name=name,
        start_s=start_s,
        duration_ms=2.0,
        attributes={},
        error=error,
    )


def printed(renderable):
    console = Console(width=200, color_system=None)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def test_spans_stand_under_their_parents_in_order_of_start():
    spans = [
        span("a", "outside", "gateway.chat", 10.0),
        span("b", "a", "router.recommend", 10.001),
        span("c", "a", "executor.run", 10.004),
        span("d", "c", "adapters.generate", 10.005, "queue full [/red] [x]"),
        span("e", "b", "router.learn", 10.009),
    ]
    lines = [line.strip("│├└─ \n") for line in printed(span_tree(spans)).splitlines()]
    assert lines == [
        "trace t1",
        "gateway.chat +0.0 ms 2.0 ms",
        "router.recommend +1.0 ms 2.0 ms",
        "router.learn +9.0 ms 2.0 ms",
        "executor.run +4.0 ms 2.0 ms",
        "adapters.generate +5.0 ms 2.0 ms queue full [/red] [x]",
    ]


@pytest.fixture
def terminal():
    def made(*, plain=False):
        return Terminal(house=House(), config=None, plain=plain, console=Console(width=100, color_system=None))

    return made


ROWS = [("[/red] a", 1.23456, True, 3), ("b", 0.5, False, 12)]


def test_a_table_in_json_mode_is_a_list_of_objects(terminal, capsys):
    terminal(plain=True).table("Title", ("name", "share", "on", "n"), iter(ROWS))
    assert json.loads(capsys.readouterr().out) == [
        {"name": "[/red] a", "share": 1.23456, "on": True, "n": 3},
        {"name": "b", "share": 0.5, "on": False, "n": 12},
    ]
    terminal(plain=True).table("Title", ("name",), [])
    assert json.loads(capsys.readouterr().out) == []


def test_a_table_for_people_shows_data_as_it_is(terminal, capsys):
    terminal().table("Title [/x]", ("name", "share", "on", "n"), iter(ROWS))
    shown = capsys.readouterr().out
    for text in ("Title [/x]", "[/red] a", "1.235", "yes"):
        assert text in shown
    assert "True" not in shown
    terminal().table("Jobs", ("name",), [])
    assert capsys.readouterr().out == "Jobs: none\n"


def test_sizes_and_moments_are_numbers_and_times_for_programs_and_readable_for_people(terminal, capsys):
    rows = [(Bytes(1536), moment(1_795_000_000.25), None, 0.5), (Bytes(10), moment(0), 1.0, 0.25)]
    terminal(plain=True).table("Title", ("size", "at", "share", "n"), rows)
    told = json.loads(capsys.readouterr().out)
    assert told[0] == {"size": 1536, "at": "2026-11-18 11:06:40.250000+00:00", "share": None, "n": 0.5}
    assert told[1]["at"] is None
    terminal().table("Title", ("size", "at", "share", "n"), rows)
    shown = capsys.readouterr().out
    assert "1.5 KiB" in shown
    assert "2026-11-18 11:06:40.250+00:00" in shown
    assert "None" not in shown
    assert moment(1e30) == 1e30


def test_people_read_an_expected_amount_with_its_end_and_programs_the_amount(terminal, capsys):
    rows = [("a", Expected(0.0000428, "to 0.000052"), "")]
    terminal(plain=True).table("Title", ("plan", "USD", "rejected"), rows)
    assert json.loads(capsys.readouterr().out) == [{"plan": "a", "USD": 0.0000428, "rejected": ""}]
    terminal().table("Title", ("plan", "USD", "rejected"), rows)
    shown = capsys.readouterr().out
    assert "0.0000428 to 0.000052" in shown
    assert "rejected" not in shown


def test_numbers_are_never_broken_however_narrow_the_terminal(terminal, capsys):
    words = "a plan of many words that has to be folded because nobody reads so wide"
    terminal().table(words, ("plan", *"abcdefgh"), [(words, *[0.00001234] * 8)])
    assert capsys.readouterr().out.count("0.0000123") == 8


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (0.5, "0.5"),
        (1.23456, "1.235"),
        (-0.0000428449, "-0.0000428"),
        (3.2e-12, "3.2e-12"),
        (999.96, "1000"),
        (1663.4, "1663"),
        (12345678.9, "1.235e+07"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
    ],
)
def test_prices_and_times_are_told_without_powers_of_ten(value, shown):
    assert number(value) == shown


def test_lines_for_people_are_silent_in_json_mode(terminal, capsys):
    terminal(plain=True).say("hello")
    assert capsys.readouterr().out == ""
    terminal().say("because of [/home] and [bold]")
    assert capsys.readouterr().out == "because of [/home] and [bold]\n"


def test_a_message_is_json_in_both_modes(terminal, capsys):
    job = trainer_pb2.Job(id="j", state="queued", progress=trainer_pb2.Progress(total_steps=9))
    for plain in (True, False):
        terminal(plain=plain).message(job)
        assert json.loads(capsys.readouterr().out) == {"id": "j", "state": "queued", "progress": {"total_steps": 9}}


def test_an_error_is_shown_with_its_code_whatever_its_text_holds(terminal, capsys):
    async def fails():
        raise Invalid("rows of [/data] are [bold]bad[/bold]; fix them", code="bad_rows")

    with pytest.raises(typer.Exit) as left:
        terminal().run(fails())
    assert left.value.exit_code == 1
    assert capsys.readouterr().err == "bad_rows rows of [/data] are [bold]bad[/bold]; fix them\n"


def test_ctrl_c_ends_with_130(terminal):
    async def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(typer.Exit) as left:
        terminal().run(interrupted())
    assert left.value.exit_code == 130


@pytest.mark.parametrize(("value", "text"), [(True, "yes"), (False, ""), (0.123456, "0.1235"), (7, "7"), ("x", "x")])
def test_values_are_shown_as_people_read_them(value, text):
    assert cell(value) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 20, "3.0 MiB"), (5 << 30, "5.0 GiB")]
)
def test_bytes_are_shown_in_the_nearest_unit(count, text):
    assert size(count) == text


def test_every_event_has_a_body_that_is_summed_up_on_one_line():
    body = BODIES["learner.promotion.decided"](promotion_id="p", state="promoted", reason="won")
    assert summary(body) == "promotion_id=p state=promoted reason=won"
    assert all(len(type_.split(".")) == 3 for type_ in BODIES)


def test_a_folder_is_searched_for_text_and_a_file_is_taken_as_it_is(tmp_path):
    for name in ("b.py", "a.md", "c.bin", "d/e.txt", "f.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("" if name == "f.md" else "x")
    assert [str(f.relative_to(tmp_path)) for f in files_of(tmp_path)] == ["a.md", "b.py", "d/e.txt"]
    assert files_of(tmp_path / "c.bin") == [tmp_path / "c.bin"]

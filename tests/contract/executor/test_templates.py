"""Users' templates in their sandbox: what they can do, and what becomes of those that try more."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from catena.api.types.v1 import types_pb2
from catena.executor.drivers.templating import SandboxedTemplates
from catena.kit.errors import CatenaError, Invalid, Late
from catena.kit.testing import eventually
from catena.plan.model import Plan, Role, Shape, Stage
from tests.contract.executor.rooms import around, finished, request


@asynccontextmanager
async def sandbox(**settings: Any) -> AsyncIterator[SandboxedTemplates]:
    templates = SandboxedTemplates(**settings)
    try:
        yield templates
    finally:
        await templates.aclose()


def children() -> list[psutil.Process]:
    found = psutil.Process().children()
    return [one for one in found if "catena.executor.drivers.rendering" in " ".join(one.cmdline())]


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("Hello {{ name }}", "Hello Ada"),
        ("{% for one in items %}{{ loop.index }}. {{ one.title | upper }}\n{% endfor %}", "1. TEA\n2. RUM\n"),
        ("{% if items | length > 1 %}many{% else %}few{% endif %}", "many"),
        ("{{ items | map(attribute='title') | join(', ') }}", "tea, rum"),
        ("{% set ns = namespace(n=0) %}{% for i in items %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
        ("<b>{{ name }}</b>", "<b>Ada</b>"),
    ],
)
async def test_templates_write_text_out_of_values(template: str, text: str) -> None:
    scope = {"name": "Ada", "items": [{"title": "tea"}, {"title": "rum"}], "unused": "x"}
    async with sandbox() as templates:
        assert await templates.render(template, scope) == text


async def test_a_template_that_is_kept_keeps_nothing_of_what_it_wrote() -> None:
    source = "{% set seen = namespace(all=[]) %}{% set seen.all = seen.all + [name] %}{{ seen.all | join(',') }}"
    async with sandbox(children=1) as templates:
        assert [await templates.render(source, {"name": name}) for name in ("Ada", "Bob", "Ada")] == [
            "Ada",
            "Bob",
            "Ada",
        ]


async def test_many_templates_fit_into_the_memory_that_one_process_has() -> None:
    async with sandbox(children=1) as templates:
        for number in range(70):
            dense = f"{number}" + "{{a}}" * 790
            assert await templates.render(dense, {"a": "x"}) == f"{number}" + "x" * 790
        (child,) = children()
        assert await templates.render("{{ name }}", {"name": "Ada"}) == "Ada"
        assert children() == [child]
        assert child.memory_info().rss < 128 * 1024 * 1024


async def test_a_template_says_what_it_needs() -> None:
    async with sandbox() as templates:
        assert await templates.names("{% for one in items %}{{ one }}{{ name }}{% endfor %}") == {"items", "name"}


@pytest.mark.parametrize(
    ("template", "code"),
    [
        ("{{ name", "bad_template"),
        ("{% include 'x' %}", "template_failed"),
        ("{{ nobody }}", "no_such_value"),
        ("{{ name.nothing }}", "no_such_value"),
        ("{{ name.__class__.__mro__ }}", "template_refused"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "template_refused"),
        ("{{ self.__init__.__globals__ }}", "template_refused"),
        ("{{ '{0.__class__}'.format(name) }}", "template_refused"),
        ("{{ items.append(1) }}", "template_refused"),
        ("{{ 1 // 0 }}", "template_failed"),
        ("{{ 'x' * 2000000 }}", "template_too_large"),
        ("{{ 'x' * 4000000000 }}", "template_too_costly"),
        ("{% for i in range(99999) %}{{ 'x' * 99 }}{% endfor %}", "template_too_large"),
    ],
)
async def test_what_a_template_may_not_is_an_error_with_a_name(template: str, code: str) -> None:
    async with sandbox() as templates:
        with pytest.raises(Invalid) as caught:
            await templates.render(template, {"name": "Ada", "items": [1]})
        assert caught.value.code == code
        assert await templates.render("{{ name }}", {"name": "and on"}) == "and on"


ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize("template", [ENDLESS, "{{ 9 ** (9 ** 9) }}"])
async def test_a_template_that_never_ends_is_ended_by_the_kernel(template: str) -> None:
    async with sandbox(wall_s=30.0) as templates:
        with pytest.raises(Invalid) as caught:
            await templates.render(template, {})
        assert caught.value.code == "template_too_costly"
        assert await templates.render("{{ name }}", {"name": "and on"}) == "and on"


async def test_a_template_that_takes_too_long_is_ended_and_others_need_not_wait_for_it() -> None:
    async with sandbox(children=2, wall_s=5.0) as templates:
        await asyncio.gather(*(templates.render("{{ n }}", {"n": n}) for n in range(2)))
        slow = asyncio.create_task(templates.render(ENDLESS, {}))
        assert await templates.render("{{ name }}", {"name": "Ada"}) == "Ada"
        with pytest.raises((Late, Invalid)):
            await slow
        assert len(children()) <= 2


async def test_a_template_has_no_environment_and_writes_no_file() -> None:
    async with sandbox() as templates:
        await templates.render("x", {})
        (child,) = children()
        assert child.environ() == {}
        assert Path(f"/proc/{child.pid}/oom_score_adj").read_text().strip() == "1000"
        assert child.rlimit(psutil.RLIMIT_NOFILE) == (16, 16)
        assert child.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)


async def test_values_and_templates_are_bounded() -> None:
    async with sandbox() as templates:
        with pytest.raises(Invalid, match="bytes of values"):
            await templates.render("{{ x }}", {"x": "y" * 5_000_000})
        with pytest.raises(Invalid, match="70000 characters"):
            await templates.names("x" * 70_000)


async def test_cancelling_ends_the_template_and_closing_all_of_them() -> None:
    async with sandbox(wall_s=30.0) as templates:
        await templates.render("x", {})
        work = asyncio.create_task(templates.render(ENDLESS, {}))
        await asyncio.sleep(0.1)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert await templates.render("x", {}) == "x"
        assert len(children()) == 1
    assert children() == []


async def test_a_child_ends_with_its_parent() -> None:
    async with sandbox() as templates:
        await templates.render("x", {})
        (child,) = children()
        process = templates._idle[0].process
        assert process.stdin is not None
        process.stdin.close()  # as the kernel does when the parent is gone
        await eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 30.0)


@pytest.mark.parametrize("bad", ["\ud800", "\x00", "{{ '\\ud800' }}"])
async def test_strange_text_is_rendered_or_refused(bad: str) -> None:
    async with sandbox() as templates:
        try:
            assert isinstance(await templates.render(bad, {}), str)
        except CatenaError as error:
            assert error.code


PROMPT = "{% for word in input.split() %}{{ word }}, {% endfor %}{{ user_id }}{{ draft }}"


async def test_a_stages_prompt_is_a_template_over_the_question_the_draft_and_who_asks(tmp_path: Path) -> None:
    drafter, main = (
        Stage(name="draft", role=Role.DRAFT, model="small"),
        Stage(name="main", role=Role.MAIN, model="large"),
    )
    plan = Plan(shape=Shape.DRAFT_REFINE, stages=(drafter, replace(main, prompt=PROMPT)))
    async with around(tmp_path) as room:
        said = []
        for user in ("ada", "bob"):
            asked = request(plan, context=types_pb2.RequestContext(user_id=user))
            asked.request.sampling.temperature = 0.0
            said.append((await finished(room.stub.Run(asked))).choices[0].message.content)
        assert said == ["HELLO, THERE, ADAHELLO THERE", "HELLO, THERE, BOBHELLO THERE"], "not out of a cache"
        for wrong, code in (("{{ inptu }}", "no_such_value"), ("{% for %}", "bad_template")):
            bad = replace(plan, stages=(drafter, replace(main, prompt=wrong)))
            with pytest.raises(Invalid, match="prompt of stage 'main'") as caught:
                await finished(room.stub.Run(request(bad)))
            assert caught.value.code == code
        judged = Plan(
            shape=Shape.SEQUENTIAL, stages=(main, Stage(name="j", role=Role.JUDGE, model="small", prompt="x"))
        )
        with pytest.raises(Invalid, match="a judge's stage takes no prompt"):
            await finished(room.stub.Run(request(judged)))

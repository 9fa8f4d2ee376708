"""The `catena` command."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from catena.kit.config import Section, load
from catena.kit.errors import CatenaError
from catena.sdk.commands import (
    adapters,
    chat,
    domains,
    events,
    features,
    formats,
    jobs,
    memory,
    models,
    pipelines,
    predict,
    registries,
    route,
    trace,
    tuning,
    up,
)
from catena.sdk.terminal import Terminal

app = typer.Typer(
    help="Answer each LLM request with the cheapest pipeline of models that is good enough.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
DEFAULT = Path("catena.yaml")


@app.callback()
def start(
    context: typer.Context,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Configuration file; ./catena.yaml if there is one.")
    ] = None,
    plain: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Read the configuration before any command."""
    chosen = config or (DEFAULT if DEFAULT.exists() else None)
    try:
        house, _ = load(chosen, "", Section)
    except CatenaError as error:
        sys.exit(f"{error.code}: {error.message}")
    context.obj = Terminal(house=house, config=chosen, plain=plain)


app.command("up")(up.up)
app.command("serve")(up.serve)
app.command("chat")(chat.chat)
app.command("predict")(predict.predict)
app.add_typer(pipelines.app, name="pipelines")
app.command("events")(events.events)
app.command("trace")(trace.trace)
adapters.app.command("convert")(formats.convert)
adapters.app.command("export")(formats.export)
adapters.app.command("import")(formats.import_)
adapters.app.command("migrate")(formats.migrate)
adapters.app.command("publish")(registries.publish)
adapters.app.command("updates")(registries.updates)
models.app.command("accept")(registries.accept)
models.app.command("export")(formats.export_model)
models.app.command("import")(formats.import_model)
models.app.command("merge")(formats.merge)
models.app.command("examples")(registries.examples)
models.app.command("sign")(registries.sign)
models.app.command("verify")(formats.verify)
models.app.command("profiles")(formats.profiles)
route.app.command("domains")(domains.domains)
route.app.command("put-domain")(domains.put_domain)
route.app.command("merge-domains")(domains.merge_domains)
route.app.command("delete-domain")(domains.delete_domain)
route.app.command("tune")(tuning.tune)
route.app.command("tunings")(tuning.tunings)
route.app.command("revert")(tuning.revert)
route.app.command("evaluate")(tuning.evaluate)
app.add_typer(adapters.app, name="adapters")
app.add_typer(models.app, name="models")
app.add_typer(jobs.app, name="jobs")
app.add_typer(features.app, name="features")
app.add_typer(memory.app, name="memory")
app.add_typer(route.app, name="route")


def main() -> None:
    """The console script; `catena`'s own options may stand anywhere before `--`: `catena chat --json hello`."""
    app(own_first(sys.argv[1:]))


def own_first(words: list[str]) -> list[str]:
    """The same words, the options of `catena` itself in front; one that lacks its value stays where it is."""
    own: list[str] = []
    rest: list[str] = []
    left = iter(words)
    for word in left:
        value = next(left, None) if word in ("--config", "-c") else None
        if word == "--json" or word.startswith("--config=") or value is not None:
            own += [word] if value is None else [word, value]
        elif word == "--":
            return [*own, *rest, word, *left]
        else:
            rest.append(word)
    return own + rest


if __name__ == "__main__":
    main()

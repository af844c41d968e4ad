"""The `roundhouse` command.

`serve` runs the server; every other command is a client of a running one. Only what a command needs is imported, and
only when it runs: `serve` must answer within a second of its start.
"""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from app import cli_output as out
from app.cli_client import LOAD_TIMEOUT_S, Client, CliError, ExitCode, default_key, default_url, model_path

EPILOG = """Exit codes: 0 done; 1 the server reports a failure; 2 wrong usage or configuration; 3 no server answers;
4 no such model; 5 overloaded or timed out, try again; 6 API key missing or refused; 130 interrupted."""
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
ADDRESS_ERRORS = {
    errno.EADDRINUSE: "another process listens there; end it, or choose another with --port or ROUNDHOUSE_PORT",
    errno.EACCES: "this user may not listen there; choose a port above 1023",
    errno.EAFNOSUPPORT: "this machine has no IPv6; choose another address with --host or ROUNDHOUSE_HOST",
    errno.EADDRNOTAVAIL: "this machine has no such address; choose another with --host or ROUNDHOUSE_HOST",
}


def _why_not(error: OSError) -> str:
    """What to do about an address that cannot be bound. Raises what is of another kind."""
    if isinstance(error, socket.gaierror):
        return "no such name or address; choose another with --host or ROUNDHOUSE_HOST"
    if error.errno not in ADDRESS_ERRORS:
        raise error
    return ADDRESS_ERRORS[error.errno]


app = typer.Typer(
    name="roundhouse",
    help="A folder of models behind one OpenAI-compatible address.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Url = Annotated[
    str | None,
    typer.Option("--url", help="Where the server is; else ROUNDHOUSE_URL, else ROUNDHOUSE_HOST and ROUNDHOUSE_PORT."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on stdout.")]
Model = Annotated[str, typer.Argument(help="A model's id, alias, or the last part of its id.", show_default=False)]
ModelsDir = Annotated[Path | None, typer.Option("--models-dir", help="The folder of models.", show_default=False)]


@contextmanager
def _failures(as_json: bool) -> Iterator[None]:
    """Turns every expected failure into a message on stderr, with `--json` a document on stdout, and an exit code."""
    try:
        yield
    except CliError as error:
        if as_json:
            out.print_json(error.document())
        out.print_error(error.message)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def _client(url: str | None) -> Client:
    return Client(url or default_url(), default_key())


@app.command(epilog=EPILOG)
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on [127.0.0.1].", show_default=False)] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 0: any that is free [8000].", show_default=False)
    ] = None,
    models_dir: ModelsDir = None,
    config: Annotated[
        Path | None,
        typer.Option(help="Configuration file [roundhouse.yaml in the models folder].", show_default=False),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Write the log as JSON lines.")] = False,
) -> None:
    """Serve every model of the models folder.

    All settings can be given by the environment (ROUNDHOUSE_*) or in roundhouse.yaml; options here go over both.
    """
    from app.config import ConfigError, load_settings

    given = {"host": host, "port": port, "models_dir": models_dir, "config": config}
    try:
        settings = load_settings(given | ({"log_format": "json"} if json else {}))
        from app.main import serve as run

        code = run(settings)
    except ConfigError as error:
        out.print_error(str(error))
        raise typer.Exit(ExitCode.USAGE) from None
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        out.print_error(f"Cannot listen on {where}: {_why_not(error)}.")
        raise typer.Exit(ExitCode.SERVER_ERROR) from None
    raise typer.Exit(code)


@app.command(epilog=EPILOG)
def models(
    model: Annotated[str | None, typer.Argument(help="Only this one.", show_default=False)] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say why each model was judged as it was.")] = False,
    all_: Annotated[bool, typer.Option("--all", help="Also folders that cannot be served.")] = False,
    models_dir: Annotated[
        Path | None,
        typer.Option("--models-dir", help="Look into this folder, without a server.", show_default=False),
    ] = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """List the models that a server offers, or (with --models-dir) what it would find in a folder."""
    with _failures(json):
        found = _scan(models_dir, model) if models_dir else _listed(_client(url), model, explain)
        if not (all_ or model):
            found = [model for model in found if model.get("availability", "available") == "available"]
        if json:
            out.print_json({"models": found})
        else:
            out.print_models(found, explain=explain)


def _listed(client: Client, model: str | None, explain: bool) -> list[dict[str, Any]]:
    """One model, or all that the server lists, each with its reasons where `explain` asks for them."""
    if model:
        return [client.get(model_path(model))]
    found: list[dict[str, Any]] = client.get("/v1/models?all=true")["data"]
    if not explain:
        return found
    return [model if "reasons" in model else client.get(model_path(model["id"])) for model in found]


def _scan(models_dir: Path, model: str | None) -> list[dict[str, Any]]:
    """What the discovery says of a folder, in the fields of GET /v1/models."""
    from dataclasses import asdict

    from app.config import ConfigError, load_settings
    from app.main import folder_scanner
    from models.catalog import Catalog
    from models.errors import AmbiguousModel, UnknownModel

    if not models_dir.is_dir():
        raise CliError(f"{models_dir} is no folder.", ExitCode.USAGE)
    try:
        settings = load_settings({"models_dir": models_dir})
    except ConfigError as error:
        raise CliError(str(error), ExitCode.USAGE) from error
    specs = folder_scanner(settings).scan()
    try:
        specs = [Catalog(specs).resolve(model)] if model else specs
    except (AmbiguousModel, UnknownModel) as error:
        raise CliError(error.message, ExitCode.UNKNOWN_MODEL) from error
    found = []
    for spec in specs:
        fields = asdict(spec)
        fields.pop("overrides")
        found.append(fields | {"path": str(spec.path)})
    return found


@app.command(epilog=EPILOG)
def ps(
    all_: Annotated[bool, typer.Option("--all", help="Also models that are not loaded.")] = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Show the loaded models: state, requests, memory, times."""
    with _failures(json):
        client = _client(url)
        memory = client.health().get("memory") or {}
        entries = [entry for entry in client.get("/v1/models")["data"] if entry.get("task") != "adapter"]
        found = [client.get(model_path(entry["id"])) for entry in entries if all_ or entry.get("state") != "cold"]
        if json:
            out.print_json({"memory": memory, "models": found})
        else:
            out.print_statuses(found, memory)


Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is done, or only ask for it.")]


@app.command(epilog=EPILOG)
def load(model: Model, wait: Wait = True, url: Url = None, json: Json = False) -> None:
    """Load a model now, so that its first request need not wait."""
    _control("load", model, wait, url, json)


@app.command(epilog=EPILOG)
def unload(model: Model, wait: Wait = True, url: Url = None, json: Json = False) -> None:
    """Unload a model once its running answers are finished; the next request loads it again."""
    _control("unload", model, wait, url, json)


def _control(verb: str, model: str, wait: bool, url: str | None, json: bool) -> None:
    """POST /v1/model/load or /unload, with the seconds shown while it takes effect."""
    with _failures(json), out.progress(f"{verb}ing {model} …", quiet=json or not wait):
        body = {"model": model, "wait": wait}
        status = _client(url).post(f"/v1/model/{verb}", body, timeout_s=LOAD_TIMEOUT_S)
    if json:
        out.print_json(status)
        return
    facts = [str(status.get("state", "")), out.size(status.get("memory_bytes"))]
    if verb == "load" and status.get("load_s") is not None:
        facts.append(f"loaded in {out.seconds(status['load_s'])}")
    typer.echo(out.printable(f"{status.get('id', model)}: {', '.join(fact for fact in facts if fact)}"))


@app.command(epilog=EPILOG)
def explain(model: Model, url: Url = None, json: Json = False) -> None:
    """Say what would happen if a request for a model came now: what would leave the device, why, how long it takes."""
    from app.cli_explain import print_forecast

    with _failures(json):
        told = _client(url).get(f"/v1/model/explain?{urlencode({'model': model})}")
    if json:
        out.print_json(told)
    else:
        print_forecast(told)


@app.command(epilog=EPILOG)
def events(
    url: Url = None, json: Annotated[bool, typer.Option("--json", help="Print a JSON document per line.")] = False
) -> None:
    """Follow what happens, a line each, until Ctrl-C: state changes, swaps, and how many requests run and wait."""
    from app.cli_events import follow

    with _failures(as_json=False):
        follow(_client(url), as_json=json)


@app.command(epilog=EPILOG)
def chat(
    model: Model,
    prompt: Annotated[
        str | None, typer.Argument(help="What to ask; without it a conversation, or stdin if that is piped.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0: always the likeliest token.")] = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Ask a model; it is loaded if need be."""
    from app.cli_chat import Chat, converse

    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    options = {"max_tokens": max_tokens, "temperature": temperature}
    with _failures(json):
        if json and prompt is None:
            raise CliError("--json needs a prompt: as an argument, or on stdin.", ExitCode.USAGE)
        if prompt is not None and not prompt.strip():
            raise CliError("The prompt is empty.", ExitCode.USAGE)
        conversation = Chat(_client(url), model, {name: value for name, value in options.items() if value is not None})
        if system:
            conversation.messages.append({"role": "system", "content": system})
        if prompt is None:
            converse(conversation)
            return
        answer = conversation.ask(prompt, show=not json)
        if json:
            out.print_json(answer.document())


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("roundhouse"))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """A folder of models behind one OpenAI-compatible address."""


def main() -> None:
    """Entry point of the `roundhouse` command."""
    app()


if __name__ == "__main__":
    main()

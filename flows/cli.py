"""The `phiflow` command: reads the command line, calls one function, prints the outcome.

Nothing heavy is imported before a command needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

app = typer.Typer(
    name="phiflow",
    help="Chat data to a fine-tuned, served small language model behind a chat app, as one Prefect flow.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Config = Annotated[Path | None, typer.Argument(help="Configuration file; deployments/local.yaml without it.")]
Served = Annotated[
    Path | None, typer.Argument(help="Configuration file; without it the last one run, else deployments/local.yaml.")
]
ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="Configuration file.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one value.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"phiflow {version('phiflow')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Chat data to a fine-tuned, served small language model behind a chat app, as one Prefect flow."""


@app.command()
def init(
    data_file: Annotated[Path, typer.Argument(help="A file of chats, a folder of such files, or a pattern in quotes.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing configuration.")] = False,
) -> None:
    """Look at a data file or folder and write a short, commented configuration next to it."""
    from flows.starter import write_starter

    target, about = write_starter(data_file, force=force)
    print(f"{about}\nWrote {target}. Next: phiflow run {target}")


@app.command()
def run(config: Config = None, set_: Set = None, as_json: Json = False) -> None:
    """Take a configuration from data to a served model and chat app."""
    from flows.run_command import run_configuration

    raise typer.Exit(run_configuration(config, set_, as_json))


@app.command()
def plan(
    config: Config = None,
    set_: Set = None,
    refresh_prices: Annotated[
        bool, typer.Option("--refresh-prices", help="Ask Azure's public price list, and keep what it says.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what a run would create, reuse, need and cost; trains and deploys nothing."""
    from flows.command import default_configuration, open_configuration
    from flows.plan import make_plan
    from flows.show_plan import show_plan

    resolved, origins = open_configuration(config or default_configuration(), set_)
    made = make_plan(resolved, origins, refresh_prices=refresh_prices)
    _print(made.document(), as_json, lambda _: show_plan(made))


@app.command()
def data(config: Config = None, set_: Set = None, as_json: Json = False) -> None:
    """Prepare the training data of a configuration; trains nothing."""
    from flows.command import default_configuration, open_configuration
    from flows.plan import prepare
    from flows.show import show_data

    _print(prepare(open_configuration(config or default_configuration(), set_)[0]), as_json, show_data)


@app.command()
def status(config: Served = None, set_: Set = None, as_json: Json = False) -> None:
    """Show the model version, the endpoint and its traffic, the chat app, MLflow and the services."""
    from flows.command import open_configuration
    from flows.operate import read_status
    from flows.show import show_status

    _print(read_status(open_configuration(config, set_)[0]), as_json, show_status)


@app.command()
def chat(
    question: Annotated[str, typer.Argument(help="What to ask the served model.")],
    config: ConfigOption = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, tokens.")] = 256,
    as_json: Json = False,
) -> None:
    """Ask the served model one question."""
    from flows.command import open_configuration
    from flows.operate import ask

    _print(ask(open_configuration(config, None)[0], question, max_tokens), as_json, lambda d: print(d["answer"]))


@app.command()
def cancel(config: Served = None) -> None:
    """Stop the runs of a configuration, cancel their jobs and restore the traffic."""
    from flows.command import open_configuration
    from flows.operate import cancel_everything

    for line in cancel_everything(open_configuration(config, None)[0]):
        print(line)


@app.command()
def approve(
    config: Served = None,
    run_id: Annotated[str, typer.Option("--run", metavar="ID", help="The run, by the first letters of its id.")] = "",
    refuse: Annotated[bool, typer.Option("--refuse", help="Say no; the run ends Refused.")] = False,
    reason: Annotated[str, typer.Option(help="Kept in the run's log and report.")] = "",
    reject: Annotated[
        bool, typer.Option("--reject", help="Say no, and let no later run give this version traffic.")
    ] = False,
    show: Annotated[bool, typer.Option("--show", help="Show the question, and answer nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Answer the run that waits for approval: yes, or no."""
    from flows.approval_command import answer_waiting_run, show_answer

    answer: dict[str, Any] = {"answer": "refuse" if refuse or reject else "approve", "reason": reason}
    answer |= {"reject_version": True} if reject else {}
    _print(answer_waiting_run(config, run_id, {} if show else answer), as_json, show_answer)


@app.command("roll-back")
def roll_back(
    reason: Annotated[str, typer.Option(help="Kept with the version, which never gets traffic again.")],
    config: Served = None,
    to: Annotated[str, typer.Option(metavar="VERSION", help="The model version to go back to.")] = "",
    as_json: Json = False,
) -> None:
    """Give the traffic back to the version that served before, and reject the one that has it."""
    from flows.command import open_configuration
    from flows.operate import roll_back_endpoint
    from flows.show import show_endpoint

    _print(roll_back_endpoint(open_configuration(config, None)[0], reason, to), as_json, show_endpoint)


@app.command()
def freeze(
    config: Served = None,
    reason: Annotated[str, typer.Option(help="Shown to runs that stop because of it.")] = "frozen by hand",
    off: Annotated[bool, typer.Option("--off", help="Let runs change the traffic again.")] = False,
) -> None:
    """Keep runs from changing the endpoint's traffic."""
    from flows.command import open_configuration
    from flows.operate import freeze_endpoint

    print(freeze_endpoint(open_configuration(config, None)[0], "" if off else reason))


@app.command()
def up(
    config: Config = None,
    set_: Set = None,
    what_if: Annotated[bool, typer.Option("--what-if", help="Show what would change, and change nothing.")] = False,
    part: Annotated[
        str,
        typer.Option(help="owner: what needs Owner rights (identity, roles); engineer: the rest; all."),
    ] = "all",
    request_quota: Annotated[
        bool, typer.Option("--request-quota", help="Ask Azure for the vCPUs that are missing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make the Azure workspace of a configuration, and what belongs to it; writes the ids into the file."""
    from flows.up import bring_up

    raise typer.Exit(bring_up(config, set_, part, what_if=what_if, request_quota=request_quota, as_json=as_json))


@app.command()
def down(
    config: Served = None,
    set_: Set = None,
    scope: Annotated[str, typer.Option(help="chat, endpoint, compute, or all of what phiflow made.")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    as_json: Json = False,
) -> None:
    """List what would be deleted and what it costs, ask, and delete it."""
    from flows.tear_down import take_down

    raise typer.Exit(take_down(config, set_, scope, yes=yes, as_json=as_json))


@app.command()
def sweep(
    config: Served = None,
    set_: Set = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete what was found.")] = False,
    as_json: Json = False,
) -> None:
    """Find what phiflow made and nobody uses."""
    from flows.command import open_configuration
    from flows.leftovers import show_leftovers, sweep_place

    _print(sweep_place(open_configuration(config, set_)[0], delete=delete), as_json, show_leftovers)


@app.command()
def doctor(config: Config = None, set_: Set = None, as_json: Json = False) -> None:
    """Check what a run needs, one line each, with the command that mends it."""
    from flows.doctor import examine

    raise typer.Exit(examine(config, set_, as_json))


@app.command()
def stop() -> None:
    """End the local processes; deletes nothing."""
    from flows.operate import stop_everything

    for line in stop_everything():
        print(line)


@app.command()
def env(config: Served = None) -> None:
    """Print the exports that point Prefect and MLflow tools at this installation."""
    from flows.command import open_configuration
    from flows.operate import exports

    for name, value in exports(open_configuration(config, None)[0]).items():
        print(f"export {name}={value}")


def _print(document: dict[str, Any], as_json: bool, show: Any) -> None:
    if as_json:
        from flows.command import as_json_text

        print(as_json_text(document))
    else:
        show(document)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command and exit; an expected error is one line, and exit code 2, 3 or 4."""
    from tasks.platforms.errors import PhiflowError

    given = sys.argv[1:] if arguments is None else arguments
    try:
        app(given, prog_name="phiflow", standalone_mode=True)
    except PhiflowError as error:
        from flows.command import report_error

        sys.exit(report_error(error, as_json="--json" in given))
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)

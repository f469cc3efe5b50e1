"""The `fedtwin` command: one group for each person, loaded only when it is called.

Design note: groups come from entry points, so that the base install of an auditor never imports torch or flwr. A
group whose extra is not installed says which install command brings it.
"""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points, version
from types import MappingProxyType

import click
import typer

from fedtwin_shared.errors import EXIT_BAD_INPUT, FedtwinError

ENTRY_POINT_GROUP = "fedtwin.commands"

GROUPS: Mapping[str, str] = MappingProxyType(
    {
        "client": "Hospital IT: run a hospital's node.",
        "server": "Consortium: run the coordinator.",
        "simulate": "Researchers: simulated consortia, experiments, benchmarks.",
        "audit": "Auditors: what a study may spend, checked without trusting anybody.",
    }
)
# What each group needs beyond the base install, and the extra that brings it.
NEEDS: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "client": ("client", ("flwr", "torch", "opacus", "pandas", "pyarrow")),
        "server": ("server", ("flwr", "httpx", "starlette", "uvicorn")),
        "simulate": ("simulations", ("flwr", "torch", "opacus", "pandas", "sklearn", "matplotlib")),
        "audit": ("", ()),
    }
)


class LazyGroup(click.Group):
    """A click group whose sub-commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the groups in the order of the people who use them."""
        return list(GROUPS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Load one group; exits with code 2 and the install command when its extra is missing."""
        if cmd_name not in GROUPS:
            return None
        extra, modules = NEEDS[cmd_name]
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            return _explain_missing(cmd_name, extra, missing)
        (entry,) = entry_points(group=ENTRY_POINT_GROUP, name=cmd_name)
        return typer.main.get_command(entry.load())

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the groups without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(GROUPS.items()))


def _explain_missing(group: str, extra: str, missing: list[str]) -> click.Command:
    def explain() -> None:
        click.echo(
            f"fedtwin {group}: expected the packages {', '.join(missing)}, found none of that name; "
            f"install them with: pip install 'fedtwin[{extra}]'",
            err=True,
        )
        raise SystemExit(EXIT_BAD_INPUT)

    return click.Command(
        group,
        callback=explain,
        help=GROUPS[group],
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )


@click.command(
    cls=LazyGroup,
    help="Federated digital twins for hospitals: one model, private patients.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(version("fedtwin"), prog_name="fedtwin")
def fedtwin() -> None:
    """Group of all commands."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command; a malformed file is one line on standard error and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without an ε must not cost the answer
    try:
        fedtwin.main(args=arguments, prog_name="fedtwin")
    except FedtwinError as err:
        click.echo(f"fedtwin: {err}", err=True)
        sys.exit(EXIT_BAD_INPUT)

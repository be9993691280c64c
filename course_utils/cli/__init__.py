"""The command line: `course list`, `course run`, `course check`, and the rest (`course --help`).

Each command imports what it needs when it runs, so that `course list` starts at once and works where the
optional packages are missing.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from course_utils import __version__
from course_utils.cli import lessons, others
from course_utils.cli.align import align
from course_utils.cli.launching import launch_config
from course_utils.errors import CourseError

app = typer.Typer(
    help="Preference alignment, measured: run, check and build the lessons.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
labs = typer.Typer(help="Student and instructor versions of the lessons.", no_args_is_help=True)
app.command("list")(lessons.list_lessons)
for command in (lessons.run, lessons.check, lessons.build, lessons.compare, others.claims, others.doctor):
    app.command()(command)
app.command("align")(align)
app.command("launch-config")(launch_config)
labs.command("build")(others.labs_build)
labs.command("mutants")(others.labs_mutants)
app.add_typer(labs, name="labs")
measured = typer.Typer(help="The computations behind the lessons.", no_args_is_help=True)
measured.command("list")(others.experiments_list)
measured.command("run")(others.experiments_run)
app.add_typer(measured, name="experiments")


@app.callback(invoke_without_command=True)
def options(version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False) -> None:
    """Preference alignment, measured: run, check and build the lessons."""
    if version:
        typer.echo(f"course {__version__}")
        raise typer.Exit()


def show_error(error: CourseError) -> None:
    """An error as people read it: what, where, what to do, and the name under which TROUBLESHOOTING.md
    explains it.
    """
    text = Text(error.what.rstrip())
    if error.where:
        text.append("\n\nWhere: ", style="bold").append(error.where)
    if error.remedy:
        text.append("\n\nWhat to do: ", style="bold").append(error.remedy)
    screen = Console(stderr=True, width=None if sys.stderr.isatty() else 110)
    screen.print(
        Panel(text, title=f"[bold red]{error.id}[/]", subtitle="TROUBLESHOOTING.md", border_style="red")
    )


def main(arguments: list[str] | None = None) -> None:
    """The entry point: errors for people end in a panel and exit code 2; COURSE_DEBUG=1 shows the traceback
    instead.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a Windows console may not know the symbols
    # jsonschema would use this package to check addresses that notebooks do not have; it takes three seconds
    # to import.
    sys.modules.setdefault("rfc3987_syntax", None)
    try:
        app(args=arguments)
    except CourseError as error:
        if os.environ.get("COURSE_DEBUG"):
            raise
        show_error(error)
        sys.exit(2)
    except ModuleNotFoundError as error:
        if os.environ.get("COURSE_DEBUG") or (error.name or "").startswith("course_utils"):
            raise
        from course_utils.notebooks.processes import HOW_TO_INSTALL

        what = f"The package {error.name} is not installed."
        show_error(CourseError("missing-package", what, remedy=HOW_TO_INSTALL.format(extra="lab")))
        sys.exit(2)

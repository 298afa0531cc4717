"""The command line. One file a command, imported only when that command runs; this file is the frame around them."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pppml_core import __version__
from pppml_core.errors import PppmlError, nearest

#: Command -> its line in ``pppml --help``. It lives in the file of the same name ('-' written '_'), which exports ``command``.
COMMANDS = {
    "run": "Train as a config says, and write a run folder.",
    "status": "Tell how a run stands, while it goes on or afterwards.",
    "plan": "Check a config and explain every stage before anything is trained.",
    "data": "Print the data card of a config's task, with counts and pictures.",
    "predict": "Apply a trained model to images.",
    "export": "Write a trained model as a MONAI bundle, or a run as a job for an engine.",
    "report": "Make one HTML page of one or several runs.",
    "sweep": "Run a grid of settings and seeds, and tabulate it.",
    "attack": "Attack a finished run from a named vantage.",
    "evidence": "Attack several defences from several vantages, and report who learns what.",
    "bench": "Time the parts of a round.",
    "site": "Set up and run a real site: identity, trust, policy, account, audit log.",
    "plugins": "List what is installed, with version and state.",
    "schema": "Print the JSON Schema of configs, for editors.",
    "new-plugin": "Start a plugin of your own.",
}

_HELP = """Personalized, privacy-preserving federated learning for medical images.

\b
  pppml plugins                                  what is installed
  pppml plan config.yaml                         what would happen, and what does not fit
  pppml run config.yaml --out runs/a             train; continue later with --resume runs/a
  pppml run config.yaml --set run.rounds=20 --set model=unet
  pppml report runs/a                            one page to read and to share

A config needs one line, `task: NAME`; everything else has a default. Exit codes: 0 done, 1 the run failed, 2 config, data or plan
refused, 3 plugin missing or broken, 4 privacy budget spent.
"""


class Frame(click.Group):
    """Finds commands by file name and turns every exception into one paragraph and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands whose file is there, in the order of ``COMMANDS``."""
        return [name for name in COMMANDS if (Path(__file__).parent / f"{_module(name)}.py").is_file()]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command itself, imported now."""
        known = self.list_commands(ctx)
        if cmd_name not in known:
            close = nearest(cmd_name, known)
            raise click.UsageError(f"There is no command {cmd_name!r}." + (f" Did you mean {close!r}?" if close else ""), ctx)
        command: click.Command = importlib.import_module(f"{__name__}.{_module(cmd_name)}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in ``--help``, which imports no command."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name]) for name in self.list_commands(ctx)])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs a command. ``--debug`` counts wherever it stands before a ``--``."""
        given = list(sys.argv[1:] if args is None else args)
        options = given[: given.index("--")] if "--" in given else given
        debug = "--debug" in options
        rest = [option for option in options if option != "--debug"] + given[len(options) :]
        # A model in the current folder (`model: net:MyNet`) is found, but never instead of an installed module.
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        try:
            result = super().main(rest, prog_name or "pppml", complete_var, standalone_mode=False, **extra)
        except BaseException as error:
            if not standalone_mode:
                raise
            if debug and not isinstance(error, click.exceptions.Exit | click.ClickException):
                traceback.print_exc()
            sys.exit(told(error))
        if not standalone_mode:
            return result
        sys.exit(result if isinstance(result, int) else 0)


def told(error: BaseException) -> int:
    """Writes one paragraph about the error to stderr; returns the exit code. SystemExit and the like are raised again."""
    if isinstance(error, PppmlError):
        return _say(str(error), error.exit_code)
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "pppml"
        return _say(f"{path}: {error.format_message()} Hint: `{path} --help` shows how it is called.", error.exit_code)
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return _say("interrupted. Hint: a run continues with `pppml run --resume DIR`.", 130)
    if isinstance(error, BrokenPipeError):
        # The reader (`| head`) has gone. What is still buffered has no one to go to either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, OSError):
        return _say(_about_the_system(error), 1)
    if isinstance(error, Exception):
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return _say(f"unexpected: {reason} Hint: run it again with --debug to see where; if it is a fault of pppml, please report it.", 1)
    raise error


def _about_the_system(error: OSError) -> str:
    place = error.filename if error.filename is not None else "the system"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "free some space, then continue the run with `pppml run --resume DIR`; what was finished is kept."
        return f"{place}: no space left on the device. Hint: {hint}"
    hint = {
        errno.EACCES: "choose a place you may write to, such as `--out DIR`, or change the permissions.",
        errno.EROFS: "choose a place you may write to, such as `--out DIR`.",
        errno.ENOENT: "check the path.",
        errno.ENOMEM: "use a smaller batch, fewer workers or a smaller model.",
    }.get(error.errno or 0, "run it again with --debug to see where.")
    return f"{place}: {error.strerror or error}. Hint: {hint}"


def _say(text: str, code: int) -> int:
    click.echo(f"error: {text}", err=True)
    return code


def _module(command: str) -> str:
    return command.replace("-", "_")


@click.group("pppml", cls=Frame, help=_HELP, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="pppml", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error (before or after the command).")
def main() -> None:
    """The group; its help is above."""

"""What the command line loads, and how it fails."""

import errno
import json
import os
import subprocess
import sys

import click
import jsonschema
import pytest
from click.testing import CliRunner

from pppml_core import cli
from pppml_core.errors import BudgetSpent, ConfigError, PlanRefused, PluginError, RunFailed

HEAVY = ("torch", "monai", "matplotlib", "scipy", "sklearn", "tenseal", "nibabel", "pydicom", "skimage", "PIL", "opacus", "pandas")
PROBE = """
import sys
from pppml_core.cli import main
try:
    main(sys.argv[1:])
except SystemExit as error:
    code = error.code
loaded = [name for name in {names!r} if name in sys.modules]
print("LOADED", loaded, file=sys.stderr)
sys.exit(code)
"""


def probe(*args, names=HEAVY):
    done = subprocess.run([sys.executable, "-c", PROBE.format(names=names), *args], capture_output=True, text=True, check=False)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("LOADED")]
    return done, line.removeprefix("LOADED ")


@pytest.mark.parametrize(
    "args", [["plugins"], ["plugins", "--json", "--all"], ["schema"], ["--help"], ["--version"], ["plugins", "--help"]]
)
def test_starting_loads_nothing_heavy(args):
    done, loaded = probe(*args)
    assert done.returncode == 0, done.stderr
    assert loaded == "[]"


def test_help_imports_no_command():
    modules = tuple(f"pppml_core.cli.{name.replace('-', '_')}" for name in cli.COMMANDS)
    done, loaded = probe("--help", names=(*modules, "pppml_core.registry", "pppml_core.config", "pydantic", "numpy", "yaml"))
    assert loaded == "[]"
    for name in ("plugins", "schema"):
        assert f"  {name}  " in done.stdout
    assert "pppml run config.yaml" in done.stdout
    assert "Exit codes: 0 done" in " ".join(done.stdout.split())


def test_every_listed_command_is_a_command():
    context = click.Context(cli.main)
    names = cli.main.list_commands(context)
    assert {"plugins", "schema"} <= set(names) <= set(cli.COMMANDS)
    for name in names:
        command = cli.main.get_command(context, name)
        assert isinstance(command, click.Command)
        assert command.help, f"pppml {name} has no help"


def invoke(*args):
    return CliRunner().invoke(cli.main, list(args))


def test_plugins_as_table_and_as_json():
    rows = json.loads(invoke("plugins", "--json").stdout)
    plain = next(row for row in rows if row["name"] == "plain")
    assert set(plain) == {"kind", "name", "distribution", "version", "status", "summary"}
    assert (plain["kind"], plain["distribution"], plain["status"]) == ("aggregator", "pppml-core", "ok")
    table = invoke("plugins").stdout
    assert table.splitlines()[0].split() == ["kind", "name", "distribution", "version", "status", "summary"]
    (line,) = [line for line in table.splitlines() if line.split()[:2] == ["aggregator", "plain"]]
    assert plain["summary"] in line
    only = json.loads(invoke("plugins", "--json", "--kind", "reporter").stdout)
    assert {row["kind"] for row in only} == {"reporter"}
    assert not any(row["status"] == "not installed" for row in rows)


def test_schema_to_a_file(tmp_path):
    assert invoke("schema", "-o", str(tmp_path / "s.json")).exit_code == 0
    schema = json.loads((tmp_path / "s.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema == json.loads(invoke("schema").stdout)
    assert "pppml-core" in schema["x-pppml-versions"]


@pytest.fixture
def failing(monkeypatch):
    """A command that raises what it is given."""

    def make(error):
        @click.command()
        def command():
            raise error

        monkeypatch.setattr(cli.Frame, "list_commands", lambda self, context: ["fail"])
        monkeypatch.setattr(cli.Frame, "get_command", lambda self, context, name: command)
        return error

    return make


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError("too far.", place="c.yaml:3: run.rounds", hint="less"), 2, "error: c.yaml:3: run.rounds: too far. Hint: less\n"),
        (PlanRefused(["one", "two"]), 2, "error: plan: the plan is refused for 2 reasons: one | two\n"),
        (PluginError("broken", place="pppml-x"), 3, "error: pppml-x: broken\n"),
        (BudgetSpent("spent"), 4, "error: spent\n"),
        (RunFailed("lost"), 1, "error: lost\n"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/a/x"),
            1,
            "error: runs/a/x: no space left on the device. Hint: free some space",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "--resume DIR"),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), 1, "error: runs: Permission denied. Hint: choose a place"),
        (ValueError("a\n  b"), 1, "error: unexpected: ValueError: a b Hint: run it again with --debug"),
        (click.UsageError("no such thing"), 2, "error: pppml fail: no such thing Hint: `pppml fail --help`"),
    ],
)
def test_every_error_is_one_paragraph_and_a_code(failing, error, code, text):
    failing(error)
    result = invoke("fail")
    assert result.exit_code == code
    assert text in result.stderr
    assert result.stderr.strip().count("\n") == 0
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("args", [["--debug", "fail"], ["fail", "--debug"]])
def test_debug_shows_the_traceback(failing, args):
    failing(ValueError("deep inside"))
    result = invoke(*args)
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "ValueError: deep inside" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: unexpected: ValueError: deep inside")


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["plugin"], "Did you mean 'plugins'?"),
        (["plugins", "--kin", "task"], "--kind"),
        (["plugins", "--kind", "tasks"], "'task'"),
        (["schema", "-o"], "requires an argument"),
    ],
)
def test_usage_errors_are_exit_code_2(args, text):
    result = invoke(*args)
    assert result.exit_code == 2
    assert text in result.stderr
    assert result.stderr.startswith("error: ")


def test_a_closed_pipe_is_no_traceback():
    command = f"{sys.executable} -m pppml_core.cli schema | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout == "{\n"
    assert done.stderr == ""
    # 0 where the pipe's buffer took it all.
    assert done.returncode in (0, 1)


def test_a_full_disk_is_told():
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    result = invoke("schema", "-o", "/dev/full")
    assert result.exit_code == 1
    assert "no space left on the device" in result.stderr

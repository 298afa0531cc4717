"""What the documentation tests share: code blocks of a page, and its commands carried out in a folder."""

import io
import re
import shlex
from contextlib import chdir, redirect_stdout

import pytest

from pppml_core import cli


def _blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def _lines(text):
    found = (re.split(r"\s+#|\s{3,}", line)[0] for block in _blocks(text, "sh") for line in block.splitlines())
    return [line for line in found if line]


def _pppml(folder, *lines):
    shown = []
    for line in lines:
        with chdir(folder), redirect_stdout(io.StringIO()) as stream:
            cli.main(shlex.split(line)[1:], standalone_mode=False)
        shown.append(stream.getvalue())
    return shown


@pytest.fixture(scope="session")
def blocks():
    """`blocks(text, language)`: the code blocks of a page in that language."""
    return _blocks


@pytest.fixture(scope="session")
def lines():
    """`lines(text)`: the commands of a page, without comments."""
    return _lines


@pytest.fixture(scope="session")
def pppml():
    """`pppml(folder, *lines)`: what each `pppml ...` line prints, carried out in a folder; an error is raised."""
    return _pppml

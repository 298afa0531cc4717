"""Start-up of the commands that must feel instant: the median must stay below 0.4 s."""

import subprocess
import sys

import pytest

LIMIT_SECONDS = 0.4


@pytest.mark.parametrize("args", ["plugins", "schema", "--help"])
def test_startup(benchmark, args):
    command = [sys.executable, "-m", "pppml_core.cli", args]
    benchmark.pedantic(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL), rounds=15, warmup_rounds=2)
    if benchmark.stats is not None:  # None with --benchmark-disable
        assert benchmark.stats.stats.median < LIMIT_SECONDS

"""One simulator for all tests of a file that need NVFlare to run: starting it costs more than all of them."""

from __future__ import annotations

import importlib.util

import pytest


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    """The folder of a simulator with the sites of the task ``tiny``; its homes are in ``homes``."""
    if importlib.util.find_spec("nvflare") is None:
        pytest.skip("NVFlare is not installed here")
    from pppml_nvflare.shared import simulator

    folder = tmp_path_factory.mktemp("nvflare")
    with simulator(folder, ("site_1", "site_2", "site_3"), start=150, silence=20):
        yield folder

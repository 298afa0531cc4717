"""A fingerprint of the global random streams, to show that something did not touch them."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def random_streams() -> str:
    """Hash of the states of torch's, numpy's and Python's global generators."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    digest = hashlib.sha256(torch.get_rng_state().numpy().tobytes())
    digest.update(np.asarray(keys).tobytes() + repr((name, rest, random.getstate())).encode())
    return digest.hexdigest()

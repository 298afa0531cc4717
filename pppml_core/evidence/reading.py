"""How a lesion is read from an image and from an attack's picture of it alike: by the run's own final model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pppml_core.errors import ConfigError
from pppml_core.evidence.knowledge import network_of
from pppml_core.evidence.rounds import weights_before
from pppml_core.federation.assembly import Assembly
from pppml_core.learning.arrays import load_state, to_torch

Reader = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.int64]]


def lesion_reader(folder: Path, parts: Assembly, rounds: int) -> Reader | None:
    """Images in the task's units, ``(n, channels, *size)``, to masks of classes, ``(n, *size)``.

    None for a task without masks, and as long as the run has not written its model. Personal layers are those that the run began with.
    """
    if parts.spec.kind != "segmentation":
        return None
    try:
        weights = weights_before(folder, parts, rounds + 1, rounds)
    except ConfigError:
        return None
    # A network of its own: the run's is at other weights while a round is staged.
    network = network_of(parts)()
    load_state(network, to_torch(dict(weights)), parts.initial_personal)
    network.float().eval()

    def read(images: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        with torch.no_grad():
            outputs = network(torch.from_numpy(np.ascontiguousarray(images, np.float32)))
        return np.asarray(outputs.argmax(dim=1).numpy(), np.int64)

    return read

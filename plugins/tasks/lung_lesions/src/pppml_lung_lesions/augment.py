"""Training-time augmentation, only with `training.augment: true`."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def augment(
    image: npt.NDArray[np.float32], target: npt.NDArray[np.int64], generator: np.random.Generator
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """MONAI's random flips, quarter turns and intensity scaling (factor 0.9 to 1.1), all driven by ``generator``.

    ``image`` is ``(channels, H, W)``, ``target`` ``(H, W)``; a quarter turn needs H = W, which every source here gives.
    """
    from monai.transforms import Compose, RandFlipd, RandRotate90d, RandScaleIntensityd

    both = ["image", "mask"]
    steps = Compose(
        [
            RandFlipd(both, prob=0.5, spatial_axis=0),
            RandFlipd(both, prob=0.5, spatial_axis=1),
            RandRotate90d(both, prob=0.5, max_k=3),
            RandScaleIntensityd("image", factors=0.1, prob=0.5),
        ]
    )
    # MONAI draws from numpy's older RandomState; seeding one from the generator keeps the draw a function of the generator alone.
    steps.set_random_state(seed=int(generator.integers(2**32)))
    out: dict[str, Any] = steps({"image": image, "mask": target[None]})
    return np.ascontiguousarray(np.asarray(out["image"]), np.float32), np.ascontiguousarray(np.asarray(out["mask"])[0], np.int64)

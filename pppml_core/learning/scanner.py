"""What a scanner and its protocol make of a phantom patient, and the window images are shown with.

A :class:`Scanner` renders fine slices of :mod:`pppml_core.learning.phantom`, averages them over its slice thickness, and applies its
reconstruction kernel, its calibration and its noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pppml_core.learning.phantom import F32, Patient, render


@dataclass(frozen=True)
class Scanner:
    """How a site's scanner and protocol differ from the next site's.

    Args:
        slice_mm: slice thickness; fine slices within it are averaged.
        noise_hu: standard deviation of the noise in the finished image.
        sharpness: of the reconstruction kernel: below 0 a Gaussian blur of that many mm (sigma), above 0 unsharp masking of that amount.
        fov_mm: field of view, side of the square image.
        offset_hu, gain: calibration error, ``gain * (hu + 1000) - 1000 + offset``.
        contrast_hu: contrast agent in the blood.
        window: centre and width in HU of the exported images.
        prevalence: share of patients with lesions.
        lesions: fewest and most lesions of such a patient.
        lesion_scale: size of lesions relative to the phantom's.
        share: size of the site relative to the mean site.

    """

    name: str
    slice_mm: float
    noise_hu: float
    sharpness: float
    fov_mm: float
    offset_hu: float = 0.0
    gain: float = 1.0
    contrast_hu: float = 0.0
    window: tuple[float, float] = (-600.0, 1600.0)
    prevalence: float = 0.5
    lesions: tuple[int, int] = (2, 6)
    lesion_scale: float = 1.0
    share: float = 1.0

    def acquire(self, patient: Patient, z: npt.ArrayLike, size: int, generator: np.random.Generator) -> tuple[F32, npt.NDArray[np.uint8]]:
        """HU images ``(slices, size, size)`` of slabs centred at ``z`` (mm), and lesion masks of that shape (0 or 1).

        A pixel belongs to the mask where at least half of it, over the slice's thickness, is lesion inside the lung.
        """
        centres = np.asarray(z, np.float32).ravel()
        fine = max(1, min(5, round(self.slice_mm / 2.0)))
        offsets = (np.arange(fine) - (fine - 1) / 2) * (self.slice_mm / fine)
        slab = render(
            patient,
            centres[:, None] + offsets[None, :],
            size=size,
            fov=self.fov_mm,
            thickness=self.slice_mm / fine,
            contrast=self.contrast_hu,
        )
        hu, lesion, lung = (a.reshape(centres.size, fine, size, size).mean(axis=1) for a in (slab.hu, slab.lesion, slab.lung))
        pixel = self.fov_mm / size
        hu = _kernel(hu, self.sharpness, pixel)
        hu = self.gain * (hu + 1000.0) - 1000.0 + self.offset_hu
        # Noise passes the same kernel as the signal; its strength is stated for the finished image.
        noise = _kernel(generator.standard_normal(hu.shape, dtype=np.float32), self.sharpness, pixel)
        hu = hu + noise * (self.noise_hu / max(float(noise.std()), 1e-6))
        return np.maximum(hu, -1024.0).astype(np.float32), ((lesion >= 0.5) & (lung > 0.25)).astype(np.uint8)


def window(hu: npt.NDArray[np.generic], centre: float, width: float) -> F32:
    """HU as float32 in [-1, 1]: -1 at and below ``centre - width / 2``, 1 at and above ``centre + width / 2``."""
    out: F32 = np.clip((np.asarray(hu, np.float32) - centre) * (2.0 / width), -1.0, 1.0)
    return out


def _kernel(images: F32, sharpness: float, pixel: float) -> F32:
    """A reconstruction kernel, in plane: Gaussian blur below 0 (sigma in mm), unsharp masking above 0."""
    from scipy.ndimage import gaussian_filter

    if sharpness == 0:
        return images
    sigma = -sharpness / pixel if sharpness < 0 else 1.0
    soft = gaussian_filter(images, (0, sigma, sigma), mode="nearest")
    return np.asarray(soft if sharpness < 0 else images + sharpness * (images - soft), np.float32)

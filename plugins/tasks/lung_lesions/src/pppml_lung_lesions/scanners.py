"""The simulated scanners: five documented ones, and more drawn from the same ranges."""

from __future__ import annotations

from pppml_core.learning.scanner import Scanner
from pppml_core.randomness import Seeds

#: The first five. They differ as real sites do (compare Table 2 of PPPML-HMI: slices of 1 to 7.5 mm, 9 to 119 patients).
TABLE = (
    Scanner("thin, sharp", slice_mm=1.0, noise_hu=40, sharpness=0.8, fov_mm=300, prevalence=0.95, lesions=(4, 9), share=1.8),
    Scanner(
        "contrast-enhanced, standard", slice_mm=2.0, noise_hu=25, sharpness=0.0, fov_mm=320, contrast_hu=150,
        window=(-500.0, 1800.0), prevalence=0.95, lesions=(4, 8), share=1.2,
    ),
    Scanner(
        "thick, soft", slice_mm=5.0, noise_hu=12, sharpness=-3.0, fov_mm=340, window=(-600.0, 1200.0), prevalence=0.95, lesions=(5, 10),
        lesion_scale=1.1, share=0.9,
    ),
    Scanner(
        "old, calibration off", slice_mm=7.5, noise_hu=50, sharpness=-2.0, fov_mm=290, offset_hu=60, gain=1.03,
        window=(-450.0, 1500.0), prevalence=0.9, lesions=(3, 7), share=0.6,
    ),
    Scanner(
        "low-dose screening", slice_mm=1.25, noise_hu=60, sharpness=0.4, fov_mm=350, offset_hu=-25, window=(-700.0, 1500.0),
        prevalence=0.9, lesions=(3, 7), share=0.5,
    ),
)  # fmt: skip


def scanner(index: int, seed: int) -> Scanner:
    """The scanner of a site, ``index`` counted from 0: from :data:`TABLE`, beyond it drawn from the ranges the table spans."""
    if index < len(TABLE):
        return TABLE[index]
    draw = Seeds(seed).generator("phantom scanner", index)
    least = int(draw.integers(3, 6))
    return Scanner(
        f"drawn {index + 1}",
        slice_mm=float(draw.choice([1.0, 1.25, 2.0, 3.0, 5.0, 7.5])),
        noise_hu=float(round(draw.uniform(12, 60))),
        sharpness=float(round(draw.uniform(-3, 0.8), 1)),
        fov_mm=float(round(draw.uniform(290, 350))),
        offset_hu=float(round(draw.uniform(-30, 60))),
        gain=float(round(draw.uniform(0.98, 1.03), 3)),
        contrast_hu=float(draw.choice([0, 0, 80, 150])),
        window=(float(draw.choice([-700, -600, -500, -450])), float(draw.choice([1200, 1500, 1600, 1800]))),
        prevalence=float(round(draw.uniform(0.9, 0.95), 2)),
        lesions=(least, least + int(draw.integers(3, 6))),
        lesion_scale=float(round(draw.uniform(1.0, 1.1), 2)),
        share=float(round(draw.uniform(0.5, 1.5), 1)),
    )

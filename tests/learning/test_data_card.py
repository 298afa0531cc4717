"""The data card with counts and the sheet of samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pppml_core.component import ComponentConfig
from pppml_core.interfaces.task import DataCard, SiteData, SiteInfo, Task, TaskSpec
from pppml_core.learning.data.card import card_with_counts, sample_sheet, warnings
from pppml_core.learning.data.examples import ArrayExamples, centred
from pppml_core.learning.metrics import CLASSIFICATION_METRICS, SEGMENTATION_METRICS


class Squares(Task):
    kind = "classification"
    size: tuple[int, ...] = (8, 8)

    def spec(self) -> TaskSpec:
        metrics = SEGMENTATION_METRICS if self.kind == "segmentation" else CLASSIFICATION_METRICS
        return TaskSpec(self.kind, 1, self.size, ("no", "yes"), "m", next(iter(metrics)), metrics)

    def sites(self) -> tuple[SiteInfo, ...]:
        return (SiteInfo("a", "Hospital A", "one scanner"), SiteInfo("b", "Hospital B"))

    def load(self, site: str) -> SiteData:
        def part(n: int) -> ArrayExamples:
            labels = np.arange(n) % 2 if site == "a" else np.zeros(n, int)
            images = np.random.default_rng(n).integers(0, 255, (n, *self.size)).astype(np.uint8)
            if self.kind == "segmentation":
                labels = labels.reshape(n, *(1,) * len(self.size)) * (images > 127)
            return ArrayExamples(images[:, None], labels, np.arange(n) // 2, lambda x: centred(x) if x.ndim == 3 else x.astype(np.float32))

        return SiteData(part(8), part(2), part(4))

    def card(self) -> DataCard:
        return DataCard("Squares", "made up", "CC0", "here")


class Volumes(Squares):
    kind = "segmentation"
    size = (4, 8, 8)


class Masks(Squares):
    kind = "segmentation"


def test_counts_and_class_balance() -> None:
    card = card_with_counts(Squares(ComponentConfig()))
    assert (card["title"], card["licence"]) == ("Squares", "CC0")
    assert card["sites"][0]["train"] == {"examples": 8, "groups": 4, "classes": {"no": 4, "yes": 4}}
    assert card["sites"][1]["test"] == {"examples": 4, "groups": 2, "classes": {"no": 4, "yes": 0}}
    assert card["warnings"] == warnings(Squares(ComponentConfig())) == ["site 'b' has no training example of class 'yes'"]


def test_foreground_share() -> None:
    card = card_with_counts(Masks(ComponentConfig()))
    assert card["sites"][0]["train"]["empty"] == 4
    assert card["sites"][0]["train"]["foreground"]["yes"] == pytest.approx(0.25, abs=0.05)
    assert card["sites"][1]["train"]["foreground"] == {"yes": 0.0}


@pytest.mark.parametrize("task", [Squares, Masks, Volumes])
def test_the_sheet_is_a_picture(tmp_path: Path, task: type[Squares]) -> None:
    sample_sheet(task(ComponentConfig()), tmp_path / "sheet.png", per_site=3)
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.width > 300
        assert np.asarray(picture.convert("L")).std() > 10

"""A planted layer through whole sessions: what is read out of a plain sum and of a masked one, against the images alone in their bins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import hypergeom

import pppml_core as pppml
from pppml_core.evidence.stage import Stage
from pppml_core.registry import Registry

imprint = pytest.importorskip("pppml_imprint.attack")
pytest.importorskip("pppml_secagg_plus")
SITES, BATCH, VICTIMS, ROWS = 4, 8, 8, 128


def expected(parts: Any, site: str, bins: Any, *, others: bool) -> float:
    """Share of a batch of ``site`` that is alone in its bin, over all batches, and over those of all other sites: exact."""
    own = np.bincount(bins(training_images(parts, site)), minlength=ROWS + 1)
    share = own / own.sum() * hypergeom.pmf(0, own.sum() - 1, np.maximum(own - 1, 0), BATCH - 1)
    for other in [s.slug for s in parts.task.sites() if others and s.slug != site]:
        counts = np.bincount(bins(training_images(parts, other)), minlength=ROWS + 1)
        share = share * hypergeom.pmf(0, counts.sum(), counts, BATCH)
    return float(share[1:].sum())  # the first: below all thresholds


def training_images(parts: Any, site: str) -> np.ndarray:
    train = parts.load(site).train
    return np.stack([train.example(i)[0] for i in range(len(train))])


@pytest.mark.parametrize(("aggregator", "sites"), [("plain", 1), ("secagg-plus", SITES)])
def test_images_are_read_out_of_a_sum_where_they_are_alone_in_their_bin(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, aggregator: str, sites: int
) -> None:
    """The batches and the planted weights are noted on their way in; the oracle counts them by the thresholds alone."""
    planted, held = [], {}
    true_plant, true_hold = imprint.Imprint.plant, Stage.hold

    def plant(self: Any, *given: Any) -> Any:
        planted.append(true_plant(self, *given))
        return planted[-1]

    def hold(self: Stage, round: int, weights: Any, batches: Any, seed: int) -> Any:
        held[seed] = batches
        return true_hold(self, round, weights, batches, seed)

    monkeypatch.setattr(imprint.Imprint, "plant", plant)
    monkeypatch.setattr(Stage, "hold", hold)
    registry = Registry.only({}, "pppml_imprint.plugin", "pppml_secagg_plus.plugin")
    run = pppml.Experiment(
        task={"use": "tiny", "sites": SITES, "examples": 60}, model={"use": "imprint-front", "rows": ROWS}, training={"steps": 1},
        run={"rounds": 1}, aggregator={"use": aggregator}, registry=registry,
    ).run(tmp_path / "run", reporters=False, report=False)  # fmt: skip
    record = run.attack("imprint", vantage="server", round=1, victims=VICTIMS, gallery=10)
    query = planted[-1]["front.weight"][0].astype(np.float64)
    thresholds = np.sort(-planted[-1]["front.bias"].astype(np.float64))

    def bins(images: np.ndarray) -> np.ndarray:
        return np.searchsorted(thresholds, images.reshape(len(images), -1).astype(np.float64) @ query)

    alone = 0
    assert sorted(held) == list(range(VICTIMS))
    for batches in held.values():
        mine = bins(batches[record["site"]].images)
        every = bins(np.concatenate([b.images for s, b in batches.items() if sites > 1 or s == record["site"]]))
        counts = np.bincount(every, minlength=ROWS + 1)
        alone += int((counts[mine] == 1).sum())
    by_bins = expected(run.assembly, record["site"], bins, others=sites > 1)
    read, total = record["metrics"]["mse<0.001"], BATCH * VICTIMS
    print(aggregator, "alone", alone, "of", total, "expected", by_bins, "read", read, record["effort"])
    assert read["images"] == total
    assert read["n"] == record["people"] <= VICTIMS, "one image a batch, one batch a patient"
    # Hardly any image that is alone is missed, and hardly any that is not is read. (All draws are seeded: no chance is left.)
    assert abs(read["share"] * total - alone) <= 0.04 * total
    assert abs(read["share"] - by_bins) < 0.1
    assert by_bins < record["effort"]["expected_share"] <= 1, "images of one site are more alike than public ones"
    assert record["outcome"] in (["recovered"] if sites == 1 else ["recovered", "inconclusive"]), "of eight victims few may be alone"

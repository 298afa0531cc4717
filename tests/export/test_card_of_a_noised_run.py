"""What a bundle says of privacy: the claim heads what it covers, and nothing else."""

from __future__ import annotations

import pytest

from pppml_core.learning.bundle.documents import Origin, _privacy

CLAIM = {
    "mechanism": "dp-sgd", "epsilon": 6, "delta": 1e-5, "unit": "example", "adjacency": "add-remove", "placement": "local",
    "accountant": "pld", "adversary": "anyone who sees what leaves a site",
}  # fmt: skip


def said(role, own, site="site_1"):
    return _privacy(Origin("r", "t", "m", "f", "plain", role, site, own, 2, 2, "0" * 64, {}, CLAIM))


def test_a_model_that_was_fitted_without_noise_is_not_headed_by_the_claim():
    text = said("federated", own=True)
    assert text.startswith("These weights are not covered by a guarantee of differential privacy")
    assert "What it sent was covered: trained with dp-sgd: epsilon 6 for the whole run" in text


@pytest.mark.parametrize(("role", "own", "site"), [("federated", False, None), ("alone", True, "site_1"), ("pooled", True, "site_1")])
def test_what_is_covered_is_headed_by_the_claim(role, own, site):
    assert said(role, own, site).startswith("Trained with dp-sgd: epsilon 6")

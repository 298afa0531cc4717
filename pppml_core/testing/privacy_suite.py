"""``PrivacySuite``: what every privacy mechanism must do. Its noise is there, its clip holds, its epsilon is right, its ledger complete."""

from __future__ import annotations

from pppml_core.interfaces.privacy import PrivacyMechanism, PrivacyPlan
from pppml_core.testing.privacy_claims import PrivacyClaims
from pppml_core.testing.privacy_clip import PrivacyClip
from pppml_core.testing.privacy_noise import PrivacyNoise
from pppml_core.testing.privacy_runs import PrivacyRuns
from pppml_core.testing.privacy_sampling import PrivacySampling


class PrivacySuite(PrivacyNoise, PrivacySampling, PrivacyClip, PrivacyClaims, PrivacyRuns):
    """Subclass it once for each placement, with ``component`` and a ``config`` that fixes the noise, not epsilon.

    ``quiet`` are settings, laid over ``config``, without noise, and ``noisier`` such with more of it. ``noise_in_rule``: the gradient rule
    adds the noise itself; ``step`` must then be given. ``colluders``: sites that may tell their share of the noise. The suite reads
    ``integer_sensitivity``, ``share_variance`` and ``clip`` in the statement's details and ``sample_rate``, ``noise_multiplier`` and
    ``count`` in a charge; a mechanism with other names overrides ``stated``, ``clip`` and ``charged``.
    ``exact`` is an independent epsilon where the noise is not Gaussian; ``clipped`` says how one example's gradient is clipped.

    Each test fails correct code with probability 1e-9 at most (:data:`.chances.FALSE_ALARM`).
    """

    def test_is_a_privacy_mechanism(self) -> None:
        """If this fails: ``target`` must name a subclass of ``PrivacyMechanism`` whose ``plan`` gives a ``PrivacyPlan``."""
        assert isinstance(self.mechanism(), PrivacyMechanism)
        assert isinstance(self.plan(), PrivacyPlan)

"""``none``: no privacy mechanism, and no claim."""

from __future__ import annotations

from pppml_core.interfaces.privacy import PrivacyMechanism, PrivacyPlan, PrivacySetting, PrivacyStatement


class NoPrivacyPlan(PrivacyPlan):
    """Leaves everything as it is."""

    @property
    def statement(self) -> PrivacyStatement:
        """Epsilon is None: nothing is claimed."""
        return PrivacyStatement("none")


class NoPrivacy(PrivacyMechanism):
    """The mechanism of that name."""

    def plan(self, setting: PrivacySetting) -> NoPrivacyPlan:
        """The same for every run."""
        return NoPrivacyPlan()

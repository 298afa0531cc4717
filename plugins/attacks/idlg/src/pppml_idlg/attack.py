"""What all gradient matching attacks share: when they do not apply, their random numbers and their time."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from pppml_core.interfaces.attack import AdversaryView, Attack, Budget, Knowledge, Reconstruction
from pppml_core.randomness import seeded
from pppml_idlg.config import MatchingConfig
from pppml_idlg.evidence import misfit
from pppml_idlg.matching import Effort


class Matching(Attack):
    """Finds the images that would have made what was seen; how, says ``search`` alone."""

    #: whether the label is read before the search, from the last layer.
    reads_labels: ClassVar[bool] = True
    config: MatchingConfig

    def misfit(self, view: AdversaryView, ctx: Knowledge) -> str:
        """No sum, masks, no model, too many images, or no last layer from which to read the label."""
        return misfit(view, ctx, self.config.images, self.config.most_images, self.reads_labels)

    def run(self, view: AdversaryView, budget: Budget, ctx: Knowledge) -> Reconstruction:
        """Images and labels."""
        with seeded(ctx.seed):  # networks draw initial weights and dropout from the global generator
            return self.search(view, ctx, Effort(float(budget.seconds)))

    @abstractmethod
    def search(self, view: AdversaryView, ctx: Knowledge, effort: Effort) -> Reconstruction:
        """The best guess before ``effort`` is over."""

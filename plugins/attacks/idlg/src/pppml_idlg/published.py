"""`dlg` and `idlg-published`: the recipes of the authors' code, with which a failure proves nothing.

Sum of squared differences of gradients, start N(0, 1), no box, torch's L-BFGS at rate 1 with its defaults; every tenth outer step the
search ends if the loss is below 1e-6. The answer is where the search ended, not where it was best. A defence is ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from pppml_core.interfaces.attack import AdversaryView, Knowledge, Reconstruction
from pppml_idlg.answers import answer
from pppml_idlg.attack import Matching
from pppml_idlg.config import DlgConfig, IdlgPublishedConfig
from pppml_idlg.evidence import Evidence, gradient_evidence
from pppml_idlg.labels import errors_by, expected_of, labels_of
from pppml_idlg.matching import Effort, Leaves, OutOfTime, Run, lbfgs, squared

#: the authors' test of convergence: every this many outer steps, below this loss.
CHECKED, CONVERGED = 10, 1e-6


class Dlg(Matching):
    """Image and soft label jointly (Zhu, Liu and Han 2019, algorithm 1); the label is where the soft label is largest."""

    reads_labels = False
    config: DlgConfig

    def search(self, view: AdversaryView, ctx: Knowledge, effort: Effort) -> Reconstruction:
        """Images and labels."""
        evidence = gradient_evidence(view, ctx, self.config.images, torch.float32)
        generator = torch.Generator().manual_seed(ctx.seed)
        start = [
            torch.randn(evidence.shape, generator=generator),
            torch.randn((evidence.count, len(ctx.spec.classes)), generator=generator),
        ]
        run = _search(evidence, start, lambda leaves: torch.softmax(leaves[1], 1), self.config.steps, effort)
        labels = run.best[1].argmax(1).numpy()
        return answer(evidence, run.best[0], labels, effort, run.last)


class IdlgPublished(Matching):
    """The label by the sign rule, then the image (Zhao, Mopuri and Bilen 2020, algorithm 1)."""

    config: IdlgPublishedConfig

    def search(self, view: AdversaryView, ctx: Knowledge, effort: Effort) -> Reconstruction:
        """Images and labels."""
        evidence = gradient_evidence(view, ctx, self.config.images, torch.float32)
        assert evidence.head is not None
        expected = expected_of(evidence.model, evidence.head, ctx)
        errors = errors_by("row-sum", evidence.head, ctx.gradient(evidence.sight), expected)
        labels = labels_of(errors, evidence.count, expected.probabilities)
        targets = torch.from_numpy(labels)
        start = [torch.randn(evidence.shape, generator=torch.Generator().manual_seed(ctx.seed))]
        run = _search(evidence, start, lambda leaves: targets, self.config.steps, effort)
        return answer(evidence, run.best[0], labels, effort, run.last, rule="row-sum")


def _search(evidence: Evidence, start: Leaves, targets: Callable[[Leaves], torch.Tensor], steps: int, effort: Effort) -> Run:
    """The published loop. Afterwards ``best`` is where it ended, or the last finite place."""
    run = Run(start, lambda leaves: squared(evidence.made(leaves[0], targets(leaves)), evidence.seen), effort)
    step = lbfgs(run, robust=False)
    try:
        for outer in range(steps):
            step()
            if not all(bool(torch.isfinite(t).all()) for t in run.leaves):
                break
            run.best = [t.detach().clone() for t in run.leaves]
            if outer % CHECKED == 0 and (run.evaluate() < CONVERGED or not math.isfinite(run.last)):
                break
    except OutOfTime:
        pass
    return run

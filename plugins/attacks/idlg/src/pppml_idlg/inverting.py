"""`inverting-gradients`: the direction of the update and a smoothness prior (Geiping et al. 2020, section 4 and their code)."""

from __future__ import annotations

import torch

from pppml_core.interfaces.attack import AdversaryView, Knowledge, Reconstruction
from pppml_idlg.answers import answer
from pppml_idlg.attack import Matching
from pppml_idlg.config import InvertingGradientsConfig
from pppml_idlg.evidence import update_evidence
from pppml_idlg.hardened import inferred
from pppml_idlg.matching import Effort, Leaves, OutOfTime, Run, cosine, signed_adam, total_variation
from pppml_idlg.prior import unit_public


class InvertingGradients(Matching):
    """One minus cosine, plus total variation; Adam on signs, projected to the box. Labels by the sign rule, or restored counts."""

    config: InvertingGradientsConfig

    def search(self, view: AdversaryView, ctx: Knowledge, effort: Effort) -> Reconstruction:
        """Images and labels."""
        config = self.config
        evidence = update_evidence(view, ctx, config.images, torch.float32)
        labels, rule = inferred(evidence, config.rule)
        targets = torch.from_numpy(labels)
        mean, spread = _normalization(ctx)

        def loss(leaves: Leaves) -> torch.Tensor:
            # As in the authors' code, images are normalized, and rate and total variation are in these units.
            made = evidence.made(mean + spread * leaves[0], targets)
            return cosine(made, evidence.seen) + config.smooth * total_variation(leaves[0])

        generator = torch.Generator().manual_seed(ctx.seed)
        runs: list[Run] = []
        try:
            for number in range(config.restarts):
                run = Run([torch.randn(evidence.shape, generator=generator)], loss, effort)
                runs.append(run)
                _search(run, config, number, -mean / spread, (1 - mean) / spread)
        except OutOfTime:
            pass
        best = min(runs, key=lambda run: run.lowest)
        unit = (mean + spread * best.best[0]).clamp(0, 1)
        return answer(evidence, unit, labels, effort, best.lowest, rule, len(runs))


def _search(run: Run, config: InvertingGradientsConfig, number: int, low: torch.Tensor, high: torch.Tensor) -> None:
    """All steps of one starting point, or its share of the time: the rate falls by whichever is the further on its way."""
    effort, taken = run.effort, 0
    share = max(effort.seconds / config.restarts, 1e-9)

    def way() -> float:
        return max(taken / config.steps, (effort.spent - number * share) / share)

    step = signed_adam(run, config.rate, way, low, high)
    while not taken or way() < 1:
        step()
        taken += 1


def _normalization(ctx: Knowledge) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of public images by channel, on the unit scale; a half and a quarter where there are none."""
    shape = (ctx.spec.channels, *(1 for _ in ctx.spec.size))
    public = unit_public(ctx)
    if not len(public):
        return torch.full(shape, 0.5), torch.full(shape, 0.25)
    axes = (0, *range(2, public.ndim))
    mean, spread = public.mean(axis=axes).reshape(shape), public.std(axis=axes).reshape(shape).clip(1e-3)
    return torch.from_numpy(mean).float(), torch.from_numpy(spread).float()

"""Doubles for runs under a privacy mechanism: a sum whose inputs can be read, a task with nothing to learn, eyes on ledgers, a stop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from pppml_core.builtin.plain import Plain, PlainSession
from pppml_core.builtin.tiny import TinyTask
from pppml_core.component import ComponentConfig
from pppml_core.engines.config import LocalConfig
from pppml_core.engines.local import LocalEngine
from pppml_core.federation.ledger import Ledger
from pppml_core.interfaces.aggregation import Guarantees
from pppml_core.interfaces.reporter import Reporter
from pppml_core.interfaces.task import Predictions
from pppml_core.values import ValueSpec
from pppml_core.wire.codec import decode_message


class IdealSession(PlainSession):
    """``plain``, with the guarantees of a secure sum that one site may leave."""

    @property
    def guarantees(self) -> Guarantees:
        """Nobody sees an update."""
        return replace(super().guarantees, sees_update=(), sees_weight=(), dropouts=1, coalition_curious=len(self.cohort) - 2)


class IdealSum(Plain):
    """An ideal secure sum. In truth the server reads everything: for tests alone."""

    def plan(self, value: ValueSpec, cohort: Any) -> IdealSession:
        """A session for any value."""
        return IdealSession(value, cohort)


class QuicklyScored(TinyTask):
    """The tiny task with its accuracy for every metric: the usual ones take longer than the run, and no test here looks at them."""

    def score(self, predictions: Predictions) -> dict[str, float]:
        """The share of right classes."""
        right = float((predictions.probabilities.argmax(axis=1) == predictions.targets).mean())
        return dict.fromkeys(self.spec().metrics, right)


class NothingToLearn(QuicklyScored):
    """The tiny task with a loss of zero: what moves a model is noise."""

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
        """Zero, with a gradient of zero."""
        return 0.0 * outputs.sum()


class Watching(LocalEngine):
    """Looks into a site's ledger at the moment its contribution leaves: ``seen`` has site, round and the number of entries."""

    def __init__(self) -> None:
        super().__init__(LocalConfig())
        self.seen: list[tuple[str, int, int]] = []

    def connect(self, job: Any) -> Any:
        """The transport, with a look at each reply."""
        inner, seen = super().connect(job), self.seen

        class Transport:
            parallel = 1
            clock, close = inner.clock, inner.close

            def deliver(self, frames: Any) -> Iterator[Any]:
                for site, reply in inner.deliver(frames):
                    message = decode_message(reply) if isinstance(reply, bytes) else None
                    if message is not None and message.kind == "reply" and message.stage == "contribute":
                        entries = Ledger(job.folder / site / "ledger.jsonl").entries()
                        seen.append((site, message.round, len(entries)))
                    yield site, reply

        return Transport()


class Stops(Reporter):
    """Ends the run, once, where the second round is evaluated."""

    def __init__(self) -> None:
        super().__init__(ComponentConfig())
        self.stopped = False

    def handle(self, event: Mapping[str, Any]) -> None:
        """As if somebody had pressed a key."""
        if (event.get("round"), event.get("stage")) == (2, "evaluate") and not self.stopped:
            self.stopped = True
            raise KeyboardInterrupt

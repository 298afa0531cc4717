"""Reporters: consumers of run events.

::

    class Shout(Reporter):
        def handle(self, event):
            if event["event"] == "round-finished":
                print("ROUND", event["round"], "IS DONE")

Events are plain dicts with ``event``, ``time`` (seconds since the epoch) and, where it applies, ``round``. In order of a run:

=================  ==========================================================================================================
``run-started``    ``name, folder, rounds, first_round, sites, steps`` (local optimizer steps of each site a round), ``headline``
``round-started``  ``round, attempt, cohort``
``stage-started``  ``round, stage, asked`` (the sites, in order)
``stage``          ``round, stage, sent, received, seconds`` (bytes of frames) when an operation of that stage has ended
``site-done``      ``round, stage, site, seconds, bytes`` when a site has answered
``site-lost``      ``round, stage, site, reason``
``round-aborted``  ``round, attempt, reason, next`` (retry, skip or stop), ``lost`` (its sum can never be had again)
``sum-kept``       ``round, kind, survivors`` when a resumed run goes on from a sum it had before it was killed
``metrics``        ``round, rows`` (as in metrics.jsonl)
``warning``        ``text``
``round-finished`` ``round, seconds, survivors, training`` (its public metrics), ``epsilon`` (spent so far; null, or the text ``inf``)
                   and, where it is not null, what it depends on: ``unit, adjacency, delta, accountant, placement, adversary``
``run-finished``   ``result`` (as in result.json)
``run-failed``     ``error``
=================  ==========================================================================================================

Where a reporter raises, the run stops with its error, and can be resumed: who asked for a record gets it or is told. One that only shows
the run elsewhere sets ``essential = False``: it hears no more, the others get a warning, and training goes on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pppml_core.component import ComponentConfig

Event = Mapping[str, Any]


class Reporter(ABC):
    """Gets every event of a run, in order, in the coordinating process."""

    #: whether the run stops where ``handle`` raises. ``open`` always stops it: nothing is lost before the first event.
    essential = True

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config

    def open(self, folder: Path) -> None:
        """A run is about to start or resume in ``folder``."""

    @abstractmethod
    def handle(self, event: Event) -> None:
        """One event. Must not raise for an event it does not know."""

    def close(self) -> None:
        """The run has ended, in whatever way."""

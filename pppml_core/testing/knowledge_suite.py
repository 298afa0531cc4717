"""``KnowledgeSuite``: every coalition of a secure sum knows exactly what it is meant to know, by elimination (see :mod:`.knowledge`)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest

from pppml_core.engines.faults import Deed
from pppml_core.errors import RoundLost
from pppml_core.interfaces.aggregation import Aggregator, Guarantees
from pppml_core.interfaces.engine import Topology
from pppml_core.testing.harness import SessionFactory, SessionHarness, site_names
from pppml_core.testing.knowledge import Basis, Holdings, Matrix, Row, indicators, known_sums, spans, subsets, words
from pppml_core.testing.recording import HarnessResult
from pppml_core.testing.suite import Suite
from pppml_core.testing.sum_suite import both_topologies
from pppml_core.wire.messages import SERVER

NAMES_SHOWN = 4


class KnowledgeSuite(Suite):
    """Subclass it and write three hooks: :meth:`aggregator`, and where the defaults do not say it all, :meth:`rows` and :meth:`expected`.

    ``min_sites`` to ``max_sites``: cohorts without faults; ``sites``: the cohort that faults are tried on; ``capacity``: unknowns, at least
    sites + expansions of all attempts; ``modulus``: of residues, where values are no words; ``options``: more settings of the harness;
    ``exact_promise``: whether ``coalition_curious`` is the very bound and not only a safe one.
    """

    sites: ClassVar[int] = 5
    min_sites: ClassVar[int] = 3
    max_sites: ClassVar[int] = 7
    capacity: ClassVar[int] = 128
    modulus: ClassVar[int | None] = None
    options: ClassVar[Mapping[str, Any]] = {}
    exact_promise: ClassVar[bool] = True

    # -- hooks ------------------------------------------------------------------------------------------------------------------------

    def aggregator(self, monkeypatch: pytest.MonkeyPatch, basis: Basis) -> Aggregator | SessionFactory:
        """The aggregator, with every expansion replaced (``monkeypatch.setattr(masks, "add_mask", basis.add_mask)``).

        With an HE back end: the transparent double; ``transparent_he.listener`` is set by the suite. Default: as it is.
        """
        made: Aggregator = self.make()
        return made

    def rows(self, result: HarnessResult, coalition: Sequence[str], basis: Basis) -> Iterable[Row]:
        """What the coalition can compute beyond what its members' own code handled: vectors it can open, seeds from pooled shares.

        ``basis.known(seed)`` is the row of a seed. All messages, states, states in between and drawn bytes are in ``result``
        (``view``, ``attempts``). Arrays and seeds in the clear there, and ciphertexts under a member's key, are found by the suite.
        """
        return ()

    def expected(self, result: HarnessResult, coalition: Sequence[str]) -> Iterable[Collection[str]]:
        """The sets of honest sites whose sums the coalition must know, and nothing else. ``coalition`` may contain ``server``.

        Default: the server learns the sum over the honest survivors of a completed session, and may know what sites have released where
        the round was lost. Coalitions beyond the promise know more: say here what, from the structure of the protocol. What is given for
        an aborted session may be known, and nothing else.
        """
        sums = [result.survivors]
        if isinstance(result.aborted, RoundLost):
            sums = [over for sets in result.released.values() for over in sets]
        honest = [set(over) - set(coalition) for over in sums]
        return [sites for sites in honest if sites] if SERVER in coalition else []

    # -- helpers ----------------------------------------------------------------------------------------------------------------------

    def play(
        self, patch: pytest.MonkeyPatch, sites: int | None = None, *faults: Mapping[str, Any], **options: Any
    ) -> tuple[HarnessResult, Basis]:
        """One session over formal unknowns."""
        names = site_names(self.sites if sites is None else sites)
        basis = Basis(names, self.capacity)
        settings = {**self.options, **options, "faults": faults, "contributions": basis.contributions(), "remember": True}
        with patch.context() as inner:
            inner.setattr("pppml_core.testing.transparent_he.listener", basis.listen)
            result = SessionHarness(self.aggregator(inner, basis), names, self.capacity, 1, **settings).run()
        assert not result.crashes, result.crashes
        assert result.aborted is not None or result.correct, f"{faults}: the formal sum is not that of {result.survivors}"
        return result, basis

    def guarantees(self, patch: pytest.MonkeyPatch, sites: int) -> Guarantees:
        """What is promised for a cohort."""
        with patch.context() as inner:
            names = site_names(sites)
            made = self.aggregator(inner, Basis(names, self.capacity))
            return SessionHarness(made, names, self.capacity, 1).session().guarantees

    def stages(self, patch: pytest.MonkeyPatch) -> tuple[str, ...]:
        """The stages of an undisturbed session."""
        return self.play(patch)[0].transcript.stages()

    def known(self, result: HarnessResult, coalition: Sequence[str], basis: Basis, holdings: Holdings) -> tuple[list[str], Matrix]:
        """The honest sites, and a reduced basis of the combinations of their contributions that the coalition knows."""
        honest = [s for s in basis.sites if s not in coalition]
        own = [basis.own(s) for s in coalition if s != SERVER]
        held = [*holdings.rows(coalition), *own, *self.rows(result, coalition, basis)]
        return honest, known_sums(held, [basis.sites.index(s) for s in honest])

    def coalitions(self, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """The server with any sites, and any sites without it; one site or more is honest."""
        for members in subsets(names, len(names) - 1):
            yield (SERVER, *members)
            if members:
                yield members

    def assert_knows(self, result: HarnessResult, basis: Basis, case: object) -> None:
        """Every coalition knows exactly what is expected; of an aborted session at most that."""
        holdings = Holdings(result, basis, self.modulus)
        for coalition in self.coalitions(basis.sites):
            honest, known = self.known(result, coalition, basis, holdings)
            expected = indicators(self.expected(result, coalition), honest)
            place = f"{case}: {'+'.join(coalition)} knows {words(known, honest)[:NAMES_SHOWN]}, expected {words(expected, honest)}"
            if result.aborted is None:
                assert np.array_equal(known, expected), place
            else:
                assert spans(expected, known), f"{place} at most, for it was aborted: {result.aborted}"

    def faults(self, patch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
        """Every single loss of the first attempt, before and after a site has worked."""
        deeds: tuple[Deed, ...] = ("drop", "drop-reply")
        for stage in self.stages(patch):
            for site in site_names(self.sites):
                yield from ({"site": site, "stage": stage, "do": deed, "attempt": 1} for deed in deeds)

    # -- tests ------------------------------------------------------------------------------------------------------------------------

    @both_topologies
    def test_completed_sessions(self, monkeypatch: pytest.MonkeyPatch, topology: Topology) -> None:
        """If this fails: a coalition knows more (or less) than the sum over the honest; the message says which combination."""
        for sites in range(self.min_sites, self.max_sites + 1):
            result, basis = self.play(monkeypatch, sites, topology=topology)
            assert result.aborted is None, result.aborted
            self.assert_knows(result, basis, f"{sites} sites, {topology}")

    @both_topologies
    def test_sessions_with_one_loss(self, monkeypatch: pytest.MonkeyPatch, topology: Topology) -> None:
        """If this fails: recovery, bridging or an abort gives a coalition more than the sum over the survivors."""
        for fault in self.faults(monkeypatch):
            result, basis = self.play(monkeypatch, None, fault, topology=topology)
            self.assert_knows(result, basis, f"{fault}, {topology}")

    def test_restarted_sessions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """If this fails: two attempts together give more than the last one's sum: keys, shares or masks are used again."""
        for fault in self.faults(monkeypatch):
            result, basis = self.play(monkeypatch, None, fault, attempts=2)
            self.assert_knows(result, basis, f"{fault}, restarted")

    def test_sessions_restarted_without_a_site(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """If this fails: the difference between two attempts over different sites can be computed."""
        names = site_names(self.sites)
        for fault in self.faults(monkeypatch):
            if fault["do"] == "drop":
                continue  # a site that has worked before it was lost has given more away
            for other in (fault["site"], names[names.index(fault["site"]) - 1]):
                gone = {"site": other, "stage": "open", "do": "drop", "attempt": 2}
                result, basis = self.play(monkeypatch, None, fault, gone, attempts=2)
                self.assert_knows(result, basis, f"{fault}, restarted without {other}")

    def test_the_promise_is_the_bound(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """If this fails: ``coalition_curious`` is not the largest coalition with the server that knows only the sum over the honest."""
        for sites in range(self.min_sites, self.max_sites + 1):
            guarantees = self.guarantees(monkeypatch, sites)
            if guarantees.sees_update:
                pytest.skip(f"no promise: {', '.join(guarantees.sees_update)} sees updates")
            result, basis = self.play(monkeypatch, sites)
            holdings, promised = Holdings(result, basis, self.modulus), guarantees.coalition_curious
            found = sites - 2
            for members in subsets(basis.sites, sites - 2):
                honest, known = self.known(result, (SERVER, *members), basis, holdings)
                if not spans(indicators([honest], honest), known):
                    found = len(members) - 1
                    break
            assert promised <= found, f"{sites} sites: {promised} are promised, but the server and {found + 1} know {words(known, honest)}"
            assert promised == found or not self.exact_promise, f"{sites} sites: {promised} are promised, {found} would be true"

    def test_all_parties_together_know_everything(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """If this fails: the control. Not even with all keys and seeds are single contributions found: messages are overlooked."""
        result, basis = self.play(monkeypatch)
        everybody = (SERVER, *basis.sites)
        held = [*Holdings(result, basis, self.modulus).rows(everybody), *self.rows(result, everybody, basis)]
        known = known_sums(held, range(len(basis.sites)))
        assert len(known) == len(basis.sites), f"all together know only {words(known, basis.sites)}"

"""Approximate encryption: one ring, no self-mask, nothing but nearest integers released, and never a second attempt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pppml_core.errors import RoundAborted, RoundLost
from pppml_core.testing.harness import site_names
from pppml_core.wire.messages import SERVER, Exchange


def test_the_sum_is_exact(cyclic: Any) -> None:
    for sites in (3, 5):
        result = cyclic.run(sites, backend=cyclic.Approximate(1 / 24), length=20_000)
        assert result.correct
        assert result.sum.dtype == np.int64


def test_nothing_but_integers_leaves_the_initiator(cyclic: Any, memory: Any) -> None:
    """What is sealed to the server is as long as integers are, and there is no seed."""
    result = cyclic.run(4, backend=cyclic.Approximate())
    released = [p.message for p in result.transcript.passages if p.message.stage == "release" and p.message.sender != SERVER]
    assert [sorted(m.body) for m in released] == [["sum"], [], [], []]
    assert len(released[0].body["sum"]) == 48 + 4 * 8
    assert not any("seed" in state for history in result.attempts[0].history.values() for state in history)


@pytest.mark.parametrize("spread", [0.5, 3.0])
def test_an_error_larger_than_planned_is_refused(cyclic: Any, refused: Any, spread: float) -> None:
    """Rather than a wrong sum: at 9 standard deviations of what was planned nothing is near an integer any more."""
    result = cyclic.run(4, backend=cyclic.Approximate(0.01, spread), length=1000)
    refused(result, "release", "not near integers", "a")
    assert isinstance(result.aborted, RoundLost)


def test_numbers_beyond_the_sum_are_refused(cyclic: Any, refused: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decrypt = cyclic.Approximate.decrypt
    monkeypatch.setattr(cyclic.Approximate, "decrypt", lambda *given: np.rint(decrypt(*given)) + 2.0**40)
    refused(cyclic.run(4, backend=cyclic.Approximate()), "release", "integers of its range", "a")


@pytest.mark.parametrize("do", ["drop", "drop-reply"])
def test_a_lost_site_costs_the_round(cyclic: Any, do: str) -> None:
    """No bridging, and no second attempt once a ciphertext may have left a site: its key holder needs nothing more to read the sum."""
    for stage in ("ring-1", "agree", "release"):
        for site in site_names(4) if stage != "agree" else "a":
            result = cyclic.run(4, {"site": site, "stage": stage, "do": do}, backend=cyclic.Approximate(), attempts=2)
            assert isinstance(result.aborted, RoundLost), (stage, site)
            assert len(result.attempts) == 1
            assert not any(p.message.stage == "reseal" for p in result.transcript.passages)
    for stage in ("advertise", "keys"):
        result = cyclic.run(4, {"site": "b", "stage": stage, "do": do}, backend=cyclic.Approximate(), attempts=2)
        assert result.correct, "nothing had left a site: the round starts again"
        assert len(result.attempts) == 2


def test_sites_do_not_take_part_twice(cyclic: Any, refused: Any) -> None:
    """A server that starts again all the same, with a smaller cohort: every site that has sent a ciphertext refuses."""

    def restarting(session: Any, ctx: Any) -> Any:
        honest = session.coordinate(ctx)
        try:
            answer = None
            while True:
                asked = honest.send(answer)
                if asked.stage == "agree" and ctx.attempt == 1:
                    raise RoundAborted("a lie: nothing was lost")
                answer = yield asked
        except StopIteration as stop:
            return stop.value

    gone = {"site": "d", "stage": "open", "do": "drop", "attempt": 2}
    result = cyclic.run(4, gone, backend=cyclic.Approximate(), attempts=2, coordinate=restarting)
    assert result.sum is None
    assert {over for sets in result.released.values() for over in sets} == {tuple("abcd")}
    assert any(stage == "ring-1" and "released before" in why for stage, _, why in result.losses)


def test_bridging_is_refused(cyclic: Any, refused: Any, on_the_way: Any) -> None:
    result = cyclic.run(5, backend=cyclic.Approximate(), coordinate=on_the_way("ring-1", "c", lambda body: {**body, "without": ["e"]}))
    refused(result, "ring-1", "no site is ever left out", "c")

    def asks(session: Any, ctx: Any) -> Any:
        honest = session.coordinate(ctx)
        asked = next(honest)
        while asked.stage != "agree":
            asked = honest.send((yield asked))
        yield Exchange("reseal", {"b": {"without": ["c"]}})
        raise RoundAborted("enough")

    refused(cyclic.run(5, backend=cyclic.Approximate(), coordinate=asks), "reseal", "no stage 'reseal'", "b")


def test_what_is_exposed(cyclic: Any, memory: Any) -> None:
    """Without self-masks the key holder and one more site cut the ring, with or without the server."""
    result = cyclic.run(5, backend=cyclic.Approximate())
    session = cyclic.harness(5, backend=cyclic.Approximate()).session()

    def parts(*coalition: str) -> set[frozenset[str]]:
        found = session.exposed(memory.view(result, coalition, 1))
        for exposure in found:
            truth = sum(result.contributions[site].astype(np.int64) for site in exposure.sites)
            assert np.array_equal(exposure.value, truth), (coalition, exposure.sites)
        return {frozenset(exposure.sites) - set(coalition) for exposure in found}

    assert parts("server") == {frozenset("abcde")}
    assert parts("a") == {frozenset("bcde")}, "the initiator sees the sum of the others by itself"
    assert parts("b", "d") == set()
    assert parts("a", "c") == {frozenset("b"), frozenset("de")}

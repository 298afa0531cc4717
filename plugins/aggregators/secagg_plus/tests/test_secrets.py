"""Secrets: gone as early as possible, and in no text at all."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from pppml_core.interfaces.aggregation import ServerContext
from pppml_core.testing.harness import HarnessResult, SessionHarness
from pppml_secagg_plus import keys, masks, shamir, unmask
from pppml_secagg_plus.config import SecAggPlusConfig
from pppml_secagg_plus.server_side import ServerSide
from pppml_secagg_plus.session import SecAggPlus
from pppml_secagg_plus.site_side import SiteSide

SITES = "abcde"


def harness(**options: Any) -> SessionHarness:
    return SessionHarness(SecAggPlus(SecAggPlusConfig()), 5, 8, remember=True, **options)


def strings(value: Any) -> Iterator[bytes]:
    """All byte strings in a state."""
    if isinstance(value, bytes):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from strings(item)


def states(result: HarnessResult, site: str) -> list[dict[str, Any]]:
    return list(result.attempts[0].history[site])


def test_each_secret_is_gone_after_the_last_exchange_that_needs_it() -> None:
    """The box key after sharing, the mask key and the seed after masking, everything after unmasking."""
    result = harness().run()
    assert result.correct
    for site in SITES:
        box_private, mask_private, seed = result.attempts[0].drawn[site][:3]
        after = dict(zip(("advertise", "share", "mask", "agree", "unmask"), map(set, map(strings, states(result, site))), strict=True))
        assert {box_private, mask_private, seed} <= after["advertise"]
        assert box_private not in after["share"]
        assert {mask_private, seed} <= after["share"]
        assert not {box_private, mask_private, seed} & (after["mask"] | after["agree"])
        assert states(result, site)[-1] == {"next": "none"}


def test_a_coalition_without_memory_learns_nothing_from_what_is_left() -> None:
    """All sites but one with the server, after the round: their states say no more than the sum they took part in."""
    found = SessionHarness(SecAggPlus(SecAggPlusConfig()), 5, 8)
    result = found.run()
    (only,) = found.session().exposed(result.view(("server", "a", "b", "c", "d")))
    assert only.sites == tuple(SITES)
    assert np.array_equal(only.value, result.sum)


def test_everything_of_an_attempt_is_fresh() -> None:
    """Nothing drawn in one attempt is drawn in another, and no byte string of one attempt's messages is in the next, names aside."""
    faults = [{"site": site, "stage": "agree", "do": "drop", "attempt": 1} for site in "ab"]
    result = harness(attempts=2, faults=faults).run()
    assert result.correct
    assert len(result.attempts) == 2
    drawn = [{s for site in SITES for s in attempt.drawn[site]} for attempt in result.attempts]
    assert not drawn[0] & drawn[1]
    sent = [
        {s for p in result.transcript.sent_by_sites() if p.message.attempt == number for s in strings(p.message.body)} for number in (1, 2)
    ]
    assert sent[0]
    assert not sent[0] & sent[1]


def test_no_two_keys_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every mask of a session has a key of its own: ten pairs and five sites; boxes have twenty keys, two a pair."""
    used: list[bytes] = []
    boxes: list[bytes] = []
    add, close = masks.add_mask, keys.close_box
    monkeypatch.setattr(masks, "add_mask", lambda total, key, sign: (used.append(key), add(total, key, sign))[1])
    monkeypatch.setattr(keys, "close_box", lambda key, *rest: (boxes.append(key), close(key, *rest))[1])
    assert harness().run().correct
    assert len(set(used)) == 15
    assert len(boxes) == len(set(boxes)) == 20
    assert not set(used) & set(boxes)


def test_no_secret_in_logs_errors_or_representations(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """A whole session with a vanished site, a wrong share and debug logging: nothing drawn or derived is in any text."""
    secrets: set[bytes] = set()
    texts: list[str] = []

    def spy(module: Any, name: str) -> None:
        original = getattr(module, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            found = original(*args, **kwargs)
            secrets.update(strings(found))
            return found

        monkeypatch.setattr(module, name, wrapped)

    for name in ("mask_key", "self_mask_key", "box_keys", "open_box"):
        spy(keys, name)
    for name in ("split", "combine"):
        spy(shamir, name)
    for kind in (SiteSide, ServerSide, unmask.Collected):
        for method in ("answer", "run", "take"):
            if hasattr(kind, method):
                monkeypatch.setattr(kind, method, _telling(getattr(kind, method), texts))
    caplog.set_level(logging.DEBUG)
    faults = [
        {"site": "e", "stage": "mask", "do": "drop"},
        {"site": "a", "stage": "unmask", "do": "tamper-body"},
    ]
    result = harness(faults=faults).run()
    secrets.update(s for site in SITES for s in result.attempts[0].drawn[site])
    assert len(secrets) > 60
    texts += [caplog.text, str(result.aborted), repr(result.aborted), *(reason for _, _, reason in result.losses), *capfd.readouterr()]
    found = harness()
    context = ServerContext(b"r" * 16, 1, 1, tuple(SITES), bytes(32))
    texts += [repr(found.session()), repr(ServerSide(found.session().terms, found.value, np.dtype(np.uint32), context)), repr(found)]
    said = "".join(texts)
    assert "SiteSide(" in said
    assert "Collected(" in said
    for secret in secrets:
        for text in (secret.hex(), repr(secret)[2:-1], base64.b64encode(secret).decode(), str(int.from_bytes(secret, "big"))):
            assert text not in said


def _telling(method: Any, texts: list[str]) -> Any:
    """The method, with the representation of its object written down after each call."""

    def wrapped(self: Any, *args: Any) -> Any:
        try:
            return method(self, *args)
        finally:
            texts.append(repr(self))

    return wrapped

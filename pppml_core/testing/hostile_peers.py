"""What a secure sum must do among peers that are no honest ones: refuse in words, crash nowhere, release once, give away nothing."""

from __future__ import annotations

import base64
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from pppml_core.errors import InconsistentModel, RoundAborted, RoundLost
from pppml_core.interfaces.aggregation import Coordinator, ServerContext, Session
from pppml_core.interfaces.engine import Loss, Transport
from pppml_core.testing.harness import Coordinate, HarnessResult, coalitions, site_names
from pppml_core.testing.lying import edited
from pppml_core.testing.malformed import malformed
from pppml_core.testing.sum_suite import SumSuite, released_parts
from pppml_core.wire.codec import decode_message, encode_message
from pppml_core.wire.messages import SERVER, Exchange, ExchangeOutcome, Message

#: (stage, site) -> what that site was asked there.
Asked = Mapping[tuple[str, str], Mapping[str, Any]]


class HostilePeers(SumSuite):
    """The part of :class:`~pppml_core.testing.AggregatorSuite` in which somebody lies, or the network does more than lose messages."""

    # -- helpers ----------------------------------------------------------------------------------------------------------------------

    def promising(self) -> None:
        """Skip the test for sums that promise nothing."""
        if self.guarantees.sees_update:
            pytest.skip(f"no promise: {', '.join(self.guarantees.sees_update)} sees updates")

    def assert_nothing_more(self, result: HarnessResult, case: object) -> None:
        """No crash at a site; up to the promise, the server and sites decode the sum over the honest survivors at most, of all attempts."""
        assert not result.crashes, f"{case}: crashed instead of refusing: {result.crashes}"
        if self.guarantees.sees_update:
            return
        for coalition in coalitions(site_names(self.sites), self.guarantees.coalition_curious):
            allowed = {frozenset(result.survivors) - set(coalition)} if result.aborted is None else released_parts(result, coalition)
            parts = self.honest_parts(result, (SERVER, *coalition))
            assert parts <= allowed, f"{case}: server and {coalition} decode {parts}"

    def asked(self) -> Asked:
        """What each site was asked in an undisturbed session."""
        messages = (p.message for p in self.run().transcript.passages if p.message.recipient != SERVER)
        return {(m.stage, m.recipient): m.body for m in messages}

    def spoilt(self, wrong: Mapping[tuple[str, str], Message]) -> Any:
        """A transport that brings other replies, by stage and site."""

        class Spoilt:
            def __init__(self, inner: Transport) -> None:
                self._inner, self._stages = inner, dict[str, str]()

            def deliver(self, frames: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes | Loss]]:
                def watched() -> Iterator[tuple[str, bytes]]:
                    for site, frame in frames:
                        self._stages[site] = decode_message(frame).stage
                        yield site, frame

                for site, reply in self._inner.deliver(watched()):
                    other = wrong.get((self._stages[site], site))
                    yield site, reply if other is None else encode_message(other)

        return Spoilt

    def replies(self, **options: Any) -> dict[tuple[str, str], Message]:
        """(stage, site) -> its honest reply in an undisturbed session with these options."""
        sent = (p.message for p in self.run(**options).transcript.sent_by_sites())
        return {(m.stage, m.sender): m if m.recipient == SERVER else replace(m, kind="reply", recipient=SERVER) for m in sent}

    # -- messages ---------------------------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("other", [{"round": 2}, {"attempt": 2}, {"run": b"another session!"}], ids=["round", "attempt", "run"])
    def test_replies_of_another_time(self, other: Mapping[str, Any]) -> None:
        """If this fails: a reply of another round, attempt or run is a lost site, with its own header and under a forged one."""
        stale = self.replies(**other)
        now = next(iter(self.replies().values()))
        ends = (site_names(self.sites)[0], site_names(self.sites)[-1])
        for place, message in stale.items():
            if place[1] not in ends:
                continue
            result = self.run(transport=self.spoilt({place: message}))
            self.assert_sum_or_abort(result, f"{other}: the reply of {place}")
            under = replace(now, stage=message.stage, sender=message.sender, body=message.body)
            forged = self.run(transport=self.spoilt({place: under}))
            assert not forged.crashes, f"{other}, forged header: the reply of {place}: {forged.crashes}"

    def test_malformed_and_untimely_requests(self) -> None:
        """If this fails: check presence, type, size and order of all that is read from a message, and raise a PppmlError; a site that
        refuses keeps its state and goes on.
        """
        for site in (site_names(self.sites)[0], site_names(self.sites)[-1]):
            for result in self.pestered(site):
                assert not result.crashes, f"{site} crashed instead of refusing: {result.crashes}"

    def pestered(self, site: str) -> Iterator[HarnessResult]:
        """Sessions whose server bothers one site with every malformed thing; whatever is taken by the site ends the bother of a session."""
        asked, taken = self.asked(), set[tuple[str, str, int]]()
        for _ in range(self.variants):
            before = len(taken)
            yield self.run(coordinate=self._pest(site, asked, taken))
            if len(taken) == before:
                return

    def _pest(self, site: str, asked: Asked, taken: set[tuple[str, str, int]]) -> Coordinate:
        """A server that asks one site every malformed thing before each honest one, until something is taken; ``taken`` is left out."""

        def coordinate(session: Session, ctx: ServerContext) -> Coordinator:
            honest = session.coordinate(ctx)
            try:
                operations = next(honest)
                while True:
                    for operation in [operations] if not isinstance(operations, list) else operations:
                        yield from bother(operation)
                    operations = honest.send((yield operations))
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            finally:
                honest.close()

        def bother(operation: Any) -> Generator[Exchange, ExchangeOutcome, None]:
            own = {**operation.common, **operation.bodies.get(site, {})} if isinstance(operation, Exchange) else operation.body
            now = asked.get((operation.stage, site), own) if not isinstance(operation, Exchange) else own
            wrong = [(operation.stage, body) for body in malformed(now, self.variants)]
            wrong += [(stage, dict(body)) for (stage, name), body in asked.items() if name == site and stage != operation.stage]
            for number, (stage, body) in enumerate(wrong):
                place = (operation.stage, stage, number)
                if place not in taken and (yield Exchange(stage, {site: body})).answered:
                    taken.add(place)
                    return

        return coordinate

    def test_malformed_replies(self) -> None:
        """If this fails: the manifest lets a field be left out and a text or a map hold anything; the server reads replies with care and
        raises RoundAborted, or takes the site for lost.
        """
        replies = self.replies()
        for (stage, site), honest in replies.items():
            if site != next(s for st, s in replies if st == stage):
                continue
            for body in malformed(honest.body, self.lies):
                result = self.run(transport=self.spoilt({(stage, site): replace(honest, body=body)}))
                assert not result.crashes, f"{site} answers {stage} with other fields: {result.crashes}"

    # -- who is who -------------------------------------------------------------------------------------------------------------------

    def test_another_model_at_one_site(self) -> None:
        """If this fails: the binding in a signed advert is compared before anything is sent; the round ends in InconsistentModel."""
        self.promising()
        for site in site_names(self.sites):
            result = self.run(models={site: b"another model"})
            assert not result.crashes, f"{site}: {result.crashes}"
            assert isinstance(result.aborted, InconsistentModel), f"{site} has another model: {result.aborted or result.survivors!r}"
            self.assert_nothing_more(result, f"{site} has another model")

    def test_an_impostor_is_not_in_the_sum(self) -> None:
        """If this fails: verify what a site signs with the identity that is pinned for it."""
        self.promising()
        for site in site_names(self.sites):
            result = self.run(impostors=[site])
            self.assert_sum_or_abort(result, f"{site} is an impostor")
            assert site not in result.survivors, f"{site} is an impostor and in the sum"

    # -- release ----------------------------------------------------------------------------------------------------------------------

    def test_what_was_released_is_the_sum(self) -> None:
        """If this fails: call ``ctx.release(survivors)`` before a share, a seed or a decrypted sum leaves a site."""
        self.promising()
        for fault in ({}, *self.single_faults("drop")):
            result = self.run(None, *([fault] if fault else []))
            over = {frozenset(named) for sets in result.released.values() for named in sets}
            if result.aborted is None:
                assert over == {frozenset(result.survivors)}, f"{fault}: summed {result.survivors}, released {over}"
            else:
                assert not over or isinstance(result.aborted, RoundLost), f"{fault}: released {over}, then {result.aborted!r}"

    def test_who_released_before_releases_nothing(self) -> None:
        """If this fails: unmasking material is computed or sent before ``ctx.release``, or its refusal is caught."""
        self.promising()
        names = site_names(self.sites)
        result = self.run(released={s: [names[:-1]] for s in names})
        assert result.sum is None, "a second sum was released"
        self.assert_nothing_more(result, "all sites released before")

    def test_two_attempts_never_give_two_sums(self) -> None:
        """If this fails: after an abort in any stage and a restart over other sites, the server decodes two sums, whose difference is one
        site's update. The server here stops after each operation in turn, whatever it has received.
        """
        self.promising()
        names = site_names(self.sites)
        for step in range(1, 3 * len(self.stages())):
            stopped: list[int] = []

            def stop(session: Session, ctx: ServerContext, step: int = step, stopped: list[int] = stopped) -> Coordinator:
                done: list[str] = []

                def outcomes(operation: Any, outcome: Any) -> Any:
                    done.append(operation.stage)
                    if ctx.attempt == 1 and len(done) == step:
                        stopped.append(step)
                        raise RoundAborted(f"by the server, after {operation.stage}")
                    return outcome

                return edited(session, ctx, outcomes=outcomes)

            for gone in (names[0], names[-1]):
                leave = {"site": gone, "stage": "open", "do": "drop", "attempt": 2}
                result = self.run(None, leave, coordinate=stop, attempts=2)
                assert not result.crashes, result.crashes
                decoded = self.honest_parts(result, (SERVER,))
                assert len(decoded) <= 1, f"stopped after operation {step}, then without {gone}: the server decodes {decoded}"
                again = {a for sets in result.released.values() for a in sets if set(a) != set(result.survivors)}
                assert result.sum is None or not again, f"stopped after operation {step}: {again} was released, and a sum over others made"
            if not stopped:
                return

    # -- secrets ----------------------------------------------------------------------------------------------------------------------

    def test_no_secret_in_what_is_said(self) -> None:
        """If this fails: an error's text holds a key, a seed or a share of the site that raised it. Name things, never print them."""
        runs = [self.run(None, fault) for fault in self.single_faults("tamper-body", "replay")]
        runs += self.pestered(site_names(self.sites)[-1])
        for result in runs:
            said = " ".join([reason for _, _, reason in result.losses] + [str(result.aborted), repr(result.aborted)])
            for attempt in result.attempts:
                secrets = (s for drawn in attempt.drawn.values() for s in drawn if len(s) >= 8)
                for secret in secrets:
                    written = (secret.hex(), repr(secret)[2:-1], base64.b64encode(secret).decode(), str(int.from_bytes(secret, "big")))
                    assert not any(text in said for text in written), f"a secret of {len(secret)} bytes is in an error: {said}"

"""A small masked sum that passes the suite among hostile peers, and broken ones that the tests named beside them catch.

``Little``: agreed pairwise masks and a self-mask; nobody may vanish. Three exchanges: signed keys, masked values, seeds of the self-masks.
"""

import numpy as np
import pytest

from pppml_core.component import Component, ComponentConfig
from pppml_core.errors import InconsistentModel, PolicyRefusal, RoundAborted, RoundLost, WireError
from pppml_core.federation.identity import agreement_key, public_key, shared_key, statement, verify
from pppml_core.interfaces.aggregation import Aggregator, Exposure, Guarantees, Session, Sum, WireField
from pppml_core.testing import AggregatorSuite
from pppml_core.wire.messages import SERVER, Exchange


def mask(key, length):
    return np.random.Generator(np.random.PCG64(int.from_bytes(key, "big"))).integers(0, 2**64, length, np.uint64)


def signed(binding, key):
    return statement("little", binding, {"key": key})


class Little(Session):
    checks_identity = checks_binding = checks_stage = True
    released_first = True

    @property
    def guarantees(self):
        n = len(self.cohort)
        return Guarantees((SERVER,), (), (), 0, n - 2, n - 2, "the server and any sites, lying or not")

    @property
    def fields(self):
        n = self.value.length
        return (
            WireField("advertise", "key", "bytes", (), 32, "signed", "X25519 key"),
            WireField("advertise", "binding", "bytes", (), 32, "signed", "hash of model and terms"),
            WireField("advertise", "signature", "bytes", (), 64, "clear", "signature"),
            WireField("masked", "values", "uint64", (n,), 8 * n, "masked", "the update"),
            WireField("unmask", "seed", "bytes", (), 32, "clear", "seed of the self-mask"),
        )

    def coordinate(self, ctx):
        outcome = yield Exchange("advertise", {s: {} for s in ctx.cohort})
        adverts = self.whole(outcome, RoundAborted)
        for site, advert in adverts.items():
            try:
                self.checked(ctx, site, advert)
            except WireError as error:
                raise RoundAborted(str(error)) from error
        total = np.zeros(self.value.length, np.uint64)

        def fold(site, body):
            if not isinstance(body.get("values"), np.ndarray):
                raise WireError("no values")
            np.add(total, body["values"], out=total)

        outcome = yield Exchange("masked", {s: {} for s in ctx.cohort}, fold, common={"adverts": adverts})
        self.whole(outcome, RoundAborted)
        outcome = yield Exchange("unmask", {s: {} for s in ctx.cohort})
        for body in self.whole(outcome, self.after_release).values():
            seed = body.get("seed")
            if not isinstance(seed, bytes) or len(seed) != 32:
                raise RoundLost("no seed")
            total -= mask(seed, self.value.length)
        return Sum(total.view(np.int64), tuple(ctx.cohort))

    after_release = RoundLost

    def whole(self, outcome, error):
        if outcome.lost:
            raise error(f"{', '.join(outcome.lost)} was lost")
        return outcome.replies

    def checked(self, ctx, site, advert):
        if not isinstance(advert, dict) or not isinstance(advert.get("key"), bytes) or not isinstance(advert.get("binding"), bytes):
            raise WireError("not an advert")
        if self.checks_identity:
            verify(ctx.roster[site], advert.get("signature"), signed(advert["binding"], advert["key"]), site)
        if self.checks_binding and advert["binding"] != ctx.binding:
            raise InconsistentModel(f"{site} has another model")

    def open(self, ctx):
        return {"private": agreement_key(ctx.entropy)[0], "seed": ctx.entropy(32), "next": "advertise"}

    def handle(self, state, message, ctx):
        if self.checks_stage and message.stage != state.get("next"):
            raise WireError(f"{message.stage} is not what comes next")
        return getattr(self, f"_{message.stage}")(state, message, ctx)

    def _advertise(self, state, message, ctx):
        key = public_key(state["private"])
        signature = ctx.sign(signed(ctx.binding, key))
        return {**state, "next": "masked"}, {"key": key, "binding": ctx.binding, "signature": signature}

    def _masked(self, state, message, ctx):
        adverts = message.body.get("adverts")
        if not isinstance(adverts, dict) or set(adverts) != set(ctx.cohort):
            raise WireError("not one advert for each")
        total = ctx.contribution().astype(np.int64).view(np.uint64) + mask(state["seed"], self.value.length)
        for site, advert in adverts.items():
            self.checked(ctx, site, advert)
            if site != ctx.site:
                key = shared_key(state["private"], advert["key"], ctx.binding + "-".join(sorted((site, ctx.site))).encode())
                total = total + mask(key, self.value.length) if ctx.site < site else total - mask(key, self.value.length)
        return {"seed": state["seed"], "next": "unmask"}, {"values": total}

    def _unmask(self, state, message, ctx):
        ctx.release(ctx.cohort)
        return {"next": None}, {"seed": state["seed"]}

    def exposed(self, view):
        uploads = {m.sender: m.body["values"] for m in view["messages"] if m.stage == "masked" and m.kind == "reply"}
        seeds = {m.sender: m.body["seed"] for m in view["messages"] if m.stage == "unmask" and m.kind == "reply"}
        if SERVER not in view["parties"] or set(uploads) != set(self.cohort) or set(seeds) != set(self.cohort):
            return []
        total = sum(uploads.values()) - sum(mask(s, self.value.length) for s in seeds.values())
        return [Exposure(tuple(self.cohort), total.view(np.int64))]


class LittleSum(Aggregator):
    session = Little

    def misfits(self, value, cohort):
        out = super().misfits(value, cohort)
        if len(cohort) < 3:
            out.append("needs three sites")
        if (value.sum_bound(len(cohort)) or 0) >= 2**63:
            out.append("the sum would overflow")
        return out

    def plan(self, value, cohort):
        return self.session(value, cohort)


LITTLE = Component("little", ComponentConfig, f"{__name__}:LittleSum", "for tests")


class LittleSuite(AggregatorSuite):
    component = LITTLE
    min_sites = 3
    max_sites = 5
    session: type[Session] = Little

    def build(self, settings):
        aggregator = LittleSum(settings)
        aggregator.session = self.session
        return aggregator


class TestLittle(LittleSuite):
    pass


# -- broken ones --------------------------------------------------------------------------------------------------------------------------


class AnyIdentity(Little):
    checks_identity = False


class AnyModel(Little):
    checks_binding = False


class AnyOrder(Little):
    checks_stage = False

    def _unmask(self, state, message, ctx):
        if "private" in state:
            raise KeyError(state["next"])
        return super()._unmask(state, message, ctx)


class Trusting(Little):
    """Reads what it was sent without a look."""

    def checked(self, ctx, site, advert):
        advert["binding"].hex()
        super().checked(ctx, site, advert)


class TrustingServer(Little):
    def coordinate(self, ctx):
        return self.trust((yield from super().coordinate(ctx)))

    def trust(self, summed):
        return summed

    def whole(self, outcome, error):
        replies = super().whole(outcome, error)
        [len(body["key"]) for body in replies.values() if "values" not in body and "seed" not in body and "binding" not in str(error)]
        return replies


class NeverReleases(Little):
    def _unmask(self, state, message, ctx):
        return {"next": None}, {"seed": state["seed"]}


class ReleasesAnother(Little):
    def _unmask(self, state, message, ctx):
        ctx.release(ctx.cohort[:-1])
        return {"next": None}, {"seed": state["seed"]}


class CatchesTheRefusal(Little):
    def _unmask(self, state, message, ctx):
        try:
            ctx.release(ctx.cohort)
        except PolicyRefusal:
            return {"next": None}, {"seed": state["seed"]}
        return {"next": None}, {"seed": state["seed"]}


class StartsAgain(Little):
    """Says RoundAborted after sites have released."""

    after_release = RoundAborted


class GivesUp(Little):
    """Loses the round where another attempt would do."""

    def coordinate(self, ctx):
        try:
            return (yield from super().coordinate(ctx))
        except RoundAborted as error:
            raise RoundLost(str(error)) from error


class SaysItsKey(Little):
    def checked(self, ctx, site, advert):
        try:
            super().checked(ctx, site, advert)
        except WireError as error:
            drawn = getattr(ctx, "drawn", [b"?"])
            raise WireError(f"{error}, with my key {drawn[0].hex()}") from error


class PromisesDropouts(Little):
    @property
    def guarantees(self):
        n = len(self.cohort)
        return Guarantees((SERVER,), (), (), 1, n - 2, n - 2, "nobody")


class WrongUnderTwoFaults(Little):
    """Counts a site that was lost twice."""

    def whole(self, outcome, error):
        return outcome.replies if len(outcome.lost) > 1 else super().whole(outcome, error)


MUTANTS = [
    (AnyIdentity, "test_an_impostor_is_not_in_the_sum"),
    (AnyModel, "test_another_model_at_one_site"),
    (AnyOrder, "test_malformed_and_untimely_requests"),
    (Trusting, "test_malformed_and_untimely_requests"),
    (TrustingServer, "test_malformed_replies"),
    (NeverReleases, "test_what_was_released_is_the_sum"),
    (NeverReleases, "test_who_released_before_releases_nothing"),
    (NeverReleases, "test_two_attempts_never_give_two_sums"),
    (ReleasesAnother, "test_what_was_released_is_the_sum"),
    (CatchesTheRefusal, "test_who_released_before_releases_nothing"),
    (CatchesTheRefusal, "test_two_attempts_never_give_two_sums"),
    (StartsAgain, "test_what_was_released_is_the_sum"),
    (StartsAgain, "test_restarts_end_in_a_sum"),
    (SaysItsKey, "test_no_secret_in_what_is_said"),
    (PromisesDropouts, "test_as_many_dropouts_as_promised_and_one_more"),
    (WrongUnderTwoFaults, "test_random_schedules"),
]


@pytest.mark.parametrize(("session", "test"), MUTANTS, ids=[f"{s.__name__}-{t}" for s, t in MUTANTS])
def test_a_broken_sum_is_caught(session, test):
    broken = type("Broken", (LittleSuite,), {"session": session, "schedules": 300})()
    with pytest.raises((AssertionError, pytest.fail.Exception, KeyError, TypeError)):
        getattr(broken, test)()


def test_a_promise_that_is_safe_but_not_exact():
    """The same session passes where it says that it may survive more."""

    class Modest(Little):
        def whole(self, outcome, error):
            return super().whole(outcome, error)

    type("Suite", (LittleSuite,), {"session": Modest, "dropouts_exact": False})().test_as_many_dropouts_as_promised_and_one_more()


def test_a_sum_that_overflows_is_caught():
    class Overflows(LittleSum):
        def misfits(self, value, cohort):
            return []

    broken = type("Broken", (AggregatorSuite,), {"component": LITTLE, "build": lambda self, config: Overflows(config)})()
    with pytest.raises(AssertionError, match="bound"):
        broken.test_overflow_is_refused_by_the_plan()

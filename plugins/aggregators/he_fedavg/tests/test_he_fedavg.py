"""``he-fedavg``: the suites with the transparent back end, plan, losses, policy, and what is not protected."""

import importlib
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest

from pppml_core.component import ComponentConfig
from pppml_core.config import resolve
from pppml_core.errors import InconsistentModel, PlanRefused, RoundAborted, RoundLost, TooFewSurvivors, WireError
from pppml_core.federation.policy import Policy
from pppml_core.interfaces.he import HEBackend, HEParams
from pppml_core.randomness import Secret, entropy
from pppml_core.registry import Registry
from pppml_core.testing import AggregatorSuite, PluginSuite, SessionHarness
from pppml_core.testing.insecure_plugin import TransparentConfig
from pppml_core.testing.lying import edited
from pppml_core.testing.transparent_he import TransparentBackend
from pppml_core.values import ValueSpec
from pppml_core.wire.messages import SERVER, Exchange
from pppml_he_fedavg.aggregator import HeFedAvg
from pppml_he_fedavg.plugin import pppml_aggregators


class TestPlugin(PluginSuite):
    plugin = "pppml_he_fedavg.plugin"


class TestSuite(AggregatorSuite):
    component = pppml_aggregators()[0]
    config: ClassVar = {"backend": TransparentConfig()}
    choices: ClassVar = {"backend": TransparentBackend(TransparentConfig(security_bits=128))}
    min_sites = 3
    max_sites = 6


class Wobbly(HEBackend):
    """An approximate double: the numbers in the clear; each sum is off by a known amount, below half a unit."""

    error_std, off = 0.04, 0.4

    def plan(self, value, additions):
        length = value.length
        return HEParams("wobbly", "ckks", "approximate", length, None, 1, 16, additions, 128, None, self.error_std, 8 * length + 16)

    def keygen(self, params):
        name = entropy(16)
        return name, Secret(name)

    def encrypt(self, params, public, values):
        assert values.dtype == np.float64
        return public + values.tobytes()

    def add(self, params, left, right):
        if left[:16] != right[:16] or len(left) != len(right):
            raise WireError("not of one key")
        return left[:16] + (np.frombuffer(left[16:]) + np.frombuffer(right[16:])).tobytes()

    def decrypt(self, params, secret, ciphertext):
        if ciphertext[:16] != secret.reveal():
            raise WireError("another key's")
        return np.frombuffer(ciphertext[16:]) + self.off


def aggregator(backend=None):
    return HeFedAvg(ComponentConfig(), backend=backend or TransparentBackend(TransparentConfig(security_bits=128)))


def reasons(result, stage):
    return {site: reason for at, site, reason in result.losses if at == stage}


# -- plan ----------------------------------------------------------------------------------------------------------------------------------


def test_approximate_sums_are_released_as_integers():
    result = SessionHarness(aggregator(Wobbly(ComponentConfig())), 4, 30).run()
    assert result.aborted is None
    assert result.sum.dtype == np.int64
    assert result.correct


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("off", [float("nan"), float("inf"), 1e30])
def test_what_is_no_number_is_not_released(off):
    wobbly = Wobbly(ComponentConfig())
    wobbly.off = off
    result = SessionHarness(aggregator(wobbly), 4, 30).run()
    assert isinstance(result.aborted, RoundLost)
    assert not result.crashes


def test_too_large_an_error_is_refused():
    value, wobbly = ValueSpec(10, "integer", 100), Wobbly(ComponentConfig())
    assert aggregator(wobbly).misfits(value, "abc") == []
    for error in (0.0417, None, float("nan")):
        wobbly.error_std = error
        assert "at most 1/24 can be rounded away" in " ".join(aggregator(wobbly).misfits(value, "abc"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"security_bits": 127}, "127 bits of security"),
        ({"log2_failure": -63.0}, r"above 2\^-64"),
        ({"log2_failure": None}, r"above 2\^-64"),
    ],
)
def test_weak_parameters_are_refused(monkeypatch, changes, reason):
    backend = TransparentBackend(TransparentConfig(security_bits=128))
    plan = backend.plan
    monkeypatch.setattr(backend, "plan", lambda value, additions: replace(plan(value, additions), **changes))
    with pytest.raises(PlanRefused, match=reason):
        aggregator(backend).plan(ValueSpec(10, "integer", 100), "abc")


def test_what_cannot_be_summed_is_refused_in_words():
    integers = ValueSpec(10, "integer", 100)
    assert "at least 3 sites" in aggregator().misfits(integers, "ab")[0]
    assert "bounded integers" in aggregator().misfits(ValueSpec(10, "integer", None), "abc")[0]
    assert "overflow" in aggregator().misfits(ValueSpec(10, "integer", 2**62), "abc")[0]
    small = aggregator(TransparentBackend(TransparentConfig(security_bits=128, modulus=17)))
    assert "choose a larger `modulus`" in small.misfits(integers, "abcdefgh")[0]
    assert len(aggregator().misfits(ValueSpec(10, "real", None), "ab")) == 2


def test_one_addition_more_is_planned_for_the_servers_zero():
    asked = []

    class Noted(TransparentBackend):
        def plan(self, value, additions):
            asked.append(additions)
            return super().plan(value, additions)

    aggregator(Noted(TransparentConfig(security_bits=128))).plan(ValueSpec(10, "integer", 100), "abcd")
    assert asked == [5]


def test_the_registry_builds_it_with_its_back_end():
    registry = Registry.only(
        importlib.import_module("pppml_he_fedavg.plugin"), importlib.import_module("pppml_core.testing.insecure_plugin")
    )
    config = resolve(
        {
            "task": {"use": "tiny"},
            "aggregator": {"use": "he-fedavg", "backend": {"use": "insecure-transparent", "modulus": 97, "security_bits": 128}},
        },
        registry=registry,
    )
    built = registry.build("aggregator", config.aggregator)
    assert isinstance(built, HeFedAvg)
    session = built.plan(ValueSpec(10, "integer", 100), "abc")
    assert session.guarantees.coalition_curious == session.guarantees.coalition_active == 0


# -- losses --------------------------------------------------------------------------------------------------------------------------------


def gone(site, stage):
    return {"site": site, "stage": stage, "do": "drop", "times": 100}


def test_the_next_site_makes_the_key_and_the_next_one_decrypts():
    result = SessionHarness(aggregator(), 5, 20, faults=[gone("a", "key"), gone("a", "encrypt"), gone("b", "decrypt")]).run()
    assert result.correct
    assert result.survivors == ("b", "c", "d", "e")
    assert result.released == {"a": (), **dict.fromkeys("bcde", (result.survivors,))}


def test_losses_up_to_the_promise_and_one_more():
    promised = SessionHarness(aggregator(), 6).session().guarantees.dropouts
    assert promised == 3
    for stage in ("advertise", "encrypt"):
        lost = [gone(site, stage) for site in "bdf"]
        result = SessionHarness(aggregator(), 6, 20, faults=lost).run()
        assert result.correct
        assert result.survivors == ("a", "c", "e")
        result = SessionHarness(aggregator(), 6, 20, faults=[*lost, gone("a", stage)]).run()
        assert isinstance(result.aborted, TooFewSurvivors)
        assert not any(result.released.values())


def test_a_site_lost_in_agree_stays_in_the_sum():
    lost = [gone(site, "agree") for site in "af"]
    result = SessionHarness(aggregator(), 6, 20, faults=lost).run()
    assert result.correct
    assert result.survivors == tuple("abcdef")
    assert result.released == {"a": (), "f": (), **dict.fromkeys("bcde", (result.survivors,))}
    assert SessionHarness(aggregator(), 6, 20, faults=[*lost, gone("b", "agree")]).run().correct
    result = SessionHarness(aggregator(), 6, 20, faults=[*lost, gone("b", "agree"), gone("c", "agree")], attempts=3).run()
    assert isinstance(result.aborted, RoundLost)
    assert "2 sites agreed to decrypt, at least 3" in str(result.aborted)
    assert len(result.attempts) == 1


def test_a_false_agreement_counts_as_none():
    def false(stage, site, body):
        return {"signature": bytes(64)} if (stage, site) == ("agree", "a") else body

    result = SessionHarness(aggregator(), 4, 20, coordinate=lambda session, ctx: edited(session, ctx, replies=false)).run()
    assert result.correct
    asked = next(p.message for p in result.transcript.passages if p.message.stage == "decrypt")
    assert (asked.recipient, set(asked.body["signatures"])) == ("b", set("bcd"))


def test_a_sum_that_nobody_decrypts_is_lost():
    result = SessionHarness(aggregator(), 4, 20, faults=[gone(site, "decrypt") for site in "abcd"], attempts=3).run()
    assert isinstance(result.aborted, RoundLost)
    assert len(result.attempts) == 1


def test_no_key_maker_is_an_abort():
    result = SessionHarness(aggregator(), 4, 20, faults=[gone(site, "key") for site in "abcd"]).run()
    assert type(result.aborted) is RoundAborted
    assert "no site made a key" in str(result.aborted)


def test_restart_makes_everything_anew():
    broken = [{"site": site, "stage": "key", "do": "drop", "attempt": 1} for site in "abcd"]
    result = SessionHarness(aggregator(), 4, 20, faults=broken, attempts=2).run()
    assert result.correct
    adverts = [p.message.body["key"] for p in result.transcript.passages if p.message.stage == "advertise" and p.message.kind == "reply"]
    assert len(adverts) == len(set(adverts)) == 8


# -- policy --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [Policy(min_cohort=5), Policy(min_honest=4)])
def test_no_sum_that_is_too_small_for_one_of_its_sites(policy):
    """What a site demands is in its advert, so everybody holds to it: before anything is encrypted, and again before it is released."""
    result = SessionHarness(aggregator(), 4, 20, policies={"b": policy}).run()
    assert isinstance(result.aborted, TooFewSurvivors)
    assert "4 sites advertised, at least 5 are demanded" in str(result.aborted)
    assert {p.message.stage for p in result.transcript.passages} == {"advertise"}
    result = SessionHarness(aggregator(), 6, 20, policies={"b": policy}, faults=[gone("d", "encrypt")]).run()
    assert result.correct
    result = SessionHarness(aggregator(), 6, 20, policies={"b": policy}, faults=[gone("d", "encrypt"), gone("f", "encrypt")]).run()
    assert isinstance(result.aborted, TooFewSurvivors)
    assert not any(result.released.values())
    without_it = [gone("d", "encrypt"), gone("f", "encrypt"), gone("b", "encrypt")]
    assert SessionHarness(aggregator(), 6, 20, policies={"b": policy}, faults=without_it).run().survivors == ("a", "c", "e")


# -- models, identities --------------------------------------------------------------------------------------------------------------------


def test_another_model_at_a_site_ends_the_attempt():
    result = SessionHarness(aggregator(), 4, 20, models={"c": b"another"}).run()
    assert isinstance(result.aborted, InconsistentModel)
    assert "c takes part with another model" in str(result.aborted)


def test_a_server_that_hides_another_model_is_found_out_by_the_sites():
    """The server shares c's model and tells nobody; a site sees c's own signed word."""
    result = SessionHarness(aggregator(), 4, 20, models={"c": b"another", SERVER: b"another"}).run()
    assert isinstance(result.aborted, InconsistentModel)

    def coordinate(session, ctx):
        outcome = yield Exchange("advertise", {site: {} for site in ctx.cohort})
        yield Exchange("key", {"a": {"adverts": outcome.replies}})
        raise RoundAborted("the lies end here")

    result = SessionHarness(aggregator(), 4, 20, models={"c": b"another"}, coordinate=coordinate).run()
    assert "c takes part with another model" in reasons(result, "key")["a"]


def test_other_parameters_at_a_site_end_the_attempt():
    made = []

    def make(value, cohort):
        made.append(None)
        odd = TransparentConfig(security_bits=128, modulus=786_433 if len(made) == 3 else 1_032_193)
        return aggregator(TransparentBackend(odd)).plan(value, cohort)

    result = SessionHarness(make, 4, 20).run()
    assert isinstance(result.aborted, InconsistentModel)
    assert "other parameters" in str(result.aborted)


def test_an_impostor_is_left_out():
    result = SessionHarness(aggregator(), 4, 20, impostors=["c"]).run()
    assert result.survivors == ("a", "b", "d")
    assert result.correct


# -- what it does not protect --------------------------------------------------------------------------------------------------------------


def test_the_server_and_one_site_read_every_update():
    result = SessionHarness(aggregator(), 4, 20).run()
    session = SessionHarness(aggregator(), 4, 20).session()
    for site in "abcd":
        read = {e.sites: e.value for e in session.exposed(result.view([SERVER, site]))}
        for other in "abcd":
            assert np.array_equal(read[(other,)], result.contributions[other])
    assert [e.sites for e in session.exposed(result.view([SERVER]))] == [tuple("abcd")]
    assert {e.sites for e in session.exposed(result.view(["b", "c"]))} == {("b",), ("c",)}


def test_the_secret_key_is_in_no_message():
    result = SessionHarness(aggregator(), 4, 20).run()
    secrets = {state["secret"] for state in result.states.values()}
    assert len(secrets) == 1
    sent = b"".join(
        p.message.body[name] for p in result.transcript.sent_by_sites() for name in ("public", "ciphertext") if name in p.message.body
    )
    boxes = b"".join(box for p in result.transcript.sent_by_sites() for box in p.message.body.get("boxes", {}).values())
    assert secrets.pop()[-32:] not in sent + boxes

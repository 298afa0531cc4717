"""A server that lies to the sites of ``he-fedavg``: what they find out and refuse, and the one lie they cannot find out."""

from dataclasses import replace

import numpy as np
import pytest

from pppml_core.component import ComponentConfig
from pppml_core.errors import RoundAborted, RoundLost, TooFewSurvivors
from pppml_core.federation.identity import statement
from pppml_core.federation.policy import Policy
from pppml_core.testing import SessionHarness
from pppml_core.testing.insecure_plugin import TransparentConfig
from pppml_core.testing.lying import edited
from pppml_core.testing.parties import identity_of
from pppml_core.testing.transparent_he import TransparentBackend
from pppml_core.wire.messages import SERVER, Exchange
from pppml_he_fedavg.aggregator import HeFedAvg
from pppml_he_fedavg.statements import agreement


def aggregator():
    return HeFedAvg(ComponentConfig(), backend=TransparentBackend(TransparentConfig(security_bits=128)))


def lying(edit, **more):
    """A harness whose server performs ``edit(operation)`` instead of every operation."""
    return SessionHarness(aggregator(), coordinate=lambda session, ctx: edited(session, ctx, edit), **{"sites": 4, "length": 20, **more})


def at(stage, change):
    """Change every body of one stage: ``change(site, body) -> body``, where the body is what the site will get."""

    def edit(operation):
        if operation.stage != stage:
            return operation
        bodies = {site: change(site, {**operation.common, **body}) for site, body in operation.bodies.items()}
        return replace(operation, bodies=bodies, common={})

    return edit


def reasons(result, stage):
    return {site: reason for at, site, reason in result.losses if at == stage}


def nobody_encrypted(result):
    return not any(p.message.stage == "encrypt" and p.message.kind == "reply" for p in result.transcript.passages)


def nobody_decrypted(result):
    return not any(p.message.stage == "decrypt" and p.message.kind == "reply" for p in result.transcript.passages)


def until(stage, then):
    """The honest server up to a stage; ``then(operation, sent)`` yields what is asked instead, and the attempt ends.

    ``sent``: site -> ciphertext, as the sites sent them.
    """

    def coordinate(session, ctx):
        sent = {}

        def replies(at, site, body):
            if at == "encrypt":
                sent[site] = body["ciphertext"]
            return body

        honest, outcome = edited(session, ctx, replies=replies), None
        while (operation := honest.send(outcome)).stage != stage:
            outcome = yield operation
        yield from then(operation, sent)
        raise RoundLost("the lies end here")

    return coordinate


def test_substituted_agreement_key():
    """The server puts a key of its own in the place of site d's, to open the secret key's box."""
    forged = {"key": bytes(31) + b"\x09"}
    result = lying(at("key", lambda site, body: {"adverts": {**body["adverts"], "d": {**body["adverts"]["d"], **forged}}})).run()
    assert all("signature of d does not fit" in reason for reason in reasons(result, "key").values())
    assert len(reasons(result, "key")) == 4
    assert result.aborted is not None


def test_own_agreement_key_of_another_attempt_or_left_out():
    """An advert as signed, but not the one this site holds the key of; and a list without this site."""
    for change in (lambda adverts: {k: v for k, v in adverts.items() if k != "a"}, lambda adverts: {**adverts, "a": adverts["b"]}):
        result = lying(at("key", lambda site, body, change=change: {"adverts": change(body["adverts"])})).run()
        assert reasons(result, "key")["a"]
        assert "a" not in {p.message.sender for p in result.transcript.passages if p.message.stage == "key" and p.message.kind == "reply"}


@pytest.mark.parametrize("field", ["public", "maker", "signature", "box"])
def test_substituted_key(field):
    """Another public key, another maker, another's signature, another site's box: nobody encrypts."""
    backend = TransparentBackend(TransparentConfig(security_bits=128))
    own, _ = backend.keygen(SessionHarness(aggregator(), 4, 20).session()._params)
    boxes = {}

    def edit(operation):
        if operation.stage != "encrypt":
            return operation
        boxes.update({site: body["box"] for site, body in operation.bodies.items()})
        swapped = dict(zip("abcd", "bcda", strict=True))
        false = {"public": lambda s: own, "maker": lambda s: "b", "signature": lambda s: bytes(64), "box": lambda s: boxes[swapped[s]]}
        return at("encrypt", lambda site, body: {**body, field: false[field](site)})(operation)

    result = lying(edit).run()
    assert nobody_encrypted(result)
    assert isinstance(result.aborted, TooFewSurvivors)
    expected = "sealed box was changed" if field == "box" else "does not fit its pinned identity"
    assert all(expected in reason for reason in reasons(result, "encrypt").values())


def test_a_key_maker_that_is_none():
    for maker in ("eve", SERVER, "", None, 5, ["a"]):
        result = lying(at("encrypt", lambda site, body, maker=maker: {**body, "maker": maker})).run()
        assert all("the key maker is none of the sites" in reason for reason in reasons(result, "encrypt").values())
        assert nobody_encrypted(result)
        assert not result.crashes


def test_a_site_that_signs_what_is_no_advert():
    """A site and the server together: the signature is genuine, key or number are not."""
    for false in ({"key": bytes(31)}, {"key": b""}, {"fewest": "3"}, {"fewest": None}, {"fewest": True}):

        def coordinate(session, ctx, false=false):
            outcome = yield Exchange("advertise", {site: {} for site in ctx.cohort})
            advert = {**outcome.replies["c"], **false}
            said = {"site": "c", **{name: advert[name] for name in ("key", "fewest", "parameters")}}
            advert["signature"] = identity_of("c").sign(statement("he-fedavg advert", ctx.binding, said))
            yield Exchange("key", {"a": {"adverts": {**outcome.replies, "c": advert}}})
            raise RoundAborted("the lies end here")

        result = SessionHarness(aggregator(), 4, 20, coordinate=coordinate).run()
        assert "the advert of c is malformed" in reasons(result, "key")["a"]
        assert not result.crashes


def test_a_key_maker_whose_key_is_none():
    def replies(stage, site, body):
        return {**body, "public": b"no key"} if stage == "key" else body

    result = SessionHarness(aggregator(), 4, 20, coordinate=lambda session, ctx: edited(session, ctx, replies=replies)).run()
    assert type(result.aborted) is RoundAborted
    assert "a made no usable key" in str(result.aborted)


def test_holders_other_than_the_key_makers():
    """The server shows the sites fewer holders than it showed the key maker."""
    change = at("encrypt", lambda site, body: {**body, "adverts": {k: v for k, v in body["adverts"].items() if k != "d" or site == "d"}})
    result = lying(change).run()
    assert set(reasons(result, "encrypt")) == set("abc")
    assert isinstance(result.aborted, TooFewSurvivors)


def test_a_sybil_is_no_holder():
    forged = {**dict.fromkeys(("binding", "parameters", "key"), bytes(32)), "signature": bytes(64)}
    for name in ("eve", SERVER):
        result = lying(at("key", lambda site, body, name=name: {"adverts": {**body["adverts"], name: forged}})).run()
        assert all("is not in the cohort" in reason for reason in reasons(result, "key").values())
        assert result.aborted is not None


def test_replayed_key_of_an_earlier_round():
    """Everything the server recorded in round 1 is shown again in round 2: adverts, public key, boxes and signatures."""
    recorded = {}

    def record(operation):
        if operation.stage == "encrypt":
            recorded.update({site: {**operation.common, **body} for site, body in operation.bodies.items()})
        return operation

    assert lying(record).run().correct
    result = lying(at("encrypt", lambda site, body: recorded[site]), round=2).run()
    assert nobody_encrypted(result)
    assert all("another model, other terms or in another round" in reason for reason in reasons(result, "encrypt").values())


def test_foreign_ciphertexts_are_not_decrypted():
    backend, params = TransparentBackend(TransparentConfig(security_bits=128)), SessionHarness(aggregator(), 4, 20).session()._params
    public, _ = backend.keygen(params)
    foreign = backend.encrypt(params, public, np.zeros(params.length, np.uint64))
    for total in (foreign, foreign[:-1], b"", 7, None):
        result = lying(at("decrypt", lambda site, body, total=total: {**body, "total": total})).run()
        assert isinstance(result.aborted, RoundLost)
        assert not result.crashes
        assert nobody_decrypted(result)


def test_a_number_no_sum_can_have_is_not_released():
    """The server multiplies by adding: what it then asks to be decrypted cannot be a sum over these sites."""
    backend = TransparentBackend(TransparentConfig(security_bits=128))
    largest = {site: np.full(20, 32_767, np.int32) for site in "abcd"}

    def twice(site, body):
        return {**body, "total": backend.add(SessionHarness(aggregator(), 4, 20).session()._params, body["total"], body["total"])}

    result = lying(at("decrypt", twice), contributions=largest).run()
    assert isinstance(result.aborted, RoundLost)
    assert all("is not a sum over these sites" in reason for reason in reasons(result, "decrypt").values())
    assert nobody_decrypted(result)


@pytest.mark.parametrize(
    "sites", [["a"], ["a", "b"], ["a", "a", "a"], ["a", "b", "eve"], ["b", "c", "d"], "abc", [1, 2, 3], None, {"a": 1, "b": 1, "c": 1}]
)
def test_lists_of_sites_that_are_none(sites):
    """Too few, doubled, foreign, without the site that is asked, or no list at all."""

    def then(operation, sent):
        yield Exchange("agree", {"a": {"sites": sites}})

    result = SessionHarness(aggregator(), 4, 20, coordinate=until("agree", then)).run()
    assert set(reasons(result, "agree")) == {"a"}
    assert not result.crashes
    assert not any(result.released.values())


def test_a_list_too_short_for_one_of_its_sites():
    """The server hides from a what b demands: a knows it from b's advert."""

    def then(operation, sent):
        yield Exchange("agree", {"a": {"sites": ["a", "b", "c", "d"]}, "c": {"sites": ["a", "c", "d"]}})

    policies = {"b": Policy(min_cohort=5)}
    result = SessionHarness(aggregator(), 5, 20, policies=policies, coordinate=until("agree", then)).run()
    assert "a sum over 4 sites, at least 5 are demanded" in reasons(result, "agree")["a"]
    assert result.released == {**dict.fromkeys("abde", ()), "c": (("a", "c", "d"),)}


def test_too_short_a_cohort_for_one_of_its_sites():
    """The server begins with four although b demands five: nobody makes a key for it."""

    def coordinate(session, ctx):
        outcome = yield Exchange("advertise", {site: {} for site in ctx.cohort})
        yield Exchange("key", {site: {"adverts": outcome.replies} for site in ctx.cohort})
        raise RoundAborted("the lies end here")

    result = SessionHarness(aggregator(), 4, 20, policies={"b": Policy(min_cohort=5)}, coordinate=coordinate).run()
    assert set(reasons(result, "key")) == set("abcd")
    assert all("a sum over 4 sites, at least 5" in reason for reason in reasons(result, "key").values())


def test_a_demand_is_signed():
    change = at("key", lambda site, body: {"adverts": {**body["adverts"], "b": {**body["adverts"]["b"], "fewest": 3}}})
    result = lying(change, sites=5, policies={"b": Policy(min_cohort=5)}).run()
    assert all("signature of b does not fit" in reason for reason in reasons(result, "key").values())
    assert len(reasons(result, "key")) == 5


def test_no_decryption_without_the_agreement_of_three():
    """Too few signatures, none, of another list, of another site, of a site outside the sum; and a site that has not agreed itself."""

    def then(operation, sent):
        lists = {"a": "abcd", "b": "abcd", "c": "abc", "e": "abcde"}
        outcome = yield Exchange("agree", {site: {"sites": list(over)} for site, over in lists.items()})
        given = {site: body["signature"] for site, body in outcome.replies.items()}
        for signatures in (
            {},
            None,
            [],
            {"b": given["b"]},
            {"a": given["a"], "b": given["b"]},
            {"b": given["b"], "c": given["c"]},
            {"b": given["b"], "c": given["b"]},
            {"b": given["b"], "d": None},
            {"b": given["b"], "e": given["e"]},
        ):
            yield Exchange("decrypt", {"a": {"total": sent["a"], "signatures": signatures}})
        yield Exchange("decrypt", {"d": {"total": sent["a"], "signatures": given}})

    result = SessionHarness(aggregator(), 5, 20, coordinate=until("agree", then)).run()
    assert [site for stage, site, _ in result.losses if stage == "decrypt"] == [*"a" * 9, "d"]
    assert nobody_decrypted(result)
    assert not result.crashes


def test_only_sites_of_the_sum_can_agree_to_it():
    """The server counts a site that gave no update."""

    def then(operation, sent):
        outcome = yield operation
        given = {site: body["signature"] for site, body in outcome.replies.items()}
        yield Exchange("decrypt", {"a": {"total": sent["a"], "signatures": {"a": given["a"], "b": given["b"], "e": forged}}})

    forged = identity_of("e").sign(agreement(b"", "e", "abcd"))
    result = SessionHarness(
        aggregator(), 5, 20, faults=[{"site": "e", "stage": "encrypt", "do": "drop"}], coordinate=until("agree", then)
    ).run()
    assert "no signatures of the sites of the sum" in reasons(result, "decrypt")["a"]


def test_one_list_and_one_decryption_an_attempt():
    """Another list, or another ciphertext, is refused by a site that has agreed, or decrypted."""

    def then(operation, sent):
        outcome = yield operation
        yield Exchange("agree", {"a": {"sites": ["a", "b", "c"]}})
        signatures = {site: body["signature"] for site, body in outcome.replies.items()}
        yield Exchange("decrypt", {"a": {"total": other, "signatures": signatures}})

    def decrypting(operation, sent):
        outcome = yield operation
        yield Exchange("decrypt", {"a": {**operation.bodies["a"], "total": other}})
        outcome = yield operation
        assert outcome.answered == ("a",)

    other = bytes(64)
    result = SessionHarness(aggregator(), 4, 20, coordinate=until("agree", then)).run()
    assert "already answered for another request" in reasons(result, "agree")["a"]
    assert result.released["a"] == (("a", "b", "c", "d"),)
    result = SessionHarness(aggregator(), 4, 20, coordinate=until("decrypt", decrypting)).run()
    assert "already answered for another request" in reasons(result, "decrypt")["a"]


def test_stages_out_of_turn_and_malformed_requests_are_refused():
    def coordinate(session, ctx):
        yield Exchange("agree", {"a": {"sites": ["a", "b", "c"]}})
        yield Exchange("encrypt", {"a": {}})
        yield Exchange("decrypt", {"b": {"sites": ["a", "b", "c"], "total": b""}})
        yield Exchange("key", {"c": {}})
        yield Exchange("reveal", {"d": {}})
        yield Exchange("advertise", {site: {} for site in "abcd"})
        for adverts in ({}, None, [], {"c": None}, {"c": {"key": 1}}, {"c": {"key": b"", "binding": b""}}):
            yield Exchange("key", {"c": {"adverts": adverts}})
        raise RoundAborted("the lies end here")

    result = SessionHarness(aggregator(), 4, 20, coordinate=coordinate).run()
    assert not result.crashes
    assert [site for _, site, _ in result.losses][:5] == ["a", "a", "b", "c", "d"]
    assert len(reasons(result, "key")) == 1
    assert {p.message.stage for p in result.transcript.passages if p.message.kind == "reply"} == {"advertise"}


def test_a_lying_server_has_one_update_decrypted():
    """Why ``coalition_active`` is 0 and means nothing: no site can tell one update from a sum."""
    seen = {}

    def coordinate(session, ctx):
        def replies(stage, site, body):
            if stage == "encrypt":
                seen[site] = body["ciphertext"]
            return body

        return edited(session, ctx, at("decrypt", lambda site, body: {**body, "total": seen["b"]}), replies=replies)

    result = SessionHarness(aggregator(), 4, 20, coordinate=coordinate).run()
    assert np.array_equal(result.sum, result.contributions["b"])
    guarantees = SessionHarness(aggregator(), 4, 20).session().guarantees
    text = " ".join([guarantees.adversary, *guarantees.assumes])
    assert "not a server that lies" in text
    assert "cannot tell it from a single update" in text

"""``variant: paper`` with the paper's own CKKS parameters in TenSEAL: it sums, approximately, and two neighbours read a third site."""

import numpy as np
import pytest

from pppml_core.component import ComponentConfig
from pppml_core.errors import InconsistentModel, PlanRefused, RoundAborted, RoundLost, WireError
from pppml_core.federation.policy import Policy
from pppml_core.interfaces.he import HEBackend, HEParams
from pppml_core.randomness import Secret, entropy
from pppml_core.testing import SessionHarness
from pppml_core.testing.insecure_plugin import TransparentConfig
from pppml_core.testing.lying import edited
from pppml_core.testing.transparent_he import TransparentBackend
from pppml_core.values import ValueSpec
from pppml_core.wire.codec import decode, encode
from pppml_core.wire.messages import SERVER, Exchange, Relay
from pppml_cyclic_he.paper import MASK_STD, PAPER, PaperSession, mask, misfits

UNIT = 32_767
#: error of a sum of up to five updates in the scheme's own arithmetic, in units of a real-valued update: largest of some thousand numbers.
SCHEME_ERROR = 2e-3


class PaperTenSEAL(HEBackend):
    """TenSEAL as the code configures it: N = 8192, primes of 31 + 6 x 26 + 31 bits, scale 2**26, 4096 numbers a ciphertext."""

    def __init__(self, config):
        super().__init__(config)
        self.ts, self.contexts = pytest.importorskip("tenseal"), {}

    def __deepcopy__(self, memo):
        return self

    def plan(self, value, additions):
        size = 470_000 * -(-value.length // 4096)
        return HEParams("tenseal", "ckks", "approximate", value.length, None, 1, 18, additions, 128, None, 2e-4, size, PAPER)

    def keygen(self, params):
        context = self.ts.context(self.ts.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[31, *[26] * 6, 31])
        context.global_scale = 2**26
        keys = [context.serialize(save_secret_key=secret, save_galois_keys=False, save_relin_keys=False) for secret in (False, True)]
        return keys[0], Secret(keys[1])

    def encrypt(self, params, public, values):
        assert (values.dtype, values.shape) == (np.float64, (params.length,))
        context = self.context(public)
        return encode({"parts": [self.ts.ckks_vector(context, values[i : i + 4096]).serialize() for i in range(0, len(values), 4096)]})

    def add(self, params, left, right):
        context = next(iter(self.contexts.values()))  # adding needs the primes of a context, no key
        pairs = zip(self.parts(context, left), self.parts(context, right), strict=True)
        return encode({"parts": [(one + other).serialize() for one, other in pairs]})

    def decrypt(self, params, secret, ciphertext):
        return np.concatenate([part.decrypt() for part in self.parts(self.context(secret.reveal()), ciphertext)])

    def context(self, key):
        if key not in self.contexts:
            self.contexts[key] = self.ts.context_from(key)
        return self.contexts[key]

    def parts(self, context, ciphertext):
        return [self.ts.ckks_vector_from(context, part) for part in decode(ciphertext)["parts"]]


class Clear(HEBackend):
    """Reals in the clear, for the cases where encryption does not matter. A key is a name."""

    details = PAPER

    def plan(self, value, additions):
        size = 8 * value.length + 8
        return HEParams("clear", "ckks", "approximate", value.length, None, 1, 18, additions, 128, None, 1e-9, size, self.details)

    def keygen(self, params):
        name = entropy(8)
        return name, Secret(name)

    def encrypt(self, params, public, values):
        return public + values.tobytes()

    def add(self, params, left, right):
        if left[:8] != right[:8] or len(left) != len(right):
            raise WireError("ciphertexts of different keys")
        return left[:8] + (np.frombuffer(left[8:]) + np.frombuffer(right[8:])).tobytes()

    def decrypt(self, params, secret, ciphertext):
        if secret.reveal() != ciphertext[:8]:
            raise WireError("another key's ciphertext")
        return np.frombuffer(ciphertext[8:]).copy()


def clear(value, cohort):
    return PaperSession(value, cohort, Clear(ComponentConfig()))


def harness(sites=5, **options):
    return SessionHarness(options.pop("make", clear), sites, **{"length": 40, "bound": UNIT, **options})


def plugin_tenseal():
    """The back end that users have, with its preset."""
    plugin = pytest.importorskip("pppml_he_tenseal.plugin")
    (component,) = plugin.pppml_he_backends()
    return component.load()(component.config(scheme="ckks", preset="paper"))


@pytest.fixture(scope="module")
def real():
    """One round over five sites with real encryption, hops from site to site."""
    backend = PaperTenSEAL(ComponentConfig())
    harness = SessionHarness(lambda value, cohort: PaperSession(value, cohort, backend), 5, 5_000, UNIT, topology="p2p", round=2)
    return harness.run(), harness.session()


def reals(vector):
    return np.asarray(vector, np.float64) / UNIT


# -- real encryption -----------------------------------------------------------------------------------------------------------------------


def test_the_sum_is_right_within_the_schemes_error(real):
    result, session = real
    assert result.aborted is None
    assert set(result.survivors) == set("abcde")
    error = reals(result.sum) - reals(result.expected_sum_over_survivors)
    assert 1e-7 < np.abs(error).max() < SCHEME_ERROR  # not exact: that is the hardened variant
    assert session.guarantees.arithmetic == "approximate"


def test_the_back_end_that_users_have():
    """The same with its preset: a sum within the scheme's error, and two neighbours that read the site between them."""
    backend = plugin_tenseal()
    harness = SessionHarness(lambda value, cohort: PaperSession(value, cohort, backend), 4, 100, UNIT, topology="p2p")
    result, session = harness.run(), harness.session()
    assert result.aborted is None
    assert np.abs(reals(result.sum) - reals(result.expected_sum_over_survivors)).max() < SCHEME_ERROR
    before, middle, after = session.order(1)[1:]
    read = {e.sites: e.value for e in session.exposed(result.view([before, after]))}[(middle,)]
    assert np.abs(reals(read) - reals(result.contributions[middle])).max() < SCHEME_ERROR


def test_two_neighbours_read_the_site_between_them(real):
    """The middle site is neither initiator nor colluding; the server takes no part."""
    result, session = real
    order = session.order(2)
    assert order == ("b", "c", "d", "e", "a")
    for before, middle, after in zip(order, order[1:], order[2:], strict=False):
        read = {e.sites: e.value for e in session.exposed(result.view([before, after]))}[(middle,)]
        truth = result.contributions[middle]
        assert np.abs(reals(read) - reals(truth)).max() <= SCHEME_ERROR
        assert np.corrcoef(read, truth)[0, 1] > 0.9999


def test_without_both_neighbours_the_update_stays_hidden(real):
    """The control: one neighbour has only sums over several sites, or sums under the mask."""
    result, session = real
    for site, middle in [("b", "c"), ("c", "d"), ("e", "d")]:
        assert (middle,) not in {e.sites for e in session.exposed(result.view([site]))}
    masked = next(p.message.body["ciphertext"] for p in result.transcript.passages if p.message.stage == "ring" and p.message.sender == "b")
    seen = session._backend.decrypt(session._params, Secret(result.states["c"]["secret"]), masked)
    assert abs(np.corrcoef(seen, result.contributions["b"])[0, 1]) < 0.1
    assert seen.std() == pytest.approx(MASK_STD, rel=0.1)


# -- what it is ----------------------------------------------------------------------------------------------------------------------------


def test_the_initiator_rotates():
    session = harness(4).session()
    assert [session.order(r)[0] for r in range(1, 6)] == ["a", "b", "c", "d", "a"]
    for number in (1, 2, 4):
        result = harness(4, round=number).run()
        relay = [p.message.sender for p in result.transcript.passages if p.message.stage == "ring"]
        assert relay == [SERVER, *session.order(number)]
        assert [site for site, state in result.states.items() if "seed" in state] == [session.order(number)[0]]
        assert result.correct


def test_everyone_holds_the_same_key_and_the_server_none():
    result = harness(4).run()
    assert len({state["secret"] for state in result.states.values()}) == 1
    secret = result.states["b"]["secret"]
    assert [e.sites for e in harness(4).session().exposed(result.view([SERVER]))] == [tuple("abcd")]
    # The double's public and secret key are one name, so only the boxes can be looked at: none holds it in the clear.
    boxes = next(p.message.body["boxes"] for p in result.transcript.passages if p.message.stage == "key" and p.message.kind == "reply")
    assert set(boxes) == set("abcd")
    assert not any(secret in box for box in boxes.values())


def test_the_sum_is_released_once_and_never_beyond_its_range():
    """The largest sum, off by the scheme's error: what leaves the initiator is still a number that a sum can be."""

    class Off(Clear):
        def decrypt(self, params, secret, ciphertext):
            return super().decrypt(params, secret, ciphertext) + SCHEME_ERROR

    given = {site: np.full(40, UNIT, np.int32) for site in "abcd"}
    result = harness(4, make=lambda value, cohort: PaperSession(value, cohort, Off(ComponentConfig())), contributions=given).run()
    assert result.correct
    assert result.released == dict.fromkeys("abcd", (tuple("abcd"),))


def test_no_second_sum_over_other_sites():
    """The server stops after it has the sum, and tries again without a: nobody takes part."""

    def stop(session, ctx):
        def outcomes(operation, outcome):
            if ctx.attempt == 1 and operation.stage == "decrypt":
                raise RoundAborted("by the server")
            return outcome

        return edited(session, ctx, outcomes=outcomes)

    away = {"site": "a", "stage": "open", "do": "drop", "attempt": 2}
    result = harness(5, coordinate=stop, attempts=2, faults=[away]).run()
    assert [attempt.number for attempt in result.attempts] == [1, 2]
    assert result.aborted is not None
    assert {e.sites for e in harness(5).session().exposed(result.view([SERVER]))} == {tuple("abcde")}


def test_what_is_no_sum_is_not_released():
    class Broken(Clear):
        def decrypt(self, params, secret, ciphertext):
            return np.full(params.length, np.nan)

    result = harness(4, make=lambda value, cohort: PaperSession(value, cohort, Broken(ComponentConfig()))).run()
    assert isinstance(result.aborted, RoundLost)
    assert "is no sum" in result.losses[0][2]


def test_a_sum_beyond_its_range_is_not_taken_by_the_server():
    for false in (np.full(40, 4 * UNIT + 1, np.int32), np.zeros(40, np.float64), np.zeros(39, np.int32), None):
        lies = {"replies": lambda stage, site, body, false=false: {"total": false} if stage == "decrypt" else body}
        result = harness(4, coordinate=lambda session, ctx, lies=lies: edited(session, ctx, **lies)).run()
        assert isinstance(result.aborted, RoundLost)


def test_the_mask_is_gaussian_and_new_each_time():
    draws = mask(b"1" * 32, 200_000)
    assert draws.std() == pytest.approx(MASK_STD, rel=0.01)
    assert abs(draws.mean()) < 0.01 * MASK_STD
    assert np.abs(draws).max() < 10 * MASK_STD
    seeds = {harness(3).run().states["a"]["seed"] for _ in range(3)}
    assert len(seeds) == 3


@pytest.mark.parametrize("topology", ["star", "p2p"])
def test_the_server_and_one_site_read_more_than_the_sum(topology):
    """On a star every update. From site to site the sum takes the mask off what the site saw; the first and the last saw nothing else."""
    result = harness(5, topology=topology).run()
    session = harness(5).session()
    for site in "abcde":
        read = {e.sites: e.value for e in session.exposed(result.view([SERVER, site]))}
        for sites, value in read.items():
            assert np.allclose(value, sum(result.contributions[s].astype(float) for s in sites), atol=1e-3)
        others = {frozenset(sites) - {site} for sites in read} - {frozenset(), frozenset("abcde") - {site}}
        if topology == "star":
            assert {(s,) for s in "abcde"} <= set(read)
        else:
            expected = {"a": [], "b": ["a", "cde"], "c": ["ab", "de"], "d": ["abc", "e"], "e": []}
            assert others == set(map(frozenset, expected[site]))


def test_guarantees_are_honest():
    guarantees = harness(5).session().guarantees
    assert (guarantees.coalition_curious, guarantees.coalition_active, guarantees.dropouts) == (0, 0, 0)
    text = " ".join(guarantees.assumes)
    for said in ("as an exhibit", "two neighbours of a site read its update", "server carries", "approximate"):
        assert said in text
    assert "3.3e-05, in steps" in text


@pytest.mark.parametrize(
    ("backend", "value", "cohort", "reason"),
    [
        (Clear, ValueSpec(9, "integer", 5), "ab", "2 sites"),
        (Clear, ValueSpec(9, "integer", None), "abc", "no bound"),
        (Clear, ValueSpec(9, "real", None), "abc", "no bound"),
        (TransparentBackend, ValueSpec(9, "integer", 5), "abc", "is CKKS with ring degree 8192"),
    ],
)
def test_what_it_cannot_sum_is_refused_in_words(backend, value, cohort, reason):
    built = backend(TransparentConfig())
    assert reason in " ".join(misfits(built, value, cohort))
    with pytest.raises(PlanRefused, match=reason):
        PaperSession(value, cohort, built)


@pytest.mark.parametrize("other", [{"degree": 4096}, {"modulus_bits": 120}, {"scale": 2.0**40}, {"scale": None}])
def test_other_parameters_than_the_papers_are_refused(other):
    """A scale planned for integers would leave an error of several percent on numbers in [-1, 1]."""
    backend, value = Clear(ComponentConfig()), ValueSpec(9, "integer", 5)
    assert misfits(backend, value, "abc") == []
    backend.details = {**PAPER, **other}
    assert "preset: paper" in misfits(backend, value, "abc")[0]


def test_what_is_sent_is_declared_and_predicted():
    for topology in ("star", "p2p"):
        result = harness(4, length=5_000, topology=topology, amnesia=True).run()
        assert not result.losses
        assert result.correct
    predicted = harness(4, length=5_000).session().predicted_bytes()
    for p in result.transcript.sent_by_sites():
        assert abs(predicted[p.message.stage] - p.size) <= 0.1 * p.size + 512


# -- what ends it --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["advertise", "key", "hold", "ring", "decrypt"])
def test_no_site_may_be_lost(stage):
    for site in "abcd":
        result = harness(4, faults=[{"site": site, "stage": stage, "do": "drop", "times": 9}]).run()
        if stage in ("key", "decrypt") and site != "a":
            assert result.correct
            continue
        assert type(result.aborted) is (RoundLost if stage in ("ring", "decrypt") else RoundAborted)
        assert f"stage {stage}" in str(result.aborted)
        assert site in str(result.aborted)
        visited = [s for s, state in result.states.items() if state and stage in ("ring", "decrypt") and (stage == "decrypt" or s < site)]
        assert [s for s, over in result.released.items() if over] == visited


def test_damaged_replies_never_give_a_wrong_sum():
    for stage in ("advertise", "key", "hold", "ring", "decrypt"):
        for deed in ("tamper", "truncate", "replay"):
            result = harness(4, faults=[{"site": "a", "stage": stage, "do": deed}]).run()
            assert result.aborted is not None or result.correct, (stage, deed)
            assert not result.crashes


def test_keys_are_signed_and_for_this_attempt():
    def changed(stage, change):
        def edit(operation):
            if operation.stage != stage:
                return operation
            return type(operation)(
                operation.stage, {s: change(s, {**operation.common, **b}) for s, b in operation.bodies.items()}, operation.fold
            )

        return lambda session, ctx: edited(session, ctx, edit)

    own = bytes(31) + b"\x09"
    cases = {
        "substituted agreement key": ("key", lambda s, b: {"adverts": {**b["adverts"], "d": {**b["adverts"]["d"], "key": own}}}),
        "site left out": ("key", lambda s, b: {"adverts": {k: v for k, v in b["adverts"].items() if k != "d"}}),
        "advert of another": ("key", lambda s, b: {"adverts": {**b["adverts"], "d": b["adverts"]["c"]}}),
        "no adverts": ("key", lambda s, b: {}),
        "substituted public key": ("hold", lambda s, b: {**b, "public": b["public"] + b"x"}),
        "no signature": ("hold", lambda s, b: {**b, "signature": None}),
        "no box": ("hold", lambda s, b: {**b, "box": None}),
        "another box": ("hold", lambda s, b: {**b, "box": bytes(80)}),
        "foreign running sum": ("decrypt", lambda s, b: {"ciphertext": bytes(8) + bytes(320)}),
        "no running sum": ("decrypt", lambda s, b: {"ciphertext": 5}),
    }
    for name, (stage, change) in cases.items():
        result = harness(4, coordinate=changed(stage, change)).run()
        assert result.aborted is not None, name
        assert any(at == stage for at, _, _ in result.losses), name
        assert not result.crashes, name
        assert not any(p.message.stage == "decrypt" and p.message.kind == "reply" for p in result.transcript.passages), name


def test_own_key_replaced_by_another_genuine_one():
    """The server shows site a a genuine advert of a's, of another key than the one a holds: the attempt was begun twice."""
    told = {}

    def coordinate(session, ctx):
        outcome = yield Exchange("advertise", {site: {} for site in ctx.cohort})
        told.update(outcome.replies)
        raise RoundAborted("once")

    harness(4, coordinate=coordinate).run()

    def replay(session, ctx):
        outcome = yield Exchange("advertise", {site: {} for site in ctx.cohort})
        yield Exchange("key", {"a": {"adverts": {**outcome.replies, "a": told["a"]}}})
        raise RoundAborted("twice")

    result = harness(4, coordinate=replay).run()
    assert "own key" in next(reason for stage, _, reason in result.losses if stage == "key")


def test_another_model_or_an_impostor_ends_the_attempt():
    assert isinstance(harness(4, models={"c": b"another"}).run().aborted, InconsistentModel)
    result = harness(4, impostors=["c"]).run()
    assert "stage advertise: signature: the signature of c" in str(result.aborted)
    assert {p.message.stage for p in result.transcript.passages} == {"advertise"}


def test_policy_of_a_site():
    for policy in (Policy(min_cohort=5), Policy(min_honest=4)):
        result = harness(4, policies={"b": policy}).run()
        assert isinstance(result.aborted, RoundAborted)
        assert "at least 5 are needed" in next(reason for stage, site, reason in result.losses if (stage, site) == ("hold", "b"))


def test_stages_out_of_turn_are_refused():
    def coordinate(session, ctx):
        for stage in ("key", "hold", "ring", "decrypt", "reveal"):
            yield Exchange(stage, {"a": {}})
        adverts = yield Exchange("advertise", {site: {} for site in ctx.cohort})
        made = yield Exchange("key", {"b": {"adverts": adverts.replies}})
        made = yield Exchange("key", {"a": {"adverts": adverts.replies}})
        common = {name: made.replies["a"][name] for name in ("public", "signature")} | {"adverts": adverts.replies}
        boxes = made.replies["a"]["boxes"]
        yield Exchange("hold", {site: {"box": boxes[site]} for site in ctx.cohort}, common=common)
        yield Relay("ring", ("b",))
        yield Relay("ring", ("a", "c"))
        raise RoundAborted("the lies end here")

    result = harness(4, coordinate=coordinate).run()
    assert [(stage, site) for stage, site, _ in result.losses] == [
        *((stage, "a") for stage in ("key", "hold", "ring", "decrypt", "reveal")),
        ("key", "b"),
        ("ring", "b"),
        ("ring", "c"),
    ]
    assert not result.crashes

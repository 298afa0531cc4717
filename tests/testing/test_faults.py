import time

import numpy as np
import pytest
from pydantic import ValidationError

from pppml_core.engines.faults import DUPLICATE_DIFFERS, Fault, FaultyTransport
from pppml_core.errors import WireError
from pppml_core.interfaces.engine import Loss
from pppml_core.wire.codec import decode_message, encode_message
from pppml_core.wire.messages import SERVER, Message

RUN = b"r" * 16


def request(site: str, stage: str = "contribute", round: int = 1, attempt: int = 1) -> tuple[str, bytes]:
    return site, encode_message(Message(RUN, round, attempt, "session", stage, SERVER, site, {}))


class Echo:
    """Sites that answer with an array; remembers what reached them."""

    parallel = 3

    def __init__(self, steady: bool = True) -> None:
        self.handed: list[tuple[str, str]] = []
        self.steady, self.closed = steady, 0

    def deliver(self, frames):
        for site, frame in frames:
            m = decode_message(frame)
            self.handed.append((site, m.stage))
            values = np.arange(3) if self.steady else np.arange(3) + len(self.handed)
            body = {"names": ["x"], "values": values}
            yield site, encode_message(Message(m.run, m.round, m.attempt, "reply", m.stage, site, SERVER, body))

    def clock(self):
        return {"train": 1.0}

    def close(self):
        self.closed += 1


def all_at_once(echo: Echo, *faults: dict, sites: str = "abc", stage: str = "contribute"):
    return list(FaultyTransport(echo, [Fault(**f) for f in faults]).deliver([request(s, stage) for s in sites]))


def test_without_a_fault_nothing_changes():
    assert all_at_once(Echo(), {"site": "b", "stage": "other", "do": "drop"}) == list(Echo().deliver([request(s) for s in "abc"]))


def test_drop_never_reaches_the_site():
    echo = Echo()
    replies = dict(all_at_once(echo, {"site": "b", "do": "drop"}))
    assert echo.handed == [("a", "contribute"), ("c", "contribute")]
    assert isinstance(replies["b"], Loss)
    assert not replies["b"].handed


def test_drop_reply_reaches_the_site():
    echo = Echo()
    replies = dict(all_at_once(echo, {"site": "b", "do": "drop-reply"}))
    assert ("b", "contribute") in echo.handed
    assert isinstance(replies["b"], Loss)
    assert replies["b"].handed


def test_delay_is_a_true_reordering_and_takes_its_time():
    begun = time.perf_counter()
    order = [site for site, _ in all_at_once(Echo(), {"site": "a", "do": "delay", "seconds": 0.05})]
    assert order == ["b", "c", "a"]
    assert time.perf_counter() - begun >= 0.05


def test_a_duplicate_must_be_answered_with_the_same_bytes():
    echo = Echo()
    assert [site for site, _ in all_at_once(echo, {"site": "b", "do": "duplicate"})] == ["a", "b", "c"]
    assert echo.handed.count(("b", "contribute")) == 2
    with pytest.raises(WireError, match=DUPLICATE_DIFFERS):
        all_at_once(Echo(steady=False), {"site": "b", "do": "duplicate"})


@pytest.mark.parametrize("do", ["tamper", "truncate"])
def test_damage_is_found_by_the_codec(do):
    replies = dict(all_at_once(Echo(), {"site": "b", "do": do}))
    decode_message(replies["a"])
    with pytest.raises(WireError):
        decode_message(replies["b"])


def test_tamper_flips_one_bit():
    ((_, sound),) = all_at_once(Echo(), sites="b")
    ((_, damaged),) = all_at_once(Echo(), {"site": "b", "do": "tamper"}, sites="b")
    assert sum((one ^ other).bit_count() for one, other in zip(sound, damaged, strict=True)) == 1


def test_tamper_body_is_a_valid_frame_with_one_number_changed():
    ((_, reply),) = all_at_once(Echo(), {"site": "b", "do": "tamper-body"}, sites="b")
    values = decode_message(reply).body["values"]
    assert np.count_nonzero(values != np.arange(3)) == 1


def test_replay_gives_the_reply_of_an_earlier_stage():
    transport = FaultyTransport(Echo(), [Fault(site="b", stage="reveal", do="replay")])
    ((_, first),) = transport.deliver([request("b", "masked")])
    ((_, second),) = transport.deliver([request("b", "reveal")])
    ((_, third),) = transport.deliver([request("b", "reveal")])
    assert second == first
    assert decode_message(third).stage == "reveal"


def test_replay_without_an_earlier_reply_reflects_the_request():
    asked = request("b")
    ((_, reply),) = FaultyTransport(Echo(), [Fault(site="b", do="replay")]).deliver([asked])
    assert reply == asked[1]


def test_place_and_times():
    fault = Fault(site="b", stage="contribute", round=2, attempt=1, do="drop", times=2)
    transport = FaultyTransport(Echo(), [fault])
    places = [("contribute", 1, 1), ("contribute", 2, 2), ("other", 2, 1), *[("contribute", 2, 1)] * 3]
    lost = []
    for stage, round, attempt in places:
        assert transport.unused == ((fault,) if not lost or not any(lost) else ())
        ((_, reply),) = transport.deliver([request("b", stage, round, attempt)])
        lost.append(isinstance(reply, Loss))
    assert lost == [False, False, False, True, True, False]
    assert transport.unused == ()


def test_the_rest_is_the_inner_transport():
    echo = Echo()
    transport = FaultyTransport(echo, [])
    assert (transport.clock(), transport.parallel) == ({"train": 1.0}, 3)
    transport.close()
    assert echo.closed == 1


@pytest.mark.parametrize("wrong", [{"do": "explode"}, {"times": 0}, {"seconds": -1}, {"stages": "x"}, {"attempt": 0}])
def test_a_wrong_fault_is_refused(wrong):
    with pytest.raises(ValidationError):
        Fault(**{"site": "b", "do": "drop", **wrong})

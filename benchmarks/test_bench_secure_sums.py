"""SecAgg+ at one site and at the server, beside Flower's and beside the least that the arithmetic takes.

Our side answers real requests through the real session, decoding and encoding included (``Rehearsal``); Flower's is its client mod and its
server's arithmetic (``flower_secagg.py``), messages not counted. ``floor``: quantization, and one AES-256-CTR expansion and addition for
each peer. Sides are timed in alternated pairs; medians and ratios are in the extra info and in the table at the end.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from flower_secagg import FlowerSecAgg

from pppml_core.engines.rehearsal import Rehearsal
from pppml_core.errors import PppmlError
from pppml_core.federation import identity
from pppml_core.randomness import Seeds
from pppml_core.registry import Registry
from pppml_core.values import FixedPoint, Layout, TensorSpec, ValueSpec

OURS, FLOWER, FLOOR = "secagg_plus", "flower", "floor"
BITS = 16
USUAL = [(5, 100_000), (20, 100_000), (20, 1_000_000)]
FULL = [(n, d) for d in (100_000, 1_000_000, 5_000_000) for n in (5, 10, 20, 100)]
HELD = 200_000_000  # numbers of all sites that a benchmark of the server holds at once, at most


def sizes(*sides: str, most: int = 10**12) -> pytest.MarkDecorator:
    """Every side at every size; most of them only with --full."""
    found = [
        pytest.param(side, n, d, id=f"{side}-{n}-{d}", marks=[] if (n, d) in USUAL else [pytest.mark.full])
        for n, d in dict.fromkeys([*USUAL, *FULL])
        for side in sides
        if n * d <= most
    ]
    return pytest.mark.parametrize(("side", "n", "d"), found)


def vector(d: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(d, np.float32)


def quantizer(d: int) -> Callable[[], np.ndarray]:
    """Float32 to integers of 16 bits with unbiased rounding, as a site's encoding does it."""
    fixed, values, generator = FixedPoint(Layout((TensorSpec("w", (d,)),)), (8.0,), BITS), vector(d), Seeds(0).generator("rounding")
    return lambda: fixed.encode(values, generator)[0]


def session_of(n: int, d: int, **settings: Any) -> Any:
    try:
        component = Registry.discover().get("aggregator", "secagg-plus")
        make = component.load()
    except PppmlError as error:
        pytest.skip(str(error))
    value, cohort = ValueSpec(d, "integer", 2 ** (BITS - 1) - 1), tuple(f"s{i:03d}" for i in range(n))
    return make(component.config(**settings)).plan(value, cohort)


@lru_cache(maxsize=1)
def ours(n: int, d: int, dropped: int = 0, server: bool = False) -> Rehearsal:
    """One whole sum, of which one site's steps, or the server's, can be done again. ``dropped`` sites vanish before they send."""
    session = session_of(n, d)
    vanish = dict.fromkeys(session.cohort[n - dropped :], "mask") if dropped else {}
    contribution = quantizer(d)
    rehearsal = Rehearsal(session, dict.fromkeys(session.cohort, contribution), vanish=vanish, keep_sites=("s000",), keep_replies=server)
    rehearsal.run()
    return rehearsal


@lru_cache(maxsize=1)
def flower(n: int, d: int) -> FlowerSecAgg:
    try:
        return FlowerSecAgg(n, vector(d))
    except ImportError as error:
        pytest.skip(f"Flower is not installed ({error}); `make bench` installs it into .cache/peers where it can")
    except (AttributeError, TypeError) as error:
        pytest.skip(f"this Flower is another one inside than what is driven here: {error}")


def at_floor(n: int, d: int) -> Callable[[], Any]:
    """Quantization, then n - 1 masks expanded and added in pieces that stay in the cache."""
    quantize, keys = quantizer(d), [os.urandom(32) for _ in range(n - 1)]
    piece = 32_768
    zeros, buffer = bytes(4 * piece), bytearray(4 * piece + 15)
    words = np.frombuffer(buffer, np.uint32, piece)

    def work() -> np.ndarray:
        total = quantize().view(np.uint32)
        for key in keys:
            stream = Cipher(AES(key), CTR(bytes(16))).encryptor()
            for start in range(0, d, piece):
                part = total[start : start + piece]
                stream.update_into(zeros[: part.nbytes], buffer)
                part += words[: len(part)]
        return total

    return work


@contextmanager
def unchecked() -> Iterator[None]:
    """Without verifying any signature, to tell its share of the time."""
    with ExitStack() as stack:
        for name, module in list(sys.modules.items()):
            if name.startswith("pppml_secagg_plus") and getattr(module, "verify", None) is identity.verify:
                stack.enter_context(patch.object(module, "verify", lambda *_: None))
        yield


def without_checks(call: Callable[[], Any]) -> Callable[[], Any]:
    def work() -> Any:
        with unchecked():
            return call()

    return work


# -- one site -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.benchmark(group="one site: quantize, mask, encode")
@sizes(OURS, FLOWER, FLOOR)
def test_mask(alternated: Any, benchmark: Any, side: str, n: int, d: int) -> None:
    rehearsal, peer = ours(n, d), flower(n, d)
    sides = {
        OURS: lambda: rehearsal.again_at_site("mask", "s000"),
        FLOWER: lambda: lambda: peer.mask(1),
        FLOOR: lambda: at_floor(n, d),
    }
    alternated(side, sides, rounds=5 if n * d > 1e7 else 11)
    sent = {OURS: len(sides[OURS]()()), FLOWER: sum(map(len, peer.mask(1))), FLOOR: 4 * d}
    benchmark.extra_info |= {"bytes per parameter": sent[side] / d, "flwr": peer.version}


@pytest.mark.benchmark(group="one site: share keys")
@pytest.mark.parametrize(
    ("side", "n"),
    [
        pytest.param(side, n, marks=[] if n in (5, 20) else [pytest.mark.full])
        for n in (5, 10, 20, 100)
        for side in (OURS, "secagg_plus_unchecked", FLOWER)
    ],
)
def test_share_keys(alternated: Any, benchmark: Any, side: str, n: int) -> None:
    rehearsal, peer = ours(n, 1000), flower(n, 1000)
    sides = {
        OURS: lambda: rehearsal.again_at_site("share", "s000"),
        "secagg_plus_unchecked": lambda: without_checks(rehearsal.again_at_site("share", "s000")),
        FLOWER: lambda: lambda: peer.share_keys(1),
    }
    alternated(side, sides, rounds=21)
    benchmark.extra_info |= {"flwr": peer.version, "signatures checked": n - 1 if side == OURS else 0}


# -- the server ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.benchmark(group="server: unmask, 2 sites vanished")
@sizes(OURS, FLOWER, most=HELD)
def test_unmask(alternated: Any, benchmark: Any, side: str, n: int, d: int) -> None:
    dropped = 2 if n > 5 else 1  # of five sites, one may vanish
    rehearsal, peer = ours(n, d, dropped, True), flower(n, d)
    collected = peer.collected(peer.mask(1), dropped)
    sides = {OURS: lambda: rehearsal.again_at_server("unmask"), FLOWER: lambda: collected.unmask}
    alternated(side, sides, rounds=5)
    benchmark.extra_info |= {"vanished": dropped, "flwr": peer.version}


@pytest.mark.benchmark(group="a whole sum, all parties one after another")
@pytest.mark.parametrize(
    ("n", "d", "percent"),
    [
        pytest.param(n, d, percent, marks=[] if (n, d) in USUAL and percent in (0, 20) else [pytest.mark.full])
        for n, d in dict.fromkeys([*USUAL, *FULL])
        for percent in (0, 10, 20)
        if n * d <= HELD and n * percent % 100 == 0
    ],
)
def test_sum(benchmark: Any, n: int, d: int, percent: int) -> None:
    """Seconds and bytes of one site and of the server, with sites that vanish before they send their masked input."""
    session, numbers = session_of(n, d), quantizer(d)()
    gone = dict.fromkeys(session.cohort[n - n * percent // 100 :], "mask")
    rehearsal = Rehearsal(session, dict.fromkeys(session.cohort, lambda: numbers), vanish=gone)
    done = benchmark.pedantic(rehearsal.run, rounds=1 if n * d > 1e7 else 3)
    assert len(done.sum.survivors) == n - len(gone)
    assert np.array_equal(done.sum.total, numbers.astype(np.int64) * len(done.sum.survivors))
    stages = [stage for stage in done.seconds["s000"] if stage != "open"]
    benchmark.extra_info |= {
        "site s": done.of_a_site(),
        "server s": done.of_the_server(),
        "bytes per parameter": done.sent_by_a_site() / d,
        "site by stage": {s: median(done.seconds[site][s] for site in done.sum.survivors) for s in stages},
        "server by stage": dict(done.seconds["server"]),
    }


# -- many sites ---------------------------------------------------------------------------------------------------------------------------

MANY = (50, 100, 200, 500, 1000)


def cost_of(n: int, d: int = 100_000) -> dict[str, Any]:
    """One site's seconds by stage, bytes and neighbours among n sites with the preset `large` (medians over sites)."""
    session = session_of(n, d, preset="large")
    numbers = np.ones(d, np.int32)
    done = Rehearsal(session, dict.fromkeys(session.cohort, lambda: numbers)).run()
    assert int(done.sum.total[0]) == n
    stages = [stage for stage in done.seconds["s000"] if stage != "open"]
    by_stage = {stage: median(done.seconds[site][stage] for site in session.cohort) for stage in stages}
    return {
        "sites": n,
        "neighbours": session.terms.degree,
        "seconds": sum(by_stage.values()),
        "by stage": by_stage,
        "bytes beside the vector": done.sent_by_a_site() - 4 * d,
    }


def test_cost_of_a_site_grows_with_the_logarithm_of_their_number(benchmark: Any, request: pytest.FixtureRequest) -> None:
    """The curve of n = 50 to 1,000 at d = 1e5; without --full up to 200. ``--pictures DIR`` draws it."""
    counts = MANY if request.config.getoption("--full") else MANY[:3]
    rows = benchmark.pedantic(lambda: [cost_of(n) for n in counts], rounds=1)
    benchmark.extra_info["curve"] = rows
    print(f"\n{'sites':>6} {'neighbours':>11} {'ms a site':>10} {'mask ms':>8} {'KiB beside the vector':>22}")
    for row in rows:
        whole, mask, beside = row["seconds"] * 1e3, row["by stage"]["mask"] * 1e3, row["bytes beside the vector"] / 1024
        print(f"{row['sites']:>6} {row['neighbours']:>11} {whole:>10.2f} {mask:>8.2f} {beside:>22.1f}")
    if folder := request.config.getoption("--pictures"):
        draw(rows, folder / "secagg-plus-many-sites.png")


def draw(rows: list[dict[str, Any]], path: Any) -> None:
    """Milliseconds a site over the number of sites, logarithmic: a straight line is growth with the logarithm."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    counts = [row["sites"] for row in rows]
    for label, values in {
        "all stages": [row["seconds"] * 1e3 for row in rows],
        "masking": [row["by stage"]["mask"] * 1e3 for row in rows],
    }.items():
        axes.plot(counts, values, marker="o", label=label)
    for row in rows:
        axes.annotate(
            f"k = {row['neighbours']}", (row["sites"], row["seconds"] * 1e3), textcoords="offset points", xytext=(0, 8), ha="center"
        )
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.set_ylim(0, None)
    axes.set_xlabel("sites")
    axes.set_ylabel("milliseconds of one site")
    axes.set_title("SecAgg+ on a sparse graph, 100,000 parameters", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)

"""What a stage costs on engines for real sites, against the engine's own calls in the same run: ``python benchmarks/engines.py``.

NVFlare's simulator with three sites, each a process. In turns, 50 times each, and the median of it:

- *own, empty*: NVFlare's own call of a function that returns nothing, at all sites at once (``collab.clients.f()``);
- *own, of the site*: NVFlare's own call of the site itself, in NVFlare's process: what a stage is, without this engine's care. A site
  writes what it answers to its audit log, and to the disk, before it answers;
- *stage*: a stage of pppml, asked by NVFlare's server;
- *stage through the bridge*: the same, asked from where `pppml run` runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

SITES = ("site_1", "site_2", "site_3")
TIMED, BESIDE = "nvflare_timed.Timed", "nvflare_timed.Beside"


def seconds(work: Callable[[], object]) -> float:
    """Of one go."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def frames(sites: Iterable[str]) -> list[tuple[str, bytes]]:
    """An empty stage: a message of a run that nobody has joined, which a site answers with a sentence."""
    from pppml_core.wire.codec import encode_message
    from pppml_core.wire.messages import SERVER, Message

    return [(site, encode_message(Message(bytes(16), 1, 1, "session", "empty", SERVER, site, {}))) for site in sites]


def nvflare(times: int) -> dict[str, list[float]]:
    """Seconds of each kind of go."""
    from pppml_core.engines.parties import acquaint
    from pppml_core.wire.messages import SERVER
    from pppml_nvflare.federation import Simulator
    from pppml_nvflare.job import CLASSES, COORDINATOR, DESK
    from pppml_nvflare.transport import NvflareTransport

    with tempfile.TemporaryDirectory(prefix="pppml-bench-") as name:
        folder = Path(name)
        acquaint(folder / "homes", (*SITES, *(f"{site}_direct" for site in SITES), SERVER))

        def carry(job: Path) -> Simulator:
            path = job / "coordinator" / "config" / "config_fed_server.json"
            config = json.loads(path.read_text().replace(COORDINATOR, TIMED))
            arguments = config["components"][0]["args"]
            config["components"][0]["args"] = {"bridge": arguments["bridge"], "out": str(folder / "out.json"), "times": times}
            path.write_text(json.dumps(config))
            client = job / "site" / "config" / "config_fed_client.json"
            client.write_text(client.read_text().replace(DESK, BESIDE))
            classes = (*CLASSES, TIMED, BESIDE)
            return Simulator(job, SITES, folder / "homes", folder / "nvflare.log", sys.executable, 1, classes)

        transport = NvflareTransport("bench", SITES, {"timeout": 60.0, "silence": 30.0}, 300.0, len(SITES), carry)
        try:
            transport.begin()
            rows: dict[str, list[float]] = json.loads((folder / "out.json").read_text())
            asked = frames(SITES)
            bridged = [seconds(lambda: list(transport.deliver(asked))) for _ in range(times + 5)]
        finally:
            transport.close()
    return {**rows, "stage through the bridge": bridged[5:]}


ENGINES: dict[str, Callable[[int], dict[str, list[float]]]] = {"nvflare": nvflare}


def main() -> int:
    """A table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="*", default=sorted(ENGINES), help=f"of {', '.join(sorted(ENGINES))}; default: all")
    parser.add_argument("--times", type=int, default=50)
    given = parser.parse_args()
    for name in given.engines:
        rows: dict[str, Any] = ENGINES[name](given.times)
        own = statistics.median(next(iter(rows.values())))
        print(f"{name}, {len(SITES)} sites, median of {given.times}, {os.cpu_count()} cores")
        for row, times in rows.items():
            middle = statistics.median(times)
            print(f"  {row:28} {1000 * middle:8.2f} ms   {middle / own:5.2f} x empty   (quartiles {_quartiles(times)})")
    return 0


def _quartiles(times: list[float]) -> str:
    low, _, high = statistics.quantiles(times, n=4)
    return f"{1000 * low:.2f} to {1000 * high:.2f} ms"


if __name__ == "__main__":
    sys.exit(main())

"""What a stage costs on engines for real sites, against the engine's own calls in the same run: ``python benchmarks/engines.py``.

Three sites, each a process. In turns, 50 times each, and the median of it. NVFlare, in its simulator:

- *own, empty*: NVFlare's own call of a function that returns nothing, at all sites at once (``collab.clients.f()``);
- *own, with a line on the disk*: NVFlare's own call of a function that appends as much to a file as a site to its audit log, and returns
  when it is on the disk: nothing leaves a site that its log has not got, so a stage takes this long on this disk;
- *stage*: a stage of pppml, asked by NVFlare's server;
- *stage through the bridge*: the same, asked from where `pppml run` runs.

Flower, with a SuperLink and SuperNodes as processes, TLS and authenticated nodes; a go takes some seconds:

- *own, empty*: three nodes of Flower's own that send back what they get;
- *stage*: three nodes of sites, which verify, write to the audit log, and answer.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
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


#: bytes of a line of an audit log, as most are.
LINE = 500
#: the run that the sites of NVFlare have joined.
RUN = bytes(range(16))


def hello(sites: Iterable[str]) -> list[tuple[str, bytes]]:
    """An empty stage: a message that a site answers without computing anything."""
    from pppml_core.wire.codec import encode_message
    from pppml_core.wire.messages import SERVER, Message

    return [(site, encode_message(Message(RUN, 0, 1, "hello", "hello", SERVER, site, {"start": RUN}))) for site in sites]


def invitations(homes: Path) -> dict[str, bytes]:
    """To a small run."""
    from pppml_core.api import Experiment
    from pppml_core.config import to_plain
    from pppml_core.federation.identity import load_identity
    from pppml_core.federation.invitation import JOIN, invitation_to
    from pppml_core.interfaces.engine import Job
    from pppml_core.wire.codec import encode_message
    from pppml_core.wire.messages import SERVER, Message

    plan = Experiment(task={"use": "tiny", "sites": len(SITES)})._plan()
    parts = plan.assembly
    assert parts is not None
    job = Job(RUN, to_plain(plan.config), homes, SITES, plan.sizes, {}, homes, parts)
    body = invitation_to(job, parts).body(load_identity(homes / SERVER))
    return {site: encode_message(Message(RUN, 0, 1, JOIN, JOIN, SERVER, site, body)) for site in SITES}


def nvflare(times: int) -> dict[str, list[float]]:
    """Seconds of each kind of go."""
    from pppml_core.engines.parties import acquaint
    from pppml_core.engines.remote import Signed
    from pppml_core.errors import RunFailed
    from pppml_core.federation.identity import load_identity
    from pppml_core.wire.codec import decode_message
    from pppml_core.wire.messages import SERVER
    from pppml_nvflare.federation import Simulator
    from pppml_nvflare.job import CLASSES, COORDINATOR, DOOR
    from pppml_nvflare.transport import NvflareTransport

    with tempfile.TemporaryDirectory(prefix="pppml-bench-") as name:
        folder = Path(name)
        homes = folder / "homes"
        acquaint(homes, (*SITES, SERVER))

        def carry(job: Path) -> Simulator:
            path = job / "coordinator" / "config" / "config_fed_server.json"
            config = json.loads(path.read_text().replace(COORDINATOR, TIMED))
            arguments = config["components"][0]["args"]
            config["components"][0]["args"] = {"bridge": arguments["bridge"]}
            path.write_text(json.dumps(config))
            client = job / "site" / "config" / "config_fed_client.json"
            client.write_text(client.read_text().replace(DOOR, BESIDE))
            classes = (*CLASSES, TIMED, BESIDE)
            return Simulator(job, SITES, homes, folder / "nvflare.log", sys.executable, 1, classes)

        transport = NvflareTransport("bench", SITES, {"timeout": 60.0, "silence": 30.0}, 300.0, len(SITES), carry)
        try:
            transport.begin()
            signed, asked = Signed(transport, load_identity(homes / SERVER)), hello(SITES)
            replies = [reply for _, reply in signed.deliver(invitations(homes).items())]
            if not all(isinstance(reply, bytes) and decode_message(reply).body == {"joined": True} for reply in replies):
                raise RunFailed(f"not every site joined: {replies}")
            rows: dict[str, list[float]] = {}
            for _ in range(times + 5):
                for row in ("own, empty", "own, with a line on the disk", "stage"):  # timed at the server's end of the bridge
                    ((_, told),) = transport.deliver([(row, asked[0][1])])
                    if not isinstance(told, bytes):
                        raise RunFailed(told.reason)
                    rows.setdefault(row, []).extend(struct.unpack("<d", told))
                rows.setdefault("stage through the bridge", []).append(seconds(lambda: list(signed.deliver(asked))))
        finally:
            transport.close()
    return {row: found[5:] for row, found in rows.items()}


def flower(times: int) -> dict[str, list[float]]:
    """Seconds of each kind of go, by turns: nodes of Flower's own that echo, and those of sites."""
    from pppml_core.engines.parties import acquaint
    from pppml_core.errors import RunFailed
    from pppml_core.wire.messages import SERVER
    from pppml_flower.export import write_empty
    from pppml_flower.local_federation import local_federation

    with tempfile.TemporaryDirectory(prefix="pppml-bench-") as name:
        folder = Path(name)
        homes = folder / "homes"
        acquaint(homes, (*SITES, SERVER))
        with local_federation({site: homes / site for site in SITES}, folder / "flower") as federation:
            for site in SITES:
                federation.start_bare_node(f"bare_{site}")
            app = write_empty(folder / "app", times, 0.05, SITES)
            status = federation.run(app, f"out={folder / 'out.json'}", f"homes={homes}", timeout=36_000)
            if not (folder / "out.json").is_file():
                raise RunFailed(f"nothing was measured: {status}", hint=federation.words("superlink"))
        return dict(json.loads((folder / "out.json").read_text()))


ENGINES: dict[str, Callable[[int], dict[str, list[float]]]] = {"nvflare": nvflare, "flower": flower}


def main() -> int:
    """A table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="*", default=sorted(ENGINES), help=f"of {', '.join(sorted(ENGINES))}; default: all")
    parser.add_argument("--times", type=int, default=50)
    given = parser.parse_args()
    for name in given.engines:
        rows: dict[str, Any] = ENGINES[name](given.times)
        own = statistics.median(next(iter(rows.values())))
        load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
        print(f"{name}, {len(SITES)} sites, median of {given.times}, {os.cpu_count()} cores, load {load}")
        for row, times in rows.items():
            middle = statistics.median(times)
            added = f"{middle / own:5.2f} x empty   {1000 * (middle - own):+8.2f} ms"
            print(f"  {row:28} {1000 * middle:8.2f} ms   {added}   (quartiles {_quartiles(times)})")
    return 0


def _quartiles(times: list[float]) -> str:
    low, _, high = statistics.quantiles(times, n=4)
    return f"{1000 * low:.2f} to {1000 * high:.2f} ms"


if __name__ == "__main__":
    sys.exit(main())

"""NVFlare's startup kits: what a site's own people settle in theirs, and how what is in one is started.

``python -m pppml_nvflare.kits admit KIT`` writes ``KIT/local/resources.json``, where NVFlare reads what the site allows:

- only the classes of this engine, so that no job brings or calls anything else (NVFlare needs no code in a job of pppml);
- no streaming of the site's logs to the server, which NVFlare 2.9 does unless told not to;
- of a server: that it keeps its jobs in the kit (``KIT/storage``), and not in /tmp, which a service may lose at each start.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from pppml_core.errors import ConfigError
from pppml_nvflare.job import CLASSES

_STREAMERS = ("site_log_streamer",)
#: where NVFlare has a server keep its jobs.
_LOST = "/tmp/nvflare/"


def role(kit: Path) -> str:
    """``server``, ``client`` or ``admin``. Raises ConfigError where this is no startup kit."""
    for one in ("server", "client", "admin"):
        if (kit / "startup" / f"fed_{one}.json").is_file():
            return one
    raise ConfigError("this is no startup kit of NVFlare", place=str(kit), hint="give the folder that holds `startup` and `local`")


def admit(kit: Path, storage: Path | None = None) -> Path:
    """Write ``local/resources.json``: jobs of pppml, nothing else. ``storage``: where a server keeps its jobs; default: in the kit."""
    found = role(kit)
    default = kit / "local" / "resources.json.default"
    try:
        text = default.read_text()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", place=str(default)) from error
    # Written as JSON writes it: a name may hold what JSON sets apart.
    resources = json.loads(text.replace(f'"{_LOST}', json.dumps(f"{storage or kit.resolve() / 'storage'}/")[:-1]))
    resources["class_allow_list"], resources["class_list_enforcement_mode"] = list(CLASSES), "enforce"
    if found == "client":
        resources["allow_log_streaming"] = False
    resources["components"] = [part for part in resources.get("components", []) if part.get("id") not in _STREAMERS]
    path = kit / "local" / "resources.json"
    path.write_text(json.dumps(resources, indent=2) + "\n")
    return path


def check(kit: Path) -> None:
    """Raise ConfigError where a kit would refuse this engine's jobs, stream a site's logs to the server, or lose its jobs."""
    found, path = role(kit), kit / "local" / "resources.json"
    hint = f"python -m pppml_nvflare.kits admit {shlex.quote(str(kit))}"
    if not path.is_file():
        raise ConfigError("this kit does not yet say what it allows", place=str(kit), hint=hint)
    try:
        text = path.read_text()
        resources: dict[str, Any] = json.loads(text)
        allowed = [*resources["class_allow_list"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"its class_allow_list cannot be read ({type(error).__name__})", place=str(path), hint=hint) from error
    if missing := [name for name in CLASSES if name not in allowed and not any(a.endswith(".") and name.startswith(a) for a in allowed)]:
        raise ConfigError(f"class_allow_list lacks {', '.join(missing)}", place=str(path), hint=hint)
    streams = any(part.get("id") in _STREAMERS for part in resources.get("components", []))
    if found == "client" and streams and resources.get("allow_log_streaming", True):
        raise ConfigError("this site's logs would be streamed to NVFlare's server", place=str(path), hint=hint)
    if found == "server" and f'"{_LOST}' in text:
        raise ConfigError(f"it would keep its jobs in {_LOST}, which a service loses", place=str(path), hint=hint)


def command(kit: Path, python: str = sys.executable) -> list[str]:
    """The command that starts what is in a server's or client's kit, in the foreground, as its own ``start.sh`` would."""
    import re

    found = role(kit)
    start = (kit / "startup" / "sub_start.sh").read_text()
    settings = re.search(r"--set (secure_train=true [^\n]*config_folder=\S*)", start)
    if settings is None:
        raise ConfigError("its sub_start.sh is not that of NVFlare 2.9", place=str(kit))
    module = f"nvflare.private.fed.app.{found}.{found}_train"
    return [python, "-u", "-m", module, "-m", str(kit), "-s", f"fed_{found}.json", "--set", *settings[1].split()]


def environment(**more: str) -> dict[str, str]:
    """That of a process of NVFlare, which starts its own with `python` and its environment."""
    paths = [p for p in sys.path if p and not p.endswith((".zip", "lib-dynload"))]
    kept = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    kept.setdefault("OMP_NUM_THREADS", "1")
    return {**kept, **more}


def main() -> int:
    """``admit KIT...``."""
    if len(sys.argv) < 3 or sys.argv[1] != "admit":
        print("usage: python -m pppml_nvflare.kits admit KIT...", file=sys.stderr)
        return 2
    try:
        for kit in sys.argv[2:]:
            print(admit(Path(kit).resolve()))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

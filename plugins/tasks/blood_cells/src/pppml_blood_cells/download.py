"""BloodMNIST from Zenodo, once, with checksum and progress. Optional: needs pooch, the extra ``pppml-blood-cells[download]``."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from pppml_core.errors import DataError, PluginError

#: Record 10519652, "MedMNIST+": size -> file name and md5, as the medmnist package lists them.
RECORD = "https://zenodo.org/records/10519652/files"
FILES: dict[int, tuple[str, str]] = {
    28: ("bloodmnist.npz", "7053d0359d879ad8a5505303e11de1dc"),
    64: ("bloodmnist_64.npz", "2b94928a2ae4916078ca51e05b6b800b"),
    128: ("bloodmnist_128.npz", "adace1e0ed228fccda1f39692059dd4c"),
    224: ("bloodmnist_224.npz", "b718ff6835fcbdb22ba9eacccd7b2601"),
}


def available() -> bool:
    """Whether pooch and tqdm are installed."""
    return all(importlib.util.find_spec(name) is not None for name in ("pooch", "tqdm"))


def bloodmnist(size: int, folder: str | None = None) -> Path:
    """The path of BloodMNIST in one of the sizes of ``FILES``; fetched where it is not in ``folder`` yet, verified always.

    Raises PluginError without pooch, DataError where the size does not exist, the network fails or the checksum is wrong.
    """
    if size not in FILES:
        raise DataError(f"BloodMNIST has no {size} pixel version", place="task.size", hint=f"take one of {', '.join(map(str, FILES))}")
    if not available():
        raise PluginError(
            "downloading needs pooch and tqdm, not installed here",
            place="task.download",
            hint="pip install 'pppml-blood-cells[download]', or fetch the file yourself and give `path`",
        )
    import pooch

    name, md5 = FILES[size]
    place = f"{RECORD}/{name}"
    try:
        found = pooch.retrieve(
            f"{place}?download=1",
            known_hash=f"md5:{md5}",
            fname=name,
            path=folder if folder is not None else pooch.os_cache("pppml"),
            progressbar=True,
        )
    except (OSError, ValueError) as error:  # requests' exceptions are OSErrors; a wrong checksum is a ValueError
        raise DataError(
            f"cannot be downloaded ({error})", place=place, hint="check the network, or fetch the file by hand and give its `path`"
        ) from error
    return Path(found)

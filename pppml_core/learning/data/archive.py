"""npz files, read with distrust: every fault is a DataError that names the file, the array and the remedy. Nothing is unpickled."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pppml_core.errors import DataError, nearest

Arrays = dict[str, npt.NDArray[Any]]


def read_npz(path: str | Path, need: Sequence[str] = (), optional: Iterable[str] | None = None) -> Arrays:
    """Arrays of an npz file by name.

    Args:
        path: the file.
        need: arrays that must be there.
        optional: further arrays to read where they are there; default: all others.

    Raises DataError: no such file, not an npz, truncated or damaged, a needed array missing (with the nearest name), an array of Python
    objects, NaN or infinity in floating-point pixels.

    """
    path = Path(path)
    if not path.exists():
        raise DataError("no such file", place=str(path), hint=_near_file(path))
    if path.is_dir():
        raise DataError("a folder, not an npz file", place=str(path), hint="give the path of the .npz file itself")
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise DataError("one bare array, not an npz file", place=str(path), hint="save it with numpy.savez")
            names = archive.files
            for name in need:
                if name not in names:
                    raise missing_array(name, names, path)
            wanted = names if optional is None else [*need, *(n for n in optional if n in names and n not in need)]
            return {name: _read_array(archive, name, path) for name in wanted}
    except (zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"truncated, damaged or not an npz file ({error})", place=str(path), hint="copy or download it again") from error
    except ValueError as error:
        raise DataError(f"not an npz file ({error})", place=str(path), hint="give a file made with numpy.savez") from error
    except OSError as error:
        raise DataError(f"cannot be read ({error})", place=str(path), hint="check the path and its permissions") from error


def _read_array(archive: Any, name: str, path: Path) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = archive[name]
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise DataError(f"`{name}` is truncated or damaged ({error})", place=str(path), hint="copy or download the file again") from error
    except ValueError as error:
        if "object" in str(error).lower() or "pickle" in str(error).lower():
            raise DataError(
                f"`{name}` holds Python objects, which are never unpickled",
                place=str(path),
                hint="store numbers, or strings as numpy unicode (dtype 'U'), and save again",
            ) from error
        raise DataError(f"`{name}` is truncated or damaged ({error})", place=str(path), hint="copy or download the file again") from error
    check_finite(array, name, path)
    return array


def missing_array(name: str, names: Sequence[str], path: str | Path) -> DataError:
    """The error for an array that is not in the file, with the nearest name."""
    near = nearest(name, names)
    return DataError(
        f"there is no array `{name}`; the file holds {', '.join(names) or 'nothing'}",
        place=str(path),
        hint=f"is `{near}` meant? Rename it to `{name}`" if near else f"add an array `{name}`",
    )


def check_finite(array: npt.NDArray[Any], name: str, path: str | Path) -> None:
    """Raise DataError naming the first example with NaN or infinity."""
    if not np.issubdtype(array.dtype, np.floating) or array.size == 0 or np.isfinite(array).all():
        return
    bad = ~np.isfinite(array.reshape(len(array), -1)) if array.ndim else ~np.isfinite(array.reshape(1, 1))
    first = int(np.flatnonzero(bad.any(axis=1))[0])
    raise DataError(
        f"`{name}` holds NaN or infinite values, first in example {first} ({int(bad.sum())} in all)",
        place=str(path),
        hint="remove or repair these examples",
    )


def headers(path: str | Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and dtype of each array, without reading the arrays. Raises DataError as :func:`read_npz` does."""
    path = Path(path)
    if not path.is_file():
        read_npz(path)  # raises with the right words
    found: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                if not member.endswith(".npy"):
                    continue
                with archive.open(member) as stream:
                    version = np.lib.format.read_magic(stream)
                    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                    shape, _, dtype = read(stream)
                    found[member.removesuffix(".npy")] = (shape, dtype)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise DataError(f"truncated, damaged or not an npz file ({error})", place=str(path), hint="copy or download it again") from error
    return found


def _near_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist"
    near = nearest(path.name, (p.name for p in path.parent.iterdir()))
    return f"is {near!r} in the same folder meant?" if near else "check the path; it is relative to the working directory"

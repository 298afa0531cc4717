"""Build the wheel of Pyfhel 3.5.0 once, check it and install it: ``python build_pyfhel.py FOLDER [--no-install]``.

Pyfhel is published as source only, and its build clones a library from GitHub unless it is told not to. Two recipes tell it. Where the
headers of Microsoft GSL, zlib and zstd are installed (Debian: libmsgsl-dev zlib1g-dev libzstd-dev), SEAL is built with them; elsewhere
without, which needs nothing but a C++17 compiler. This plugin works the same with both: it never asks SEAL to compress. CMake comes with
the build. The wheel stays in FOLDER; it is installed for the interpreter that runs this, which must have numpy. Nothing needs root.

Exit status 0: this interpreter has a Pyfhel that works (or, with --no-install, FOLDER has the wheel). Otherwise 1, and the reason.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

VERSION = "3.5.0"
# the source archive on the package index
SHA256 = "0375b83b5a83026924f59db25c4efa9f27e1e8a66d004658f4d24195986a04b6"

HEADERS = """#include <gsl/gsl>
#include <zlib.h>
#include <zstd.h>
int main() { return zlibVersion() == nullptr || ZSTD_versionNumber() == 0; }
"""
STANDARD = "#include <optional>\nint main() { return std::optional<int>(0).value(); }\n"
OFF = 'set({} OFF CACHE BOOL "" FORCE)\n'
CHECK = """
import numpy as np
from Pyfhel import Pyfhel
library = Pyfhel()
status = library.contextGen(scheme="bfv", n=2048, t=65537, sec=128)
assert status == "success: valid", status
library.keyGen()
total = library.encryptInt(np.array([1, -2, 3])) + library.encryptInt(np.array([10, 20, -30]))
assert library.decryptInt(total)[:3].tolist() == [11, 18, -27]
"""


class CannotBuild(Exception):
    """Why there is no Pyfhel, for a person."""


def compiles(compiler: str, program: str, *libraries: str) -> bool:
    """Whether a C++17 program compiles and links."""
    with tempfile.TemporaryDirectory() as folder:
        command = [compiler, "-std=c++17", "-x", "c++", "-", "-o", f"{folder}/program", *libraries]
        return subprocess.run(command, input=program, text=True, capture_output=True, check=False).returncode == 0


def works(folder: Path | None = None) -> str:
    """An empty text where this interpreter (with ``folder`` on its path) imports Pyfhel and adds two ciphertexts, else what happened."""
    env = {**os.environ, **({"PYTHONPATH": str(folder)} if folder else {})}
    done = subprocess.run([sys.executable, "-c", CHECK], capture_output=True, text=True, env=env, check=False)
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]


def install(wheel: Path, *options: str) -> None:
    """Have pip install a wheel, without what it depends on."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, *options, str(wheel)], check=True)


def build(compiler: str, out: Path, *, with_libraries: bool, cached: bool) -> Path:
    """The wheel by one of the recipes, in ``out``. Raises CannotBuild."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "source.txt").write_text(f"pyfhel=={VERSION} --hash=sha256:{SHA256}\n")
        switches = ["SEAL_BUILD_DEPS"] + ([] if with_libraries else ["SEAL_USE_MSGSL", "SEAL_USE_ZLIB", "SEAL_USE_ZSTD"])
        (folder / "seal.cmake").write_text("".join(OFF.format(switch) for switch in switches))
        env = {**os.environ, "CXX": compiler, "CMAKE_TOOLCHAIN_FILE": str(folder / "seal.cmake")}
        env.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(min(4, os.cpu_count() or 1)))
        if with_libraries:  # the compiler drops libraries that are named before the objects that use them
            env["LDFLAGS"] = f"{env.get('LDFLAGS', '')} -Wl,--no-as-needed -lz -lzstd"
        command = [sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check", "--no-deps", "--no-binary", "pyfhel"]
        command += ["-r", str(folder / "source.txt"), "-w", name] + ([] if cached else ["--no-cache-dir"])
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
        wheels = list(folder.glob("[Pp]yfhel-*.whl"))
        if done.returncode or not wheels:
            tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-25:])
            raise CannotBuild(f"the build of Pyfhel {VERSION} failed:\n{tail}")
        trial = folder / "trial"
        install(wheels[0], "--no-index", "--target", str(trial))
        if problem := works(trial):
            raise CannotBuild(f"Pyfhel was built but does not work: {problem}")
        out.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(wheels[0], out / wheels[0].name))


def wheel(out: Path) -> Path:
    """A wheel for this interpreter in ``out``: the one that is there, or a new one. Raises CannotBuild."""
    if ready := sorted(out.glob(f"[Pp]yfhel-{VERSION}-cp{sys.version_info.major}{sys.version_info.minor}-*.whl")):
        return ready[-1]
    compiler = next((c for c in (os.environ.get("CXX"), "g++", "clang++", "c++") if c and shutil.which(c)), None)
    if compiler is None:
        raise CannotBuild("no C++ compiler was found (g++, clang++ or c++). Debian and Ubuntu have it in the package g++.")
    if not compiles(compiler, STANDARD):
        raise CannotBuild(f"{compiler} does not compile C++17.")
    full = compiles(compiler, HEADERS, "-lz", "-lzstd")
    # pip may hold a wheel that was built otherwise, and system libraries may not be what they seem: the plain recipe, afresh, decides
    problem = CannotBuild("")
    for with_libraries, cached in [(True, True)] * full + [(False, not full), (False, False)]:
        what = "with the GSL, zlib and zstd of this system" if with_libraries else "without further libraries"
        print(f"building Pyfhel {VERSION} with {compiler}, {what}: a few minutes, once", flush=True)
        start = time.perf_counter()
        try:
            made = build(compiler, out, with_libraries=with_libraries, cached=cached)
        except CannotBuild as error:
            problem = error
            continue
        print(f"built in {time.perf_counter() - start:.0f} s: {made}", flush=True)
        return made
    raise problem


def sound(path: Path) -> bool:
    """Whether a wheel is whole: an install that was cut off may have left a part of one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError):
        return False


def main() -> int:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the wheel is kept")
    parser.add_argument("--no-install", action="store_true", help="only build and check the wheel")
    options = parser.parse_args()
    if not options.no_install and not works():
        return 0
    try:
        ready = wheel(options.folder)
        if not sound(ready):
            print(f"{ready} is damaged; it is built anew", flush=True)
            ready.unlink()
            ready = wheel(options.folder)
        if not options.no_install:
            install(ready)
            if problem := works():
                raise CannotBuild(f"{ready} does not work here: {problem}")
    except (CannotBuild, subprocess.CalledProcessError) as error:
        print(f"Pyfhel {VERSION} cannot be built here: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

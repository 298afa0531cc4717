"""Print the installed third-party versions as pip constraints: what ``make constraints`` writes to requirements/constraints.txt.

Local version labels (``torch==2.13.0+cpu``) are dropped: ``torch==2.13.0`` is met by every build of that release.
"""

from __future__ import annotations

from importlib.metadata import distributions

from packaging.utils import canonicalize_name
from packaging.version import Version

HEADER = """\
# The exact versions this repository is tested with. Written by `make constraints`; do not edit by hand.
# Packages bound their own dependencies only loosely; this file is for a checkout."""


def main() -> None:
    """Print the header and one ``name==version`` a line, sorted by name."""
    versions = {canonicalize_name(d.metadata["Name"]): Version(d.version).public for d in distributions()}
    tested = {name: version for name, version in versions.items() if not name.startswith("pppml-") and name != "pip"}
    print(HEADER)
    for name in sorted(tested):
        print(f"{name}=={tested[name]}")


if __name__ == "__main__":
    main()

"""``python -m pppml_core.cli``: the command line where the package is not installed."""

from pppml_core.cli import main

main()

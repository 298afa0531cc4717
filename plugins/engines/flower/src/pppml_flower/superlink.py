"""``python -m pppml_flower.superlink``: ``flower-superlink`` with its arguments, that ends with the process that started it."""

from __future__ import annotations

from pppml_flower.gate import end_with_parent

if __name__ == "__main__":
    from flwr.superlink.cli import flower_superlink

    end_with_parent()
    flower_superlink()

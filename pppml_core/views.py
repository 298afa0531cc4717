"""What API results look like: a table in a terminal, HTML in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pppml_core.federation.plan import Plan


class View:
    """Shows ``__rich__`` as text and as HTML."""

    def __rich__(self) -> Any:
        raise TypeError(f"{type(self).__name__} does not say how it looks")

    def __str__(self) -> str:
        return str(_recorded(self).export_text())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return str(_recorded(self).export_html(inline_styles=True, code_format="<pre style='font-family:monospace'>{code}</pre>"))


def _recorded(view: View) -> Any:
    import io

    from rich.console import Console

    console = Console(width=140, record=True, file=io.StringIO(), force_jupyter=False)
    console.print(view)
    return console


class PlanView(View):
    """A plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @property
    def misfits(self) -> list[str]:
        """Why it is refused; empty: it can run."""
        return self.plan.misfits

    def to_dict(self) -> dict[str, Any]:
        """As ``plan.json``."""
        return self.plan.to_dict()

    def __rich__(self) -> Any:
        from pppml_core.report.plan_view import plan_tables

        return plan_tables(self.to_dict())


class CardView(View):
    """A data card; ``card`` is plain data."""

    def __init__(self, card: Mapping[str, Any]) -> None:
        self.card = card

    def __rich__(self) -> Any:
        from pppml_core.report.plan_view import card_tables

        return card_tables(self.card)


class Rows(list[dict[str, Any]]):
    """Metric rows that show as a table in a notebook."""

    def _repr_html_(self) -> str:
        from pppml_core.report.tables import to_html

        return to_html(list(self))

"""A plan as rich tables: first line, misfits, pipeline, bytes, guarantees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def plan_tables(plan: Mapping[str, Any]) -> Any:
    """A rich renderable of ``plan.json``."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    parts: list[Any] = [f"[bold]{escape(plan['headline'])}[/bold]"]
    parts += [f"[red]refused:[/red] {escape(text)}" for text in plan["misfits"]]
    parts += [f"[yellow]note:[/yellow] {escape(text)}" for text in plan["warnings"]]
    if plan["sites"]:
        sites = Table("site", "train", "validation", "test", title="data", title_justify="left")
        for s in plan["sites"]:
            sites.add_row(escape(s["name"]), *(f"{s[k]:,}" if k in s else "at the site" for k in ("train", "validation", "test")))
        parts.append(sites)
    if plan["stages"]:
        stages = Table("stage", "takes", "gives", "who sees it", title="one round", title_justify="left")
        for s in plan["stages"]:
            stages.add_row(*(escape(s[k]) for k in ("name", "takes", "gives", "seen_by")))
        parts.append(stages)
    if plan["bytes"]:
        b = plan["bytes"]
        stages_text = ", ".join(f"{k} {v:,}" for k, v in b["by_stage"].items()) or "nothing"
        parts.append(
            f"bytes per site and round: up about {b['up_per_site_round']:,} ({stages_text}), down about {b['down_per_site_round']:,}"
        )
    if plan.get("measured"):
        parts.append("measured here: " + ", ".join(f"{name} {seconds:.3g} s" for name, seconds in plan["measured"].items()))
    if plan["guarantees"]:
        g = plan["guarantees"]
        table = Table("guarantee", "", title="who learns what", title_justify="left", show_header=False)
        table.add_row("sees the sum", ", ".join(g["sees_sum"]) or "nobody")
        table.add_row("sees one site's update", ", ".join(g["sees_update"]) or "nobody")
        table.add_row("sees one site's weight", ", ".join(g["sees_weight"]) or "nobody")
        table.add_row("sites that may vanish in a round", str(g["dropouts"]))
        table.add_row("largest curious coalition that learns only the sum", str(g["coalition_curious"]))
        table.add_row("largest lying coalition that learns only the sum", str(g["coalition_active"]))
        table.add_row("adversary", escape(g["adversary"]))
        for text in g["assumes"]:
            table.add_row("assumes", escape(text))
        parts.append(table)
    return Group(*parts)


def card_tables(card: Mapping[str, Any]) -> Any:
    """A rich renderable of a data card with counts."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    parts: list[Any] = [f"[bold]{escape(card['title'])}[/bold] ({card['kind']})", escape(card["about"])]
    parts += [f"licence: {escape(card['licence'])}", f"how to get it: {escape(card['how_to_get'])}"]
    parts += [f"cite: {escape(text)}" for text in card["cites"]]
    parts += [f"[yellow]caution:[/yellow] {escape(text)}" for text in (*card["cautions"], *card["warnings"])]
    what = "classes" if card["kind"] == "classification" else "foreground"
    table = Table(
        "site", "split", "examples", "patients or groups", what, title=f"{' x '.join(map(str, card['size']))}", title_justify="left"
    )
    for site in card["sites"]:
        for split in ("train", "validation", "test"):
            counts = site[split]
            values = counts.get(what) or {}
            shown = ", ".join(f"{n} {v:.2%}" if isinstance(v, float) else f"{n} {v:,}" for n, v in values.items())
            table.add_row(escape(site["name"]), split, f"{counts['examples']:,}", f"{counts['groups']:,}", escape(shown))
    parts.append(table)
    return Group(*parts)

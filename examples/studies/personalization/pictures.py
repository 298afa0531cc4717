"""One picture for each task: every method's score at every site, with intervals; and one for each task with a site that comes later."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: A method keeps its colour and its mark on all pictures. Colours: Okabe and Ito 2008.
STYLES = {
    "local-only": ("#000000", "s"),
    "fedavg": ("#999999", "o"),
    "fedprox": ("#F0E442", "o"),
    "fedavg-finetune": ("#0072B2", "o"),
    "per-fedavg": ("#D55E00", "D"),
    "per-fedavg (hessian-free)": ("#D55E00", "d"),
    "ditto": ("#009E73", "^"),
    "fedper": ("#CC79A7", "v"),
    "fedrep": ("#CC79A7", "<"),
    "fedbn (group normalization)": ("#56B4E9", ">"),
    "apfl": ("#009E73", "P"),
    "from scratch": ("#000000", "s"),
}


def draw(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """All pictures as PNG files; their paths."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    out = [task_picture(name, task, folder / f"{name}.png") for name, task in results["tasks"].items()]
    return out + [later_picture(name, sites, folder / f"{name}-new-site.png") for name, sites in results["new_site"].items()]


def task_picture(name: str, task: Mapping[str, Any], path: Path) -> Path:
    """Dots with intervals: a group for each site and one for their mean."""
    from matplotlib import pyplot as plt

    rows, sites = task["rows"], task["sites"]
    groups = [
        ("mean of sites", None),
        *((f"{site['name'].replace('_', ' ')}\n{site['train']} training images", slug) for slug, site in sites.items()),
    ]
    figure, axes = plt.subplots(figsize=(2.2 + 1.55 * len(groups), 4.2), layout="constrained")
    for i, (row, found) in enumerate(rows.items()):
        colour, mark = STYLES.get(row, ("#555555", "o"))
        offset = (i - (len(rows) - 1) / 2) * 0.8 / len(rows)
        for g, (_, slug) in enumerate(groups):
            value = found["mean"] if slug is None else found["sites"][slug]
            one_dot(axes, g + offset, value, colour, mark, row if g == 0 else None)
    axes.set_xticks(range(len(groups)), [wrapped(label) for label, _ in groups], fontsize=8)
    axes.axvspan(-0.5, 0.5, color="#f2f2f2", zorder=0)
    axes.set_xlim(-0.5, len(groups) - 0.5)
    axes.set_ylabel(f"test {task['metric']}")
    axes.set_title(f"{name}: {task['about']}", fontsize=10)
    return finished(figure, axes, path)


def later_picture(name: str, sites: Mapping[str, Any], path: Path) -> Path:
    """Score against the number of images, a panel for each site that was left out."""
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(sites), figsize=(1.8 + 3.4 * len(sites), 3.8), layout="constrained", sharey=True, squeeze=False)
    for axes, (site, found) in zip(panels[0], sites.items(), strict=True):
        counts = sorted(found["examples"], key=int)
        models = list(dict.fromkeys(m for count in counts for m in found["examples"][count]))
        for i, model in enumerate(models):
            colour, mark = STYLES.get(model, ("#555555", "o"))
            at = [
                (x + (i - (len(models) - 1) / 2) * 0.12, found["examples"][c][model])
                for x, c in enumerate(counts)
                if model in found["examples"][c]
            ]
            axes.plot([x for x, _ in at], [v["estimate"] for _, v in at], color=colour, linewidth=1, alpha=0.6)
            for j, (x, value) in enumerate(at):
                one_dot(axes, x, value, colour, mark, model if j == 0 else None)
        axes.set_xticks(range(len(counts)), ["as it is" if c == "0" else c for c in counts])
        axes.set_xlabel("training images of the new site")
        axes.set_title(f"{name}, without {site.replace('_', ' ')}", fontsize=9)
    panels[0][0].set_ylabel(f"test {next(iter(sites.values()))['metric']} at the new site")
    return finished(figure, panels[0][-1], path)


def one_dot(axes: Any, x: float, value: Mapping[str, Any], colour: str, mark: str, label: str | None) -> None:
    """An estimate with its interval."""
    estimate, low, high = value["estimate"], value["low"], value["high"]
    below, above = (0.0, 0.0) if low is None else (max(0.0, estimate - low), max(0.0, high - estimate))
    axes.errorbar(
        x, estimate, [[below], [above]], color=colour, marker=mark, markersize=5, markeredgecolor="black", markeredgewidth=0.4,
        elinewidth=1.2, linestyle="none", label=label,
    )  # fmt: skip


def wrapped(label: str) -> str:
    """In lines that do not run into each other."""
    import textwrap

    return "\n".join(line for part in label.split("\n") for line in textwrap.wrap(part, 17))


def finished(figure: Any, axes: Any, path: Path) -> Path:
    """Grid, legend, file."""
    from matplotlib import pyplot as plt

    for one in figure.axes:
        one.grid(axis="y", linewidth=0.4)
        one.set_axisbelow(True)
        for side in ("top", "right"):
            one.spines[side].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path

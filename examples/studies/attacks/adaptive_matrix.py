"""Is an attacker who knows the defence ever worse off for it? `idlg` with and without that knowledge, on every defence of the matrix.

    python examples/studies/attacks/adaptive_matrix.py --out runs/adaptive --page docs/results/adaptive.md

Every cell of `idlg` in the matrix is tried, at the untrained model: the same victims, the same held rounds, noise and all, the same seeds.
A cell is worse where the adaptive attack is more than 0.5 dB behind the blind one, paired victim by victim: Wilcoxon's signed-rank test,
one-sided at 1 % over all cells (Holm). An interrupted study goes on when the command is given again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

# One torch thread: what seconds mean depends on it. Before anything imports torch.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from scipy.stats import permutation_test, rankdata

from pppml_core.errors import ConfigError
from pppml_core.evidence.attacks import bound
from pppml_core.evidence.evaluate import Evaluation
from pppml_core.evidence.found import Cell, Control, Effort, Found
from pppml_core.evidence.vantage import read_vantage
from pppml_core.federation.plan import make_plan
from pppml_core.learning.arrays import to_numpy
from pppml_core.matrix import AttackRow, MatrixConfig, experiment_of, load_matrix
from pppml_core.registry import Registry

ROOT = Path(__file__).resolve().parents[3]
ATTACK = "idlg"
#: dB by which the adaptive attack may be behind, and the level of all cells together.
MARGIN, LEVEL = 0.5, 0.01
#: seconds that no answer takes, where evaluations decide.
AMPLE = 1e6
#: up to 16 victims the test goes through all signs.
SIGNS = 2**16


@dataclass(frozen=True)
class Place:
    """A defence, and who looks."""

    defence: str
    vantage: str


@dataclass(frozen=True)
class Measured:
    """PSNR in dB of every victim, with and without knowledge of the defence; ``misfit``: why there is none.

    ``persons``: whose image each is. ``evaluations``: of gradients, in all; on a busy machine seconds buy fewer.
    """

    place: Place
    adaptive: list[float]
    blind: list[float]
    persons: list[str]
    evaluations: float = 0.0
    misfit: str = ""

    @property
    def gains(self) -> list[float]:
        """Of knowing the defence, in dB."""
        return [a - b for a, b in zip(self.adaptive, self.blind, strict=True)]


# -- what is measured -----------------------------------------------------------------------------------------------------------------


def places(config: MatrixConfig) -> Iterator[tuple[Place, AttackRow]]:
    """The matrix's cells of the attack. Raises ConfigError where one is not at the untrained model, for which no run is needed."""
    for name in config.defences:
        for row in config.attacks:
            if row.use != ATTACK or not row.tries(name):
                continue
            if row.rounds != (1,):
                raise ConfigError(f"{ATTACK} is tried in rounds {row.rounds}", place=name, hint="this study is of rounds: [1]")
            for vantage in row.vantages:
                yield Place(name, vantage), row


class _Paired(Evaluation):
    """Asks each question once: a sum that adds exactly is the same sum whatever keys it was added under, and so is the answer.

    Only where evaluations end a search; one that time ends has answers of its own.
    """

    remembered: ClassVar[dict[bytes, Any]] = {}

    def _answer(self, asked: Any, attacker: Any, blind: dict[str, Any]) -> Any:
        key = _named(asked)
        if key not in self.remembered:
            self.remembered[key] = super()._answer(asked, attacker, blind)
        return replace(self.remembered[key], asked=asked)


def _named(asked: Any) -> bytes:
    """By all that an answer depends on."""
    view, about = asked.question.view, asked.question.knowledge
    digest = hashlib.sha256(repr((asked.one.cell.attack, asked.number, about.defence, about.training, about.seed)).encode())
    for name in sorted(view.last.weights):
        digest.update(np.asarray(view.last.weights[name]).tobytes())
    for sight in view.last.sights:
        digest.update(repr(sight.sites).encode() + b"".join(np.asarray(sight.update[n]).tobytes() for n in sorted(sight.update)))
    return digest.digest()


class _Uncontrolled(dict[str, Control]):
    """In place of the evaluation's controls: whether the attack works at all is not asked here."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> Control:
        return Control({})


def measure(config: MatrixConfig, place: Place, row: AttackRow, effort: Effort, registry: Registry, live: bool = False) -> Measured:
    """One cell. Raises ConfigError where the attack fails for a victim: a pair would be missing."""
    experiment = experiment_of(config, place.defence, registry)
    plan = make_plan(experiment.config, registry)
    plan.refuse_misfits()
    parts = plan.assembly
    assert parts is not None
    if config.watched is None:
        raise ConfigError("it names no site that is attacked in every cell", place="watched", hint="watched: SITE")
    weights, who = to_numpy(parts.initial_weights), read_vantage(place.vantage, list(plan.sizes))
    kind = _Paired if row.settings.get("evaluations") else Evaluation
    made = kind(parts, plan.sizes, weights, 1, config.watched, effort, live=live, controls=_Uncontrolled())
    cells = [Cell(bound(parts, {**row.settings, "adaptive": told}), who) for told in (True, False)]
    adaptive, blind = made.run(cells)
    if misfit := adaptive.misfit or blind.misfit:
        return Measured(place, [], [], [], misfit=misfit)
    if errors := [*adaptive.errors, *blind.errors]:
        raise ConfigError(f"the attack failed for {len(errors)} victims: {errors[0]}", place=f"{place.defence}, {place.vantage}")
    spent = sum(e.get("evaluations", 0.0) for one in (adaptive, blind) for e in one.efforts)
    return Measured(place, _decibel(adaptive), _decibel(blind), [s["person"] for s in adaptive.scores], spent)


def _decibel(found: Found) -> list[float]:
    return [float(score["psnr"][0]) for score in found.scores]


# -- what is decided ------------------------------------------------------------------------------------------------------------------


def worse(gains: Sequence[float], margin: float = MARGIN) -> float:
    """Probability that gains whose median is at least ``-margin`` come out so far below it by chance: Wilcoxon's signed-rank test.

    Exact over all signs for up to 16 victims, ties and all; over 65,536 drawn ones for more.
    """
    above = np.asarray(gains, np.float64) + margin
    ranks = np.sign(above) * rankdata(np.abs(above))
    settings = {"permutation_type": "samples", "alternative": "less", "n_resamples": SIGNS, "vectorized": True}
    return float(permutation_test((ranks,), np.sum, rng=np.random.default_rng(0), **settings).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979): a cell is significant at a level, over all cells, where its own is at most that."""
    order = np.argsort(p)
    scaled = np.asarray(p, np.float64)[order] * np.arange(len(p), 0, -1)
    out = np.empty(len(p))
    out[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return [float(one) for one in out]


def enough(cells: int, level: float = LEVEL) -> int:
    """The fewest victims with which a cell that is worse for every one of them is found to be, whatever the other cells show."""
    victims = 1
    while 0.5**victims * cells > level:
        victims += 1
    return victims


def judged(found: Sequence[Measured]) -> list[tuple[Measured, float]]:
    """The cells in which the attack had something to work on, each with its adjusted p-value."""
    tried = [one for one in found if one.gains]
    return list(zip(tried, holm([worse(one.gains) for one in tried]), strict=True))


def page(found: Sequence[Measured], effort: Effort, matrix: str, evaluations: int | None = None) -> str:
    """What came out, in Markdown; the first paragraph answers the question. ``evaluations``: of an answer, where they end it."""
    each = f"with at most {effort.seconds:g} s an answer" if evaluations is None else f"with {evaluations:,} gradients an answer"
    cells = judged(found)
    tried, bad = [one for one, _ in cells], [one.place for one, p in cells if p <= LEVEL]
    fewest, needed = min((len(one.gains) for one in tried), default=0), enough(len(tried))
    if bad:
        answer = f"**Worse in {len(bad)} of {len(tried)} cells**: {', '.join(f'{b.defence} from {b.vantage}' for b in bad)}."
    elif fewest < needed:
        answer = f"**This cannot tell**: with {fewest} victims nothing would be significant; {len(tried)} cells need at least {needed}."
    else:
        answer = f"**In none of {len(tried)} cells is the adaptive attack significantly worse than the blind one.**"
    lines = [_line(one, p) for one, p in cells]
    without = [f"- {one.place.defence} from `{one.place.vantage}`: {one.misfit}." for one in found if one.misfit]
    return "\n".join(
        [
            "# Does knowing the defence ever hurt the attacker?",
            "",
            answer,
            "",
            f"`{ATTACK}` on the cells of `{matrix}`, once told of clip, noise and rounding and once not (`adaptive: false`), on the same",
            f"victims and held rounds, {each}. PSNR in dB, medians over victims; a gain is of one",
            f"victim. p: of gains below -{MARGIN:g} dB (Wilcoxon's signed-rank test, one-sided), adjusted for {len(tried)} cells (Holm);",
            f"worse means at most {LEVEL:g}. Victims of one patient are not independent; beside their number stands that of patients.",
            "",
            "| defence | who looks | victims (patients) | adaptive | blind | gain | least gain | p |",
            "|---|---|---:|---:|---:|---:|---:|---:|",
            *lines,
            *(["", "Not tried, because the attack has nothing to work on:", "", *without] if without else []),
            "",
            f"Made by `examples/studies/attacks/adaptive_matrix.py`; {sum(one.evaluations for one in tried):,.0f} gradients in all.",
            "",
        ]
    )


def _line(one: Measured, p: float) -> str:
    medians = [f"{statistics.median(values):{sign}.1f}" for values, sign in ((one.adaptive, ""), (one.blind, ""), (one.gains, "+"))]
    who = f"{one.place.defence} | `{one.place.vantage}` | {len(one.gains)} ({len(set(one.persons))})"
    return f"| {who} | {' | '.join(medians)} | {min(one.gains):+.1f} | {p:.3g} |"


# -- the study ------------------------------------------------------------------------------------------------------------------------


def main(arguments: list[str] | None = None) -> int:
    """Measure what is missing, write the page; 1 where a cell is worse."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(1)
    config, registry = load_matrix(options.matrix), Registry.discover()
    given = config.effort
    seconds = options.seconds or (given.seconds if options.evaluations is None else AMPLE)
    effort = Effort(optimized=options.victims, seconds=seconds, gallery=given.gallery, seed=given.seed)
    most = {} if options.evaluations is None else {"evaluations": options.evaluations}
    wanted = options.defences.split(",") if options.defences else list(config.defences)
    chosen = [(p, AttackRow(**{**row.model_dump(), **most})) for p, row in places(config) if p.defence in wanted]
    found = []
    for number, (place, row) in enumerate(chosen, 1):
        path = options.out / f"{place.defence}-{place.vantage.replace(':', '_').replace('+', '_')}.json"
        asked = {"place": asdict(place), "settings": row.settings, "effort": asdict(effort)}
        one = _held(path, asked)
        if one is None:
            one = measure(config, place, row, effort, registry)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"asked": asked, "measured": asdict(one)}, indent=1), "utf-8")
        found.append(one)
        told = one.misfit or f"median gain {statistics.median(one.gains):+.1f} dB, least {min(one.gains):+.1f} dB"
        print(f"[{number}/{len(chosen)}] {place.defence} from {place.vantage}: {told}", flush=True)
    path = options.matrix.resolve()
    text = page(found, effort, str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name), options.evaluations)
    options.page.parent.mkdir(parents=True, exist_ok=True)
    options.page.write_text(text, "utf-8")
    print(text)
    return int(any(p <= LEVEL for _, p in judged(found)))


def _held(path: Path, asked: Mapping[str, object]) -> Measured | None:
    """What an earlier call measured, if it was asked for the same."""
    if not path.is_file():
        return None
    held = json.loads(path.read_text("utf-8"))
    if held["asked"] != json.loads(json.dumps(asked)):
        return None
    measured = held["measured"]
    return Measured(**{**measured, "place": Place(**measured["place"])})


def parser() -> argparse.ArgumentParser:
    """Of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--matrix", type=Path, default=ROOT / "examples" / "evidence" / "matrix.yaml")
    made.add_argument("--out", type=Path, default=Path("runs/adaptive"), help="a file for each cell; what is there is not measured again")
    made.add_argument("--page", type=Path, default=Path("docs/results/adaptive.md"))
    made.add_argument("--victims", type=int, default=12, help="of each cell")
    made.add_argument("--seconds", type=float, default=None, help="of one answer; default: the matrix's, none with --evaluations")
    made.add_argument("--evaluations", type=int, default=None, help="gradients of one answer, whatever time they take; default: none")
    made.add_argument("--defences", default="", help="some of the matrix's, by commas; default: all")
    return made


if __name__ == "__main__":
    sys.exit(main())

"""The sentences of the report. Each is made from what the records hold; what they do not hold is said to be missing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pppml_core.federation.secret_record import SECRETS, WARNING
from pppml_core.interfaces.privacy import CONDITIONS
from pppml_core.known import known
from pppml_core.report.columns import Column, comparable, shared_sites
from pppml_core.report.records import Record, RunRecords, flat, items
from pppml_core.report.tables import number

NOT_RECORDED = "not recorded"
KINDS = {"classification": "to classify images", "segmentation": "to outline regions in images"}
FAMILIAR = {"plain": "plain sum, in the clear", "fedavg": "federated averaging (no personalization)", "none": "none"}


def alerts(main: Column, found: Sequence[Column]) -> list[tuple[str, str]]:
    """What must be read first, as ``(level, sentence)``: unfinished runs, insecure modes, updates in the clear."""
    out = [("bad", unfinished(run)) for column in _main_first(main, found) for run in column.runs if not run.finished]
    asked = sorted({path for column in found for run in column.runs for path in insecure_settings(run)})
    out += [("bad", f"Insecure mode: {path} was asked for. What this run sent protects nobody.") for path in asked]
    out += [("bad", f"{WARNING}.")] if any(_keeps_secrets(run) for column in found for run in column.runs) else []
    federated = [column for column in found if column.role == "federated"]
    if main.role == "federated" and (seen := guarantees(main.first).get("sees_update")):
        same = [column.label for column in federated if guarantees(column.first).get("sees_update") == seen]
        of = "" if len(same) == len(federated) else f" ({', '.join(same)})"
        hides = f"the aggregator hides no site's contribution from {_them(seen)}{of}"
        out.append(("bad", f"{capital(_who(seen))} {_verb(seen)} every update: {hides}."))
    return out


def _keeps_secrets(run: RunRecords) -> bool:
    return run.part("config", "run").get("transcript") == SECRETS


def unfinished(run: RunRecords) -> str:
    """The first line of a report on a run without a result."""
    planned = f" of {run.rounds_planned}" if run.rounds_planned else ""
    failed = run.told("run-failed")
    why = f" It failed: {_sentence(failed[-1].get('error'))}" if failed else " No result was written."
    figures = (
        f" Its figures are those of round {run.final.round}, not final ones." if run.final.round is not None else " It has no figures yet."
    )
    return f"Unfinished: run {run.name} stands after {run.rounds_done}{planned} rounds.{why}{figures}"


def insecure_settings(run: RunRecords) -> list[str]:
    """Configuration paths that switch on an insecure mode."""
    return [path for path, value in flat(run.config).items() if any(p.startswith("insecure") for p in path.split(".")) and value]


def headline(column: Column) -> list[str]:
    """What was run, in plain words."""
    run = column.first
    task, model, sites = run.part("plan", "task"), run.part("plan", "model"), items(run.plan.get("sites"))
    count = len(sites) or len(run.final.site_names)
    net = f"{model.get('name') or run.part('config', 'model').get('use') or 'model'}"
    net += f" of {model['parameters']:,} parameters" if isinstance(model.get("parameters"), int) else ""
    who = {
        "centralized": f"On the images of {count} sites, put in one place, a {net} was trained",
        "local-only": f"{count} sites, each on its own, trained a {net}",
    }.get(column.role, f"{count} sites together trained a {net}")
    name = run.part("config", "task").get("use")
    purpose = " ".join(text for text in (_rounds(run), KINDS.get(str(task.get("kind")), ""), f"(task {name})" if name else "") if text)
    held = [s.get("train") or 0 for s in sites]
    first = f"{who} {purpose}."
    parts = [first]
    if any(held) and all(isinstance(n, int) for n in held):
        parts.append(f"They hold {sum(held):,} training examples in all, between {_span(held)} a site.")
    if classes := task.get("classes"):
        parts.append(f"Classes: {', '.join(map(str, classes))}.")
    chosen = [(kind, run.part("config", kind).get("use")) for kind in ("personalization", "aggregator", "privacy")]
    if any(use for _, use in chosen) and column.role == "federated":
        parts.append(capital("; ".join(f"{kind}: {_familiar(kind, str(use))}" for kind, use in chosen if use)) + ".")
    seeds = [str(r.seed) for r in column.runs if r.seed is not None]
    if seeds:
        parts.append(f"Seed{'s' if len(seeds) > 1 else ''}: {', '.join(seeds)}.")
    return parts


def _familiar(kind: str, use: str) -> str:
    """A component's name with what it does, where the catalogue knows it."""
    if use in FAMILIAR:
        return FAMILIAR[use]
    entry = known(kind, use)
    return f"{use} ({entry.summary})" if entry else use


def guarantees(run: RunRecords) -> Record:
    """What the aggregator promised, from the result or else from the plan."""
    return run.part("result", "guarantees") or run.part("plan", "guarantees")


def guarantee_words(column: Column) -> list[tuple[str, str]]:
    """What the aggregator promises, as ``(question, answer)``."""
    if column.role == "local-only":
        return [("What is shared", "Nothing of the model: every site trains alone.")]
    if column.role == "centralized":
        return [("What is shared", "Everything: the images of all sites lie in one place.")]
    promised = guarantees(column.first)
    if not promised:
        return [("Who sees what", f"{NOT_RECORDED.capitalize()}: neither the plan nor the result holds guarantees.")]
    return [
        ("Who learns the sum over the sites", _people(promised.get("sees_sum"))),
        ("Who sees the update of a single site", _people(promised.get("sees_update"))),
        ("Who sees the weight of a single site", _people(promised.get("sees_weight"))),
        ("Sites that may vanish in a round", _dropouts(promised.get("dropouts"))),
        ("Largest coalition that learns only the sum", _coalition(promised)),
        ("Adversary", capital(str(promised.get("adversary") or NOT_RECORDED))),
        ("Holds only if", capital("; ".join(map(str, promised.get("assumes") or ())) or "no assumption is recorded")),
        ("Arithmetic", _arithmetic(promised.get("arithmetic"))),
    ]


def privacy(run: RunRecords) -> Record:
    """The privacy statement, from the result or else from the plan."""
    return run.part("result", "privacy") or run.part("plan", "privacy")


def privacy_words(run: RunRecords) -> tuple[str, list[tuple[str, str]]]:
    """One sentence, and for a claimed epsilon everything such a claim must name."""
    claim = privacy(run)
    if not claim:
        return "No privacy record was written, so no differential privacy is claimed.", []
    mechanism = claim.get("mechanism") or claim.get("use") or NOT_RECORDED
    epsilon = claim.get("epsilon")
    if not isinstance(epsilon, int | float):
        return (
            f"No differential privacy is claimed (mechanism: {mechanism}). What the model reveals about single images is not bounded.",
            [],
        )
    values = {key: NOT_RECORDED if claim.get(key) in (None, "") else _short(claim[key]) for key in CONDITIONS}
    sentence = (
        f"Differential privacy is claimed for the whole run: epsilon = {_short(epsilon)} per {values['unit']}, delta = {values['delta']}."
    )
    rows = [("epsilon", _short(epsilon)), *values.items(), ("mechanism", str(mechanism))]
    details = claim.get("details")
    if isinstance(details, Mapping) and (claimed := details.get("claimed_epsilon")) is not None:
        rows.insert(1, ("claimed by the authors of this setting", _short(claimed)))
    return sentence, rows


def bracket_words(found: Sequence[Column], metric: str | None) -> list[str]:
    """Where the federated columns stand between the two brackets, and what the distances mean."""
    if metric is None or len(found) < 2:
        return []
    found, left_out = comparable(found)
    alone, pooled = (next((c for c in found if c.role == role), None) for role in ("local-only", "centralized"))
    out = [f"Not compared: {'; '.join(f'{c.label} ({reason})' for c, reason in left_out)}."] if left_out else []
    sites, any_has = shared_sites(_scored(c, metric) for c in found)
    over = None if len(sites) == any_has else sites
    for column in (c for c in found if c.role == "federated"):
        here, below, above = (_mean(c, metric, over) for c in (column, alone, pooled))
        if math.isnan(here):
            continue
        parts = []
        if not math.isnan(below):
            gain = {1: ": what the sites gain by training together", -1: ": what the sites lose by training together"}.get(
                _sign(here - below), ""
            )
            parts.append(f"{_apart(here - below)} local-only ({number(below)}){gain}")
        if not math.isnan(above):
            gap = {1: "", 0: "", -1: ": what training apart still costs"}[_sign(here - above)]
            parts.append(f"{_apart(here - above)} centralized training ({number(above)}){gap}")
        if parts:
            where = "" if over is None else f" over the {len(sites)} of {any_has} sites that all columns have"
            out.append(f"{column.label} reaches a mean {metric} of {number(here)}{where}. It lies {'; it lies '.join(parts)}.")
    work = {c.label: gradients for c in found if (gradients := _example_gradients(c.first))}
    if work and max(work.values()) > 1.2 * min(work.values()):
        told = ", ".join(f"{label} about {gradients:,}" for label, gradients in work.items())
        out.append(f"They were not trained equally long, which is part of the distances. Gradients of single examples: {told}.")
    return out


def interval_words(found: Sequence[Column]) -> str:
    """What the brackets behind a value are, and over what the means are where columns have different sites."""
    seeds = {column.label: len(column.runs) for column in found}
    sites, any_has = shared_sites({s for run in c.runs for s in run.final.site_names} for c in found)
    own = "" if len(sites) == any_has else " Each mean is over its column's own sites, which differ."
    if all(n < 2 for n in seeds.values()):
        return f"One seed each: the values have no interval, and small differences mean nothing.{own}"
    told = ", ".join(f"{label} {n}" for label, n in seeds.items())
    return f"In brackets: 95 % Student interval over seeds ({told}). It covers seeds only, not the choice of patients.{own}"


def happenings(run: RunRecords) -> list[str]:
    """Warnings of plan and run, sites lost, rounds aborted, files damaged."""
    out = [str(w) for w in run.plan.get("warnings") or ()]
    out += [str(event.get("text", "")) for event in run.told("warning")]
    lost = Counter((str(e.get("site")), str(e.get("reason"))) for e in run.told("site-lost"))
    out += [f"Site {run.site_names.get(site, site)} was lost {_times(n)}: {reason}." for (site, reason), n in lost.items()]
    out += [
        f"Round {e.get('round', '?')}, attempt {e.get('attempt', '?')} ended without a sum: {_sentence(e.get('reason'))} "
        f"Next: {e.get('next', NOT_RECORDED)}."
        for e in run.told("round-aborted")
    ]
    out += [f"{damage}." for damage in run.damaged]
    return [f"{text} ({_times(n)})" if n > 1 else text for text, n in Counter(out).items()]


def not_evaluated(main: Column, found: Sequence[Column]) -> list[str]:
    """What this page cannot tell."""
    run, out = main.first, []
    given = {column.role for column in found}
    if main.role == "federated":
        out += ["The local-only bracket: no run with personalization local-only was given."] if "local-only" not in given else []
        out += ["The centralized bracket: no run with task.pool true was given."] if "centralized" not in given else []
    if len(main.runs) < 2:
        out.append("The spread over seeds: one run was given.")
    elif (seeds := len(main.runs)) < 5:
        out.append(f"The spread over seeds beyond {seeds}: intervals from so few are wide and rough.")
    if not run.final.metrics:
        out.append("Any metric: none was recorded.")
    if run.final.metrics and run.final.split == "validation":
        out.append("Test data: the figures are of validation data, which may have been used to choose.")
    for metric in run.final.metrics:
        undefined = [s for s in run.final.site_names if all(math.isnan(run.final.value(v, s, metric)) for v in run.final.weights)]
        if undefined:
            where = ", ".join(run.site_names.get(s, s) for s in undefined)
            out.append(f"Values of {metric} at {where}: undefined on these data, left out of the mean.")
    if "personalized" not in run.final.weights and run.final.metrics:
        out.append("Personalized weights: no value was recorded.")
    if "global" not in run.final.weights and run.final.metrics and main.role == "federated":
        out.append(f"A global model: with {main.method or main.label} what is shared makes no model without each site's own parts.")
    if not any(r.attacks for column in found for r in column.runs):
        out.append("Attacks: none was run, so nothing here shows what an adversary could reconstruct.")
    if not isinstance(privacy(run).get("epsilon"), int | float):
        out.append("What the model itself gives away about its training images: no differential privacy is claimed.")
    if not run.examples:
        out.append("Example images: the run left none.")
    return out


def split_words(run: RunRecords) -> str:
    """Which data and which round the figures are of, and why the run ended where it did."""
    final = run.final
    data = f"Values are of each site's own {final.split} data" if final.split else "The records do not say which data the values are of"
    chosen = f", model of round {final.round}" if final.round is not None else ""
    chosen += ", chosen on validation data" if run.part("config", "run").get("select") == "best-validation" and run.finished else ""
    stopped = run.result.get("stopped")
    return f"{data}{chosen}." + (f" Stopped early: {_sentence(stopped)}" if isinstance(stopped, str) else "")


def capital(text: str) -> str:
    """First letter in upper case, the rest as it is."""
    return text[:1].upper() + text[1:]


def _main_first(main: Column, found: Sequence[Column]) -> list[Column]:
    return [main, *(c for c in found if c is not main)]


def _who(parties: Any) -> str:
    names = [str(p) for p in ([parties] if isinstance(parties, str) else parties or ())]
    spoken = [{"server": "the server", "sites": "the sites", "everyone": "everyone", "public": "the public"}.get(n, n) for n in names]
    return spoken[0] if len(spoken) == 1 else ", ".join(spoken[:-1]) + " and " + spoken[-1] if spoken else "nobody"


def _verb(parties: Any) -> str:
    return "see" if not isinstance(parties, str) and (len(parties) > 1 or list(parties) == ["sites"]) else "sees"


def _them(parties: Any) -> str:
    return "them" if _verb(parties) == "see" else "it"


def _people(parties: Any) -> str:
    return f"{NOT_RECORDED.capitalize()}." if parties is None else capital(_who(parties)) + "."


def _dropouts(count: Any) -> str:
    if not isinstance(count, int):
        return f"{NOT_RECORDED.capitalize()}."
    return "None: a site that vanishes ends the round." if count == 0 else f"{count}, and the sum over the others is still found."


def _coalition(promised: Record) -> str:
    curious, active = promised.get("coalition_curious"), promised.get("coalition_active")
    if not isinstance(curious, int):
        return f"{NOT_RECORDED.capitalize()}."
    if promised.get("sees_update"):
        return f"None: {_who(promised['sees_update'])} alone learns more than the sum."
    lying = f"; {active} that lie" if isinstance(active, int) else ""
    return f"{curious} honest-but-curious parties{lying}."


def _arithmetic(kind: Any) -> str:
    known = {"exact": "Exact: the sum is the sum of the encoded values, bit for bit.", "approximate": "Approximate."}
    return known.get(str(kind), f"{NOT_RECORDED.capitalize()}.")


def _rounds(run: RunRecords) -> str:
    done, planned = run.rounds_done, run.rounds_planned
    early = f" (of {planned} planned)" if planned and planned != done else ""
    return f"for {done} round{'' if done == 1 else 's'}{early}"


def _span(counts: Sequence[int]) -> str:
    return f"{min(counts):,} and {max(counts):,}"


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _sentence(text: Any) -> str:
    return str(text or NOT_RECORDED).rstrip(".") + "."


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _mean(column: Column | None, metric: str, sites: Sequence[str] | None) -> float:
    """The mean over ``sites``; the one that the runs recorded where None."""
    if column is None or column.best_weights is None:
        return math.nan
    if sites is None:
        return column.estimate(column.best_weights, None, metric).mean
    found = [column.estimate(column.best_weights, site, metric).mean for site in sites]
    return sum(found) / len(found) if found else math.nan


def _scored(column: Column, metric: str) -> list[str]:
    weights = column.best_weights
    sites = dict.fromkeys(site for run in column.runs for site in run.final.site_names)
    return [site for site in sites if weights and math.isfinite(column.estimate(weights, site, metric).mean)]


def _apart(difference: float) -> str:
    return {1: f"{number(difference)} above", 0: "level with", -1: f"{number(-difference)} below"}[_sign(difference)]


def _sign(difference: float) -> int:
    """-1, 0 or 1, as the three decimals show it."""
    return 0 if abs(difference) < 0.0005 else 1 if difference > 0 else -1


def _example_gradients(run: RunRecords) -> int | None:
    batch, calls = run.part("config", "training").get("batch_size"), run.part("plan", "training").get("gradient_calls", 1)
    return run.steps * batch * calls if run.steps and isinstance(batch, int) and isinstance(calls, int) else None

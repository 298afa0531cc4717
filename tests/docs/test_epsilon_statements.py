"""An epsilon means nothing without its conditions, so every public statement of one names all six: what a run prints and writes, and pages.

The rule. A *statement* is the word epsilon followed by a number (``epsilon 6``, ``epsilon = 6``, ``epsilon of at most 6``), or a table with
an epsilon in its head. Its *place* is the paragraph, list, table or code block it stands in, with the blocks just before and after it (so a
table has its caption). There must be: the unit, the adjacency, delta as a number, the accountant, the placement, the adversary. A page of
results may say them once, in a paragraph that begins "Every epsilon on this page".

Exempt are settings (a yaml block, ``key: value`` in inline code) and, on pages, what an origin paper says, quoted as such: the sentence
names the paper or its authors, and calls the number claimed or set.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pppml_core
from pppml_core.errors import BudgetSpent, PolicyRefusal
from pppml_core.federation.policy import Policy
from pppml_core.interfaces.privacy import PrivacyStatement
from pppml_core.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(p for pattern in ("README.md", "docs/**/*.md", "plugins/*/*/README.md", "examples/**/*.md") for p in ROOT.glob(pattern))

LINK = r"is|was|of|at|least|most|about|only|bound|budget|in|all|lower|ceiling|claimed|spent|to|from|below|above"
STATEMENT = re.compile(rf"(?:epsilon|ε)[\s\"'`*_=:<>≤≥~({{\[,-]*(?:(?:{LINK})[\s\"'`*_=:<>≤≥~({{\[,-]+){{0,4}}\d", re.IGNORECASE)
HEAD = re.compile(r"^\|[^\n]*(?:epsilon|ε)[^\n]*\|\n\|[\s:|-]+\|$", re.IGNORECASE | re.MULTILINE)
NAMED = {
    "unit": r"\bunit\b",
    "adjacency": r"\b(?:add[-/]remove|zero-out)\b",
    "delta": r"(?:delta|δ)[\s\"'=:`]*(?:of |is )?\d",
    "accountant": r"\b(?:pld|prv|rdp|accountant:\s+closed form)\b",
    "placement": r"\bplacement|`(?:local|distributed)`",
    "adversary": r"\badversar|\bagainst (?:anyone|whoever|everybody)",
}
QUOTED = re.compile(r"(?=.*\b(?:paper|authors?)\b)(?=.*\b(?:claim(?:s|ed)?|set|setting)\b)", re.IGNORECASE | re.DOTALL)


def missing(text: str) -> list[str]:
    """What is not named in a text."""
    return [name for name, pattern in NAMED.items() if not re.search(pattern, text, re.IGNORECASE)]


def states(text: str) -> bool:
    """Whether there is a statement."""
    return bool(STATEMENT.search(text) or HEAD.search(text))


def unnamed(text: str) -> list[str]:
    """Blocks of a text that state an epsilon without its conditions, each with what is missing."""
    text = re.sub(r"`[\w.]+: [^`]*`", "`setting`", text)
    blocks = [block for block in re.split(r"\n\s*\n", text) if block.strip()]
    for_all = next((block for block in blocks if block.lstrip("* ").startswith("Every epsilon on this page")), None)
    if for_all is not None and not missing(for_all):
        return []
    out = []
    for i, block in enumerate(blocks):
        if states(block) and (lacks := missing("\n".join(blocks[max(0, i - 1) : i + 2]))):
            out.append(f"{' '.join(block.split())[:160]!r} does not say: {', '.join(lacks)}")
    return out


def page_text(text: str) -> str:
    """A page without headings, yaml and quoted claims. (A code block is one block, whatever lines in it are empty.)"""
    text = re.sub(r"^```ya?ml\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^```.*?^```$", lambda code: re.sub(r"\n\s*\n", "\n", code[0]), text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^#+ .*$", "", text, flags=re.MULTILINE)
    paragraphs = re.split(r"(\n\s*\n)", text)
    return "".join(_unquoted(part) for part in paragraphs)


def _unquoted(paragraph: str) -> str:
    sentences = re.split(r"(?<=[.;])(\s+)(?=\W*[A-Za-z])", paragraph)
    return "".join("" if states(s) and QUOTED.match(s) else s for s in sentences)


def strings(data: Any) -> Iterator[str]:
    """All texts of plain data."""
    if isinstance(data, str):
        yield data
    for item in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        yield from strings(item)


def bare(data: Any) -> Iterator[str]:
    """Maps of plain data with an epsilon (a number) and without one of its six conditions beside it."""
    stated = isinstance(data, dict) and isinstance(data.get("epsilon"), int | float)
    if stated and (lacks := [name for name in NAMED if data.get(name) in (None, "")]):
        yield f"{json.dumps(data)[:160]} does not say: {', '.join(lacks)}"
    for item in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        yield from bare(item)


def flat(printed: str) -> str:
    """What a terminal shows, without frames and line breaks of its tables."""
    return re.sub(r"[│┃─━┌┐└┘├┤┬┴┼╇╈┏┓┗┛┡┩┳┻\s]+", " ", printed)


# -- the rule itself -------------------------------------------------------------------------------------------------------------------

WHOLE = "epsilon 6 (unit example, adjacency add-remove, delta 1e-05, accountant pld, placement local, adversary: whoever sees it)"


def test_a_whole_statement_passes() -> None:
    assert unnamed(WHOLE) == []
    assert unnamed(f"| run | epsilon |\n|---|---|\n| a | 6 |\n\nTable 1: {WHOLE}") == []
    assert unnamed("No number, no statement: epsilon is infinite, and epsilon is stated by the plan of 20 sites.") == []


@pytest.mark.parametrize("name", NAMED)
def test_a_statement_without_one_condition_is_found(name: str) -> None:
    part = {
        "unit": "unit example, ",
        "adjacency": "adjacency add-remove, ",
        "delta": "delta 1e-05, ",
        "accountant": "accountant pld, ",
        "placement": "placement local, ",
        "adversary": ", adversary: whoever sees it",
    }[name]
    (found,) = unnamed(WHOLE.replace(part, ""))
    assert found.endswith(f"does not say: {name}")


@pytest.mark.parametrize(
    "planted",
    [
        "It reaches 90 % at epsilon 6.",
        "It reaches 90 % (ε ≤ 6).",
        "An epsilon of at most 5.99 was spent.",
        "Rows are epsilon in {1, 3}.",
        "| network | epsilon |\n|---|---|\n| small-cnn | 6 |",
        "```sh\npppml run c.yaml    # epsilon 6\n```",
        "Like others after the paper we reach epsilon 6.",
    ],
)
def test_a_planted_sentence_is_found_on_a_page(planted: str) -> None:
    page = (ROOT / "docs" / "secure-sums.md").read_text(encoding="utf-8")
    assert unnamed(page_text(page)) == []
    assert len(unnamed(page_text(f"{page}\n\n{planted}\n"))) == 1


def test_a_page_may_say_it_once_for_all_but_must_say_all() -> None:
    whole = "Every epsilon on this page: unit example, add-remove, delta 1e-5, accountant pld, placement local, adversary: anyone."
    assert unnamed(page_text(f"{whole}\n\nA.\n\nB.\n\nIt reaches 90 % at epsilon 6.")) == []
    assert len(unnamed(page_text(f"{whole.replace('delta 1e-5, ', '')}\n\nA.\n\nB.\n\nIt reaches 90 % at epsilon 6."))) >= 1


def test_settings_and_quoted_claims_are_exempt() -> None:
    assert unnamed(page_text("```yaml\nprivacy: {use: dp-sgd, epsilon: 6}\n```\n\n`epsilon: 6` solves for the noise.")) == []
    assert unnamed(page_text("The paper claims epsilon 6 for one round.")) == []
    assert len(unnamed(page_text("The paper claims epsilon 6. We measured epsilon 3."))) == 1


# -- pages -----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_page(page: Path) -> None:
    assert unnamed(page_text(page.read_text(encoding="utf-8"))) == []


#: an adversary of distributed noise, to the next semicolon, full stop or the end of a parenthesis.
DISTRIBUTED = re.compile(r"anyone who sees the secure sums[^;.()]*")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_page_names_no_adversary_that_the_noise_is_not_sized_for(page: Path) -> None:
    assert invented(page.read_text(encoding="utf-8")) == []


def invented(text: str) -> list[str]:
    """Adversaries of distributed noise in a text that are none of those that statements name."""
    _needs("dp-sgd")
    from pppml_dp.placing import adversary

    own = {adversary("distributed", None, colluders) for colluders in range(1, 50)}  # type: ignore[arg-type]
    plain = re.sub(r"\s*\n>?\s*", " ", text)
    return [found for found in DISTRIBUTED.findall(plain) if found.strip() not in own]


def test_an_invented_adversary_is_found() -> None:
    assert invented("distributed: anyone who sees the secure sums, the server or a site together with 1 colluding sites; local: anyone.")
    assert invented("Adversary: anyone who sees the secure sums, one colluding site included, and whoever gets the model.")


# -- what a run prints and writes ------------------------------------------------------------------------------------------------------

CONFIG = """
task: {use: tiny, sites: 3}
run: {rounds: 2}
privacy: {use: dp-sgd, epsilon: 6, delta: 1.0e-5, noise_multiplier: 3.0}
training: {steps: 1, batch_size: 16, optimizer: {use: sgd, lr: 0.5}}
"""


def _needs(*names: str) -> None:
    ok = {row.name for row in Registry.discover().rows() if row.status == "ok"}
    if absent := set(names) - ok:
        pytest.skip(f"not installed: {absent}")


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, pppml: Any) -> tuple[Path, str, str]:
    """A folder with a finished run, an attack on it and a bundle of it; what plan, run and attack printed."""
    _needs("dp-sgd", "dp-audit")
    folder = tmp_path_factory.mktemp("epsilon")
    (folder / "dp.yaml").write_text(CONFIG)
    commands = ("pppml plan dp.yaml", "pppml run dp.yaml --out run", "pppml attack run --use dp-audit --vantage server")
    plan, run, attack = pppml(folder, *commands, "pppml export bundle run -o bundle")[:3]
    return folder, plan + run, attack


def test_plan_and_console(ran: tuple[Path, str, str]) -> None:
    _, printed, _ = ran
    text = flat(printed)
    assert text.count("epsilon 6 for the whole run") >= 4, "headline and warning of plan and run"
    for statement in STATEMENT.finditer(text):
        assert missing(text[statement.start() : statement.start() + 400]) == [], text[statement.start() :][:400]


@pytest.mark.parametrize(
    "privacy",
    [
        {"use": "dp-sgd", "epsilon": 6},
        {"use": "dp-sgd", "epsilon": 8, "noise_multiplier": 1.0},
        {"use": "dp-sgd", "epsilon": 6, "placement": "server"},
        {"use": "dp-sgd", "epsilon": 6, "noise": "skellam"},
        {"use": "dp-update", "epsilon": 6, "delta": 1e-3},
        {"use": "dp-update", "preset": "paper"},
        {"use": "clip-only"},
    ],
    ids=lambda p: "-".join(str(v) for v in p.values()),
)
def test_every_text_of_a_plan(privacy: dict[str, Any]) -> None:
    _needs("dp-sgd")
    training = {"steps": 1, "batch_size": 16, "optimizer": {"use": "sgd", "lr": 0.5}}
    plan = pppml_core.Experiment(task={"use": "tiny", "sites": 3}, privacy=privacy, training=training, run={"rounds": 9}).plan().to_dict()
    # (The paper's own claim, quoted as such, stands beside the true one.)
    assert plan["misfits"] == []
    assert [found for text in strings(plan) for found in unnamed(text)] == []
    assert list(bare(plan)) == []
    assert states(plan["headline"]) == (plan["privacy"]["epsilon"] != "inf")


def test_the_error_that_the_budget_is_spent(tmp_path: Path) -> None:
    _needs("dp-sgd")
    (tmp_path / "dp.yaml").write_text(CONFIG.replace("noise_multiplier: 3.0", "noise_multiplier: 1.0").replace("rounds: 2", "rounds: 9"))
    with pytest.raises(BudgetSpent) as spent:
        pppml_core.load(tmp_path / "dp.yaml").run(tmp_path / "run", reporters=False)
    assert STATEMENT.search(str(spent.value))
    assert unnamed(str(spent.value)) == []


@pytest.mark.parametrize("epsilon", [4.0, 1e-3])
def test_the_refusal_of_a_site_with_a_stricter_policy(epsilon: float) -> None:
    claim = PrivacyStatement("m", 6.0, 1e-5, "example", "add-remove", "local", "pld", "anyone who sees what leaves a site")
    terms = {"cohort": ["a", "b"], "privacy": claim.to_dict(), "guarantees": {"sees_update": []}}
    with pytest.raises(PolicyRefusal) as refusal:
        Policy(max_epsilon=epsilon).check(terms)
    assert STATEMENT.search(str(refusal.value))
    assert unnamed(str(refusal.value)) == []
    assert str(refusal.value).endswith(
        f"max_epsilon: 6 announced, at most {epsilon:g} allowed (unit example, adjacency add-remove, delta 1e-05, accountant pld, "
        "placement local, adversary: anyone who sees what leaves a site)"
    )


def test_a_refusal_says_which_conditions_were_not_announced() -> None:
    terms = {"cohort": ["a"], "privacy": {"epsilon": 9, "delta": "1" * 999, "unit": 3, "adversary": ["x"]}, "guarantees": {}}
    with pytest.raises(PolicyRefusal) as refusal:
        Policy(max_epsilon=1.0).check(terms)
    text = str(refusal.value)
    assert "adjacency not said" in text
    assert "adversary: not said" in text
    assert len(text) < 500, "what another party announced is not repeated at any length"


def test_every_record_of_a_run(ran: tuple[Path, str, str]) -> None:
    folder, _, _ = ran
    run = folder / "run"
    result = json.loads((run / "result.json").read_text())["privacy"]
    assert 0 < result["spent"] <= result["epsilon"] == 6
    records = [json.loads(path.read_text()) for path in sorted(run.glob("*.json"))]
    records += [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [found for record in records for found in bare(record)] == []
    assert [found for record in records for text in strings(record) for found in unnamed(text)] == []


def test_the_report(ran: tuple[Path, str, str]) -> None:
    page = (ran[0] / "run" / "report.html").read_text(encoding="utf-8")
    page = re.sub(r"<(script|style|svg|pre)\b.*?</\1>", " ", page, flags=re.DOTALL)  # (the config is settings)
    page = re.sub(r"<dl>.*?</dl>", lambda pairs: re.sub(r"</?d\w+>", " ", pairs[0]) + "</dl>", page, flags=re.DOTALL)
    page = re.sub(r"\s+", " ", page)
    page = re.sub(r"</(?:p|table|h\d|li|pre|section|div|dl)>", "\n\n", page)
    text = html.unescape(re.sub(r"<[^>]+>", " ", page))
    assert "epsilon = 6" in text
    assert unnamed(text) == []


def test_the_card_of_a_bundle(ran: tuple[Path, str, str]) -> None:
    files = [p for p in (ran[0] / "bundle").rglob("*") if p.suffix in (".md", ".json", ".txt") and "epsilon" in p.read_text("utf-8")]
    assert [p.name for p in files if p.suffix == ".md"] == ["README.md"]
    for path in files:
        text = path.read_text("utf-8")
        found = [f for t in strings(json.loads(text)) for f in unnamed(t)] if path.suffix == ".json" else unnamed(text)
        assert found == [], path.name


def test_the_record_of_an_audit_and_what_it_prints(ran: tuple[Path, str, str]) -> None:
    folder, _, printed = ran
    (path,) = (folder / "run" / "attacks").glob("*.json")
    record = json.loads(path.read_text())
    assert record["metrics"]["epsilon_claimed"] == 6
    assert missing(record["reason"]) == []
    assert unnamed(record["reason"]) == []
    assert states(flat(printed))
    assert missing(flat(printed)) == []

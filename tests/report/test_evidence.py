"""The evidence part of the page, from records made by hand."""

import copy
import html.parser
import json
import random
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pppml_core.evidence.strips import HEADS, write_strip
from pppml_core.report import write_report
from pppml_core.report.columns import columns
from pppml_core.report.evidence import evidence
from pppml_core.report.records import read_run

Make = Callable[..., Path]
VANTAGES = ("server", "server+site:b", "site:b", "neighbours:a", "link:a-server", "public")
CLAIM_OF = {"idlg": ("images", ("picked", "redrawn")), "gallery": ("candidate", ("picked",)), "label-restoration": ("labels", ("named",))}
OUTCOME = {"shown": "recovered", "not_shown": "not_shown_to_leak", "untested": "inconclusive", "undecided": "inconclusive"}


def rate(hits: int, n: int, among: int = 0) -> dict[str, Any]:
    return {"rate": hits / n, "low": max(0.0, hits / n - 0.2), "high": min(1.0, hits / n + 0.2), "n": n} | (
        {"chance": 1 / among} if among else {}
    )


def members_of(vantage: str) -> list[str]:
    """Who that is: the parties themselves; in one ring of a to d the neighbours of a are d and b."""
    told = {"server": ["server"], "neighbours:a": ["b", "d"]}
    return sorted({p for part in vantage.split("+") for p in told.get(part, [part[5:]] if part.startswith("site:") else [])})


def limits(step: float | None, whole: float | None, kappa: float = 0.01) -> dict[str, Any]:
    """A bound as a record has it."""
    return {"rate": step, "kappa": kappa, "adjacency": "add-remove", "method": "Gaussian DP", "reason": "", "whole_run": whole}


def record(attack: str = "idlg", vantage: str = "server", verdict: str = "shown", *, n: int = 10, **more: Any) -> dict[str, Any]:
    """A record as ``pppml attack`` writes it."""
    answers, claims = CLAIM_OF[attack]
    hits, off = {"shown": (n - 1, n), "not_shown": (0, n), "untested": (0, 0), "undecided": (2, n)}[verdict]

    def metrics(count: int) -> dict[str, Any]:
        return {
            "redrawn": rate(count, n),
            "reid@1": rate(count, n, 100),
            "candidate@1": rate(count, n, 100),
            "labels_right": rate(count, n),
        }

    return {
        "attack": attack, "vantage": vantage, "round": 1, "outcome": OUTCOME[verdict], "reason": "because of figures",
        "metrics": {**metrics(hits), "claims": dict.fromkeys(claims, verdict)},
        "control": {"what": "the same attack with the defence off", "passed": verdict != "untested", **metrics(off)},
        "best_guess": {}, "effort": {"seconds": 3.0, "victims": n}, "settings": {}, "staged": True,
        "about": "Staged: one training step on one image of a at the model that round 1 began with.", "victims": n, "site": "a",
        "answers": answers, "defence": "no differential privacy", "pictures": None, "violation": False,
        "bound": {"rate": None, "kappa": 0.01, "adjacency": "", "method": "", "reason": "no differential privacy is claimed"},
        "exposed": [{"sites": ["a"]}], "look_alikes": 99.0, "lied": False, "people": None, "members": members_of(vantage), "why": None,
    } | more  # fmt: skip


def unseen(attack: str, vantage: str, why: str | None = "hidden", **more: Any) -> dict[str, Any]:
    """A record of an attack that did not apply. Its reason is in words that nothing may be read from."""
    empty: dict[str, Any] = {"metrics": {}, "control": {}, "bound": None, "exposed": [], "victims": 0}
    return record(attack, vantage) | {"outcome": "not_applicable", "reason": "so it is", "why": why, **empty} | more


def game(attack: str = "distinguish", outcome: str = "not_shown_to_leak") -> dict[str, Any]:
    """A record of a test of the scheme, which reads no view."""
    told: dict[str, Any] = {
        "attack": attack,
        "vantage": "server",
        "round": 6,
        "outcome": outcome,
        "reason": "r",
        "effort": {},
        "settings": {},
    }
    if attack == "he-key-recovery":
        control = {"what": "the decrypted numbers in full precision", "passed": True, "update_correlation": 1.0}
        return told | {"metrics": {"key_recovered": outcome == "recovered"}, "control": control, "best_guess": {"what": "no key"}}
    right = 100 if outcome == "recovered" else 49
    control = {"what": "all parties but a or b together, with their keys", "passed": True, "accuracy": rate(100, 100)}
    return told | {"metrics": {"accuracy": rate(right, 100)}, "control": control, "best_guess": {"what": "coin flips", "accuracy": 0.5}}


AUDIT: dict[str, Any] = {
    "attack": "dp-audit", "vantage": "server", "round": 6, "outcome": "not_shown_to_leak",
    "reason": "epsilon is at least 0.8 with 95% confidence, claimed is 6 (unit example, adjacency add-remove, delta 1e-05, accountant pld, "
    "placement local, adversary: sees every message and the final model)",
    "metrics": {"epsilon_lower": 0.8, "epsilon_ceiling": 5.1, "epsilon_claimed": 6.0, "delta": 1e-5, "violation": False},
    "control": {"passed": True, "epsilon_lower": 5.1}, "best_guess": {}, "effort": {"seconds": 1.0}, "settings": {},
}  # fmt: skip


def with_attacks(run: Path, *records: dict[str, Any]) -> Path:
    (run / "attacks").mkdir(exist_ok=True)
    for number, one in enumerate(records):
        (run / f"attacks/{number:02d}.json").write_text(json.dumps(one))
    return run


def shown(*runs: Path) -> dict[str, Any]:
    return evidence(columns([read_run(run) for run in runs])[0])


def answers(*runs: Path) -> dict[str, str]:
    """The first screen's text below each question."""
    return {a.question: " ".join(f"{line.mark} {line.lead} {line.text}" for line in a.lines) for a in shown(*runs)["first"]}


def verdicts(run: Path) -> dict[str, tuple[str, str]]:
    (only,) = shown(run)["defences"]
    return {row["who"]: (row["verdict"], row["strength"]) for row in only["rows"]}


class Page(html.parser.HTMLParser):
    """Text, headings, tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []
        self.feed(text)
        self.text = re.sub(r"\s+", " ", " ".join(self.said))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] != "style":
            self.said.append(data)


def page(*runs: Path) -> Page:
    return Page(write_report(runs, runs[0].parent / "out.html").read_text("utf-8"))


SEE, PICK, TEST = (
    "Who can see a patient’s image?",
    "Who can pick a patient out of look-alikes, or read the diagnosis?",
    "What was the strongest test?",
)


def test_opposite_outcomes_give_opposite_answers(make_run: Make) -> None:
    attacks = tuple(CLAIM_OF)
    leaks = with_attacks(make_run("leaks"), *(record(a, v, "shown") for a in attacks for v in ("server", "public")))
    holds = with_attacks(make_run("holds", masked=True), *(record(a, v, "not_shown") for a in attacks for v in ("server", "public")))
    bad, good = answers(leaks), answers(holds)
    assert bad[SEE].startswith(
        "✗ Shown The central server, following the protocol and somebody who has only the published models: redrawn in"
    )
    assert good[SEE].startswith("○ Not shown None of the 2 who were tried: redrawn in at most 0 of 10 tries")
    assert "up to 9 of 10 tries, in a staged training step on one image, round 1" in bad[SEE], "under which condition"
    assert re.search(
        r"Pick out: The central server.* 9 of 10 tries among 100 images .*Diagnosis: The same: read in up to 9 of 10", bad[PICK]
    )
    assert re.search(r"Pick out: None of the 2.* 0 of 10 tries among 100.*Diagnosis: None of the 2", good[PICK])
    assert bad[TEST].startswith("✗ It succeeded Idlg by server: 10 images to be redrawn. Control passed")
    assert good[TEST].startswith("○ It failed ")
    assert "Control passed: with the defence off it succeeds for 10 of 10." in good[TEST]
    assert set(verdicts(leaks).values()) == {("LEAKS", "image, identity and diagnosis")}
    assert set(verdicts(holds).values()) == {("NOT SHOWN TO LEAK", "empirical: 10 images and 10 training steps, control passed")}


def test_labels_that_an_image_attack_infers_answer_the_diagnosis(make_run: Make) -> None:
    """A claim beside those that decide the attack's outcome: the pictures show nothing, and the first screen says what is read."""
    claims = {"picked": "not_shown", "redrawn": "not_shown", "named": "shown"}
    one = record("idlg", verdict="not_shown")
    one["metrics"] |= {"claims": claims, "labels_right": rate(9, 10)}
    run = with_attacks(make_run(), one)
    assert "Diagnosis: The central server, following the protocol: read in up to 9 of 10 tries" in answers(run)[PICK]
    assert answers(run)[SEE].startswith("○ Not shown")


def test_all_effort_is_told(make_run: Make) -> None:
    spent = {"seconds": 3.4, "victims": 3.0, "evaluations": 1234.0, "loss": 2.5e-7, "label_rule_bias": 3.0}
    (detail,) = shown(with_attacks(make_run(), record("idlg") | {"effort": spent}))["defences"][0]["details"]
    assert detail["effort"] == "3.4 seconds, 1,234 evaluations, 2.5e-07 loss, 3 label rule bias"


def test_a_failed_control_is_no_protection(make_run: Make) -> None:
    run = with_attacks(make_run(), *(record(a, verdict="untested") for a in CLAIM_OF))
    said = answers(run)
    assert said[SEE].startswith("? Could not be told It is open whether the central server, following the protocol can see an image")
    assert "? It proves nothing" in said[TEST]
    assert "Control not passed (0 of 10 with the defence off). So it proves nothing." in said[TEST]
    assert "not shown" not in " ".join(said.values()).lower()
    assert verdicts(run) == {
        "The central server, following the protocol": (
            "INCONCLUSIVE",
            "image, identity and diagnosis: the test fails with the defence off too",
        )
    }


def test_not_tested_is_never_safe(make_run: Make) -> None:
    run = make_run(masked=True)
    told = page(run).text
    assert "Not tested. No attack was run on this run" in told
    assert "That is no sign of safety." in told
    assert not shown(run)["tested"]
    # One defence attacked beside one that is not: the other is not passed over.
    other = with_attacks(make_run("other"), record("gallery", verdict="not_shown"))
    both = shown(run, other)
    assert both["tested"]
    assert both["overview"]["rows"][1 - [r[0] for r in both["overview"]["rows"]].index(both["defences"][0]["label"])]
    assert {v for _, cells in both["overview"]["rows"] for v, _, _ in cells} == {"NOT TESTED", "NOT SHOWN TO LEAK"}
    assert "– Not tested" in answers(run, other)[SEE]
    # Of the attacked one, what nobody tried stays open too.
    assert "Nobody tried, which is no sign of safety." in answers(other)[SEE]


def test_a_redrawn_image_answers_all_three(make_run: Make) -> None:
    only = record("idlg")
    only["metrics"]["claims"] = {"picked": "not_shown", "redrawn": "shown"}
    (row,) = shown(with_attacks(make_run(), only))["defences"][0]["rows"]
    assert [row["answers"][q]["standing"] for q in ("diagnosis", "picked", "redrawn")] == ["yes", "yes", "yes"]
    assert row["answers"]["diagnosis"]["detail"] == "from the redrawn image"


@pytest.mark.parametrize(
    ("verdict_words", "expected", "beside"),
    [
        (("not_shown", "shown"), "LEAKS", "identity"),
        (
            ("not_shown", "undecided"),
            "INCONCLUSIVE",
            "identity: more was found than guessing gives, but in too few trials; image and diagnosis not tested",
        ),
        (("not_shown", "untested"), "NOT SHOWN TO LEAK", "in part: image and diagnosis not tested; identity at round 2 could not be told"),
        (("not_shown", "not_shown"), "NOT SHOWN TO LEAK", "in part: image and diagnosis not tested"),
        (("untested", "untested"), "INCONCLUSIVE", "identity: the test fails with the defence off too; image and diagnosis not tested"),
    ],
)
def test_what_one_test_shows_another_does_not_undo(make_run: Make, verdict_words: tuple[str, str], expected: str, beside: str) -> None:
    run = with_attacks(make_run(), *(record("gallery", verdict=v, round=i + 1) for i, v in enumerate(verdict_words)))
    (found,) = verdicts(run).values()
    assert found[0] == expected
    assert found[1].endswith(beside)


def test_who_decodes_nothing_is_kept_out_by_encryption_only_where_that_is_promised(make_run: Make) -> None:
    masked = with_attacks(make_run("m", masked=True), unseen("gallery", "server"), unseen("gallery", "neighbours:a"))
    assert verdicts(masked) == {
        "The central server, following the protocol": ("PROVEN BOUND", "cryptographic, under its assumptions"),
        "The neighbours of Hospital A in the ring": ("PROVEN BOUND", "cryptographic, under its assumptions"),
    }
    assert "could decode nothing of a single site, as long as the assumptions of the encryption hold" in answers(masked)[SEE]
    plain = with_attacks(make_run("p"), unseen("gallery", "server"))
    assert verdicts(plain)["The central server, following the protocol"][0] == "NOT TESTED"
    # Three parties are more than the two that are promised to learn only the sum; in two rings the neighbours alone are up to four.
    many = with_attacks(make_run("n", masked=True), unseen("gallery", "server+neighbours:a"))
    rings = with_attacks(make_run("r", masked=True), unseen("gallery", "neighbours:a", members=["b", "c", "d", "e"]))
    told = unseen("gallery", "neighbours:a")
    del told["members"]
    for run in (many, rings, with_attacks(make_run("o", masked=True), told)):
        assert next(iter(verdicts(run).values())) == ("NOT TESTED", "it decodes nothing, and no guarantee is stated")


def test_there_may_be_no_such_party(make_run: Make) -> None:
    run = with_attacks(make_run(), unseen("gallery", "neighbours:a", "no_such_party"))
    assert verdicts(run) == {"The neighbours of Hospital A in the ring": ("NO SUCH PARTY", "")}


def test_rows_are_in_plain_words_and_in_order(make_run: Make) -> None:
    run = with_attacks(make_run(), *(record("gallery", v, "not_shown") for v in reversed(VANTAGES)))
    lied = record("gallery", "server", lied=True)
    with_attacks(run, *(record("gallery", v, "not_shown") for v in reversed(VANTAGES)), lied)
    assert list(verdicts(run)) == [
        "The central server, following the protocol", "The central server, lying about the model",
        "The central server together with Hospital B <i>north</i>", "Another site, Hospital B <i>north</i>, by itself",
        "The neighbours of Hospital A in the ring", "Whoever listens on the line between Hospital A and the server",
        "Somebody who has only the published models",
    ]  # fmt: skip


def test_a_refuted_claim_stands_at_the_top(make_run: Make) -> None:
    run = with_attacks(make_run(private=True), record("gallery", violation=True), AUDIT | {"outcome": "recovered"})
    told = page(run).text
    alert = "The claim of privacy of fedavg + dp-sgd is refuted by gallery and dp-audit"
    assert alert in told
    assert told.index(alert) < told.index("trained a unet")


def test_an_audit_is_no_party_and_its_epsilon_has_its_conditions(make_run: Make) -> None:
    run = with_attacks(make_run(private=True), AUDIT)
    found = shown(run)
    assert not found["tested"], "an audit alone tells nobody who can see what"
    assert [(a.claimed, a.lower, a.ceiling) for a in found["audits"]] == [(6.0, 0.8, 5.1)]
    with_attacks(run, AUDIT, record("gallery", verdict="not_shown"))
    text = page(run).text
    assert "Epsilon, claimed and audited" in text
    for number in re.finditer(r"epsilon is at least 0\.8", text):
        around = text[number.start() : number.start() + 300]
        for condition in ("unit example", "add-remove", "delta 1e-05", "accountant pld", "placement local", "adversary"):
            assert condition in around


def test_curves_need_something_to_compare(make_run: Make) -> None:
    plain = with_attacks(make_run("plain"), record("gallery"))
    assert shown(plain)["curves"] == []
    noise = {"run": {"name": "noisy", "seed": 1}, "privacy": {"use": "dp-sgd"}}
    noisy = make_run("noisy", private=True, settings=noise)
    result = json.loads((noisy / "result.json").read_text())
    result["privacy"]["details"] = {"noise_multiplier": 1.5}
    (noisy / "result.json").write_text(json.dumps(result))
    with_attacks(noisy, record("gallery", verdict="not_shown", bound=limits(0.2, 0.3, kappa=0.25), look_alikes=7.0))
    masked = with_attacks(make_run("masked", masked=True), record("gallery", exposed=[{"sites": ["a", "b", "c"]}]))
    titles = {p.title: p for p in shown(plain, noisy, masked)["curves"]}
    assert set(titles) == {"By defence", "Against noise", "Against the number of sites in a sum"}
    assert "server at 1.5: 0 of 10 among 100 images (7 look-alikes; guessing: 25%), bound 20.0%" in titles["Against noise"].alt
    assert {key.label for key in titles["Against noise"].keys} >= {"the best blind guess", UNDER}
    assert "server at 3: 9 of 10" in titles["Against the number of sites in a sum"].alt


UNDER = "no attack on this one step or round can do better (ReRo bound)"


def test_curves_show_no_test_that_could_not_have_told(make_run: Make) -> None:
    def run(name: str, *records: dict[str, Any]) -> Path:
        return with_attacks(make_run(name, settings={"run": {"name": name, "seed": 1}, "privacy": {"use": "none", "tag": name}}), *records)

    leaks, holds = run("leaks", record("gallery")), run("holds", record("gallery", verdict="not_shown"))
    mute = run("mute", record("gallery", verdict="untested"))
    broken = run("broken", record("gallery", verdict="not_shown", outcome="inconclusive", why="broke"))
    (curve,) = shown(leaks, holds, mute, broken)["curves"]
    assert curve.alt.count(" of 10 ") == 2
    assert "mute" not in curve.alt
    assert "broken" not in curve.alt
    assert shown(leaks, mute)["curves"] == [], "one point is no curve"
    # Of two tests of one party the one that leaks is drawn, on however few it was.
    both = [run(name, record("idlg", n=3), record("gallery", verdict="not_shown", n=100)) for name in ("x", "y")]
    assert shown(*both)["curves"][0].alt.count("2 of 3") == 2


def strip(folder: Path, errors: tuple[float, ...]) -> str:
    image = np.full((1, 1, 8, 8), 0.5, np.float32)
    low, high = np.zeros(1), np.ones(1)
    public = SimpleNamespace(images=np.linspace(0, 1, 256, dtype=np.float32).reshape(4, 1, 8, 8), labels=np.arange(4) % 2, masks=None)
    one = SimpleNamespace(
        original=SimpleNamespace(images=image, labels=np.array([0]), masks=None), guess=image, public=public, low=low, high=high
    )
    scores = [
        {"mse": [e], "psnr": [-10 * np.log10(e)], "rank": [i + 1], "gallery": [100], "dice": [1 - e if e < 0.1 else None]}
        for i, e in enumerate(errors)
    ]
    return write_strip(folder, SimpleNamespace(scores=scores, pictures=[one] * len(errors)))  # type: ignore[arg-type]


def test_strips_show_the_median_and_the_worst_victim(make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pppml_core.evidence.strips.labels_of", lambda images: images.labels)
    run = with_attacks(make_run(), record("idlg", pictures="s.png"))
    strip(run / "attacks/s.png", (0.5, 0.001, 0.1))
    (found,) = shown(run)["strips"]
    assert found["said"] == [
        "Median victim: 10.0 dB, rank 3 of 100 images",
        "Worst victim: 30.0 dB, rank 2 of 100 images, lesion drawn with a Dice of 1.0",
    ]
    assert found["uri"].startswith("data:image/png;base64,iVBOR")
    assert found["kind"] == "Staged step"
    for words in ("idlg by server", "the original, the best blind guess", "worst victim: 30.0 dB"):
        assert words in found["alt"]
    assert len(HEADS) == 3
    (image,) = [attrs for tag, attrs in page(run).tags if tag == "img"]
    assert image["alt"] == found["alt"]


@pytest.mark.parametrize("name", ["../s.png", "/etc/passwd", "none.png", "text.png", 7, ""])
def test_what_is_no_picture_of_the_run_is_not_shown(make_run: Make, name: Any) -> None:
    run = with_attacks(make_run(), record("idlg", pictures=name))
    (run / "s.png").write_bytes(b"\x89PNG\r\n\x1a\n1234")
    (run / "attacks/text.png").write_text("<svg onload=alert(1)>")
    assert shown(run)["strips"] == []


def test_gaps_are_named(make_run: Make) -> None:
    run = with_attacks(make_run(), record("gallery", verdict="not_shown"), record("idlg", verdict="untested"))
    told = " ".join(shown(run)["gaps"])
    looked = "Nobody looked as another site, neighbours in a ring, who listens on a line and somebody"
    open_ = ("reading the diagnosis", "Rounds other than 1.", "sites other than Hospital A.", "Whole rounds", "(idlg)")
    for words in (looked, *open_, "generative model", "Side channels", "Metadata", "A server that lies about the model"):
        assert words in told, words


def test_many_defences_share_lines_and_are_folded(make_run: Make) -> None:
    runs = [
        with_attacks(
            make_run(name, masked=True, settings={"run": {"name": name, "seed": 1}, "privacy": {"use": "none", "tag": name}}),
            *(record("gallery", v, "shown" if name < "d" else "not_shown") for v in VANTAGES),
        )
        for name in "abcdef"
    ]
    found = shown(*runs)
    assert not found["open"]
    assert [len(a.lines) for a in found["first"]] == [1, 2, 2]
    told = page(*runs)
    assert told.text.count("LEAKS") >= 3 * len(VANTAGES)
    assert "Who could learn what: 6 runs side by side" in told.text
    assert "Shown: a, b, c ." in told.text, "runs of one method are called by their names"


def test_headings_never_skip_a_level(make_run: Make) -> None:
    runs = [with_attacks(make_run(n, masked=n == "m"), *(record(a, v) for a in CLAIM_OF for v in VANTAGES), AUDIT) for n in ("m", "p")]
    for told in (page(*runs), page(runs[0]), page(make_run("none"))):
        levels = [int(tag[1]) for tag, _ in told.tags if re.fullmatch(r"h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        for tag, attrs in told.tags:
            assert tag != "img" or attrs["alt"]
            assert attrs.get("role") not in ("img", "region") or attrs["aria-label"]
            assert attrs.get("role") != "region" or attrs["tabindex"] == "0", "what scrolls can be reached by keyboard"


def test_nothing_from_a_record_becomes_markup(make_run: Make) -> None:
    evil = '</style></svg><script>alert(2)</script>" onload="x'
    one = record("gallery", f"site:{evil}", "not_shown", about=evil, reason=evil, defence=evil) | {"attack": evil}
    told = page(with_attacks(make_run(), one, record("gallery", evil)))
    assert "script" not in {tag for tag, _ in told.tags}
    assert not [attrs for _, attrs in told.tags if any(name.startswith("on") for name in attrs)]


def test_records_of_unexpected_shape_do_not_end_the_report(make_run: Make) -> None:
    chosen = random.Random(1)
    wrong = [None, 3, -1.5, "x", [], {}, [None], {"a": 1}, True, 1e308, float("nan")]
    run = make_run(private=True)

    def spoil(value: Any) -> Any:
        if isinstance(value, dict) and value and chosen.random() < 0.9:
            return {k: spoil(v) if chosen.random() < 0.25 else v for k, v in value.items() if chosen.random() > 0.03}
        return chosen.choice(wrong)

    whole = [record(a, v, bound=limits(0.2, 0.3)) for a in CLAIM_OF for v in ("server", "neighbours:a", "link:a-b")]
    whole += [game(), game("he-key-recovery"), unseen("idlg", "site:b", "own")]
    for turn in range(25):
        with_attacks(run, *(spoil(copy.deepcopy(one)) for one in [*whole, AUDIT]))
        assert shown(run)["gaps"]
        if turn == 0:
            assert "What was not tested" in page(run).text

"""The page claims nothing that its records do not: bounds, counts, controls, guesses and verdicts, from records made by hand."""

import html
import json
import re
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from pppml_core.report import write_report
from pppml_core.report.columns import columns
from pppml_core.report.evidence import evidence
from pppml_core.report.records import read_run

Make = Callable[..., Path]
SEE, PICK, TEST = range(3)
METRICS = {"picked": "candidate@1", "redrawn": "redrawn", "named": "labels_right"}
ATTACK = {"picked": ("gallery", "candidate"), "redrawn": ("idlg", "images"), "named": ("label-restoration", "labels")}
SERVER = "The central server, following the protocol"


def counted(hits: int, n: int, among: int = 0) -> dict[str, Any]:
    return {"rate": hits / n, "low": 0.0, "high": 1.0, "n": n} | ({"chance": 1 / among} if among else {})


def cell(claim: str, verdict: str, hits: int = 0, n: int = 10, vantage: str = "server", **more: Any) -> dict[str, Any]:
    """A record of a staged step with one claim; fields that are None are left out, as in older records."""
    attack, answers = ATTACK[claim]
    outcome = {"shown": "recovered", "not_shown": "not_shown_to_leak"}.get(verdict, "inconclusive")
    members = {"server": ["server"], "server+site:b": ["b", "server"], "site:b": ["b"]}.get(vantage, [])
    whole = {
        "attack": attack, "vantage": vantage, "round": 1, "outcome": outcome, "reason": "r", "answers": answers, "site": "a", "victims": n,
        "metrics": {METRICS[claim]: counted(hits, n, 100 if claim == "picked" else 0), "claims": {claim: verdict}},
        "control": {"what": "the same attack with the defence off", "passed": verdict != "untested", METRICS[claim]: counted(n, n)},
        "best_guess": {}, "effort": {}, "settings": {}, "staged": True, "about": "Staged: one training step on one image of a.",
        "bound": {"rate": None, "kappa": 0.01, "adjacency": "", "method": "", "reason": "none is claimed", "whole_run": None},
        "exposed": [{"sites": ["a"]}], "look_alikes": 99.0, "violation": False, "lied": False, "people": n, "members": members,
    } | more  # fmt: skip
    bound = {} if claim != "named" else {"bound": None}
    return {name: value for name, value in whole.items() if value is not None} | {"why": more.get("why")} | bound


def limits(step: float, whole: float | None, kappa: float = 0.01) -> dict[str, Any]:
    return {"rate": step, "kappa": kappa, "adjacency": "add-remove", "method": "Gaussian DP", "reason": "", "whole_run": whole}


def unseen(vantage: str, why: str | None, **more: Any) -> dict[str, Any]:
    """A record of an attack that did not apply."""
    empty: dict[str, Any] = {"outcome": "not_applicable", "metrics": {}, "control": {}, "bound": {}, "exposed": [], "victims": 0}
    return cell("picked", "untested", vantage=vantage, **{**empty, "why": why, **more}) | {"bound": None}


def scheme(attack: str, outcome: str) -> dict[str, Any]:
    """A record of a test of the scheme: it reads no view and attacks no patient."""
    base = {"attack": attack, "vantage": "server", "round": 6, "outcome": outcome, "reason": "r", "effort": {}, "settings": {}}
    if attack == "he-key-recovery":
        control: dict[str, Any] = {"what": "the decrypted numbers in full precision", "passed": True}
        return base | {"metrics": {"key_recovered": outcome == "recovered"}, "control": control, "best_guess": {"what": "no key"}}
    control = {
        "what": "all parties but a or b together, with their keys",
        "passed": outcome != "inconclusive",
        "accuracy": counted(100, 100),
    }
    right = counted(100 if outcome == "recovered" else 49, 100)
    return base | {"metrics": {"accuracy": right}, "control": control, "best_guess": {"what": "coin flips", "accuracy": 0.5}}


def members(verdict: str) -> dict[str, Any]:
    metrics = {"victims": 1, "auc": 0.5, "tpr@0.05": counted(3, 60), "claims": {"members": verdict, "members@0.05": verdict}}
    control = {"passed": True, "auc": 0.9, "what": "the same attack with the defence off", "tpr@0.05": counted(50, 60)}
    told = {"attack": "membership", "answers": "members", "victims": 1, "people": None, "metrics": metrics, "control": control}
    return cell("picked", verdict) | told | {"staged": False, "bound": None}


Attacked = Callable[..., dict[str, Any]]


@pytest.fixture
def attacked(make_run: Make) -> Attacked:
    """What the page shows of a run with these records; ``promised``: changes of the aggregator's guarantees."""
    made = count()

    def attacked(*records: dict[str, Any], promised: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
        run = make_run(f"run-{next(made)}", **settings)
        (run / "attacks").mkdir()
        for number, one in enumerate(records):
            (run / f"attacks/{number:02d}.json").write_text(json.dumps(one))
        result = json.loads((run / "result.json").read_text())
        result["guarantees"] |= promised or {}
        (run / "result.json").write_text(json.dumps(result))
        return evidence(columns([read_run(run)])[0]) | {"run": run}

    return attacked


def page(found: dict[str, Any]) -> str:
    """The text of the whole page."""
    written = write_report([found["run"]], found["run"].parent / "out.html").read_text("utf-8")
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<style>.*?</style>|<[^>]*>", " ", written, flags=re.DOTALL)))


def said(found: dict[str, Any], question: int) -> str:
    return " ".join(f"{line.lead}. {line.text}" for line in found["first"][question].lines)


def rows(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["who"]: row for row in found["defences"][0]["rows"]}


def test_a_bound_counts_all_rounds_or_is_no_verdict(attacked: Attacked) -> None:
    told = {
        whole: rows(attacked(cell("picked", "not_shown", bound=limits(0.111, whole)), private=True))[SERVER] for whole in (0.3, 0.9, None)
    }
    assert told[0.3]["answers"]["picked"]["proven"] == "at most 30% over the whole run"
    (promise,) = told[0.3]["guarantee"]
    assert promise["text"] == (
        "over the whole run, the patient is picked out of 100 images in at most 30.0% of tries (best blind guess 1.0%)"
    )
    assert told[0.9]["answers"]["picked"]["proven"] == ""
    assert told[0.9]["guarantee"][0]["text"].endswith("in at most 90.0% of tries (best blind guess 1.0%): too weak to rely on")
    assert told[None]["answers"]["picked"]["proven"] == ""
    (step,) = told[None]["guarantee"]
    assert step["text"].startswith(
        "in this one step, at round 1, and the model it began with, the patient is picked out of 100 images in at most 11.1%"
    )
    assert step["text"].endswith("nothing is proven of the whole run")
    old = limits(0.111, 0.3)
    del old["whole_run"]
    found = attacked(cell("picked", "not_shown", bound=old), private=True)
    assert rows(found)[SERVER]["guarantee"] == [step]
    assert "at most 11.1% in this one step (Gaussian DP, add-remove)" in page(found)
    # The verdict on the party never rests on a bound that is on one of three questions.
    assert {row["verdict"] for row in told.values()} == {"NOT SHOWN TO LEAK"}


def test_the_weakest_bound_of_a_party_counts_and_a_record_without_one_undoes_it(attacked: Attacked) -> None:
    two = [cell("picked", "not_shown", bound=limits(0.1, whole), round=number) for number, whole in ((1, 0.2), (30, 0.4))]
    assert rows(attacked(*two, private=True))[SERVER]["answers"]["picked"]["proven"] == "at most 40% over the whole run"
    third = cell("picked", "not_shown", bound=limits(0.1, None), round=20)
    assert rows(attacked(*two, third, private=True))[SERVER]["answers"]["picked"]["proven"] == ""
    steps = [cell("picked", "not_shown", bound=limits(step, None), round=number) for number, step in ((1, 0.1), (30, 0.31))]
    assert "in at most 31.0% of tries" in rows(attacked(*steps, private=True))[SERVER]["guarantee"][0]["text"]


def test_a_coalition_is_bounded_no_better_than_its_members(attacked: Attacked) -> None:
    def proven(server: float | None, coalition: float | None, **lying: Any) -> list[str]:
        alone = [cell("picked", "not_shown", bound=limits(0.1, server)), cell("picked", "not_shown", bound=limits(0.2, server), round=30)]
        other = cell("picked", "not_shown", vantage="server" if lying else "server+site:b", bound=limits(0.1, coalition), **lying)
        return [row["answers"]["picked"]["proven"] for row in rows(attacked(*alone, other, private=True)).values()]

    at = "at most {} over the whole run".format
    assert proven(0.31, 0.111) == [at("31%"), at("31%")]
    assert proven(0.31, 0.4) == [at("31%"), at("40%")]
    assert proven(0.6, 0.111) == ["", ""]
    assert proven(None, 0.111) == ["", ""]
    assert proven(0.31, None) == [at("31%"), ""]
    assert proven(0.31, 0.111, lied=True) == [at("31%"), at("31%")], "who lies can do all that who does not can"
    assert proven(0.31, 0.4, lied=True) == [at("31%"), at("40%")]
    # Neighbours are the sites that they are, and everybody has what is public.
    ring = cell("picked", "not_shown", vantage="neighbours:a", bound=limits(0.1, 0.1), members=["b", "d"])
    alone = [cell("picked", "not_shown", vantage=v, bound=limits(0.1, whole)) for v, whole in (("site:b", 0.2), ("public", 0.3))]
    told = [row["answers"]["picked"]["proven"] for row in rows(attacked(ring, *alone, private=True)).values()]
    assert told == [at("30%"), at("30%"), at("30%")]


def test_a_bound_is_told_on_the_first_screen_where_it_holds_for_all_who_tried(attacked: Attacked) -> None:
    both = [cell("picked", "not_shown", vantage=v, bound=limits(0.1, 0.25)) for v in ("server", "server+site:b")]
    assert "Proven for any attack, over the whole run: at most 25%." in said(attacked(*both, private=True), PICK)
    link = cell("picked", "not_shown", vantage="link:a-server", bound=limits(0.1, None))
    assert "Proven" not in said(attacked(*both, link, private=True), PICK)


def test_images_are_called_images_and_patients_patients(attacked: Attacked) -> None:
    found = attacked(cell("picked", "not_shown", n=100, people=36))
    assert "Gallery by server: 100 images of 36 patients to be picked out." in said(found, TEST)
    assert rows(found)[SERVER]["strength"].startswith("empirical: 100 images of 36 patients, control passed")
    old = attacked(cell("picked", "not_shown", n=100, people=None))
    assert "Gallery by server: 100 images to be picked out." in said(old, TEST)
    assert "patients" not in rows(old)[SERVER]["strength"]
    one = attacked(cell("redrawn", "not_shown", n=1, people=1))
    assert "Idlg by server: 1 image of 1 patient to be redrawn." in said(one, TEST)
    # Ten steps on eight images each: the ten patients are of the first images alone.
    batch = cell("redrawn", "not_shown", n=80, people=10) | {"victims": 10}
    assert "Idlg by server: 80 images to be redrawn." in said(attacked(batch), TEST)
    labels = attacked(cell("named", "not_shown", n=100, people=36))
    assert "100 training steps whose diagnoses were to be read." in said(labels, TEST)


def test_of_what_was_not_shown_the_worst_is_told(attacked: Attacked) -> None:
    found = attacked(
        *(cell("picked", "not_shown", hits, 100, vantage=v) for v, hits in (("server", 0), ("site:b", 4), ("public", 1))),
    )
    assert "None of the 3 who were tried: picked in at most 4 of 100 tries among 100 images" in said(found, PICK)
    assert "0 of 100" not in said(found, PICK)
    # Of equal rates the one that rules out less; a party's cell shows its own worst.
    few = attacked(cell("picked", "not_shown", 0, 100), cell("picked", "not_shown", 0, 3, round=2))
    assert "picked in at most 0 of 3 tries" in said(few, PICK)
    assert rows(few)[SERVER]["answers"]["picked"]["detail"].startswith("0 of 3 (at most 63%")


def test_who_names_a_candidate_is_counted_by_that_and_not_by_what_it_draws(attacked: Attacked) -> None:
    one = cell("picked", "not_shown", 4, 100)
    one["metrics"]["reid@1"] = counted(9, 100, 100)
    assert rows(attacked(one))[SERVER]["answers"]["picked"]["detail"].startswith("4 of 100 ")
    assert rows(attacked(one | {"answers": "images"}))[SERVER]["answers"]["picked"]["detail"].startswith("9 of 100 ")


def test_one_party_that_failed_hides_no_other_whose_test_proves_nothing(attacked: Attacked) -> None:
    found = attacked(
        cell("picked", "not_shown", vantage="public"), cell("picked", "untested"), cell("picked", "undecided", vantage="site:b")
    )
    assert said(found, PICK).startswith(
        "Could not be told. Pick out: It is open whether another site, Hospital B <i>north</i>, by itself can pick a patient out: more was "
        "found than guessing gives, but in too few trials. Open for server too. Not shown for outsider with the models."
    )
    both = attacked(cell("picked", "untested"), cell("named", "not_shown"))
    assert said(both, PICK).startswith("Could not be told. ")
    assert said(attacked(cell("named", "not_shown")), PICK).startswith("Not shown in part. Pick out: Nobody tried")


def test_what_holds_at_one_of_two_defences_is_not_said_of_both(attacked: Attacked) -> None:
    made = [
        attacked(
            cell("picked", "untested"), cell("picked", verdict, vantage="public"), settings={"privacy": {"use": "none", "tag": verdict}}
        )
        for verdict in ("untested", "not_shown")
    ]
    (line,) = evidence(columns([read_run(one["run"]) for one in made])[0])["first"][PICK].lines
    assert "whether the central server, following the protocol and somebody who has only the published models can pick" in line.text
    assert "Not shown" not in line.text


@pytest.mark.parametrize(("hits", "n"), [(0, 3), (0, 10), (1, 10), (4, 100), (10, 10)])
def test_at_most_is_the_exact_one_sided_limit(attacked: Attacked, hits: int, n: int) -> None:
    limit = 1.0 if hits == n else float(stats.beta.ppf(0.95, hits + 1, n - hits))
    detail = rows(attacked(cell("picked", "not_shown", hits, n)))[SERVER]["answers"]["picked"]["detail"]
    assert detail.startswith(f"{hits} of {n} (at most {limit:.0%};")


def test_the_limit_is_the_records_own(attacked: Attacked) -> None:
    """100 images of 36 patients, of which the record counts one each: the page says 36, and the limit that stands beside it."""
    one = cell("picked", "not_shown", n=36, people=36, victims=100)
    one["metrics"]["candidate@1"] |= {"at_most": 0.09, "share": 0.0, "images": 100}
    found = attacked(one)
    assert rows(found)[SERVER]["answers"]["picked"]["detail"].startswith("0 of 36 (at most 9%;")
    assert rows(found)[SERVER]["strength"].startswith("empirical: 36 images of 36 patients")
    for wrong in (-0.1, 1.1, "8 %", None):
        one["metrics"]["candidate@1"]["at_most"] = wrong
        exact = float(stats.beta.ppf(0.95, 1, 36))
        assert rows(attacked(one))[SERVER]["answers"]["picked"]["detail"].startswith(f"0 of 36 (at most {exact:.0%};")


def test_few_trials_a_failed_control_and_a_broken_attack_are_told_apart(attacked: Attacked) -> None:
    undecided = attacked(cell("picked", "undecided", 2))
    failed = attacked(cell("picked", "untested", control={"what": "w", "passed": False, "candidate@1": counted(1, 10)}))
    broke = attacked(cell("picked", "not_shown") | {"outcome": "inconclusive", "why": "broke"})
    passed = "Control passed: with the defence off it succeeds for 10 of 10. "
    assert said(undecided, TEST).endswith(f"{passed}It found more than guessing gives, but in too few trials, so it proves nothing.")
    assert said(failed, TEST).endswith("Control not passed (1 of 10 with the defence off). So it proves nothing.")
    assert said(broke, TEST).endswith(f"{passed}But the attack itself broke, so it proves nothing.")
    whys = (
        "more was found than guessing gives, but in too few trials",
        "the test fails with the defence off too",
        "the attack itself broke",
    )
    for found, why, word in zip((undecided, failed, broke), whys, ("perhaps", "inconclusive", "the attack broke"), strict=True):
        (row,) = rows(found).values()
        assert said(found, TEST).startswith("It proves nothing. ")
        assert said(found, PICK).startswith("Could not be told. Pick out: It is open whether")
        assert f"can pick a patient out: {why}." in said(found, PICK)
        assert row["verdict"] == "INCONCLUSIVE"
        assert row["strength"] == f"identity: {why}; image and diagnosis not tested"
        assert row["answers"]["picked"]["word"] == word
        assert sum(other in page(found).replace("attack fails with the defence off too, broke", "") for other in whys) == 1
    assert "1 of 1 tests could not have told" in broke["gaps"][2]


def test_older_records_of_broken_attacks_are_no_protection_either(attacked: Attacked) -> None:
    def without_why(**claims: str) -> dict[str, Any]:
        one = cell("redrawn", "not_shown") | {"outcome": "inconclusive"}
        del one["why"]
        one["metrics"]["claims"] = claims
        return one

    (row,) = rows(attacked(without_why(redrawn="not_shown"))).values()
    assert (row["verdict"], row["answers"]["redrawn"]["word"]) == ("INCONCLUSIVE", "the attack broke")
    # Whether it broke, or another claim alone is undecided, an older record does not say.
    mixed = without_why(redrawn="not_shown", picked="undecided")
    (row,) = rows(attacked(mixed)).values()
    assert [row["answers"][q]["word"] for q in ("redrawn", "picked")] == ["inconclusive", "perhaps"]
    assert "image: the test was inconclusive" in row["strength"]
    (row,) = rows(attacked(without_why(redrawn="not_shown") | {"why": None})).values()
    assert row["verdict"] == "INCONCLUSIVE", "the record contradicts itself"
    (row,) = rows(attacked(mixed | {"why": None})).values()
    assert [row["answers"][q]["word"] for q in ("redrawn", "picked")] == ["not shown", "perhaps"]


def test_a_control_that_shows_another_claim_does_not_speak_for_this_one(attacked: Attacked) -> None:
    one = cell("redrawn", "untested", control={"what": "w", "passed": True, "redrawn": counted(1, 10), "reid@1": counted(10, 10)})
    found = attacked(one)
    assert said(found, TEST).endswith("Control not passed (1 of 10 with the defence off). So it proves nothing.")
    assert said(found, SEE).endswith("can see an image: the test fails with the defence off too.")
    one |= {"outcome": "not_shown_to_leak", "metrics": one["metrics"] | {"claims": {"redrawn": "untested", "picked": "not_shown"}}}
    (row,) = rows(attacked(one)).values()
    assert [row["answers"][q]["word"] for q in ("redrawn", "picked")] == ["inconclusive", "not shown"]


def test_a_claim_whose_control_is_not_recorded_is_called_so(attacked: Attacked) -> None:
    found = attacked(cell("picked", "not_shown", control={"what": "w"}))
    assert "No control is recorded. So it proves nothing." in said(found, TEST)
    assert "no passed control is recorded" in rows(found)[SERVER]["strength"]


@pytest.mark.parametrize("attack", ["distinguish", "he-key-recovery"])
@pytest.mark.parametrize("outcome", ["not_shown_to_leak", "recovered", "inconclusive"])
def test_tests_of_the_scheme_are_no_tests_of_patients(attacked: Attacked, attack: str, outcome: str) -> None:
    found = attacked(scheme(attack, outcome), masked=True)
    test, (row,) = said(found, TEST), found["defences"][0]["rows"]
    lead = {"not_shown_to_leak": "It failed", "recovered": "It succeeded", "inconclusive": "It proves nothing"}[outcome]
    task = "the secret key was to be found" if attack == "he-key-recovery" else "100 messages of two contents to be told apart"
    assert test.startswith(f"{lead}. {attack.capitalize()} by server: {task}.")
    assert test.endswith("It is a test of the scheme, not of any patient’s image.")
    assert "defence off" not in test
    if outcome == "not_shown_to_leak":
        control = (
            "the decrypted numbers in full precision" if attack == "he-key-recovery" else "all parties but a or b together, with their keys"
        )
        assert f"Control passed: {control}" in test
    assert said(found, SEE) == "Not tested. Nobody tried, which is no sign of safety."
    assert row["strength"].endswith("image, identity and diagnosis not tested") == (outcome != "recovered")
    assert row["who"] == "The central server", "no record says that it followed the protocol"
    assert "nothing of a single site" not in str(row["guarantee"]), "nobody looked what it decodes"
    assert "Rounds other than" not in str(found["gaps"]), "it is about no round"


def test_a_test_of_the_scheme_is_never_stronger_than_one_of_patients(attacked: Attacked) -> None:
    game, keys = scheme("distinguish", "not_shown_to_leak"), scheme("he-key-recovery", "not_shown_to_leak")
    for verdict in ("not_shown", "untested", "shown"):
        assert "Idlg by server: 3 images of 3 patients to be redrawn." in said(attacked(game, keys, cell("redrawn", verdict, n=3)), TEST)
    assert "Gallery by server: 100 images" in said(attacked(cell("redrawn", "not_shown", n=3), cell("picked", "not_shown", n=100)), TEST)
    tied = attacked(
        cell("named", "not_shown", 41, n=100), cell("picked", "not_shown", 4, n=100), cell("picked", "not_shown", 5, n=100, round=2)
    )
    assert "Gallery by server: 100 images" in said(tied, TEST)
    leaks = attacked(scheme("distinguish", "recovered"), scheme("he-key-recovery", "recovered"), cell("picked", "not_shown", n=100))
    assert said(leaks, TEST).startswith("It succeeded. He-key-recovery by server"), "what was shown stands before what was not"
    assert rows(leaks)[SERVER]["strength"] == "secret key and messages told apart"
    graver = attacked(scheme("he-key-recovery", "recovered"), cell("redrawn", "shown", 1, 3))
    assert said(graver, TEST).startswith("It succeeded. Idlg")
    missed = attacked(scheme("distinguish", "not_shown_to_leak"), members("not_shown"))
    assert "Membership by server: 60 training images to be told from others. Control passed: with the defence off" in said(missed, TEST)


def test_membership_counts_training_images(attacked: Attacked) -> None:
    found = attacked(members("not_shown"))
    (row,) = found["defences"][0]["rows"]
    (other,) = row["others"]
    assert (other["what"], other["word"]) == ("tell who was trained on", "not shown")
    assert other["detail"] == f"3 of 60 at 5% false alarms (at most {stats.beta.ppf(0.95, 4, 57):.0%})"
    assert row["strength"] == "empirical: 60 training images, control passed; in part: image, identity and diagnosis not tested"


def test_a_lying_server_was_tested_only_where_a_test_of_one_told_something(attacked: Attacked) -> None:
    gap = "A server that lies about the model: no test of one told anything."
    honest = cell("picked", "not_shown")
    assert gap in attacked(honest)["gaps"]
    assert gap in attacked(honest, unseen("server", "misfit", lied=True, about="Staged. The server lied about the model."))["gaps"]
    found = attacked(honest, cell("picked", "not_shown", lied=True))
    assert gap not in found["gaps"]
    assert list(rows(found)) == [SERVER, "The central server, lying about the model"]
    old = attacked(cell("picked", "shown", lied=None, about="Staged. The server lied about the model."))
    assert list(rows(old)) == ["The central server"]
    assert gap in old["gaps"]


def test_who_only_stood_beside_an_attack_that_did_not_apply_did_not_look(attacked: Attacked) -> None:
    found = attacked(cell("picked", "not_shown"), unseen("site:b", "misfit"), unseen("neighbours:a", "no_such_party"))
    (looked,) = [gap for gap in found["gaps"] if gap.startswith("Nobody looked as")]
    assert "another site" in looked
    assert "ring" not in looked, "there is none"
    assert rows(found)["Another site, Hospital B <i>north</i>, by itself"]["strength"] == "no attack that was tried applies"


def test_the_worst_of_three_questions_is_the_verdict(attacked: Attacked) -> None:
    def told(**verdict: str) -> tuple[str, str]:
        found = [cell(claim, v, 9 if v == "shown" else 0, n=3 if claim == "redrawn" else 10) for claim, v in verdict.items()]
        (row,) = rows(attacked(*found)).values()
        return row["verdict"], row["strength"]

    assert told(redrawn="untested", named="not_shown") == (
        "INCONCLUSIVE", "image: the test fails with the defence off too; identity not tested"
    )  # fmt: skip
    assert told(redrawn="not_shown", picked="not_shown", named="undecided")[0] == "INCONCLUSIVE"
    assert told(redrawn="untested", picked="shown") == ("LEAKS", "identity")
    assert told(picked="not_shown", named="not_shown")[1].endswith("in part: image not tested")
    whole = told(redrawn="not_shown", picked="not_shown", named="not_shown")
    assert whole == (
        "NOT SHOWN TO LEAK",
        "empirical: 3 images of 3 patients, 10 images of 10 patients and 10 training steps, control passed",
    )


def test_a_proven_bound_on_identity_hides_no_open_question(attacked: Attacked) -> None:
    bound = limits(0.03, 0.04)
    found = attacked(
        cell("picked", "not_shown", bound=bound), cell("named", "undecided", 2), cell("redrawn", "untested", bound=bound), private=True
    )
    (row,) = rows(found).values()
    assert row["verdict"] == "INCONCLUSIVE"
    assert row["answers"]["picked"]["proven"] == "at most 4% over the whole run"
    assert "proven" not in str([row["answers"][q]["word"] for q in row["answers"]])
    assert page(found).count("≤ PROVEN BOUND at most 4% over the whole run") == 1
    weak = attacked(cell("picked", "untested", bound=bound), private=True)
    assert rows(weak)[SERVER]["verdict"] == "INCONCLUSIVE"


def test_guess_and_look_alikes_are_those_of_the_record(attacked: Attacked) -> None:
    found = attacked(cell("picked", "shown", 9, bound=limits(0.9, None, kappa=0.3), look_alikes=3.0))
    assert "picked in up to 9 of 10 tries among 100 images (3 look-alikes; guessing: 30%)" in said(found, PICK)
    assert rows(found)[SERVER]["answers"]["picked"]["detail"] == "9 of 10 (0% to 100%; guessing 30%)"
    guessed = cell("picked", "shown", 9, best_guess={"rule": "centre", "candidate@1": counted(20, 100, 100)}) | {"bound": None}
    assert "guessing: 20%" in said(attacked(guessed), PICK)
    lucky = cell("picked", "shown", 9, best_guess={"rule": "centre", "candidate@1": counted(0, 100, 100)}) | {"bound": None}
    assert "guessing: 1%" in said(attacked(lucky), PICK), "chance is a guess, too"
    silent = attacked(cell("picked", "shown", 9, look_alikes=None) | {"bound": None})
    assert "guessing" not in said(silent, PICK)
    assert "look-alikes" not in said(silent, PICK)
    labels = cell("named", "not_shown", 5, best_guess={"rule": "always 0", "labels_right": counted(4, 10)})
    assert rows(attacked(labels))[SERVER]["answers"]["diagnosis"]["detail"].endswith("guessing 40%)")


@pytest.mark.parametrize(
    ("lied", "sums", "proven"),
    [
        (False, [], True),
        (True, [], False),  # (the promise is against nobody who lies)
        (None, [], False),
        (False, [{"sites": ["b"]}], True),  # (a sum without the watched site)
        (False, [{"sites": ["a"]}], False),  # (its own update)
    ],
)
def test_the_promise_of_encryption_covers_whom_it_names(attacked: Attacked, lied: bool | None, sums: list[Any], proven: bool) -> None:
    one = unseen("server", "hidden", lied=lied, exposed=sums)
    found = attacked(one, masked=True, promised={"coalition_active": 0})
    (row,) = found["defences"][0]["rows"]
    assert (row["verdict"] == "PROVEN BOUND") == proven
    assert bool(row["guarantee"]) == proven


def test_who_decodes_a_sum_with_the_site_is_not_kept_out(attacked: Attacked) -> None:
    found = attacked(unseen("server", "hidden"), unseen("server", "misfit", round=2, exposed=[{"sites": ["a", "b"]}]), masked=True)
    (row,) = found["defences"][0]["rows"]
    assert row["verdict"] == "NOT TESTED"
    assert row["guarantee"][0]["text"].startswith("it gets no more than a sum over 2 sites")


def test_whose_update_is_decoded_has_no_promise(attacked: Attacked) -> None:
    for sums, text in (([["a"]], ""), ([["a", "b", "c"]], "it gets no more than a sum over 3 sites, if 1 assumption holds")):
        (row,) = rows(attacked(cell("picked", "not_shown", exposed=[{"sites": s} for s in sums]), masked=True)).values()
        assert "".join(g["text"] for g in row["guarantee"]) == text


@pytest.mark.parametrize(
    ("why", "expected"),
    [
        ("own", ("NOT TESTED", "the watched site is one of them")),
        ("misfit", ("NOT TESTED", "no attack that was tried applies")),
        ("no_such_party", ("NO SUCH PARTY", "")),
        ("hidden", ("PROVEN BOUND", "cryptographic, under its assumptions")),
        (None, ("NOT TESTED", "")),
    ],
)
def test_why_nothing_was_tried_is_read_from_its_field_alone(attacked: Attacked, why: str | None, expected: tuple[str, str]) -> None:
    texts = ("this adversary decodes no sum that the watched site is in", "a has no neighbours in this round", "x")
    for text in texts:
        (row,) = attacked(unseen("site:b", why, reason=text), masked=True)["defences"][0]["rows"]
        assert (row["verdict"], row["strength"]) == expected


def test_records_without_the_newer_fields_still_give_a_page(attacked: Attacked) -> None:
    old = [cell("picked", "not_shown", bound=limits(0.03, 0.04)), cell("redrawn", "shown", 9), unseen("neighbours:a", "hidden")]
    for one in old:
        for name in ("why", "lied", "people", "members"):
            one.pop(name, None)
        (one["bound"] or {}).pop("whole_run", None)
    found = attacked(*old, masked=True)
    assert {row["who"]: row["verdict"] for row in found["defences"][0]["rows"]} == {
        "The central server": "LEAKS", "The neighbours of Hospital A in the ring": "NOT TESTED"
    }  # fmt: skip
    assert "PROVEN BOUND at" not in page(found)
    assert "following the protocol" not in page(found).partition("Who could attack")[2].partition("Who sees what")[0]
    assert " patients" not in said(found, TEST)

"""docs/round.md against real runs: messages, terms, files and seed names are recorded and compared with its tables."""

import importlib
import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest

import pppml_core as pppml
from pppml_core.config.run_config import EncodingSection
from pppml_core.federation import store, terms
from pppml_core.federation.pipeline import METRIC_RANGES
from pppml_core.randomness import Seeds
from pppml_core.registry import Registry
from pppml_core.values import automatic_ranges
from pppml_core.wire.codec import decode_message
from pppml_core.wire.transcript import read_payload, read_transcript

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "round.md").read_text(encoding="utf-8")
SEED = 990_001

RUNS = {
    "fedavg": {"run": {"cohort": 2, "select": "best-validation"}, "training": {"augment": True}},
    "sum": {"run": {"metrics": "sum"}},
    "local-only": {"personalization": "local-only"},
}


def section(title):
    return re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", TEXT, flags=re.DOTALL | re.MULTILINE)[1]


def table(text, first_header):
    """Rows of the markdown table whose first header is given, as lists of cells."""
    lines = iter(text.splitlines())
    next(line for line in lines if line.startswith(f"| {first_header} |"))
    next(lines)
    rows = []
    for line in lines:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def codes(text):
    return re.findall(r"`([^`]+)`", text)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Each run's folder, and the names of all learning seeds that the runs drew from."""
    names = set()
    folders = {}
    original = Seeds.integer

    def integer(self, *parts):
        if self.root == SEED:
            names.add(parts)
        return original(self, *parts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Seeds, "integer", integer)
        for name, sections in RUNS.items():
            run = {"rounds": 2, "seed": SEED, "transcript": "payloads", **sections.get("run", {})}
            others = {k: v for k, v in sections.items() if k != "run"}
            # Wide enough that a reply is kept in a file of its own.
            experiment = pppml.Experiment(
                task="tiny", model={"use": "tiny-net", "width": 48}, reporters=["jsonl"], run=run, registry=Registry.only(), **others
            )
            run = experiment.run(tmp_path_factory.mktemp("round") / name)
            folders[name] = run.folder
            if name == "fedavg":
                run.adapt("site_1", 5, draw=2)
    return folders, names


def messages(folder):
    for hop in read_transcript(folder):
        yield hop, decode_message(read_payload(folder, hop.sha256))


def test_messages(recorded):
    stated = {(codes(k)[0], codes(s)[0]): (set(codes(asked)), set(codes(answered))) for k, s, asked, answered in table(TEXT, "kind")}
    seen = {("hello", "hello"): ({"start"}, {f.name for f in terms.ROUND_FIELDS if f.stage == "hello"})}
    for folder in recorded[0].values():
        open_kind = {}
        for hop, message in messages(folder):
            place = (hop.round, hop.attempt, hop.stage)
            if message.sender == "server":
                open_kind[place, message.recipient] = message.kind
                seen.setdefault((message.kind, hop.stage), (set(), set()))[0].update(message.body)
            else:
                assert message.kind == "reply"
                seen[open_kind[place, message.sender], hop.stage][1].update(message.body)
    assert seen == stated


def test_weights_go_down_once_a_round(recorded):
    """Two rounds: the initial model to the cohort, then each new one to every site with its evaluation."""
    sent = [(m.kind, m.round, m.recipient) for _, m in messages(recorded[0]["fedavg"]) if "weights" in m.body]
    assert len(set(sent)) == len(sent)
    assert sorted(kind for kind, *_ in sent) == ["evaluate"] * 6 + ["open"] * 2


def test_terms(recorded):
    stated = [codes(name)[0] for name, _ in table(TEXT, "term")]
    found = [set(m.body["terms"]) for folder in recorded[0].values() for _, m in messages(folder) if "terms" in m.body]
    assert found
    assert all(keys == set(stated) for keys in found)
    assert set(inspect.signature(terms.round_terms).parameters) == set(stated)


def test_files(recorded):
    stated = {codes(path)[0] for path, _ in table(section("Who keeps what"), "path")}
    found = set()
    for folder in recorded[0].values():
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = path.relative_to(folder).as_posix()
            name = re.sub(r"sites/site_\d", "sites/NAME", name)
            name = re.sub(r"(state|round|best)-\d{6}", r"\1-R", name)
            name = re.sub(r"(payloads|replies-session)/.*", r"\1/", name)
            found.add(name)
    # Secrets are kept by runs that ask for it, which these do not.
    assert found == stated - {"sites/PARTY/secrets/"}
    assert "sites/PARTY/secrets/" in stated
    # The last three rounds, and the last two checkpoints.
    assert f"last {['one', 'two', 'three', 'four'][store.REACH]} rounds" in TEXT
    assert len(list((recorded[0]["fedavg"] / "checkpoints").glob("round-*"))) == 2


def test_hello_is_not_in_the_transcript(recorded):
    assert not any(hop.kind == "hello" for folder in recorded[0].values() for hop in read_transcript(folder))


def test_seed_names(recorded):
    def pattern(parts):
        out = []
        for i, part in enumerate(parts):
            before = parts[i - 1] if i else None
            if before in ("round", "evaluation"):
                out.append("R")
            elif before in ("site", "newcomer"):
                out.append("NAME")
            elif before in ("epoch", "step", "draw"):
                out.append({"epoch": "E", "step": "K", "draw": "D"}[before])
            elif before == "augment":
                out += ["E", "I"]
                break
            else:
                out.append(str(part))
        return " / ".join(out)

    assert {codes(name)[0] for name, _ in table(TEXT, "name")} == {pattern(parts) for parts in recorded[1]}


def test_numbers():
    text = section("What a site contributes")
    bits = EncodingSection.model_fields["bits"]
    low, high = (next(getattr(m, edge) for m in bits.metadata if hasattr(m, edge)) for edge in ("ge", "le"))
    assert f"is {bits.default} by default, from {low} to {high}" in text
    assert f"`encoding.start` ({EncodingSection().start})" in text
    assert f"has {inspect.signature(automatic_ranges).parameters['multiple'].default:.0f} times its RMS" in text
    assert METRIC_RANGES == {"#loss": 16.0, "#loss_defined": 1.0, "#saturated": 1.0}
    assert "`loss` with range 16, `loss_defined`" in text
    reason = next(f for f in terms.ROUND_FIELDS if f.name == "reason")
    assert f"at most {reason.max_bytes} bytes" in section("Messages")


def test_the_example_gives_what_it_says():
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    known = {}
    exec(compile(code, "docs/round.md", "exec"), known)
    np.testing.assert_allclose(known["a"], [8191, -4096, 16384], atol=1)
    np.testing.assert_allclose(known["mean"]["conv"], [0.7 / 3, 0.25], atol=1e-4)
    assert known["examples"] == pytest.approx(300, abs=0.02)


def test_the_names_in_the_last_table_exist():
    rows = table(TEXT, "what")
    assert len(rows) > 10
    for _, file, names in rows:
        (path,) = codes(file)
        module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        for name in codes(names):
            assert hasattr(module, name), f"{path} has no {name}"


def test_settings_that_are_named_exist():
    schema = json.dumps(pppml.schema(Registry.only()))
    for name in set(re.findall(r"`(?:run|encoding|training|engine)\.(\w+)(?:: [\w-]+)?`", TEXT)) - {"id"}:
        assert f'"{name}"' in schema, name


def test_what_the_model_does_not_depend_on(tmp_path):
    """Everything that the page names besides the number of worker processes, which costs a test of its own, and kills."""
    text = section("When two runs give the same model, bit for bit")
    assert all(f"`{name}`" in text for name in ("training.loader_workers", "training.cache", "engine.amnesia"))
    faults = [
        {"site": "site_1", "stage": "contribute", "do": "delay"},
        {"site": "site_2", "stage": "open", "round": 2, "attempt": 1, "do": "duplicate"},
        *({"site": f"site_{i}", "stage": "contribute", "round": 2, "attempt": 1, "do": "drop-reply"} for i in (1, 2, 3)),
    ]
    common = {"task": "tiny", "run": {"rounds": 2}, "reporters": [], "registry": Registry.only()}
    plain = pppml.Experiment(**common).run(tmp_path / "plain", report=False)
    engine = {"use": "local", "amnesia": True, "faults": faults}
    other = pppml.Experiment(training={"loader_workers": 2, "cache": False}, engine=engine, **common).run(tmp_path / "other", report=False)
    assert other.result["model_sha256"] == plain.result["model_sha256"]
    retried = [hop for hop in read_transcript(other.folder) if hop.round == 2 and hop.attempt == 2]
    assert retried, "the round was to be held again"

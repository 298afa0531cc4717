"""How the page looks: contrast of its colours, and its layout in a real browser at the widths of a phone and of a screen."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pppml_core.report import write_report

Make = Callable[..., Path]
CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
#: what is written in which colour on which ground.
TEXT = (("ink", "page"), ("soft", "page"), ("accent", "page"), ("good", "page"), ("bad", "page"), ("bad", "badtint"), ("ink", "tint"))
VANTAGES = ("server", "server+site:b", "site:b", "neighbours:a", "public")


def luminance(colour: str) -> float:
    """Relative, of ``#rgb`` or ``#rrggbb`` (WCAG 2.2)."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * d for d in colour[1:])
    channels = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_measure_itself() -> None:
    assert contrast("#fff", "#000") == pytest.approx(21)
    assert contrast("#777", "#fff") == pytest.approx(4.48, abs=0.01)


def test_text_is_readable_in_light_dark_and_print(make_run: Make, tmp_path: Path) -> None:
    style = re.search(r"<style>(.*?)</style>", write_report([make_run()], tmp_path / "r.html").read_text("utf-8"), re.DOTALL)
    assert style
    roots = re.findall(r":root \{([^}]*)\}", style[1])
    assert len(roots) == 3, "light, dark and print"
    light: dict[str, str] = {}
    for root in roots:
        colours = dict(re.findall(r"--(\w+):(#[0-9a-f]+)", root))
        light = light or colours
        scheme = light | colours
        for ink, ground in TEXT:
            assert contrast(scheme[ink], scheme[ground]) >= 4.5, (root[:60], ink, ground)
        for series in range(1, 9):  # (graphics: WCAG asks for 3)
            assert contrast(scheme[f"c{series}"], scheme["page"]) >= 3, (root[:60], series)
    used = set(re.findall(r"[^-]color: ([^;}]+)", style[1])) | set(re.findall(r"currentColor|background: ([^;}]+)", style[1]))
    fixed = {c for c in used if c.startswith("#")}
    assert fixed <= {"#fff"}, "every other colour is one of the scheme's"


def attacked(run: Path, verdict: str) -> Path:
    """A run whose patients were, or were not, picked out and redrawn from every vantage."""
    hits = 10 if verdict == "shown" else 0
    counted = {"rate": hits / 10, "low": 0.0, "high": 1.0, "n": 10, "chance": 0.01}
    outcome = "recovered" if hits else "not_shown_to_leak"
    off = {"rate": 1.0, "low": 0.7, "high": 1.0, "n": 10}
    (run / "attacks").mkdir()
    for vantage in VANTAGES:
        for attack, answers, claims in (("idlg", "images", ("picked", "redrawn")), ("label-restoration", "labels", ("named",))):
            record: dict[str, Any] = {
                "attack": attack, "vantage": vantage, "round": 1, "outcome": outcome, "reason": "figures " * 30,
                "metrics": {"reid@1": counted, "redrawn": counted, "labels_right": counted, "claims": dict.fromkeys(claims, verdict)},
                "control": {"passed": True, "reid@1": off, "redrawn": off, "labels_right": off}, "effort": {"seconds": 1.0}, "staged": True,
                "about": "Staged: one training step on one image of a.", "victims": 10, "site": "a", "answers": answers, "exposed": [],
                "people": 7, "lied": False, "members": [], "why": None, "look_alikes": 99.0,
                "bound": {"rate": 0.2, "kappa": 0.01, "adjacency": "add-remove", "method": "GDP", "whole_run": None if hits else 0.3},
            }  # fmt: skip
            (run / f"attacks/{attack}-{vantage.replace(':', '_')}.json").write_text(json.dumps(record))
    return run


PROBE = """<script>
const box = e => e.getBoundingClientRect();
const own = e => !e.closest('.wide, pre, svg, .hidden, thead');
const wide = [...document.querySelectorAll('main *')].filter(e => own(e) && box(e).right > innerWidth + 1);
document.title = JSON.stringify({page: document.documentElement.scrollWidth, window: innerWidth, height: innerHeight,
  first: Math.max(...[...document.querySelectorAll('.first .line')].map(e => box(e).bottom)),
  wide: wide.slice(0, 5).map(e => e.outerHTML.slice(0, 120)), scripts: document.scripts.length});
</script>"""


def browse(tmp_path: Path, page: Path, width: int, height: int) -> dict[str, Any]:
    """What a browser makes of the page. (In a frame, as a window of headless Chromium is never narrower than 500.)"""
    text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text("utf-8")).replace("</body>", PROBE + "</body>")
    (tmp_path / "probe.html").write_text(text)
    wait = 'onload="document.title = this.contentDocument.title"'
    frame = f'<iframe src="probe.html" width="{width}" height="{height}" style="border:0" {wait}></iframe>'
    (tmp_path / "frame.html").write_text(f"<!DOCTYPE html><title>none</title>{frame}")
    done = subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            "--allow-file-access-from-files", "--dump-dom", f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1400,1000", (tmp_path / "frame.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    title = re.search(r"<title>(\{.*?\})</title>", done.stdout, re.DOTALL)
    assert title, done.stdout[:500] + done.stderr[-500:]
    found: dict[str, Any] = json.loads(title[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    return found


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: chromium, chromium-browser and google-chrome were looked for")
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 800)])
@pytest.mark.parametrize("verdict", ["shown", "not_shown"])
def test_in_a_browser_the_answers_are_on_the_first_screen(make_run: Make, tmp_path: Path, width: int, height: int, verdict: str) -> None:
    run = attacked(make_run(masked=verdict == "not_shown"), verdict)
    found = browse(tmp_path, write_report([run], tmp_path / "report.html"), width, height)
    assert found["window"] == width
    assert found["page"] <= width, "the page does not scroll sideways"
    assert found["wide"] == []
    assert 0 < found["first"] <= height, "all three answers are seen without scrolling"
    assert found["scripts"] == 1, "the probe alone"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: chromium, chromium-browser and google-chrome were looked for")
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_several_defences_fit_the_width(make_run: Make, tmp_path: Path, width: int) -> None:
    verdicts = ("shown", "not_shown", "shown", "not_shown")
    runs = [
        attacked(
            make_run(f"defence-{i}", settings={"run": {"name": f"defence-with-a-name-{i}", "seed": 1}, "aggregator": {"use": f"a{i}"}}), v
        )
        for i, v in enumerate(verdicts)
    ]
    found = browse(tmp_path, write_report(runs, tmp_path / "report.html"), width, 900)
    assert found["page"] <= width
    assert found["wide"] == []


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: chromium, chromium-browser and google-chrome were looked for")
@pytest.mark.parametrize("width", [600, 1280])
def test_a_screenshot_has_its_margins_and_its_text(make_run: Make, tmp_path: Path, width: int) -> None:
    image_module = pytest.importorskip("PIL.Image")
    page = write_report([attacked(make_run(), "shown")], tmp_path / "report.html")
    shot = tmp_path / "shot.png"
    subprocess.run(
        [
            str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},900", f"--screenshot={shot}", page.as_uri(),
        ],
        capture_output=True, timeout=180, check=True,
    )  # fmt: skip
    grey = image_module.open(shot).convert("L")
    assert grey.size == (width, 900)
    dark = grey.point(lambda value: 255 if value < 128 else 0)
    left, top, right, bottom = dark.getbbox()
    assert left >= 8, "a margin on the left"
    assert right <= width - 8, "a margin on the right"
    assert top < 120, "it begins at the top"
    assert bottom > 700, "and fills the screen"

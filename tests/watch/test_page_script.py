"""The page's script in a real browser: the values at the cursor, and nothing that is forbidden."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest

from service.telemetry.panels.run import RUN_VIEW
from service.watching.frame import Frame
from service.watching.marks import decisions
from service.watching.page import About, draw
from service.watching.span import Span
from tests.pages import invented

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None,
    reason=f"this machine lacks {' and '.join(NAMES)} (apt-get install chromium)",
)

SPAN = Span(1_700_000_000.0, 15.0, 41, 15.0)
PANEL, COARSE = "Steps a second", "Positives of such a row"
"""Panels with one curve a trial: one has a unit, one has one decimal, so that values repeat."""
SAY = """
const [card, coarse] = ["%s", "%s"].map((title) => [...document.querySelectorAll("article")]
  .find((article) => article.querySelector("h3").textContent.startsWith(title)));
const legend = (of) =>
  [...of.querySelectorAll("ul.legend li")].map((entry) => entry.textContent.trim());
const plot = card.querySelector("svg.plot");
const said = {};
const look = (name) => {
  const chip = document.querySelector(".chip");
  said[name] = {
    values: legend(card),
    coarse: legend(coarse),
    chip: chip && chip.textContent,
    inside: chip && chip.closest("figure") === plot.closest("figure"),
    cursors: [...document.querySelectorAll(".cursor")]
      .filter((line) => line.style.display !== "none").map((line) => line.getAttribute("x1")),
  };
};
const point = (kind, place, type) => {
  const box = plot.getBoundingClientRect();
  const at = { clientX: box.left + place * box.width, clientY: box.top + 50 };
  plot.dispatchEvent(new PointerEvent(kind, { ...at, pointerType: type, bubbles: true }));
};
// Without a screen a browser need not draw frames.
window.requestAnimationFrame = (act) => setTimeout(act, 16);
const later = () => new Promise((done) => setTimeout(done, 100));
const main = async () => {
  look("before");
  point("pointermove", 0.25, "mouse"); await later(); look("hovered");
  point("pointermove", 7, "mouse"); await later(); look("beyond");
  point("pointerleave", 0.25, "mouse"); await later(); look("left");
  point("pointerdown", 0.5, "touch"); await later(); look("touched");
  point("pointerleave", 0.5, "touch"); await later(); look("lifted");
  document.body.dispatchEvent(new PointerEvent("pointerdown", { bubbles: true }));
  await later(); look("elsewhere");
  said.width = [document.documentElement.scrollWidth, innerWidth];
  document.documentElement.dataset.said = JSON.stringify(said);
};
addEventListener("load", main);
"""

AGAIN = """
const details = [...document.querySelectorAll("details")];
if (sessionStorage.getItem("seen")) {
  window.setTimeout = () => 0;  // Once is enough.
  addEventListener("load", () => {
    const open = details.flatMap((one, number) => (one.open ? [number] : []));
    document.documentElement.dataset.said = JSON.stringify({ top: scrollY, open });
  });
} else {
  sessionStorage.setItem("seen", "yes");
  addEventListener("load", () => {
    details[2].open = true;
    scrollTo({ top: 900, behavior: "instant" });
  });
}
"""


def browsed(folder: Path, page: str, script: str) -> dict[str, Any]:
    """What `script` said of the page; complaints: what the browser said.

    It stands before the page's own, and the page's policy is made to allow it too.
    """
    assert BROWSER is not None
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = page.replace("script-src ", f"script-src 'sha256-{digest}' ")
    file = folder / "page.html"
    file.write_text(page.replace("<script>", f"<script>{script}</script>\n<script>", 1), "utf-8")
    basic = ("--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr")
    where = (f"--user-data-dir={folder / 'profile'}", "--window-size=1200,900")
    # The browser's clock runs ahead, and its end is waited for.
    ahead = "--virtual-time-budget=3000"
    done = subprocess.run(
        [BROWSER, *basic, *where, ahead, "--dump-dom", file.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    complaints = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    found = re.search(r'data-said="([^"]*)"', done.stdout)
    assert found, complaints
    return {**json.loads(found[1].replace("&quot;", '"')), "complaints": complaints}


def drawn(every_s: float = 0.0) -> str:
    answers = invented(RUN_VIEW, SPAN, ("one", "two"))
    frame = Frame(SPAN, UTC, ("one", "two"), decisions(RUN_VIEW, answers, SPAN))
    return draw(RUN_VIEW, answers, frame, About("a", "a test", SPAN.end, every_s))


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the page shows after each act."""
    folder = tmp_path_factory.mktemp("browser")
    return browsed(folder, drawn(), SAY % (PANEL, COARSE))


def value(trial: int, place: float) -> str:
    """What `invented` tells of a trial at a place of the span, from 0 to 1, in three digits."""
    shown = trial + 0.5 + place * 0.5
    return f"{shown:.0f}" if shown == round(shown) else f"{shown:.{3 if shown < 1 else 2}f}"


def expected(place: float) -> list[str]:
    at = round(place * (SPAN.count - 1)) / (SPAN.count - 1)
    return [f"{name} {value(number, at)} steps/s" for number, name in enumerate(("one", "two"))]


def test_the_newest_values_stand_there_before_anything_is_touched(said: dict[str, Any]):
    assert said["before"]["values"] == expected(1.0)
    assert said["before"]["chip"] is None
    assert said["before"]["cursors"] == []


def test_the_values_at_the_cursor_are_shown_with_their_units_and_the_time(said: dict[str, Any]):
    assert said["hovered"]["values"] == expected(0.25)
    assert said["hovered"]["chip"].startswith("22:15:50")
    assert said["hovered"]["inside"]


def test_the_values_at_the_cursor_are_right_where_values_repeat(said: dict[str, Any]):
    for act, place in (("hovered", 0.25), ("touched", 0.5), ("beyond", 1.0)):
        shown = [float(words.split()[1]) for words in said[act]["coarse"]]
        assert shown == pytest.approx([n + 0.5 + place * 0.5 for n in range(2)], abs=0.051)


def test_every_chart_has_the_cursor_at_the_same_time(said: dict[str, Any]):
    charts = sum(panel.kind != "table" for panel in RUN_VIEW.panels)
    assert said["hovered"]["cursors"] == ["25%"] * charts


def test_beyond_the_edge_the_last_moment_is_shown(said: dict[str, Any]):
    assert said["beyond"]["values"] == expected(1.0)


def test_when_the_mouse_leaves_the_newest_values_come_back(said: dict[str, Any]):
    assert said["left"] == said["before"]


def test_a_finger_leaves_its_values_until_it_touches_elsewhere(said: dict[str, Any]):
    assert said["touched"]["values"] == expected(0.5)
    assert said["lifted"] == said["touched"]
    assert said["elsewhere"] == said["before"]


def test_the_browser_has_nothing_to_complain_of(said: dict[str, Any]):
    assert said["complaints"] == ""
    scrolled, shown = said["width"]
    assert scrolled <= shown


def test_a_page_that_loads_itself_again_stays_where_it_was_read(tmp_path: Path):
    found = browsed(tmp_path, drawn(every_s=0.5), AGAIN)
    assert found == {"top": 900, "open": [2], "complaints": ""}

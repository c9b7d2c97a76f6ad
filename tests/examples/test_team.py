"""examples/team: the whole story, from a group's first template to fifty updated projects, happens as its README tells it."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest

from scaffold import fleet

EXAMPLE = Path(__file__).parents[2] / "examples" / "team"

pytestmark = pytest.mark.timeout(1500)  # two minutes of two cores, which other tests may want as well


@dataclass(frozen=True)
class Walked:
    folder: Path
    transcript: str


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Walked:
    folder = tmp_path_factory.mktemp("team") / "walk"
    done = subprocess.run(
        [sys.executable, str(EXAMPLE / "walkthrough.py"), str(folder), "--quick"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    return Walked(folder, done.stdout)


class TestTheReadme:
    def test_shows_what_was_typed_and_what_came_of_it(self, walked: Walked) -> None:
        """Line by line and in this order; ``...`` stands for what is left out."""
        readme = (EXAMPLE / "README.md").read_text(encoding="utf-8")
        blocks = re.findall(r"^```console\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
        shown = [line for block in blocks for line in block.splitlines() if line.strip() not in ("", "...")]
        assert len(shown) > 40
        rest = iter([as_anywhere(line) for line in walked.transcript.splitlines()])
        missing = [line for line in shown if as_anywhere(line) not in rest]  # an iterator: what was passed is gone
        assert missing[:1] == []

    def test_names_every_file(self) -> None:
        readme = (EXAMPLE / "README.md").read_text(encoding="utf-8")
        names = {path.name for path in EXAMPLE.iterdir() if not path.name.startswith((".", "__"))} - {"README.md"}
        assert [name for name in sorted(names) if f"({name}" not in readme] == []


def as_anywhere(line: str) -> str:
    """Without what differs from one machine and day to the next."""
    line = re.sub(r"^(platform|newcomer)(?=\$ )", "", line.rstrip())
    line = re.sub(r"127\.0\.0\.1:\d+", "HOST", line).replace("git.acme.example", "HOST").replace(" --only 1", "")
    return re.sub(r"\b[0-9a-f]{12}\b|\b\d+\.\d+ ?s\b|0\.\d{4}\b", "N", line)


class TestThePlugin:
    def test_acts_on_a_project_that_knows_nothing_of_it(self, walked: Walked) -> None:
        project = walked.folder / "newcomer" / "my-project"
        sources = "".join(path.read_text(encoding="utf-8") for path in (project / "src").rglob("*.py"))
        assert "acme" not in sources
        assert "policies: acme-policies 1.0.0 (allowed-precision, time-limit, record-of-runs)" in walked.transcript
        assert "Acme does not train in 16-true." in walked.transcript
        lines = (project / "runs" / "acme-runs.jsonl").read_text(encoding="utf-8").splitlines()
        begin, end = map(json.loads, lines)  # the refused run never began
        assert (begin["event"], end["event"], end["status"]) == ("begin", "end", "success")
        assert 0 < end["metrics"]["val_accuracy"] <= 1


class TestAProjectUpdatedByPlainCopier:
    def test_is_one_that_scaffold_has_updated(self, walked: Walked) -> None:
        """Its files are those of a team that used scaffold alone."""
        one, other = (walked.folder / "platform" / "teams" / f"team-{number}" for number in ("01", "49"))
        assert "team-49 is at template v1.1.0, acme-ci v1.0.0: nothing to do." in walked.transcript
        for name in (".copier-answers.yml", ".github/workflows/ci.yml", "configs/train.yaml"):
            assert (one / name).read_bytes() == (other / name).read_bytes()
        assert "_commit: v1.1.0\n" in (other / ".copier-answers.yml").read_text(encoding="utf-8")


class TestTheWalkThrough:
    def test_overwrites_nothing(self, tmp_path: Path) -> None:
        done = subprocess.run(
            [sys.executable, str(EXAMPLE / "walkthrough.py"), str(tmp_path)], capture_output=True, text=True
        )
        assert done.returncode == 2
        assert "is there already" in done.stderr
        assert list(tmp_path.iterdir()) == []


class TestTheFleet:
    def test_learns_of_a_page_that_cannot_be_written_before_it_works(self, walked: Walked) -> None:
        teams = walked.folder / "platform" / "teams"
        for place in ("nowhere/fleet.html", "."):
            command = [sys.executable, "-m", "scaffold", "fleet", "check", str(teams), "--html", place]
            done = subprocess.run(command, cwd=teams, capture_output=True, text=True)
            assert (done.returncode, done.stdout) == (1, "")
            assert f"Cannot write {place}: " in done.stderr

    @pytest.mark.parametrize(
        "statuses, drifted, code",
        [
            (["current", "updated"], (), 0),
            (["current", "updated"], ("ci.yml",), 2),
            (["behind"], (), 2),
            (["updated", "conflicts"], ("ci.yml",), 3),
            (["conflicts", "failed"], (), 1),
        ],
    )
    def test_ends_with_the_worst_of_all(
        self, statuses: list[fleet.Status], drifted: tuple[str, ...], code: int
    ) -> None:
        """A project that merged clean may have drifted all the same."""
        outcomes = [fleet.Outcome(path=Path(status), status=status, drifted=drifted) for status in statuses]
        assert fleet.exit_code(outcomes) == code


# --- The page, in a browser ---

Browser = Callable[..., bytes]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    """A real Chromium without a screen: called with its options and a page, it returns what it prints."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium")
    profile = tmp_path_factory.mktemp("profile")

    def show(page: Path, *options: str) -> bytes:
        common = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={profile}"]
        done = subprocess.run([program, *common, *options, page.as_uri()], capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout

    return show


class Rows(HTMLParser):
    """The cells' texts of each table row, and the headings of the cards."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.cards: list[str] = []
        self._tag = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag == "td":
            self.rows[-1].append("")
        elif tag == "b" and not self.rows:
            self.cards.append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data
        elif self.cards and not self.cards[-1]:
            self.cards[-1] = data


class TestThePage:
    def test_tells_who_merged_clean_who_waits_and_who_drifted(self, walked: Walked, browser: Browser) -> None:
        page = Rows(browser(walked.folder / "platform" / "fleet.html", "--dump-dom").decode())
        cards = ["1 current", "41 updated", "7 conflicts", "1 failed", "6 also drifted"]
        assert page.cards == cards
        rows = [row for row in page.rows if row]
        assert Counter(row[1] for row in rows) == {
            "updated": 35,
            "updated drifted": 6,
            "conflicts": 7,
            "failed": 1,
            "current": 1,
        }
        assert rows[0][0] == "team-50"  # the worst comes first
        assert all("resolve configs/train.yaml" in row[3] for row in rows if row[1] == "conflicts")
        assert all(".github/workflows/ci.yml" in row[3] for row in rows if "drifted" in row[1])
        assert all("base v1.0.0 → v1.1.0" in row[2] for row in rows if "updated" in row[1])

    def test_later_leaves_only_the_drifted(self, walked: Walked, browser: Browser) -> None:
        page = Rows(browser(walked.folder / "platform" / "fleet-later.html", "--dump-dom").decode())
        assert page.cards == ["4 current", "6 drifted"]

    @pytest.mark.parametrize("scheme, background", [("light", 255), ("dark", 18)])
    def test_draws_a_bar_with_the_shares(
        self, walked: Walked, browser: Browser, tmp_path: Path, scheme: str, background: int
    ) -> None:
        """Seen in the pixels of a screenshot: green for 41 of 50, red for 7, on a background that suits the scheme."""
        picture = tmp_path / "page.png"
        settings = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
        browser(
            walked.folder / "platform" / "fleet.html", f"--screenshot={picture}", "--window-size=1200,800", settings
        )
        rows = pixels(picture)
        assert max(abs(value - background) for value in rows[5][5]) < 12
        green, red = (31, 122, 61), (179, 38, 30)
        bar = max(rows, key=lambda row: sum(pixel == green for pixel in row))
        counted = Counter(bar)
        wide = sum(pixel != rows[5][5] for pixel in bar)
        assert counted[green] / wide == pytest.approx(41 / 50, abs=0.01)
        assert counted[red] / wide == pytest.approx(7 / 50, abs=0.01)

    def test_needs_no_sideways_scrolling_on_a_phone(self, walked: Walked, browser: Browser, tmp_path: Path) -> None:
        """The right edge of a narrow window is empty."""
        picture = tmp_path / "page.png"
        browser(walked.folder / "platform" / "fleet.html", f"--screenshot={picture}", "--window-size=500,2000")
        rows = pixels(picture)
        assert {row[x] for row in rows for x in range(-12, 0)} == {rows[5][5]}


def pixels(png: Path) -> list[list[tuple[int, int, int]]]:
    """Rows of red, green and blue, of a PNG as Chromium writes it: 8 bits, RGB or RGBA, not interlaced."""
    data = png.read_bytes()
    packed, at, width, channels = b"", 8, 0, 0
    while at < len(data):
        (size,), kind = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + size]
        if kind == b"IHDR":
            width, _, depth, colour = struct.unpack(">IIBB", body[:10])
            assert depth == 8
            channels = {2: 3, 6: 4}[colour]
        elif kind == b"IDAT":
            packed += body
        at += size + 12
    raw, stride = zlib.decompress(packed), width * channels
    rows, above = [], bytearray(stride)
    for start in range(0, len(raw), stride + 1):
        line = bytearray(raw[start + 1 : start + 1 + stride])
        unfilter(raw[start], line, above, channels)
        rows.append([(line[x], line[x + 1], line[x + 2]) for x in range(0, stride, channels)])
        above = line
    return rows


def unfilter(kind: int, line: bytearray, above: bytearray, step: int) -> None:
    """Undo, in place, what PNG does to a row so that it packs better (PNG specification, chapter 9)."""
    for index in range(len(line) if kind else 0):
        left = line[index - step] if index >= step else 0
        corner = above[index - step] if index >= step else 0
        up = above[index]
        match kind:
            case 1:
                guess = left
            case 2:
                guess = up
            case 3:
                guess = (left + up) // 2
            case _:
                nearest = left + up - corner
                guess = min((left, up, corner), key=lambda value: abs(nearest - value))
        line[index] = (line[index] + guess) & 255

"""What a user sees of long work: one line that fits the window, or lines in a log."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from rich.cells import cell_len

from onggi import progress
from onggi.cli import main
from onggi.languages import Languages
from onggi.stages import EvaluateConfig, evaluate

WORK = """
import sys, time
from onggi import progress
progress._LOG_EVERY = 0.0
with progress.progress("evaluate [점수] ការវាស់", 4) as bar:
    bar.skip(1)
    for name in ("en layer 1 of 3", "한국어 층 2 / 3", "العربية 3"):
        time.sleep(0.3)
        bar.step(1, name)
    progress.say("[ko] done")
    time.sleep(0.3)
"""
# Moves of the cursor, colours, and what hides and shows the cursor.
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_a_terminal(width: int, **environment: str) -> str:
    """What WORK writes to the error stream, a terminal of `width` columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    kept = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR")}
    running = subprocess.Popen(
        [sys.executable, "-c", WORK], stderr=theirs, env={**kept, "TERM": "xterm-256color", **environment}
    )
    os.close(theirs)
    said = b""
    try:
        while chunk := os.read(ours, 65536):
            said += chunk
    except OSError:  # the other side is closed
        pass
    os.close(ours)
    assert running.wait() == 0
    return said.decode()


@pytest.mark.parametrize("width", [40, 60, 100])
def test_a_bar_fits_its_window(width: int) -> None:
    said = on_a_terminal(width)
    lines = [text for text in re.split(r"[\r\n]+", CONTROL.sub("", said)) if text.strip()]
    bars = [text for text in lines if "GiB" in text]
    assert len(bars) > 3 and "[ko] done" in lines
    for text in bars:
        assert cell_len(text) < width
        assert re.search(r" \d+% +(\?|\d+:\d\d) left +\d\.\d GiB$", text), text
        assert text.startswith("evaluate [")
    assert ("━" in said) == (width > 40)
    assert said.count("\x1b[?25l") == said.count("\x1b[?25h") == 1  # the cursor is back


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"FORCE_COLOR": "1"}])
def test_elsewhere_lines(environment: dict[str, str]) -> None:
    if "FORCE_COLOR" in environment:  # a CI service: colours, but a file
        said = subprocess.run(
            [sys.executable, "-c", WORK],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        ).stderr
    else:
        said = on_a_terminal(40, **environment)
    assert "\x1b[?25l" not in said and "\r\x1b" not in said
    lines = CONTROL.sub("", said).replace("\r", "").split("\n")
    assert len(lines) == 5 and lines[3:] == ["[ko] done", ""]
    for text, share in zip(lines, ("50%", "75%", "100%"), strict=False):
        assert re.fullmatch(rf"evaluate \[점수\] ការវាស់: .+  {share}, \d s left, \d\.\d GiB peak", text), text


WORDS = ("quantize w4: layer 3 of 18", "점수: 한국어", "ការវាស់: សួស្តី", "تقييم: العربية", "")


@pytest.mark.parametrize("words", WORDS)
def test_a_line_is_never_wider_than_asked(words: str) -> None:
    for left in (None, 9.0, 250.0, 7500.0, 1e6):
        bars = []
        for width in range(1, 140):
            text = progress.line(words, 0.42, left, 3 << 29, width).plain
            assert cell_len(text) <= width
            if width > 40:
                assert "42%" in text and text.endswith("left  1.5 GiB" if width >= 60 else "left 1.5 GiB")
            bars.append(text.count("━"))
        assert max(bars) == 40 and bars[30] == 0
        if width >= 60:
            assert words in text
    wide, wider = (progress.line(words, share, 1.0, 1, 120) for share in (0.25, 0.75))
    assert wide.spans != wider.spans  # the bar grows


def test_durations_in_words() -> None:
    said = [progress.duration(s) for s in (0, 34.6, 60, 250, 3600, 3661, 7500, 86400, 277_000)]
    assert said == ["0 s", "35 s", "1 min", "4 min 10 s", "1 h", "1 h 1 min", "2 h 5 min", "1 d", "3 d 4 h"]


def test_time_left_is_of_this_runs_own_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    bar = progress.Progress("언어", 100)
    assert bar.left is None
    bar.skip(60)
    now[0] += 10
    bar.step(1)
    assert bar.left is None  # 1 of 40 is too little
    now[0] += 10
    bar.step(3)
    assert bar.left == pytest.approx(20 / 4 * 36)
    now[0] += 30
    assert bar.left == pytest.approx(150)  # it goes down between steps
    now[0] += 300
    assert bar.left == 0


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LOG_EVERY", 0.0)
    monkeypatch.setattr(progress.console, "quiet", True)
    with progress.progress("การวัด", 2) as bar:
        bar.step(1, "ko")
    progress.say("done")
    assert capsys.readouterr().err == ""


def test_what_is_kept_of_an_evaluation_is_skipped(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onggi.evaluate import passages as module

    bars: list[progress.Progress] = []

    class Kept(progress.Progress):
        def __init__(self, label: str, total: float) -> None:
            super().__init__(label, total)
            bars.append(self)

    monkeypatch.setattr(progress, "Progress", Kept)
    config = EvaluateConfig([f"a={tiny}"], "a", languages=Languages("en,ko,ar"), limit=2)
    score = module._score
    calls = []

    def stop(*arguments: object) -> None:
        if calls:
            raise KeyboardInterrupt
        calls.append(score(*arguments))

    monkeypatch.setattr(module, "_score", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate(config, tmp_path / "out")
    monkeypatch.setattr(module, "_score", score)
    evaluate(config, tmp_path / "out")
    first, second = bars
    assert first.skipped == 0 and first.total == second.total
    # All states and the first language's scores were there; only two languages' scores were not.
    assert second.skipped == first.done and second.done == pytest.approx(second.total)


def test_quiet_is_over_when_its_command_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["text", "starter", "--languages", "yi", "--out", str(tmp_path / "nowhere"), "--quiet"]) == 1
    progress.say("이제 들린다")
    assert "이제 들린다" in capsys.readouterr().err

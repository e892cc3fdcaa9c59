"""The rating page under load, beside a bare handler that writes one row; and its start, beside Label Studio's.

200 raters on loopback rate at once, each waiting for the answer before the next: ours checks the session, that
the pair is the one shown to this rater, the key, and commits; the bare one (bench/parts/bare_rating.py) commits a
row. Both on uvicorn, both with the row on disk before the answer, in turns, each in a process of its own. Every
rating that ours acknowledged is then looked for in its file. The load ends by itself, by count or by time.

    python bench/rate.py [--raters 200] [--each 40] [--seconds 60] [--runs 3] [--label-studio]

writes docs/benchmarks/rate.md and .json. --label-studio also installs Label Studio (LABEL_STUDIO) into an environment
of its own, .venv-bench-label-studio, about 1 GB, and compares the time from command to first page, and memory.
--out DIR writes there instead: for a trial.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import os
import re
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from parts import process

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "benchmarks"
VENV = ROOT / ".venv-bench-label-studio"
LABEL_STUDIO = "label-studio==1.23.2"
THROUGHPUT, START = 0.7, 1 / 5  # goals


# ── the load ───────────────────────────────────────────────────────────────────────────────────


class Rater:
    """One connection that is kept, and what came of it. The least of a client: it shares the cores with the server."""

    def __init__(self, port: int, cookie: str = ""):
        self.port, self.cookie = port, cookie
        self.seconds: list[float] = []
        self.keys: list[str] = []

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, str, bytes]:
        """Status, head and body of the answer."""
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nCookie: {self.cookie}\r\n"
        if method == "POST":
            head += f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n"
        self.writer.write(head.encode() + b"\r\n" + body)
        said = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        length = re.search(r"^content-length: (\d+)", said, re.M | re.I)
        answer = await self.reader.readexactly(int(length[1])) if length else b""
        return int(said[9:12]), said, answer

    async def rate(self, pairs: list[str], until: float, name: int) -> None:
        """Rate `pairs` one after another, each when the one before was acknowledged."""
        for number, pair in enumerate(pairs):
            if time.perf_counter() >= until:
                return
            key = f"k{name}-{number}"
            body = (
                f"pair={pair}&key={key}&choice={('left', 'right', 'good', 'bad')[number % 4]}&left=unnatural"
            )
            started = time.perf_counter()
            status, _, _ = await self.ask("POST", "/rate", body.encode())
            if status != 303:
                raise RuntimeError(f"{pair} of rater {name}: {status}")
            self.seconds.append(time.perf_counter() - started)
            self.keys.append(key)

    async def go_through(self, until: float) -> None:
        """Rate as a browser does: the page with every pair, and the choice from its form."""
        _, _, page = await self.ask("GET", "/pair")
        while time.perf_counter() < until and b'action="/rate"' in page:
            form = page.split(b'action="/rate"', 1)[1]
            pair, key = re.findall(rb'name="(?:pair|key)" value="([^"]+)"', form)[:2]
            started = time.perf_counter()
            status, _, _ = await self.ask("POST", "/rate", b"pair=%b&key=%b&choice=left" % (pair, key))
            if status != 303:
                raise RuntimeError(f"{status} from the page")
            _, _, page = await self.ask("GET", "/pair")
            self.seconds.append(time.perf_counter() - started)
            self.keys.append(key.decode())


def loaded(raters: list[Rater], work: Callable[[Rater, int, float], Any], seconds: float) -> dict[str, Any]:
    """Ratings a second and latencies of all raters at once."""

    async def run() -> float:
        await asyncio.gather(*(rater.open() for rater in raters))
        started = time.perf_counter()
        await asyncio.gather(*(work(rater, i, started + seconds) for i, rater in enumerate(raters)))
        return time.perf_counter() - started

    wall = asyncio.run(asyncio.wait_for(run(), 3 * seconds + 60))
    times = sorted(second for rater in raters for second in rater.seconds)
    return {
        "ratings": len(times),
        "seconds": wall,
        "per_second": len(times) / wall,
        "median_ms": 1000 * statistics.median(times),
        "p99_ms": 1000 * times[int(0.99 * (len(times) - 1))],
    }


# ── the servers ────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def running(command: list[str], env: dict[str, str] | None = None) -> Iterator[int]:
    """A server's process; the port that it says."""
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(env or {})},
    )
    assert child.stdout
    try:
        for line in child.stdout:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/", line):
                yield int(found[1])
                return
        raise RuntimeError(f"{' '.join(command)} ended with {child.wait()}")
    finally:
        child.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=20)
        child.kill()


def study(folder: Path, raters: int, each: int) -> tuple[Path, list[str], dict[str, list[str]]]:
    """A study in which every rater sees `each` pairs, its links, and the assignments by link."""
    words = "김치는 배추를 소금에 절인 다음 양념을 넣어 버무리고, 서늘한 곳에서 며칠 동안 익힙니다. "
    line = []
    for name in ("one", "other"):
        rows = [
            {
                "_id": str(n),
                "lang": "ko",
                "prompt": f"질문 {n}: 김치는 어떻게 담그나요?",
                "answer": 6 * words + name,
            }
            for n in range(each)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        line.append(f"{name}={folder / f'{name}.jsonl'}")
    made = folder / "study"
    onggi = [sys.executable, "-m", "onggi", "rate"]
    options = ["--raters", str(raters), "--overlap", str(raters), "--attention", "0", "--out", str(made)]
    subprocess.run([*onggi, "plan", *line, *options, "--quiet"], check=True)
    told = subprocess.run(
        [*onggi, "invite", str(made), "--language", "ko", "--count", str(raters), "--json"],
        check=True,
        stdout=subprocess.PIPE,
    )
    invitations = json.loads(told.stdout)["invitations"]
    lists = json.loads((made / "schedule.json").read_text())["ko"]
    paths = [invitation["url"].removeprefix("http://127.0.0.1:8321") for invitation in invitations]
    return (
        made,
        paths,
        {path: [shown["id"] for shown in mine] for path, mine in zip(paths, lists, strict=True)},
    )


async def _sessions(raters: list[Rater], paths: list[str]) -> None:
    for rater, path in zip(raters, paths, strict=True):
        await rater.open()
        _, head, _ = await rater.ask("GET", path)
        found = re.search(r"set-cookie: (onggi_[^;]+)", head, re.I)
        assert found, head
        rater.cookie = found[1]
        rater.writer.close()


def ours(given: argparse.Namespace, through_pages: bool) -> dict[str, Any]:
    """A fresh study under load; every acknowledged rating is looked for afterwards."""
    with tempfile.TemporaryDirectory() as name:
        made, paths, own = study(Path(name), given.raters, given.each)
        with running([sys.executable, "-m", "onggi", "rate", "serve", str(made), "--port", "0"]) as port:
            raters = [Rater(port) for _ in paths]
            asyncio.run(_sessions(raters, paths))
            found = loaded(
                raters,
                (lambda rater, i, until: rater.go_through(until))
                if through_pages
                else (lambda rater, i, until: rater.rate(own[paths[i]], until, i)),
                given.seconds,
            )
        rows = sqlite3.connect(made / "ratings.sqlite").execute("SELECT key FROM events").fetchall()
        keys = [key for rater in raters for key in rater.keys]
        lost, twice = len(set(keys) - {key for (key,) in rows}), len(rows) - len(set(rows))
        if lost or twice:
            raise RuntimeError(f"{lost} acknowledged ratings lost, {twice} there twice")
        return found


def bare(given: argparse.Namespace, synchronous: str) -> dict[str, Any]:
    """The bare handler under the same load."""
    with tempfile.TemporaryDirectory() as name:
        script = str(ROOT / "bench" / "parts" / "bare_rating.py")
        with running([sys.executable, script, f"{name}/bare.sqlite", synchronous]) as port:
            raters = [Rater(port, f"onggi_study={'x' * 120}") for _ in range(given.raters)]
            pairs = [f"{n:012d}" for n in range(given.each)]
            return loaded(raters, lambda rater, i, until: rater.rate(pairs, until, i), given.seconds)


# ── the start ──────────────────────────────────────────────────────────────────────────────────


def memory(pid: int) -> int:
    """Resident bytes of a process and its children."""
    total = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with contextlib.suppress(OSError, IndexError):
            fields = (entry / "stat").read_text().rsplit(") ", 1)[1].split()
            if int(entry.name) == pid or int(fields[1]) == pid:
                total += int((entry / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return total


def start(
    command: list[str], url: str, limit: float = 300, env: dict[str, str] | None = None
) -> dict[str, float]:
    """Seconds from the command to its first whole page, and the memory it then has."""
    with tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        child = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **(env or {})}, start_new_session=True
        )
        try:
            while time.perf_counter() - started < limit and child.poll() is None:
                with contextlib.suppress(urllib.error.URLError, OSError):
                    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
                    with opener.open(url, timeout=limit) as page:
                        page.read()
                    seconds = time.perf_counter() - started
                    return {"seconds": seconds, "bytes": memory(child.pid)}
                time.sleep(0.02)
            log.seek(0)
            raise RuntimeError(f"{command[0]}: no page; {log.read()[-2000:].decode(errors='replace')}")
        finally:
            os.killpg(child.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


def starts(given: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Both, in turns, on data that is there already: neither has to make its database."""
    if not (VENV / "bin" / "label-studio").is_file():
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
        subprocess.run([str(VENV / "bin" / "pip"), "install", "--quiet", LABEL_STUDIO], check=True)
    found: dict[str, list[dict[str, float]]] = {"onggi": [], "label studio": []}
    with tempfile.TemporaryDirectory() as name:
        made, paths, _ = study(Path(name), 6, 40)
        quiet = {"COLLECT_ANALYTICS": "false", "LATEST_VERSION_CHECK": "false", "SENTRY_DSN": ""}
        for turn in range(given.runs + 1):  # the first, which makes databases and caches, does not count
            ports = [_free(), _free()]
            own = start(
                [sys.executable, "-m", "onggi", "rate", "serve", str(made), "--port", str(ports[0])],
                f"http://127.0.0.1:{ports[0]}{paths[0]}",
            )
            data = ["--data-dir", f"{name}/label-studio", "--internal-host", "127.0.0.1"]
            peer = start(
                [str(VENV / "bin" / "label-studio"), "start", "--no-browser", "--port", str(ports[1]), *data],
                f"http://127.0.0.1:{ports[1]}/user/login",
                env=quiet,
            )
            if turn:
                found["onggi"].append(own)
                found["label studio"].append(peer)
    return found


def _free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


# ── the page ───────────────────────────────────────────────────────────────────────────────────


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--raters", type=int, default=200)
    parser.add_argument("--each", type=int, default=40, help="ratings of each rater")
    parser.add_argument("--seconds", type=float, default=60, help="of one load, at most")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--label-studio", action="store_true")
    parser.add_argument("--out", type=Path, default=DOCS)
    given = parser.parse_args()
    loads: dict[str, list[dict[str, Any]]] = {"ours": [], "bare": [], "bare, not synced": [], "pages": []}
    for run in range(given.runs):
        loads["ours"].append(ours(given, through_pages=False))
        loads["bare"].append(bare(given, "full"))
        loads["bare, not synced"].append(bare(given, "normal"))
        loads["pages"].append(ours(given, through_pages=True))
        print(
            f"bench: {run + 1} of {given.runs}: "
            + ", ".join(f"{k} {v[-1]['per_second']:.0f}/s" for k, v in loads.items())
        )
    result = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "machine": process.facts(),
        "command": "python bench/rate.py " + " ".join(sys.argv[1:]),
        "raters": given.raters,
        "loads": loads,
        "starts": starts(given) if given.label_studio else None,
        "label_studio": LABEL_STUDIO,
    }
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "rate.json").write_text(json.dumps(result, indent=1) + "\n")
    (given.out / "rate.md").write_text(page(result), encoding="utf-8")
    print(given.out / "rate.md")


_WHAT = {
    "ours": "`onggi rate serve`",
    "bare": "bare handler, on disk before the answer",
    "bare, not synced": "bare handler, not synced (a power cut loses ratings)",
    "pages": "`onggi rate serve`, with the page of every pair",
}


def page(result: dict[str, Any]) -> str:
    """The measurements as Markdown."""
    rows, medians = [], {}
    for name, runs in result["loads"].items():
        rates = [run["per_second"] for run in runs]
        medians[name] = statistics.median(rates)
        cells = [f"{medians[name]:,.0f} ({min(rates):,.0f}–{max(rates):,.0f})"]
        cells += [f"{statistics.median(run[what] for run in runs):,.0f}" for what in ("median_ms", "p99_ms")]
        rows.append(f"| {_WHAT[name]} | " + " | ".join(cells) + f" | {runs[0]['ratings']:,} |")
    ratio, hard = medians["ours"] / medians["bare"], medians["ours"] / medians["bare, not synced"]
    machine = result["machine"]
    lines = [
        "# The rating page under load",
        "",
        f"{result['raters']} raters on loopback at once, each waiting for its answer before the next rating. The client runs on",
        "the same cores. Every acknowledged rating was found in the file, once. This page is written by the bench, not by hand.",
        "",
        f"- command: `{result['command'].strip()}`, {result['date']}",
        f"- machine: {machine['processor']}, {machine['cores']} cores; load before: {machine['load_before']:.1f}",
        "",
        "| server | ratings a second: median (least–most) | median, ms | p99, ms | ratings of a run |",
        "| --- | --- | --- | --- | --- |",
        *rows,
        "",
        f"Goal: at least {THROUGHPUT}× the bare handler. Measured: {ratio:.2f}× ({'met' if ratio >= THROUGHPUT else '**missed**'}); "
        f"{hard:.2f}× the one that does not sync.",
        "",
    ]
    if result["starts"]:
        lines += [
            "## From command to first page",
            "",
            "| | seconds: median (least–most) | memory then, MB |",
            "| --- | --- | --- |",
        ]
        best = {}
        for name, runs in result["starts"].items():
            seconds, sizes = [run["seconds"] for run in runs], [run["bytes"] / 1e6 for run in runs]
            best[name] = statistics.median(seconds), statistics.median(sizes)
            named = (
                result["label_studio"].replace("==", " ") if name == "label studio" else "`onggi rate serve`"
            )
            lines.append(
                f"| {named} | {best[name][0]:.1f} ({min(seconds):.1f}–{max(seconds):.1f}) | {best[name][1]:,.0f} |"
            )
        shares = [own / peer for own, peer in zip(best["onggi"], best["label studio"], strict=True)]
        met = "met" if max(shares) <= START else "**missed**"
        lines += [
            "",
            f"Goal: at most 1/5 of both. Measured: 1/{1 / shares[0]:.1f} of the time, 1/{1 / shares[1]:.1f} of the memory ({met}).",
            "Neither made its database in these runs. Label Studio does a great deal more than this page.",
            "",
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

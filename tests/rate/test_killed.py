"""Killed under load and started again, the server has every rating that it acknowledged, once."""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2

from onggi.rate.store import Store
from rate_examples import answers, invited, study

RATERS, KILLS = 12, 2


def start(path: Path, port: int) -> tuple[subprocess.Popen[str], int]:
    words = [sys.executable, "-m", "onggi", "rate", "serve", str(path), "--port", str(port)]
    child = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    assert child.stderr
    for line in child.stderr:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)/", line):
            return child, int(found[1])
    raise AssertionError(child.wait())


def test_kill_nine_loses_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    found = study(tmp_path, answers(tmp_path, ("ko", "ar", "en"), 24), raters=4, overlap=4)
    links = [path for tag in ("ko", "ar", "en") for path in invited(found, tag, count=4)]
    child, port = start(found.path, 0)
    acknowledged: dict[str, str] = {}  # key → choice
    tried: set[str] = set()
    over = asyncio.Event()

    async def rater(path: str, dice: random.Random) -> None:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=5) as client:

            async def ask(method: str, place: str, **options: object) -> httpx2.Response:
                """As the page does it: again and again until there is an answer."""
                while True:
                    try:
                        answer = await client.request(method, place, **options)  # type: ignore[arg-type]
                        if answer.status_code < 500:
                            return answer
                    except httpx2.TransportError:
                        pass
                    await asyncio.sleep(0.05)

            await ask("GET", path)
            while not over.is_set():
                page = (await ask("GET", "/pair")).text
                fields = dict(
                    re.findall(
                        r'<input type="hidden" name="(pair|key)" value="([^"]+)">', page.split("</form>")[1]
                    )
                )
                if 'action="/rate"' not in page:
                    return
                fields["choice"] = dice.choice(["left", "right", "good", "bad"])
                tried.add(fields["key"])
                answer = await ask("POST", "/rate", data=fields)
                assert answer.status_code == 303, answer.text
                acknowledged[fields["key"]] = fields["choice"]

    async def load() -> None:
        nonlocal child
        tasks = [asyncio.create_task(rater(path, random.Random(i))) for i, path in enumerate(links[:RATERS])]
        for _ in range(KILLS):
            before = len(acknowledged)
            while len(acknowledged) < before + 40 and not all(task.done() for task in tasks):
                await asyncio.sleep(0.01)
            child.send_signal(signal.SIGKILL)
            child.wait()
            child, _ = await asyncio.to_thread(start, found.path, port)
        await asyncio.sleep(0.3)
        over.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 60)

    try:
        with ThreadPoolExecutor(1) as pool:  # a test may have a loop running in this thread
            pool.submit(asyncio.run, load()).result()
    finally:
        child.send_signal(signal.SIGINT)
        child.wait(timeout=20)
    assert len(acknowledged) > 40 * KILLS
    store = Store(found.ratings, found.id)
    kept = list(store.events())
    assert acknowledged.items() <= {event.key: event.choice for event in kept}.items()
    assert {event.key for event in kept} <= tried
    assert max(Counter(event.key for event in kept).values()) == 1
    # Nobody has rated a pair twice, and each went through theirs in order.
    assert max(Counter((event.rater, event.assignment) for event in kept).values()) == 1
    for own in store.raters():
        assert own.slot is not None
        mine = [shown.id for shown in found.schedule[own.lang][own.slot]]
        done = list(store.said(own.id).ratings)
        assert done == mine[: len(done)]

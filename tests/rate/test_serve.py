"""The page: blind, right for each language, safe with anything an answer holds and anything a browser sends."""

from __future__ import annotations

import asyncio
import html
import itertools
import os
import re
import stat
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from onggi import ledger
from onggi.errors import OnggiError
from onggi.rate import links
from onggi.rate.store import Event, Store
from onggi.rate.study import CHOICES, REASONS, Study
from onggi.stages import rate_people
from onggi.stages.rate_people import CloseConfig, InviteConfig, StatusConfig, invite, status
from rate_examples import MODELS, QUESTIONS, Browser, Server, answers, invited, study

Serve = Callable[..., Server]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """A server of a small study in Korean, English and Arabic; options: of the plan."""
    made: list[Server] = []

    def build(said: dict[str, str] | None = None, tags: Any = ("ko", "en", "ar"), **options: Any) -> Server:
        found = study(tmp_path, answers(tmp_path, tags, 4, said=said), **{"raters": 3, **options})
        for tag in tags:
            invited(found, tag)
        made.append(Server(found))
        return made[-1]

    yield build
    for server in made:
        server.close()


def link(server: Server, tag: str = "ko", **options: Any) -> str:
    return invited(server.study, tag, **options)[0]


def events(server: Server) -> list[Event]:
    store = Store(server.study.ratings, server.study.id)
    found = list(store.events())
    store.close()
    return found


def finish(browser: Browser, choices: Any = CHOICES) -> list[str]:
    """Rate to the end, the choices in turn; the pages."""
    pages = []
    browser.get("/pair")
    for choice in itertools.cycle(choices):
        if browser.at_end:
            return pages
        pages.append(browser.page.text)
        browser.rate(choice)
    raise AssertionError


def test_a_whole_study(serve: Serve) -> None:
    server = serve()
    browser = server.browser(link(server))
    assert browser.page.status_code == 200 and "어느 답변이 더 나은가요" in browser.page.text
    pages = finish(browser)
    mine = server.study.schedule["ko"][1]
    assert len(pages) == len(mine) and "감사합니다" in browser.page.text
    kept = events(server)
    assert [event.assignment for event in kept] == [shown.id for shown in mine]
    assert [event.choice for event in kept] == [CHOICES[i % 4] for i in range(len(mine))]
    assert all(event.seconds is not None and event.seconds < 60 for event in kept)
    # What stood on the left is what the schedule says.
    for page, shown in zip(pages, mine, strict=True):
        pair = server.study.pairs[shown.pair]
        left, right = (pair["second"], pair["first"]) if shown.swapped else (pair["first"], pair["second"])
        said = [html.unescape(text) for text in re.findall(r'class="said"[^>]*>([^<]*)', page)]
        assert said == [*pair["turns"], *left, *right]


def test_marks_undo_and_going_on_elsewhere(serve: Serve) -> None:
    server = serve()
    path = link(server, "ar")
    phone, desk = server.browser(path), server.browser(path)
    phone.get("/pair")
    first = phone.hidden("pair")
    phone.rate("left", right=["fact", "language"], left="unnatural")
    [event] = events(server)
    assert (event.choice, event.left, event.right) == ("left", ("unnatural",), ("language", "fact"))
    second = phone.hidden("pair")
    assert first != second and desk.get("/pair") and desk.hidden("pair") == second
    desk.undo()
    assert desk.hidden("pair") == first and phone.get("/pair") and phone.hidden("pair") == first
    # What was marked before it was taken back stands there again.
    assert len(re.findall(r'type="checkbox"[^>]* checked', desk.page.text)) == 3
    assert 'value="left" aria-keyshortcuts="1" class="chosen"' in desk.page.text
    desk.rate("bad")
    phone.get("/pair")
    assert phone.hidden("pair") == second
    assert "1 of 10 done" in phone.page.text
    store = Store(server.study.ratings, server.study.id)
    [said] = [own for own in store.all_said().values() if own.ratings]
    assert [event.choice for event in said.ratings.values()] == ["bad"]


def test_sent_twice_is_there_once(serve: Serve) -> None:
    server = serve()
    browser = server.browser(link(server))
    browser.get("/pair")
    fields = {"pair": browser.hidden("pair"), "key": browser.hidden("key"), "choice": "right"}
    first = browser.post("/rate", fields)
    again = browser.post("/rate", fields)
    assert first.status_code == again.status_code == 200 and len(events(server)) == 1
    # With another key it is another rating, of a pair that has one: refused, and said how to change it.
    assert browser.post("/rate", {**fields, "key": "other"}).status_code == 409
    assert "되돌리기" in browser.page.text and len(events(server)) == 1

    async def at_once() -> list[int]:
        client = browser.client
        page = (await client.get("/pair")).text
        body = {
            "pair": browser.hidden("pair", page),
            "key": browser.hidden("key", page),
            "choice": "good",
        }
        sent = [client.post("/rate", data=body) for _ in range(8)]
        return [each.status_code for each in await asyncio.gather(*sent)]

    assert server.run(at_once()) == [200] * 8
    assert len(events(server)) == 2
    # One whose request was given up after it was kept: the server learns of it when it is sent again.
    browser.get("/pair")
    third = {"pair": browser.hidden("pair"), "key": "given up", "choice": "bad"}
    [rater] = {event.rater for event in events(server)}
    server.service.writing.add([Event(rater, third["pair"], third["key"], "bad")])
    browser.post("/rate", third)
    assert browser.hidden("pair") != third["pair"] and len(events(server)) == 3
    browser.undo()
    assert browser.hidden("pair") == third["pair"]
    undo = {"pair": events(server)[1].assignment, "key": "undo-1"}
    for _ in range(3):  # one press, sent three times, takes one back
        browser.post("/undo", undo)
    assert [event.choice for event in events(server)] == ["right", "good", "bad", None, None]


@pytest.mark.parametrize("tag", ["ko", "en", "ar"])
def test_language_and_direction(serve: Serve, tag: str) -> None:
    server = serve()
    browser = server.browser(
        link(server, tag),
    )
    page = browser.get("/pair", headers={"accept-language": "ja-JP,ja;q=0.9"}).text
    # The page speaks the language that is rated, where it can; else what the browser asks for.
    assert f'<html lang="{ {"ko": "ko", "en": "en", "ar": "ja"}[tag] }" dir="ltr">' in page
    said = re.findall(r'class="said" lang="([^"]*)" dir="([^"]*)"', page)
    assert said == [(tag, "rtl" if tag == "ar" else "ltr")] * 3
    browser.post("/page", {"page": "en", "at": "/pair"})
    assert '<html lang="en"' in browser.page.text and "Left answer" in browser.page.text
    elsewhere = server.browser(link(server, tag, renew=status_of(server, tag)))
    assert '<html lang="en"' in elsewhere.page.text  # the choice is the rater's, not the browser's


def status_of(server: Server, tag: str, place: int = -1) -> str:
    found = status(StatusConfig(str(server.study.path)))["raters"]
    return str([own["rater"] for own in found if own["language"] == tag][place])


# ── blind ──────────────────────────────────────────────────────────────────────────────────────


def test_nobody_sees_which_model_is_which(serve: Serve) -> None:
    server = serve()
    browsers = [server.browser(link(server, "ko", test=True)) for _ in range(3)]
    seen = []
    for browser in browsers:
        seen += [browser.page.text, *finish(browser)]
        for response in [*browser.page.history, browser.page]:
            seen += [f"{name}: {value}" for name, value in response.headers.items()]
    whole = "\n".join(seen)
    secrets = [*MODELS, "seoul", "balanced", "rtn", "attention", "broken.", "swapped", "jsonl", '"same"']
    assert not [word for word in secrets if word in whole]
    assert not re.search(r"\bp0?\d+\b", whole)  # the number of a pair
    # A pair that checks attention has the same page as any other, texts aside.
    key, shapes = server.study.key()["pairs"], defaultdict(set)
    shown = [shown for mine in server.study.schedule["ko"] for shown in mine]
    for page, place in zip((text for text in seen if 'action="/rate"' in text), shown, strict=True):
        bare = re.split(r'<form method="post" action="/undo"|</main>', page)[0]
        bare = re.sub(r'value="[^"]*"|aria-label="[^"]*"', "", re.sub(r">[^<]*<", "><", bare))
        shapes[key[place.pair]["kind"]].add(bare)
    assert shapes.keys() == {"pair", "same", "broken"}
    assert len(set.union(*shapes.values())) == 1


def test_the_server_never_reads_the_key(serve: Serve) -> None:
    server = serve()
    path = link(server, "en")
    for name in ("key.json", "answers.jsonl"):
        (server.study.path / name).unlink()
    assert finish(server.browser(path))


def test_results_wait_for_the_close(serve: Serve, tmp_path: Path) -> None:
    from onggi.stages.rate_results import ResultsConfig, results

    server = serve()
    finish(server.browser(link(server)))
    config = ResultsConfig(str(server.study.path))
    with pytest.raises(OnggiError, match="is open, and which answer is whose stays hidden"):
        results(config, tmp_path / "results")
    assert not (tmp_path / "results").exists()
    rate_people.close(CloseConfig(str(server.study.path)))
    assert results(config, tmp_path / "results").record["outputs"].keys() == {"results.json", "ratings.jsonl"}


def test_headers(serve: Serve) -> None:
    server = serve()
    browser = server.browser(link(server))
    for path in ("/", "/pair", "/rate.css", "/rate.js", "/none", "/i/none"):
        headers = browser.get(path).headers
        policy = headers["content-security-policy"]
        assert (
            "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        )
        assert headers["cache-control"] == "no-store" and headers["referrer-policy"] == "no-referrer"
        assert headers["x-content-type-options"] == "nosniff"
    for page in ("/", "/pair"):
        text = browser.get(page).text
        assert " style=" not in text and " on" + "click" not in text and "<style" not in text
        assert re.findall(r"<script[^>]*>[^<]*</script>", text) == ['<script src="/rate.js" defer></script>']
        assert "//" not in re.sub(r"<!doctype[^>]*>", "", text)  # nothing from elsewhere


def test_one_cookie_of_the_session(serve: Serve) -> None:
    server = serve()
    browser = server.browser()
    first = browser.get(link(server)).history[0]
    [cookie] = first.headers.get_list("set-cookie")
    assert (
        cookie.startswith(f"{server.service.cookie}=") and "HttpOnly" in cookie and "SameSite=lax" in cookie
    )
    assert first.headers["location"] == "/"  # the link is not in the address that stays
    finish(browser)
    assert [jar.name for jar in browser.client.cookies.jar] == [server.service.cookie]


# ── what an answer may hold ────────────────────────────────────────────────────────────────────

HOSTILE = [
    '<script>alert("한")</script><img src=x onerror=alert(1)>',
    '"><input name="choice" value="left"><!--',
    "</div></section></form></main></html>",
    "{{ 7*7 }}{% include 'x' %}",
    "한\u202eدليل\u202d\x00\x1b[31m\ud800 끝\uffff",
    "가" * 100_000,
    "",
    "   \n\t ",
]


def test_answers_stay_text(serve: Serve) -> None:
    said = {f"ko-{i // 3} {MODELS[i % 3]}": text for i, text in enumerate(HOSTILE)}
    server = serve(said, ("ko",), attention=0)
    pages = []
    for _ in range(3):
        pages += finish(server.browser(link(server, test=True)))
    for page in pages:
        assert page.count("<script") == 1 and "<img" not in page and "49" not in re.sub(r'="[^"]*"', "", page)
        assert page.count('name="choice"') == 4 and page.count('class="said"') in (1, 2, 3)
        assert page.count("</form>") == page.count("<form")
        assert not re.search("[\x00\x1b\ud800\u202e\u202d\uffff]", page)
    whole = "\n".join(pages)
    assert "&lt;script&gt;alert(&#34;한&#34;)&lt;/script&gt;" in whole and "{{ 7*7 }}" in whole
    assert "(답변이 비어 있음)" in whole
    assert "나머지 96,000자" in whole and "가" * 4000 + "<details>" in whole


def test_turns_and_what_was_said_before(tmp_path: Path) -> None:
    import json

    line = []
    for model in MODELS[:2]:
        rows = []
        before = [{"role": "system", "content": "짧게. Be <brief>."}]
        first = [*before, {"role": "user", "content": "첫째 질문"}]
        then = [
            *first,
            {"role": "assistant", "content": f"답 하나 {model[0]}"},
            {"role": "user", "content": "둘째 질문"},
        ]
        for number in range(3):
            for turn, messages in ((1, first), (2, then)):
                text = f"답 {turn} {model[0]} {number}"
                rows.append(
                    {"_id": str(number), "lang": "ko", "messages": messages, "turn": turn, "answer": text}
                )
        (tmp_path / f"{model}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        line.append(f"{model}={tmp_path / f'{model}.jsonl'}")
    found = study(tmp_path, line, raters=1, overlap=1, attention=0)
    path = invited(found, "ko")[0]
    server = Server(found)
    page = server.browser(path).get("/pair").text
    said = [html.unescape(text) for text in re.findall(r'class="said"[^>]*>([^<]*)', page)]
    assert said[:2] == ["짧게. Be <brief>.", "첫째 질문"] and page.count("둘째 질문") == 2
    assert [text[:3] for text in said[2:]] == ["답 1", "둘째 ", "답 2"] * 2
    server.close()


# ── what a browser may send ────────────────────────────────────────────────────────────────────


def test_invitations_that_are_none(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    path = link(server)
    word = path.removeprefix("/i/")
    rater = server.service.signer.read("invitation", word)
    assert rater
    other = links.Signer(server.study.id, b"another secret").sign("invitation", rater)
    foreign = links.Signer("another study", b"s").sign("invitation", rater)
    session = server.service.signer.sign("session", rater)
    unknown = server.service.signer.sign("invitation", links.Pass("nobody", 0, rater.expires))
    forged = [
        word[:-1] + ("A" if word[-1] != "A" else "B"),
        "A" + word,
        word + "A",
        other,
        foreign,
        session,
        unknown,
    ]
    forged += ["x" * 5000, "한글", "%00", "..", "a.b.c", word.split(".")[0], "." + word.split(".")[-1]]
    for bad in forged:
        browser = server.browser(f"/i/{bad}")
        assert browser.page.status_code in (403, 404), bad
        assert not browser.client.cookies and browser.get("/pair").status_code == 403
    # Opened again, here or elsewhere, it is the same rater and nothing more.
    for _ in range(3):
        assert server.browser(path).page.status_code == 200
    assert len(status(StatusConfig(str(server.study.path)))["raters"]) == 4
    # Its time is over: the link and the sessions that it opened.
    browser = server.browser(path)
    monkeypatch.setattr(time, "time", lambda now=time.time: now() + 15 * 86400)
    assert server.browser(path).page.status_code == 403 and browser.get("/pair").status_code == 403
    assert "기한" in server.browser().get(path, headers={"accept-language": "ko"}).text


def test_a_renewed_link_ends_the_old_one(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()
    path = link(server)
    browser = server.browser(path)
    browser.get("/pair")
    browser.rate("left")
    new = link(server, renew=status_of(server, "ko"))
    server.service.seats.clear()  # a second goes by
    assert browser.get("/pair").status_code == 403 and server.browser(path).page.status_code == 403
    again = server.browser(new)
    assert "1쌍을 마쳤습니다" in again.page.text
    # The secret is lost: every link is made anew, and what was rated stays.
    links.forget(server.study.id)
    with pytest.raises(OnggiError, match="the secret that signed the invitations is not here"):
        invite(InviteConfig(str(server.study.path), "ko"))
    made = invite(InviteConfig(str(server.study.path), renew="all"))
    assert len(made) == 4
    fresh = Server(server.study)
    [link_] = [own["url"] for own in made if own["rater"] == status_of(server, "ko")]
    assert "1쌍을 마쳤습니다" in fresh.browser(link_.removeprefix("http://127.0.0.1:8321")).page.text
    fresh.close()


def test_the_secret_is_not_in_the_study(serve: Serve, cache: Path) -> None:
    server = serve()
    [secret] = (cache / "rate").iterdir()
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    content = secret.read_bytes()
    assert len(content) == 32
    for file in server.study.path.iterdir():
        assert content not in file.read_bytes() and content.hex().encode() not in file.read_bytes()


def test_pairs_that_are_not_shown(serve: Serve) -> None:
    server = serve()
    browser, other = server.browser(link(server)), server.browser(link(server, "en"))
    browser.get("/pair")
    other.get("/pair")
    own = {"pair": browser.hidden("pair"), "key": "k", "choice": "left"}
    later = server.study.schedule["ko"][1][3].id
    for pair in (other.hidden("pair"), later, "x", "p1", "../key.json"):
        assert browser.post("/rate", {**own, "pair": pair}).status_code == 409
    assert browser.post("/undo", {"pair": other.hidden("pair"), "key": "k"}).status_code == 200
    assert not events(server)


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (b"pair=%ff%fe&key=k&choice=left", "application/x-www-form-urlencoded", 400),
        ("pair=한글".encode(), "application/x-www-form-urlencoded", 400),
        (b"&".join([b"a=b"] * 200), "application/x-www-form-urlencoded", 400),
        (b"pair=" + b"x" * 40_000, "application/x-www-form-urlencoded", 413),
        (b"{}", "application/json", 415),
        (b"--x\r\n", "multipart/form-data; boundary=x", 415),
        (b"", "application/x-www-form-urlencoded", 400),
        (b"pair=PAIR&key=k&choice=best", "application/x-www-form-urlencoded", 400),
        (b"pair=PAIR&key=k&choice=left&choice=right", "application/x-www-form-urlencoded", 400),
        (b"pair=PAIR&choice=left", "application/x-www-form-urlencoded", 400),
        (b"pair=PAIR&choice=left&key=" + b"k" * 65, "application/x-www-form-urlencoded", 400),
        (b"pair=PAIR&choice=left&key=k&left=%3Cscript%3E", "application/x-www-form-urlencoded", 400),
    ],
)
def test_bodies_that_are_no_rating(serve: Serve, body: bytes, kind: str, said: int) -> None:
    server = serve(tags=("ko",))
    browser = server.browser(link(server))
    browser.get("/pair")
    body = body.replace(b"PAIR", browser.hidden("pair").encode())
    answer = browser.ask("POST", "/rate", content=body, headers={"content-type": kind})
    assert answer.status_code == said and not events(server)
    assert "처리하지 못했습니다" in answer.text
    # A body that does not say how long it is, and goes on.

    async def pieces() -> Any:
        for _ in range(40):
            yield b"pair=" + b"x" * 1000

    longer = browser.ask(
        "POST", "/rate", content=pieces(), headers={"content-type": "application/x-www-form-urlencoded"}
    )
    assert longer.status_code == 413 and browser.get("/pair").status_code == 200


@pytest.mark.parametrize(
    "path", ["/../key.json", "/%2e%2e/key.json", "/key.json", "/study.json", "/rate.css/../key.json", "/rate"]
)
def test_no_file_but_the_two(serve: Serve, path: str) -> None:
    server = serve(tags=("ko",))
    browser = server.browser(link(server))
    assert browser.get(path).status_code == 404 and "reference" not in browser.page.text


def test_another_site_cannot_rate(serve: Serve) -> None:
    server = serve(tags=("ko",))
    browser = server.browser(link(server))
    browser.get("/pair")
    fields = {"pair": browser.hidden("pair"), "key": "k", "choice": "left"}
    assert browser.post("/rate", fields, headers={"sec-fetch-site": "cross-site"}).status_code == 403
    assert not events(server)


def test_without_a_session(serve: Serve) -> None:
    server = serve(tags=("ko",))
    browser = server.browser()
    for path in ("/", "/pair"):
        assert browser.get(path).status_code == 403 and QUESTIONS["ko"] not in browser.page.text
    for path in ("/rate", "/undo", "/begin", "/page"):
        assert browser.post(path, {"pair": "x", "key": "k", "choice": "left"}).status_code == 403
    browser.client.cookies.set(server.service.cookie, "forged.word")
    assert browser.get("/pair").status_code == 403


def test_a_closed_study_takes_no_more(serve: Serve) -> None:
    server = serve(tags=("ko",))
    path = link(server)
    browser = server.browser(path)
    browser.get("/pair")
    fields = {"pair": browser.hidden("pair"), "key": "k", "choice": "left"}
    said = rate_people.close(CloseConfig(str(server.study.path)))
    assert said["closed"] and rate_people.close(CloseConfig(str(server.study.path))) == said
    # The page is of a moment ago; what it sends is refused all the same.
    assert browser.post("/rate", fields).status_code == 410 and "마감" in browser.page.text
    assert not events(server) and "마감" in browser.get("/pair").text
    assert server.browser(path).page.status_code == 410
    with pytest.raises(OnggiError, match="nobody is invited any more"):
        invited(server.study, "ko")


def test_a_name_only_where_the_study_asks(serve: Serve) -> None:
    server = serve(tags=("ko",), ask_name=True)
    browser = server.browser(link(server))
    assert 'name="name"' in browser.page.text and "이름" in browser.page.text
    assert browser.post("/begin", {"name": ""}).status_code == 400
    browser.post("/begin", {"name": "김 <b>하나</b>\u202e"})
    assert 'action="/rate"' in browser.page.text
    assert status(StatusConfig(str(server.study.path)))["raters"][-1]["name"] == "김 <b>하나</b>�"
    assert "&lt;b&gt;하나" in browser.get("/").text


def test_names_are_not_asked_otherwise(serve: Serve) -> None:
    server = serve(tags=("ko",))
    browser = server.browser(link(server))
    assert 'name="name"' not in browser.page.text
    browser.post("/begin", {"name": "김하나"})
    assert "name" not in status(StatusConfig(str(server.study.path)))["raters"][-1]


def test_pages_need_no_heavy_library(serve: Serve) -> None:
    """Nor the names of all languages of the world, which take 20 MB: the study has those of its own."""
    server = serve(tags=("ko", "ar"))
    code = (
        "import sys; from pathlib import Path; from onggi.rate.study import Study; from rate_examples import Server\n"
        "server = Server(Study(Path(sys.argv[1])))\n"
        "for path in sys.argv[2:]:\n"
        "    browser = server.browser(path); print(browser.page.status_code, browser.get('/pair').status_code)\n"
        "server.close()\n"
        "heavy = {'numpy', 'scipy', 'pyarrow', 'torch', 'language_data.names'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code, str(server.study.path), link(server), link(server, "ar")]
    place = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=place)
    assert done.stdout == "200 200\n200 200\n[]\n"


def test_raters_are_as_many_as_planned(serve: Serve) -> None:
    server = serve(tags=("ko",))
    invited(server.study, "ko", count=2)
    with pytest.raises(OnggiError, match="of the 3 raters of ko that the study was planned for, 0 are not"):
        invited(server.study, "ko")
    with pytest.raises(OnggiError, match="has no pairs in th, only in ko"):
        invited(server.study, "th")
    lists = [
        server.service.store.rater(own["rater"])
        for own in status(StatusConfig(str(server.study.path)))["raters"]
    ]
    assert sorted(own.slot for own in lists if own and own.slot is not None) == [0, 1, 2]
    for _ in range(4):
        invited(server.study, "ko", test=True)  # a test takes nobody's place


def test_choices_and_reasons_are_those_of_the_page(serve: Serve) -> None:
    server = serve(tags=("ko",))
    page = server.browser(link(server)).get("/pair").text
    assert re.findall(r'name="choice" value="(\w+)"', page) == list(CHOICES)
    assert re.findall(r'name="left" value="(\w+)"', page) == list(REASONS)


def test_a_study_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(OnggiError, match="is not a finished study"):
        Study(tmp_path)
    ledger.write_json(tmp_path / "stage.json", {"verb": "text", "fingerprint": "x", "outputs": {}})
    with pytest.raises(OnggiError, match="is not a finished study"):
        invite(InviteConfig(str(tmp_path), "ko"))

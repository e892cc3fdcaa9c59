"""Models behind a server: what a server may do to us, done to us by a real one over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import json
import logging
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from onggi.engines import server
from onggi.engines.protocol import Answer, Prompt, Sampling
from onggi.engines.server import Engine
from onggi.engines.spending import Options
from onggi.errors import OnggiError

KEY = "sk-비밀".encode().hex() + "-secret"
QUICK = Options(backoff=0.01, timeout=5, retries=3)
PROMPTS: list[Prompt] = [
    "서울은 어디에 있나요?",
    [{"role": "user", "content": "Where is Cairo?"}],
    [{"role": "system", "content": "أجب بالعربية"}, {"role": "user", "content": "أين تقع القاهرة؟"}],
]

Reply = tuple[int, dict[str, str], bytes]


class Call:
    """One request as it came: its number, path, headers and body; `write` answers byte by byte."""

    def __init__(self, number: int, handler: BaseHTTPRequestHandler):
        self.number, self.path, self.headers, self.at = (
            number,
            handler.path,
            handler.headers,
            time.monotonic(),
        )
        self.write = handler.wfile.write
        self.body = json.loads(handler.rfile.read(int(handler.headers.get("content-length") or 0)) or "{}")

    @property
    def prompt(self) -> str:
        found: str = self.body["prompt"] if "prompt" in self.body else self.body["messages"][-1]["content"]
        return found


Script = Callable[[Call], Reply | None]


class Rude:
    """A server that does as `script` says and remembers what it was asked."""

    def __init__(self, script: Script):
        self.script, self.calls, self.at_once, self.most = script, list[Call](), 0, 0
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 5

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                self.do_POST()

            def do_POST(self) -> None:
                with lock:
                    call = Call(len(outer.calls), self)
                    outer.calls.append(call)
                    outer.at_once += 1
                    outer.most = max(outer.most, outer.at_once)
                try:
                    reply = outer.script(call)
                finally:
                    with lock:
                        outer.at_once -= 1
                if reply is None:
                    self.close_connection = True
                    return
                status, headers, body = reply
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
                self.close_connection = "Content-Length" in headers

            def handle(self) -> None:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the client has gone
                    super().handle()

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.source = f"http://127.0.0.1:{self.http.server_port}/v1#tiny"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[[Script], Rude]]:
    """Start a server with a script; it is stopped with the test."""
    started: list[Rude] = []

    def start(script: Script) -> Rude:
        started.append(Rude(script))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of whoever runs the tests stay out of them."""
    for name in ("OPENAI_API_KEY", "ONGGI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def well(call: Call, text: str | None = None, finish: str = "stop", **other: Any) -> Reply:
    """A proper reply: by default the prompt with an arrow before it."""
    said = f"→ {call.prompt}" if text is None else text
    chat = {"message": {"role": "assistant", "content": said}}
    choice = {"index": 0, "finish_reason": finish, **(chat if "chat" in call.path else {"text": said})}
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    body = json.dumps({"object": "x", "choices": [choice], "usage": usage, **other})
    return 200, {"Content-Type": "application/json"}, body.encode()


def error(status: int, message: str = "서버 오류", **other: Any) -> Reply:
    return (
        status,
        {"Content-Type": "application/json"},
        json.dumps({"error": {"message": message, **other}}).encode(),
    )


def ask(engine: Engine, prompts: list[Prompt] = PROMPTS, sampling: Sampling | None = None) -> list[Answer]:
    """The answers in the order of the prompts, each exactly once."""
    found = list(engine.generate(prompts, sampling or Sampling()))
    assert sorted(index for index, _ in found) == list(range(len(prompts)))
    return [answer for _, answer in sorted(found, key=lambda pair: pair[0])]


def refused(engine: Engine, prompts: list[Prompt] = PROMPTS, sampling: Sampling | None = None) -> str:
    with pytest.raises(OnggiError) as caught:
        ask(engine, prompts, sampling)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(engine.source)
    return str(caught.value)


def test_texts_and_chats_are_answered_with_their_counts(serve: Any) -> None:
    rude = serve(well)
    engine = Engine(rude.source, Options(input_price=2.0, output_price=10.0))
    answers = ask(engine)
    assert [a.text for a in answers] == ["→ 서울은 어디에 있나요?", "→ Where is Cairo?", "→ أين تقع القاهرة؟"]
    assert {(a.finish, a.prompt_tokens, a.tokens, a.error) for a in answers} == {("stop", 7, 3, None)}
    assert sorted(call.path for call in rude.calls) == ["/v1/chat/completions"] * 2 + ["/v1/completions"]
    for call in rude.calls:
        assert (
            call.body["model"] == "tiny" and call.body["max_tokens"] == 256 and call.body["temperature"] == 0
        )
        assert not {"seed", "top_p", "stop"} & call.body.keys()
    summary = engine.counters.summary()
    assert summary["money"] == pytest.approx((21 * 2 + 9 * 10) / 1e6)
    assert summary.pop("seconds")["p95"] == max(a.seconds for a in answers)
    assert (summary["requests"], summary["answered"], summary["prompt_tokens"], summary["tokens"]) == (
        3,
        3,
        21,
        9,
    )
    assert summary["retried"] == summary["failed"] == summary["cached"] == 0
    assert str(engine.counters).startswith(
        "3 answers from 3 requests, 0 cached (free); 0 retried, 0 failed; 21 tokens"
    )


def test_sampling_is_sent(serve: Any) -> None:
    rude = serve(well)
    ask(Engine(rude.source), PROMPTS[:1], Sampling(64, 0.7, 0.9, 5, ("끝", "\n")))
    body = rude.calls[0].body
    assert {k: body[k] for k in ("max_tokens", "temperature", "top_p", "seed", "stop")} == {
        "max_tokens": 64, "temperature": 0.7, "top_p": 0.9, "seed": 5, "stop": ["끝", "\n"],
    }  # fmt: skip


def test_what_fails_twice_is_answered_the_third_time(serve: Any) -> None:
    rude = serve(lambda call: error(500) if call.number < 2 else well(call))
    engine = Engine(rude.source, QUICK)
    assert ask(engine, PROMPTS[:1])[0].text == "→ 서울은 어디에 있나요?"
    assert (engine.counters.requests, engine.counters.retried, engine.counters.failed) == (3, 2, 0)


def test_what_always_fails_is_an_answer_that_says_so_and_is_not_kept(serve: Any) -> None:
    rude = serve(lambda call: error(503, "مشغول") if "القاهرة" in call.prompt else well(call))
    engine = Engine(rude.source, QUICK)
    answers = ask(engine)
    assert [a.finish for a in answers] == ["stop", "stop", "error"]
    assert answers[2].error == "status 503: مشغول" and answers[2].text == ""
    assert (engine.counters.answered, engine.counters.failed, engine.counters.retried) == (2, 1, 3)
    rude.script = well
    again = Engine(rude.source, QUICK)
    assert ask(again)[2].text == "→ أين تقع القاهرة؟"
    assert (again.counters.requests, again.counters.cached) == (1, 2)


def test_a_reply_that_is_late_or_never_ends_is_asked_again(serve: Any) -> None:
    def script(call: Call) -> Reply | None:
        if call.number == 0:
            time.sleep(0.6)
        if call.number == 1:  # a byte now and then, for ever: no read of the socket is late
            call.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n")
            for _ in range(12):
                call.write(b" ")
                time.sleep(0.05)
            return None
        return well(call)

    engine = Engine(serve(script).source, Options(backoff=0.01, timeout=0.3))
    started = time.monotonic()
    assert ask(engine, PROMPTS[:1])[0].text == "→ 서울은 어디에 있나요?"
    assert 0.6 < time.monotonic() - started < 1.5 and engine.counters.retried == 2
    late = Engine(serve(lambda call: time.sleep(0.4) or well(call)).source, Options(timeout=0.1, retries=0))
    assert ask(late, PROMPTS[1:2])[0].error == "no answer within 0.1 s"


def test_a_server_that_says_how_long_to_wait_is_heeded_by_all(serve: Any) -> None:
    def script(call: Call) -> Reply:
        if call.number == 0:
            return 429, {"Retry-After": "0.5"}, b'{"error": {"message": "slow down"}}'
        return well(call)

    rude = serve(script)
    engine = Engine(rude.source, Options(concurrency=1, backoff=0.01))
    assert [a.finish for a in ask(engine)] == ["stop"] * 3
    first, *rest = rude.calls
    assert all(call.at - first.at >= 0.5 for call in rest) and engine.counters.retried == 1
    busy = serve(lambda _: (429, {"Retry-After": "7200"}, b'{"error": {"message": "daily quota"}}'))
    assert "asks to wait 7200 s (status 429: daily quota); run again then" in refused(Engine(busy.source))


def test_how_long_to_wait_may_be_seconds_or_a_date() -> None:
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    for said, seconds in (("2", 2.0), ("0.5", 0.5), (date, 30.0), ("-1", 0.0)):
        assert server._wait(server.httpx2.Headers({"Retry-After": said})) == pytest.approx(seconds, abs=1.5)
    assert server._wait(server.httpx2.Headers({"retry-after-ms": "250", "retry-after": "9"})) == 0.25
    for nothing in ("", "soon"):
        assert server._wait(server.httpx2.Headers({"Retry-After": nothing})) is None


@pytest.mark.parametrize(
    ("headers", "cut", "said"),
    [
        ({"Content-Length": "9999"}, 40, "the connection broke off"),  # fewer bytes than announced
        ({}, 40, "the reply is cut short or no JSON (40 bytes)"),
        ({}, 0, "the reply is cut short or no JSON (0 bytes)"),
    ],
)
def test_a_reply_cut_short_is_asked_again(serve: Any, headers: dict[str, str], cut: int, said: str) -> None:
    def script(call: Call) -> Reply:
        status, kind, body = well(call)
        return (status, {**kind, **headers}, body[:cut]) if call.number in broken else (status, kind, body)

    broken = {0}
    rude = serve(script)
    engine = Engine(rude.source, QUICK)
    assert ask(engine, PROMPTS[:1])[0].finish == "stop" and engine.counters.retried == 1
    broken = set(range(99))
    assert (ask(engine, PROMPTS[2:])[0].error or "").startswith(said)


def test_a_web_page_is_no_api(serve: Any) -> None:
    page = 200, {"Content-Type": "text/html"}, "<!DOCTYPE html><html>로그인</html>".encode()
    rude = serve(lambda _: page)
    assert "answers with a web page, not JSON; is this the address of an API" in refused(Engine(rude.source))
    # Later, it is one request's bad luck.
    rude = serve(lambda call: page if "Cairo" in call.prompt else well(call))
    engine = Engine(rude.source, Options(concurrency=1, backoff=0.01, retries=1))
    answers = ask(engine)
    assert [a.finish for a in answers] == ["stop", "error", "stop"]
    assert (answers[1].error or "").startswith("answers with a web page")
    rude = serve(lambda _: (502, {"Content-Type": "text/html"}, b"<html>Bad gateway</html>"))
    assert {a.error for a in ask(Engine(rude.source, QUICK))} == {"status 502: a web page"}


def test_without_a_valid_key_the_run_ends_at_once(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rude = serve(
        lambda call: error(
            401, f"no: {call.headers['Authorization']} {'x' * 150} {call.headers['Authorization']}"
        )
    )
    engine = Engine(rude.source, Options(concurrency=1))
    assert "asks for a key; set ONGGI_API_KEY or OPENAI_API_KEY" in refused(engine)
    monkeypatch.setenv("ONGGI_API_KEY", KEY)
    said = refused(engine)
    assert "refuses the key in the environment" in said and "no: Bearer [key]" in said and KEY[:9] not in said
    assert len(rude.calls) == 2


def test_a_model_that_is_not_there(serve: Any) -> None:
    def script(call: Call) -> Reply:
        if call.path == "/v1/models":
            return 200, {}, json.dumps({"data": [{"id": name} for name in names]}).encode()
        return error(404, "no such thing", code="model_not_found")

    rude, names = serve(script), ["tinny", "큰-모델"]
    assert refused(Engine(rude.source)).endswith("the server has no model 'tiny'. Did you mean 'tinny'?")
    names = ["큰-모델", "نموذج"]
    assert refused(Engine(rude.source)).endswith("no model 'tiny'. There is: 큰-모델, نموذج.")
    names = ["tiny"]
    assert "offers no completions for this model" in refused(Engine(rude.source), PROMPTS[:1])
    assert "offers no chat/completions for this model" in refused(Engine(rude.source), PROMPTS[1:])
    nowhere = serve(lambda _: (404, {"Content-Type": "text/html"}, b"<html>nginx</html>"))
    assert "no API at http://127.0.0.1" in refused(Engine(nowhere.source))
    assert "often ending in /v1" in refused(Engine(nowhere.source))


def test_no_server_at_all() -> None:
    with socket.socket() as taken:  # bound and not listening: nobody else answers there
        taken.bind(("127.0.0.1", 0))
        engine = Engine(f"http://127.0.0.1:{taken.getsockname()[1]}/v1#tiny")
        assert "cannot be reached" in refused(engine) and "is the server running?" in refused(engine)


def test_a_server_that_goes_away_ends_the_run_and_costs_nothing_answered(serve: Any) -> None:
    many: list[Prompt] = [f"{number} 번째" for number in range(20)]
    rude = serve(lambda call: well(call) if call.number < 5 else error(500))
    engine = Engine(rude.source, Options(concurrency=1, retries=0, give_up=4))
    assert "4 requests in a row have failed, the last one: status 500" in refused(engine, many)
    assert len(rude.calls) == 9
    rude.script = well
    again = Engine(rude.source)
    ask(again, many)
    assert again.counters.cached == 5 and again.counters.requests == 15


def test_tokens_are_approximated_where_the_server_does_not_count(serve: Any) -> None:
    for usage in (None, {}, {"prompt_tokens": None}):
        engine = Engine(serve(lambda call, usage=usage: well(call, usage=usage)).source)
        answer = ask(engine, ["가나다"])[0]
        assert (answer.prompt_tokens, answer.tokens) == (3, 5)  # 9 and 13 bytes
        assert engine.counters.approximated == 1 and "approximated for 1" in str(engine.counters)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (lambda call: well(call, "김치는", "length"), ("김치는", "length")),
        (lambda call: well(call, "", "stop"), ("", "stop")),
        (lambda call: well(call, "", "content_filter"), ("", "filter")),
        (lambda call: error(400, "prompt withheld", code="content_filter"), ("", "filter")),
        (lambda call: well(call, "끝 \ud83d", "eos"), ("끝 �", "stop")),  # half an emoji
    ],
)
def test_how_an_answer_ended_is_kept_as_such(serve: Any, reply: Script, answer: tuple[str, str]) -> None:
    rude = serve(reply)
    for requests in (1, 0):  # the second from the cache
        engine = Engine(rude.source, QUICK)
        found = ask(engine, PROMPTS[1:2])[0]
        assert (found.text, found.finish) == answer and engine.counters.requests == requests
    assert engine.counters.failed == 0


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (lambda call: error(400, "9001 토큰은 너무 깁니다"), "status 400: 9001 토큰은 너무 깁니다"),
        (lambda call: (422, {}, b'{"detail": "Not that"}'), "status 422: Not that"),
        (lambda call: (413, {}, b"too large"), "status 413: too large"),
    ],
)
def test_a_request_that_cannot_be_answered_is_not_sent_again(serve: Any, reply: Script, said: str) -> None:
    engine = Engine(serve(reply).source, QUICK)
    assert ask(engine, PROMPTS[:1])[0].error == said
    assert (engine.counters.requests, engine.counters.failed) == (1, 1)


@pytest.mark.parametrize(
    "body", [b'{"choices": []}', b"[]", b'{"choices": [{"message": 1}]}', b'{"error": "x"}']
)
def test_json_without_an_answer_is_a_failure(serve: Any, body: bytes) -> None:
    engine = Engine(serve(lambda _: (200, {"Content-Type": "application/json"}, body)).source, QUICK)
    assert ask(engine, PROMPTS[1:2])[0].finish == "error" and engine.counters.requests == 4


def test_options_that_a_model_does_not_take(serve: Any) -> None:
    def script(call: Call) -> Reply:
        if "max_tokens" in call.body:
            return error(400, "Use 'max_completion_tokens' instead.", param="max_tokens")
        if call.body.get("temperature", 1) != 1:
            return error(400, "Only the default (1) is supported", param="temperature")
        return well(call)

    rude = serve(script)
    engine = Engine(rude.source, Options(concurrency=1, retries=0))
    chats = PROMPTS[1:]
    assert "does not take temperature=0.5 (status 400: Only the default (1)" in refused(
        engine, chats, Sampling(temperature=0.5)
    )
    answers = ask(engine, chats, Sampling(temperature=1.0))
    assert {a.finish for a in answers} == {"stop"} and len(rude.calls) == 2 + 2
    assert rude.calls[-1].body["max_completion_tokens"] == 256
    # Greedy, or as near as the model lets itself be brought.
    assert {a.finish for a in ask(engine, chats)} == {"stop"} and "temperature" not in rude.calls[-1].body


def test_no_more_at_once_than_asked_for(serve: Any) -> None:
    rude = serve(lambda call: time.sleep(0.05) or well(call))
    many: list[Prompt] = [f"{number} ក" for number in range(12)]
    started = time.monotonic()
    ask(Engine(rude.source, Options(concurrency=4)), many)
    assert rude.most == 4 and time.monotonic() - started >= 0.15


@pytest.mark.parametrize("limit", [{"requests_per_minute": 600}, {"tokens_per_minute": 600 * 10}])
def test_requests_are_spaced_by_the_limits(serve: Any, limit: dict[str, float]) -> None:
    rude = serve(well)  # uses ten tokens a request
    ask(
        Engine(rude.source, Options(**limit)), [f"{number} 번" for number in range(5)], Sampling(max_tokens=7)
    )
    times = [call.at for call in rude.calls]
    assert times[-1] - times[0] >= 0.38 and times[-1] - times[0] < 0.9


def test_the_same_is_never_asked_twice(serve: Any) -> None:
    rude = serve(well)
    first = ask(Engine(rude.source), [*PROMPTS, PROMPTS[0]])
    assert len(rude.calls) == 3 and first[0] == first[3]
    again = Engine(rude.source)
    assert ask(again) == first[:3] and len(rude.calls) == 3
    assert again.counters.cached == 3 and again.counters.requests == 0 and again.counters.money is None
    ask(again, PROMPTS, Sampling(max_tokens=9))
    ask(again, PROMPTS, Sampling(temperature=0.5, seed=1))
    ask(again, PROMPTS, Sampling(temperature=0.5, seed=2))
    ask(Engine(rude.source + "-other"), PROMPTS)
    ask(Engine(rude.source, cache=False), PROMPTS)
    assert len(rude.calls) == 3 + 15
    ask(again, [PROMPTS[0]] * 3, Sampling(temperature=0.5, seeds=(7, 8, 7)))  # two draws of one prompt
    assert sorted(call.body["seed"] for call in rude.calls[18:]) == [7, 8]


RUN = """
import sys
from onggi.engines.protocol import Sampling
from onggi.engines.server import Engine, Options
for index, answer in Engine(sys.argv[1], Options(concurrency=2)).generate([f"{n} 번 ก" for n in range(40)], Sampling()):
    print(index, flush=True)
"""


def test_killed_it_loses_what_was_in_flight(serve: Any, cache: Path) -> None:
    rude = serve(lambda call: time.sleep(0.02) or well(call))
    run = subprocess.Popen([sys.executable, "-c", RUN, rude.source], stdout=subprocess.PIPE, text=True)
    assert run.stdout
    got = [run.stdout.readline() for _ in range(10)]
    run.send_signal(signal.SIGKILL)
    got += run.stdout.readlines()
    run.wait()
    assert 10 <= len(got) < 40
    asked = len(rude.calls)
    engine = Engine(rude.source)
    ask(engine, [f"{n} 번 ก" for n in range(40)])
    assert engine.counters.cached >= len(got) and engine.counters.cached >= asked - 2
    assert engine.counters.requests == 40 - engine.counters.cached


def test_a_cache_cut_anywhere_gives_what_is_whole(serve: Any, cache: Path) -> None:
    rude = serve(well)
    whole = ask(Engine(rude.source, Options(concurrency=1)))
    (file,) = (cache / "answers").iterdir()
    content = file.read_bytes()
    ends = [i for i, byte in enumerate(content) if byte == 10]
    for cut in (0, 5, ends[0], ends[0] + 1, len(content) // 2, ends[1] + 9, len(content) - 1):
        file.write_bytes(content[:cut])
        kept = sum(end < cut for end in ends)
        for left in (3 - kept, 0):  # and what is then added stays
            engine = Engine(rude.source)
            assert [a.text for a in ask(engine)] == [a.text for a in whole]
            assert engine.counters.requests == left
    file.write_bytes(b"\xff\xfe{\n[]\n{}\n" + b'{"key": "x", "text": 1}\n' + content)
    engine = Engine(rude.source)
    assert ask(engine) == whole and engine.counters.requests == 0


def test_the_key_is_sent_and_found_nowhere_else(
    serve: Any, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "of another server")
    monkeypatch.setenv("ONGGI_API_KEY", KEY + "\n")

    def script(call: Call) -> Reply:
        bearer = call.headers["Authorization"]
        if "Cairo" in call.prompt:
            return error(500, f"cannot work with {bearer}")
        return well(call, f"당신의 열쇠는 {bearer}")

    rude = serve(script)
    engine = Engine(rude.source, QUICK)
    answers = ask(engine)
    assert {call.headers["Authorization"] for call in rude.calls} == {f"Bearer {KEY}"}
    assert answers[0].text == "당신의 열쇠는 Bearer [key]"
    assert answers[1].error == "status 500: cannot work with Bearer [key]"
    shown = [
        repr(engine),
        str(vars(engine)),
        str(engine.counters),
        repr(engine.options),
        caplog.text,
        *capfd.readouterr(),
    ]
    for folder in (cache, tmp_path):
        shown += [file.read_text() for file in folder.rglob("*") if file.is_file()]
    assert any("당신의 열쇠는" in text for text in shown)  # the cache was among them
    assert not any(KEY in text for text in [*shown, *map(repr, answers)])
    assert KEY.encode() not in pickle.dumps((engine.options, engine.counters, engine.at))


def test_which_key_goes_where(monkeypatch: pytest.MonkeyPatch) -> None:
    assert server._key("https://api.example/v1") == ""
    monkeypatch.setenv("OPENAI_API_KEY", "theirs")
    for url in (
        "https://api.example/v1",
        "http://localhost:8000/v1",
        "http://127.0.0.1/v1",
        "http://[::1]:1/v1",
    ):
        assert server._key(url) == "theirs"
    assert server._key("http://example.org/v1") == ""  # in the clear to somebody else
    assert "OPENAI_API_KEY is not sent in the clear" in server._no_entry("http://example.org/v1", "")
    monkeypatch.setenv("ONGGI_API_KEY", " ours\n")
    assert server._key("http://example.org/v1") == server._key("https://api.example/v1") == "ours"
    for bad in ("열쇠", "a b", "a\nb"):
        monkeypatch.setenv("ONGGI_API_KEY", bad)
        with pytest.raises(OnggiError, match="ONGGI_API_KEY: holds characters that no key has") as caught:
            server._key("https://api.example/v1")
        assert bad not in str(caught.value).replace("characters that no", "")


def test_an_estimate_sends_nothing(serve: Any) -> None:
    rude = serve(well)
    engine = Engine(rude.source, Options(input_price=1.0, output_price=4.0))
    prompts: list[Prompt] = ["가나다" * 100, "abc" * 100, PROMPTS[2], "abc" * 100]
    estimate = engine.estimate(prompts, Sampling(max_tokens=50))
    assert (estimate.requests, estimate.cached, estimate.tokens) == (3, 1, 150)
    bytes_of_chat = len("أجب بالعربيةأين تقع القاهرة؟".encode())
    assert estimate.prompt_tokens == pytest.approx(300 + 100 + bytes_of_chat / 3 + 16, abs=2)
    assert estimate.money == pytest.approx((estimate.prompt_tokens + 4 * 150) / 1e6)
    assert "1 token per 3 bytes of UTF-8" in str(estimate) and rude.calls == []
    ask(engine, prompts[:1], Sampling(max_tokens=50))
    after = Engine(rude.source).estimate(prompts, Sampling(max_tokens=50))
    assert (after.requests, after.cached, after.money) == (2, 2, None) and "price unknown" in str(after)


def test_stopping_early_does_not_wait_for_what_is_in_flight(serve: Any) -> None:
    rude = serve(lambda call: time.sleep(3 * (call.number > 0)) or well(call))
    engine = Engine(rude.source, Options(concurrency=1))
    answers = engine.generate(PROMPTS, Sampling())
    assert next(answers)[1].finish == "stop"
    time.sleep(0.05)
    started = time.monotonic()
    answers.close()  # type: ignore[attr-defined]
    assert time.monotonic() - started < 0.5
    assert not [thread for thread in threading.enumerate() if thread.name == "onggi-requests"]


def test_it_works_where_a_loop_runs_already(serve: Any) -> None:
    rude = serve(well)

    async def notebook() -> list[Answer]:
        return ask(Engine(rude.source))

    # In a thread of its own: this one has Playwright's loop while a browser is open.
    with ThreadPoolExecutor(1) as pool:
        assert len(pool.submit(asyncio.run, notebook()).result()) == 3


def test_what_cannot_be_asked_is_refused(serve: Any) -> None:
    engine = Engine(serve(well).source)
    for bad in (
        [],
        [{"role": "user"}],
        [{"role": "user", "content": 3}],
        [{"role": "user", "content": "ก", "x": "y"}],
    ):
        with pytest.raises(OnggiError, match="prompt 1: is neither a text nor messages of role and content"):
            ask(engine, ["한국어", bad])  # type: ignore[list-item]
    with pytest.raises(OnggiError, match="prompt 0: holds half a character"):
        ask(engine, ["\ud83d"])
    with pytest.raises(OnggiError, match="a server gives no log-likelihoods of a given text"):
        engine.score([("한국의 수도는", " 서울")])
    with pytest.raises(OnggiError, match="runs/w4: is no model behind a server"):
        Engine("runs/w4")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"concurrency": 0}, "concurrency: 0 is not a number of requests"),
        ({"timeout": 0}, "timeout: 0 is not above 0"),
        ({"requests_per_minute": -1.0}, "requests_per_minute: -1.0 is not above 0"),
        ({"retries": -1}, "retries: -1 is below 0"),
        ({"input_price": 1.0}, "input_price and output_price: give both or neither"),
    ],
)
def test_options_that_cannot_work(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OnggiError, match=said):
        Options(**options)


def test_a_cache_that_cannot_be_written(serve: Any, cache: Path) -> None:
    (cache / "answers").write_text("a file where a folder should be")
    with pytest.raises(OnggiError, match="answers"):
        ask(Engine(serve(well).source))
    assert [path.name for path in cache.iterdir()] == ["answers"]

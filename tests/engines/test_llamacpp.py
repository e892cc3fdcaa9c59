"""SmolLM2's GGUF through llama.cpp: its own server in this process, asked as any other server is."""

from __future__ import annotations

import json
import struct
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from onggi.engines import llamacpp, server
from onggi.engines.protocol import Answer, Prompt, Sampling
from onggi.errors import OnggiError
from onggi.models import references

SHORT = Sampling(max_tokens=8)


def chat(text: str) -> Prompt:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def smollm2() -> Path:
    found = references.gguf("package:smollm2-135m")
    assert found is not None
    return found


def ask(engine: server.Engine, prompts: list[Prompt], sampling: Sampling = SHORT) -> list[Answer]:
    return [answer for _, answer in sorted(engine.generate(prompts, sampling), key=lambda pair: pair[0])]


@pytest.mark.real
def test_texts_and_chats_in_three_scripts(
    smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONGGI_CACHE", str(tmp_path))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # nobody there: local servers need no proxy
    prompts = [
        "The capital of France is",
        "대한민국의 수도는",
        "عاصمة مصر هي",
        chat("What is the capital of France? Answer with one word."),
        chat("한국의 수도는 어디입니까?"),
        chat("ما هي عاصمة مصر؟"),
    ]
    with llamacpp.running(smollm2, server.Options(concurrency=2), context=512, threads=1) as engine:
        answers = ask(engine, prompts)
        assert "Paris" in answers[0].text and "Paris" in answers[3].text
        assert all(a.finish in ("stop", "length") and a.text.strip() for a in answers)
        assert all(0 < a.tokens <= 8 and a.seconds > 0 for a in answers)
        assert any("가" <= c <= "힣" for c in answers[1].text + answers[4].text)
        assert any("ء" <= c <= "ي" for c in answers[2].text + answers[5].text)
        # The file's own template: its system prompt and turns are tokens that the text alone has not.
        assert answers[3].prompt_tokens > 25 > answers[0].prompt_tokens
        assert engine.counters.approximated == engine.counters.failed == 0
        long, stopped = ask(engine, ["옹기 " * 900]), ask(engine, ["1, 2, 3, 4,"], Sampling(16, stop=("8",)))
        assert long[0].finish == "error" and "exceeds the available context size" in (long[0].error or "")
        assert stopped[0].finish == "stop" and "7" in stopped[0].text and "8" not in stopped[0].text
        one, other = (
            ask(engine, ["옛날 옛적에"], Sampling(8, temperature=1.5, seed=seed))[0].text for seed in (1, 2)
        )
        assert one != other
        with pytest.raises(OnggiError, match=r"llama\.cpp's server gives no log-likelihoods"):
            engine.score([("한국의 수도는", " 서울")])
        address = engine.at.url
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address + "/models") as reply:
            assert json.load(reply)["data"]
    with pytest.raises(urllib.error.URLError):
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address + "/models", timeout=2)
    # Another port, the same file: nothing is computed again.
    with llamacpp.running(smollm2, context=512) as again:
        assert again.at.url != address and ask(again, prompts) == answers
        assert again.counters.requests == 0 and again.counters.cached == 6
    assert not [thread for thread in threading.enumerate() if thread.name == "onggi-requests"]


def container(path: Path, **metadata: str) -> Path:
    """A GGUF of nothing but metadata."""

    def string(text: str) -> bytes:
        return struct.pack("<Q", len(text.encode())) + text.encode()

    pairs = b"".join(string(key) + struct.pack("<I", 8) + string(value) for key, value in metadata.items())
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(metadata)) + pairs)
    return path


def test_files_that_llama_cpp_cannot_run(tmp_path: Path) -> None:
    damaged = tmp_path / "옹기.gguf"
    damaged.write_bytes(b"GGUF\x03")
    hollow = container(tmp_path / "خزف.gguf", **{"general.architecture": "onggi"})
    for file, said in ((damaged, "옹기.gguf"), (hollow, "llama.cpp cannot run this file")):
        with pytest.raises(OnggiError, match=said), llamacpp.running(file):
            pass


def test_without_xllamacpp_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = container(tmp_path / "model.gguf", **{"general.architecture": "onggi"})
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with (
        pytest.raises(OnggiError, match=r"needs xllamacpp; pip install 'onggi\[llama\]'"),
        llamacpp.running(file),
    ):
        pass


def test_a_base_model_continues_what_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = llamacpp.File(container(tmp_path / "base.gguf", **{"general.architecture": "onggi"}))
    engine = llamacpp.Engine("http://127.0.0.1:1/v1#base", file, llamacpp.LOCAL, "gguf", cache=False)
    sent: list[object] = []
    monkeypatch.setattr(server.Engine, "generate", lambda _, prompts, __: iter(sent.extend(prompts) or ()))
    for text in ("안녕하세요", "hello", "مرحبا"):
        ask(engine, ["text", chat(text)])
        assert sent[-2:] == ["text", text]

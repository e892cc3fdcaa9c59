"""Several models asked at once: from Python, from a pipe, on a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import select
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from onggi.cli import main
from onggi.engines.transformers import Engine
from onggi.errors import OnggiError
from onggi.stages import Answer, ChatConfig, Conversation, chat
from onggi.stages.chat_terminal import _view

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
PROMPT = "버스가 늦나요? هل الحافلة متأخرة؟ Is it?"


@pytest.fixture
def talker(tiny: Path, tmp_path: Path) -> Path:
    """The tiny Llama with a chat template."""
    folder = shutil.copytree(tiny, tmp_path / "talker")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def expected(folder: Path, text: str, count: int) -> str:
    engine = Engine(folder)
    ids = [engine.tokens.prefix, *engine.tokens.encode(text)]
    return str(engine.tokens.tokenizer.decode(list(engine.follow(ids, count))))


def test_answers_of_a_base_and_a_chat_model(talker: Path, tiny_gemma: Path) -> None:
    config = ChatConfig([str(talker), f"base={tiny_gemma}"], prompt=PROMPT, max_tokens=24)
    answers = chat(config)
    assert list(answers) == ["talker", "base"]
    assert answers["talker"].text == expected(talker, f"user: {PROMPT}\nassistant: ", 24)
    assert answers["base"].text == expected(tiny_gemma, PROMPT, 24)
    for answer in answers.values():
        assert (answer.tokens, answer.end) == (24, "max_tokens")
        assert answer.first > 0 and answer.speed is not None and answer.speed > 1
    raw = chat(replace(config, raw=True))
    assert raw["talker"].text == expected(talker, PROMPT, 24) != answers["talker"].text
    assert raw["base"].text == answers["base"].text


def test_models_take_turns_and_end_apart(talker: Path) -> None:
    conversation = Conversation(ChatConfig([f"a={talker}", f"b={talker}"], max_tokens=9))
    engine = conversation.voices["b"].engine
    ids = conversation.voices["b"]._ids(PROMPT)
    made = list(engine.follow(ids, 9))
    engine.ends = frozenset({made[4]})
    short = made.index(made[4])
    pieces = list(conversation.ask(PROMPT))
    a, b = conversation.answers["a"], conversation.answers["b"]
    assert (a.tokens, a.end, b.tokens, b.end) == (9, "max_tokens", short, "end")
    assert a.text.startswith(b.text.rstrip("\ufffd"))
    for name, answer in conversation.answers.items():
        assert "".join(piece for its, piece in pieces if its == name) == answer.text
    names = [name for name, _ in pieces]
    # One more of each for what the end may have left to say.
    assert names == ["a", "b"] * (short + 1) + ["a"] * (9 - short)


def test_each_remembers_its_own_conversation(talker: Path, tiny_gemma: Path) -> None:
    config = ChatConfig([str(talker), str(tiny_gemma)], max_tokens=6, system="ตอบสั้น ๆ")
    conversation = Conversation(config)
    said = []
    for prompt in (PROMPT, "더 짧게, please"):
        list(conversation.ask(prompt))
        said.append({name: answer.text for name, answer in conversation.answers.items()})
    talk = (
        f"system: ตอบสั้น ๆ\nuser: {PROMPT}\nassistant: {said[0]['talker']}\nuser: 더 짧게, please\nassistant: "
    )
    voice = conversation.voices["talker"]
    assert voice.template and voice.template.render([*voice.system, *voice.history[:-1]]) == "<s>" + talk
    assert said[1]["talker"] == expected(talker, talk, 6)
    assert said[1]["tiny_gemma"] == expected(tiny_gemma, "더 짧게, please", 6)
    conversation.new()
    list(conversation.ask(PROMPT))
    assert {name: answer.text for name, answer in conversation.answers.items()} == said[0]


def test_a_stopped_answer(talker: Path) -> None:
    conversation = Conversation(ChatConfig([str(talker)], max_tokens=50))
    pieces = conversation.ask(PROMPT)
    first = next(pieces)[1]
    pieces.close()
    answer = conversation.answers["talker"]
    assert (answer.end, answer.text) == ("stopped", first) and answer.tokens < 50
    assert conversation.voices["talker"].history[-1] == {"role": "assistant", "content": first}


def test_the_window(talker: Path) -> None:
    conversation = Conversation(ChatConfig([f"t={talker}"], max_tokens=50))
    voice = conversation.voices["t"]
    voice.engine.ends = frozenset()
    voice.engine.window = len(voice._ids(PROMPT)) + 3
    list(conversation.ask(PROMPT))
    assert (conversation.answers["t"].tokens, conversation.answers["t"].end) == (3, "window")
    with pytest.raises(OnggiError, match=r"^t: the prompt has \d+ tokens.*/new forgets"):
        list(conversation.ask(PROMPT))
    conversation.new()
    assert len(list(conversation.ask(PROMPT))) > 0


def test_a_model_without_system_prompt_says_so(
    talker: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (talker / "chat_template.jinja").write_text("{{ messages[-1].content }}")
    Conversation(ChatConfig([str(talker), str(tiny)], system="짧게. Brief. قصير"))
    said = capsys.readouterr().err
    assert "talker: its chat template has no system prompt; it answers without." in said
    assert "tiny: a base model has no system prompt" in said


def test_in_a_pipe(
    talker: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["chat", f"톡={talker}", str(tiny), "--max-tokens", "8"]
    plain = chat(ChatConfig([str(talker), str(tiny)], prompt=PROMPT, max_tokens=8))
    for asked, piped in ((["--prompt", PROMPT], ""), (["--prompt", "-"], PROMPT), ([], PROMPT + "\n")):
        monkeypatch.setattr(sys, "stdin", io.StringIO(piped))
        monkeypatch.setenv("FORCE_COLOR", "1")
        assert main([*words, *asked]) == 0
        out = capsys.readouterr().out
        facts = r"\(\d tokens, [\d.]+ tokens/s(?:, cut)?\)\n\n"
        found = re.fullmatch(rf"톡:\n(.*)\n{facts}tiny:\n(.*)\n{facts}", out, re.DOTALL)
        assert found and found.groups() == (plain["talker"].text, plain["tiny"].text)
        assert "\x1b[" not in out


@pytest.mark.parametrize("prompt", ["null", "# 가", "~", "[1]", "a: ب"])
def test_a_prompt_is_any_text(prompt: str, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", str(tiny), "--raw", "--prompt", prompt, "--max_tokens=3"]) == 0
    assert capsys.readouterr().out.startswith(f"tiny:\n{expected(tiny, prompt, 3)}\n(")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("{tiny} a/tiny --prompt 가", "two models are named 'tiny' ({tiny} and a/tiny); name them apart"),
        ("none/here/at/all --prompt 가", "none/here/at/all: no such folder or file. A model is"),
        ("{tiny} --prompt=", "prompt: is empty."),
        ("{tiny} --prompt=\u3000", "prompt: is empty."),
        ("{tiny} --prompt \udcff", "prompt: is not UTF-8 text."),
        ("{tiny}", "prompt: is empty."),  # standard input is
        ("{tiny} --prompt 가 --max-tokens 0", "max_tokens: 0 is not a number of tokens."),
        ("{tiny} --prompt 가 --temperature=-1", "temperature: -1.0 is not 0"),
        ("{tiny} --prompt 가 --top-p 1.5", "top_p: 1.5 is not a probability"),
        ("{tiny} --prompt 가 --seed=-1", "seed: -1 is not a whole number"),
        ("{tiny} --prompt 가 --raw --system ไทย", "system: --raw leaves the chat templates aside"),
        ("--prompt 가", "onggi chat needs models; see onggi chat --help."),
        ("{tiny} --promt 가", "onggi chat has no option --promt. Did you mean '--prompt'?"),
    ],
)
def test_a_mistake_is_one_line(
    words: str, said: str, tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert main(["chat", *(word.format(tiny=tiny) for word in words.split(" "))]) == 1
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("onggi: ") and error.count("\n") == 1
    assert said.format(tiny=tiny) in error


TEXTS = [
    "빠른 갈색 여우가 게으른 개를 뛰어넘는다. " * 6,
    "ที่นี่ฝนตกหนักมากและรถเมล์มาช้ากว่าปกติเป็นเวลาสิบห้านาทีแล้วกำลังจะถึง" * 3,
    "រថយន្តក្រុងយឺតពេលដោយសារភ្លៀងធ្លាក់ខ្លាំង" * 4,
    "الحافلة متأخرة اليوم بسبب المطر الغزير. " * 4,
    "公交车因为下大雨而晚点了十五分钟。\n\nEnd 👩🏽‍💻",
]


@pytest.mark.parametrize("width", [50, 100])
def test_no_character_is_lost_or_cut_in_two(width: int) -> None:
    answers = {f"m{i}": Answer(text, 5, 0.1, 0.5, "end") for i, text in enumerate(TEXTS)}
    for pair in zip(answers, [*answers][1:], strict=False):
        console = Console(file=io.StringIO(), width=width, height=12, highlight=False)
        console.print(_view({name: answers[name] for name in pair}, console))
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert {cell_len(line) for line in lines} == {width}
        assert ("││" in "".join(lines)) == (width == 100)
        body = [line for line in lines if "─" not in line]
        cut = [[line[1:-1]] if width == 50 else line[1:-1].split("││") for line in body]
        whole = ["".join(row[min(i, len(row) - 1)] for row in cut) for i in range(len(cut[0]))]
        seen = "".join(whole)
        for name in pair:
            assert re.sub(r"\s", "", answers[name].text) in re.sub(r"\s", "", seen)
        combining = re.compile(r"[\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u17b4-\u17d3\u200d]")
        assert not any(combining.match(piece.strip()) for row in cut for piece in row if piece.strip())


def test_while_it_grows_only_what_fits_is_drawn() -> None:
    answers = {name: Answer(text, 5) for name, text in zip("ab", TEXTS, strict=False)}
    for width in (50, 100):
        console = Console(file=io.StringIO(), width=width, height=12, highlight=False)
        console.print(_view(answers, console, 11))
        drawn = console.file.getvalue()  # type: ignore[attr-defined]
        assert drawn.count("\n") <= 11
        assert "뛰어넘는다." in drawn and "จะถึง" in re.sub(r"\s", "", drawn)


def test_codes_in_an_answer_do_not_reach_the_terminal() -> None:
    console = Console(file=io.StringIO(), width=60, force_terminal=True, color_system=None)
    console.print(_view({"m": Answer("가\x1b[2J\x9b2J\rข\tا", 3)}, console))
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[2J" not in drawn and "\x9b" not in drawn and "\r" not in drawn
    assert "가 [2J 2J ข ا" in drawn


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, *words: str, columns: int):
        self.pid, self.end = pty.fork()
        if self.pid == 0:
            # A shell's background job ignores Ctrl-C, and so would what it starts.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            environment = {**os.environ, "COLUMNS": str(columns), "LINES": "30", "TERM": "xterm"}
            os.execve(sys.executable, [sys.executable, "-m", "onggi", *words], environment)

    def until(self, pattern: str) -> str:
        """What it says up to `pattern`."""
        deadline, raw = time.monotonic() + 60, b""
        while not re.search(pattern, raw.decode(errors="replace"), re.DOTALL):
            left = deadline - time.monotonic()
            assert select.select([self.end], [], [], max(left, 0))[0], raw.decode(errors="replace")[-2000:]
            try:
                raw += os.read(self.end, 4096)
            except OSError:  # it is gone
                break
        return raw.decode()

    def say(self, line: str) -> None:
        os.write(self.end, line.encode())

    def left(self) -> int:
        """Read until it has ended; its exit code."""
        self.until(r"(?!)")  # matches nothing
        os.close(self.end)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def endless(talker: Path) -> Path:
    """The talker, with no token that ends its answers: what stops them is the user."""
    for name in ("config.json", "generation_config.json"):
        file = talker / name
        file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": None}))
    return talker


def test_on_a_terminal(endless: Path) -> None:
    terminal = Terminal("chat", str(endless), f"other={endless}", "--max-tokens", "2000", columns=100)
    assert "/quit or Ctrl-D ends" in terminal.until(r"> $")
    terminal.say("버스가 늦나요?\r")
    terminal.until(r"talker.*other.*tokens/s")
    terminal.say("\x03")  # the answer in hand, not the program
    said = terminal.until(r"stopped.*> $")
    assert "╭" in said and "other" in said
    # readline sees no signal that comes between its prompt and its waiting, however long that is.
    while not select.select([terminal.end], [], [], 0.5)[0]:
        terminal.say("\x03")
    terminal.until(r"/new starts afresh.*> $")
    terminal.say("/help\r")
    terminal.until(r"/new starts afresh.*> $")
    terminal.say("/new\r")
    terminal.until(r"> $")
    terminal.say("/quit\r")
    assert terminal.left() == 0


def test_the_user_stops_a_single_question(endless: Path) -> None:
    terminal = Terminal("chat", str(endless), "--prompt", PROMPT, "--max-tokens", "2000", columns=60)
    terminal.until("tokens/s")
    terminal.say("\x03")
    terminal.until("stopped")
    assert terminal.left() == 130


@pytest.mark.real
def test_a_real_model_answers_and_its_template_is_its_own() -> None:
    from transformers import AutoTokenizer

    from onggi.models import references
    from onggi.text.chat import template
    from onggi.text.tokens import Tokens

    folder = references.resolve("package:smollm2-135m")
    ours, theirs = template(folder, Tokens(folder)), AutoTokenizer.from_pretrained(folder)
    assert ours
    for question in ("What is the capital of France?", "서울은 어디에 있나요?", "อากาศ\n", " أين؟ 🌧"):
        talk = [{"role": "user", "content": question}]
        for messages in (talk, [{"role": "system", "content": "짧게"}, *talk]):
            rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            assert ours.render(messages).encode() == rendered.encode()
            ids = theirs.apply_chat_template(messages, add_generation_prompt=True).input_ids
            assert ours.encode(messages) == ids
    answers = chat(
        ChatConfig(["package:smollm2-135m"], prompt="What is the capital of France?", max_tokens=30)
    )
    assert "Paris" in answers["smollm2-135m"].text and answers["smollm2-135m"].end == "end"


def test_json_for_scripts(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", f"tiny={tiny}", "--prompt", PROMPT, "--max_tokens", "8", "--json", "--quiet"]) == 0
    out, err = capsys.readouterr()
    answer = json.loads(out)["tiny"]
    assert answer["text"] == expected(tiny, PROMPT, 8) and answer["end"] in ("end", "max_tokens")
    assert err == ""

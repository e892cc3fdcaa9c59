"""`onggi answers` with a teacher behind a real socket, and with one that is here."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from onggi import ledger
from onggi.errors import OnggiError
from onggi.languages import Languages
from onggi.stages import VERBS, AnswersConfig, FinetuneConfig, answers, finetune_data
from onggi.stages.base import Names
from onggi.text import prompts as asked

ROWS = [
    {"_id": "ko-1", "lang": "ko", "prompt": "옹기는 무엇으로 만듭니까?"},
    {"_id": "ko-2", "lang": "ko", "turns": ["김치는 왜 시어집니까?", "그럼 덜 시게 하려면?"]},
    {"_id": "el-1", "lang": "el", "prompt": "Από τι είναι φτιαγμένο ένα πιθάρι;", "category": "υλικά"},
    {"_id": "en-1", "lang": "en", "prompt": "What is a jar made of?"},
    {"_id": "en-2", "lang": "en", "prompt": "Tell me a secret."},
]
SAID = {
    "옹기": "옹기는 찰흙으로 빚어 가마에서 구운 그릇이며 숨을 쉬기 때문에 장을 담기에 좋습니다.",
    "시어": "김치는 유산균이 당을 젖산으로 바꾸기 때문에 시간이 지나면서 점점 시어집니다.",
    "덜 시게": "온도를 낮게 유지하면 유산균이 천천히 자라서 김치가 덜 시어집니다.",
    "πιθάρι": "Το πιθάρι είναι φτιαγμένο από πηλό που ψήθηκε στον φούρνο για πολλές ώρες.",
    "jar": "A jar is made of clay that was dried in the shade and then fired in a kiln.",
    "secret": "I'm sorry, but I can't help with that.",
}
Say = Callable[[dict[str, Any]], tuple[str, str] | int]


def by_words(body: dict[str, Any]) -> tuple[str, str] | int:
    last = body["messages"][-1]["content"]
    return next((text for word, text in SAID.items() if word in last), "?"), "stop"


class Teacher:
    """A server with one model, `선생`, that says what `say` has it say and remembers what it was asked."""

    def __init__(self) -> None:
        self.say: Say = by_words
        self.calls: list[dict[str, Any]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                outer.calls.append(body)
                found = outer.say(body)
                if isinstance(found, int):
                    self.send_response(found)
                    self.end_headers()
                    return
                text, finish = found
                message = {"role": "assistant", "content": text}
                reply = {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 0,
                    "model": body["model"],
                    "choices": [{"index": 0, "message": message, "finish_reason": finish}],
                    "usage": {"prompt_tokens": 10, "completion_tokens": 20, "total_tokens": 30},
                }
                content = json.dumps(reply).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.source = f"http://127.0.0.1:{self._server.server_port}/v1#선생"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def teacher() -> Iterator[Teacher]:
    made = Teacher()
    yield made
    made.close()


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    file = tmp_path / "질문.jsonl"
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS), encoding="utf-8")
    return str(file)


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def test_what_a_teacher_says_becomes_data(teacher: Teacher, prompts: str, tmp_path: Path) -> None:
    made = answers(AnswersConfig(teacher.source, prompts, terms="Apache-2.0"), tmp_path / "out")
    rows = {row["_id"]: row for row in read(made.path, "answers.jsonl")}
    assert list(rows) == ["ko-1", "ko-2", "el-1", "en-1"]
    two = rows["ko-2"]
    assert [message["role"] for message in two["messages"]] == ["user", "assistant"] * 2
    assert two["messages"][3]["content"] == SAID["덜 시게"] and two["lang"] == "ko"
    # The second turn was asked with the teacher's own first answer before it.
    [second] = [call for call in teacher.calls if len(call["messages"]) == 3]
    assert second["messages"][1] == {"role": "assistant", "content": SAID["시어"]}
    assert (rows["el-1"]["model"], rows["el-1"]["terms"], rows["el-1"]["category"]) == (
        "선생",
        "Apache-2.0",
        "υλικά",
    )
    [left] = read(made.path, "left_out.jsonl")
    assert (left["_id"], left["reason"], left["evidence"]) == ("en-2", "refusal", "I'm sorry")
    assert made.record["languages"]["en"] == {"asked": 2, "kept": 1, "refusal": 1}
    assert (
        made.record["teacher"]["terms"] == "Apache-2.0"
        and made.record["spending"][teacher.source]["requests"] == 6
    )
    # It is prompts too, for whoever asks on.
    assert len(asked.load(prompts)) == 5
    count = len(teacher.calls)
    answers(AnswersConfig(teacher.source, prompts, terms="Apache-2.0"), tmp_path / "out")
    assert len(teacher.calls) == count


def test_nothing_is_paid_for_twice(teacher: Teacher, prompts: str, tmp_path: Path) -> None:
    """A teacher that is gone half-way: the run ends, says so, and the next one asks for the rest alone."""

    def tired(body: dict[str, Any]) -> tuple[str, str] | int:
        return 404 if "jar" in body["messages"][-1]["content"] else by_words(body)

    teacher.say = tired
    given = AnswersConfig(teacher.source, prompts, concurrency=1)
    with pytest.raises(OnggiError):
        answers(given, tmp_path / "out")
    before = len(teacher.calls)
    teacher.say = by_words
    made = answers(given, tmp_path / "out")
    again = [call["messages"][-1]["content"] for call in teacher.calls[before:]]
    assert again and not any("옹기" in text or "πιθάρι" in text for text in again)
    assert made.record["languages"]["en"]["kept"] == 1 and made.record["languages"]["ko"]["kept"] == 2


def test_several_answers_the_best_and_pairs(teacher: Teacher, prompts: str, tmp_path: Path) -> None:
    seen: dict[str, int] = {}

    def several(body: dict[str, Any]) -> tuple[str, str] | int:
        text = body["messages"][-1]["content"]
        if "[[" in text:  # the judge's template
            return ("Short.\n[[4]]" if "Short" in text else "Good.\n[[9]]"), "stop"
        seen[text] = seen.get(text, 0) + 1
        if "jar" in text:
            return ("Short but it is made of clay, I think.", "stop") if seen[text] == 1 else by_words(body)
        return (SAID["jar"], "stop") if seen[text] == 1 else by_words(body)

    teacher.say = several
    config = AnswersConfig(
        teacher.source,
        prompts,
        Languages("ko,el,en"),
        samples=3,
        judge=f"판사={teacher.source}",
        concurrency=1,
    )
    assert config.drawn_at == 0.8
    made = answers(config, tmp_path / "out")
    rows = {row["_id"].partition("#")[0]: row for row in read(made.path, "answers.jsonl")}
    assert rows["en-1"]["score"] == 9 and rows["en-1"]["messages"][-1]["content"] == SAID["jar"]
    found = {row["_id"]: row for row in read(made.path, "pairs.jsonl")}
    assert (found["en-1"]["why"], found["ko-1"]["why"], found["el-1"]["why"]) == (
        "score",
        "language",
        "language",
    )
    assert found["ko-1"]["rejected"] == SAID["jar"] and found["ko-1"]["chosen"] == SAID["옹기"]
    assert found["el-1"]["prompt"] == ROWS[2]["prompt"] and found["el-1"]["lang"] == "el"
    seeds = {call["seed"] for call in teacher.calls if call.get("temperature") == 0.8}
    assert seeds == {0, 1, 2}
    # The folder is data for a fine-tuning: its answers, or its pairs.
    folder = str(made.path)
    taught = finetune_data.read(FinetuneConfig("m", Names(folder), languages=Languages("ko")))
    assert {row.lang for row in taught.train} == {"ko"} and not taught.faults
    for objective, file in (("sft", "answers.jsonl"), ("dpo", "pairs.jsonl")):
        assert finetune_data.fingerprint(folder, objective) == ledger.sha256(made.path / file)


def test_new_prompts_are_asked_for_and_answered(teacher: Teacher, prompts: str, tmp_path: Path) -> None:
    def grows(body: dict[str, Any]) -> tuple[str, str] | int:
        text = body["messages"][-1]["content"]
        if "request that" in text or "requests that" in text:
            wanted = next(name for name in ("Korean", "Greek", "English") if name in text)
            new = {
                "Korean": "이웃에게 김장 날짜를 알리는 짧은 편지를 공손하게 써 주세요.",
                "Greek": "Γράψε ένα σύντομο γράμμα στον γείτονα για τη γιορτή του χωριού.",
                "English": "Write a short and polite note to a neighbour about the noise.",
            }
            return new[wanted], "stop"
        if "김장" in text:
            return (
                "안녕하세요. 이번 주 토요일에 김장을 하려고 하니 시간이 되시면 함께해 주시기 바랍니다.",
                "stop",
            )
        return by_words(body)

    teacher.say = grows
    made = answers(AnswersConfig(teacher.source, prompts, grow=3), tmp_path / "out")
    with pytest.raises(
        OnggiError, match="has no pairs, which --objective dpo learns from; `onggi answers --samples 4`"
    ):
        finetune_data.fingerprint(str(made.path), "dpo")
    assert made.record["grown"] == {"ko": 1, "el": 1, "en": 1}  # the same three times is one
    [new] = [row for row in read(made.path, "prompts.jsonl") if row["lang"] == "ko"]
    assert new["_id"] == "ko-new-1" and "김장" in new["prompt"]
    assert asked.load(str(made.path / "prompts.jsonl"))[0].id == "ko-new-1"
    assert "ko-new-1" in {row["_id"] for row in read(made.path, "answers.jsonl")}
    assert made.record["languages"]["ko"]["asked"] == 3


def test_a_teacher_that_is_here(
    tiny: Path, prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A random model's babble: all of it is left out, with reasons, and the run says so."""
    made = answers(AnswersConfig(str(tiny), prompts, max_tokens=6, temperature=1.0), tmp_path / "out")
    rows = read(made.path, "left_out.jsonl")
    assert len(rows) + len(read(made.path, "answers.jsonl")) == 5
    assert {row["reason"] for row in rows} <= {"cut", "language", "broken", "empty"}
    if len(rows) == 5:
        assert "Nothing is left of 5 answers" in capsys.readouterr().err


def test_closed_teachers_and_sets_for_measuring_bring_a_word(
    prompts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from onggi.stages.answers import _about

    _about(AnswersConfig("https://api.example.com/v1#big", prompts), "https://api.example.com/v1#big")
    assert "forbid training another model" in capsys.readouterr().err
    assert _about(
        AnswersConfig("https://api.example.com/v1#big", prompts, terms="ToS §4"),
        "https://api.example.com/v1#big",
    ) == {"terms": "ToS §4"}
    assert not capsys.readouterr().err


def test_the_seed_sets_requests(teacher: Teacher, tmp_path: Path) -> None:
    from onggi.distill import prompting

    own = prompting.seeds(Languages("ko,zh-Hans,de"))
    assert {prompt.lang for prompt in own} == {"ko", "zh-Hans", "de"} and len(own) > 250
    assert all(message["role"] != "user" for prompt in own for message in prompt.before[-1:])
    with pytest.raises(OnggiError, match="has no prompts in km"):
        prompting.seeds(["km"])
    teacher.say = lambda body: (SAID["옹기"], "stop")
    made = answers(AnswersConfig(teacher.source, "seed", Languages("ko"), limit=3), tmp_path / "out")
    rows = read(made.path, "answers.jsonl")
    assert len(teacher.calls) == 3 and rows and rows[0]["messages"][-1]["content"] == SAID["옹기"]


def test_before_anything_is_sent(teacher: Teacher, prompts: str, tmp_path: Path) -> None:
    given = AnswersConfig(teacher.source, prompts, samples=2, input_price=1.0, output_price=1e6, budget=5.0)
    said = VERBS["answers"].dry_run(given)
    assert "Korean 2, Greek 1, English 2; 2 answers" in said and "10 requests" in said
    assert VERBS["answers"].plan(given).tokens == 6 * 2 * 512
    with pytest.raises(OnggiError, match="budget:"):
        answers(given, tmp_path / "out")
    assert not teacher.calls


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"samples": 0}, "samples: 0 is not a number"),
        ({"samples": 2, "temperature": 0}, "all answers to a prompt are one"),
        ({"agreement": 0.5}, "agreement: is a likeness"),
        ({"grow": -1}, "grow: -1"),
        ({"temperature": -1.0}, "is below 0"),
    ],
)
def test_what_cannot_work_is_said(options: dict[str, Any], said: str, prompts: str) -> None:
    with pytest.raises(OnggiError, match=said):
        AnswersConfig("package:gemma3-270m", prompts, **options)

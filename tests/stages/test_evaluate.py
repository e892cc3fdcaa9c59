"""evaluate's tasks and prompts, from the command line to the files it leaves."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from onggi.cli import main
from onggi.engines.transformers import Engine
from onggi.languages import Languages
from onggi.stages import EvaluateConfig, evaluate
from onggi.stages.base import Names

TASKS = ["--tasks", "capitals,fill_gap", "--languages", "ko,th,de", "--limit", "4", "--shots", "1"]

SAID = "네, 대한민국의 수도는 서울이며 인구가 아주 많은 도시입니다."


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "stage.json"}


def test_tasks_from_the_command_line(tiny: Path, tiny_gemma: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores"
    assert main(["evaluate", f"a={tiny}", f"b={tiny_gemma}", *TASKS, "--out", str(out), "--quiet"]) == 0
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    assert scores["reference"] == "a" and scores["text"] is None
    for tag in ("ko", "th", "de"):
        entry = scores["models"]["b"]["languages"][tag]["capitals/acc_mutual_info"]
        assert entry["n"] == 4 and {"verdict", "right_to_wrong", "chance", "p"} <= entry.keys()
        assert "fill_gap/acc_norm" in scores["models"]["a"]["languages"][tag]
    items = pq.read_table(out / "items.parquet").to_pylist()
    assert len(items) == 2 * 2 * 3 * 4
    # The same items in every language: that is what pairs them.
    ids = {
        tag: [r["item"] for r in items if r["language"] == tag and r["model"] == "a"] for tag in ("ko", "th")
    }
    assert ids["ko"] == ids["th"]
    assert "--tasks capitals,fill_gap" in json.loads((out / "stage.json").read_text())["command"]


def test_a_stopped_run_ends_in_the_same_bytes(
    tiny: Path, tiny_gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EvaluateConfig(
        [f"a={tiny}", f"b={tiny_gemma}"], tasks=Names("capitals"), languages=Languages("ko,km"), limit=5
    )
    whole = files(evaluate(config, tmp_path / "whole").path)
    score = Engine.score

    def stops(self: Engine, pairs: Any) -> Iterator[Any]:
        for count, found in enumerate(score(self, pairs)):
            if self.folder == tiny_gemma and count == 20:
                raise KeyboardInterrupt
            yield found

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "score", stops)
        with pytest.raises(KeyboardInterrupt):
            evaluate(config, tmp_path / "stopped")
    assert list((tmp_path / "stopped" / ".partial").glob("task-0-*"))
    assert files(evaluate(config, tmp_path / "stopped").path) == whole


class Korean(http.server.BaseHTTPRequestHandler):
    """A chat server that answers everything with one Korean sentence, and as a judge likes what comes first."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][-1]["content"]
        said = "[[A]]" if "[[TIE]]" in asked else "[[7]]" if "[[" in asked else SAID
        message = {"role": "assistant", "content": said}
        body = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
        }
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def served() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Korean)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1#korean"
    server.shutdown()


def test_prompts_to_a_local_and_a_served_model(tiny: Path, served: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    rows = [
        {
            "_id": "k",
            "prompt": "대한민국의 수도는 어디인가요?",
            "lang": "ko",
            "answer": "네, 대한민국의 수도는 서울이며 인구가 아주 많은 도시입니다",
        },
        {"_id": "t", "prompt": "เมืองหลวงของไทยคืออะไร", "lang": "th"},
        {"_id": "a", "prompt": "ما عاصمة مصر؟", "lang": "ar"},
        {"_id": "j", "turns": ["東京はどこですか。", "大阪は?"], "lang": "ja"},
    ]
    prompts.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    out = tmp_path / "scores"
    words = ["evaluate", f"local={tiny}", f"far={served}", "--prompts", str(prompts), "--max_tokens", "12"]
    assert main([*words, "--out", str(out), "--quiet"]) == 0
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    far = scores["models"]["far"]["languages"]
    assert far["ko"]["prompts/script"]["value"] == 1 and far["ko"]["prompts/exact"]["value"] == 1
    assert far["th"]["prompts/script"]["value"] == 0 and far["ar"]["prompts/line"]["value"] == 0
    assert scores["models"]["far"]["bytes"] is None
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["model"], row["_id"], row.get("turn")) for row in answers] == [
        (m, i, turn)
        for m in ("local", "far")
        for i, turn in (("k", None), ("t", None), ("a", None), ("j", 1), ("j", 2))
    ]
    assert answers[5]["answer"] == SAID
    assert [m["content"] for m in answers[9]["messages"]] == ["東京はどこですか。", SAID, "大阪は?"]


def test_a_served_model_stands_beside_a_local_one(
    tiny: Path, served: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores"
    words = ["evaluate", f"local={tiny}", f"far={served}", "--text", "probe", "--tasks", "continents"]
    assert main([*words, "--languages", "ko,ar,en", "--limit", "3", "--shots", "1", "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert "far: behind a server, so not scored on texts" in said
    assert f"{served}: 9 requests (0 more answered already, free)" in said
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    assert scores["tasks"]["continents"]["form"] == "written"
    for tag in ("ko", "ar", "en"):
        here, far = (scores["models"][name]["languages"][tag] for name in ("local", "far"))
        assert "nll_per_passage" in here and "nll_per_passage" not in far
        # "네, 대한민국의 …" names no continent.
        assert far["continents/acc"]["unread"] == far["continents/acc"]["n"] == 3
        assert {"verdict", "right_to_wrong", "chance"} <= far["continents/acc"].keys()
    assert scores["models"]["far"]["engines"] == {"continents": "server"}
    assert scores["models"]["local"]["engines"] == {"text": "transformers", "continents": "transformers"}
    sample = json.loads((out / "samples_far_continents_ko.jsonl").read_text("utf-8").splitlines()[0])
    assert sample["resps"] == [[SAID]] and sample["acc"] == 0.0


def test_nothing_is_sent_over_the_budget(
    tiny: Path, served: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", f"local={tiny}", f"far={served}", "--tasks", "continents", "--languages", "ko,el,hi"]
    prices = ["--limit", "2", "--input_price", "1e6", "--output_price", "1e6", "--budget", "5"]
    assert main([*words, *prices, "--out", str(tmp_path / "s")]) == 1
    error = capsys.readouterr().err
    assert "more than 5; ask less" in error and "6 requests" in error


def test_a_judge_grades_and_compares(tiny: Path, tiny_gemma: Path, served: str, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    asked = {"ko": "비는 왜 오나요?", "el": "Γιατί βρέχει;", "hi": "बारिश क्यों होती है?"}
    rows = [{"_id": f"{tag}-{n}", "lang": tag, "prompt": text} for tag, text in asked.items() for n in "12"]
    rows[0] = {"_id": "ko-1", "lang": "ko", "turns": [asked["ko"], "더 쉽게 말해 주세요."]}
    prompts.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    words = ["evaluate", f"a={tiny}", f"b={tiny_gemma}", f"far={served}", "--prompts", str(prompts)]
    words += ["--judge", f"sage={served}", "--judging", "both", "--max_tokens", "8"]
    words += ["--input_price", "1", "--output_price", "2", "--out", str(tmp_path / "s"), "--quiet"]
    assert main(words) == 0
    scores = json.loads((tmp_path / "s" / "scores.json").read_text(encoding="utf-8"))
    far = {tag: scores["models"]["far"]["languages"][tag]["judge/score"] for tag in asked}
    assert far["ko"]["value"] == 7 and far["ko"]["n"] == 2 and "verdict" in far["ko"]
    assert far["el"]["value"] == far["hi"]["value"] == 0  # in Korean
    judge = scores["judge"]
    assert judge["model"] == "sage" and set(judge["records"]) == {"single", "pair"}
    # Whatever came first was liked best: the orders never agree.
    korean = judge["languages"]["ko"]
    assert {frozenset(pair["models"]) for pair in korean["pairs"]} == {
        frozenset(pair) for pair in (("a", "b"), ("a", "far"), ("b", "far"))
    }
    assert judge["cost"]["money"] > 0 and scores["models"]["far"]["cost"]["requests"] == 7
    verdicts = [
        json.loads(line) for line in (tmp_path / "s" / "verdicts.jsonl").read_text("utf-8").splitlines()
    ]
    # Of every model 7 answers; of every pair 7 in two orders.
    assert len(verdicts) == 3 * 7 + 3 * 14


def test_what_tokenizers_make_of_the_text_is_told(tiny: Path, tiny_gemma: Path, tmp_path: Path) -> None:
    words = ["evaluate", f"a={tiny}", f"b={tiny_gemma}", "--languages", "ko,en,km", "--limit", "3"]
    assert main([*words, "--out", str(tmp_path / "s"), "--quiet"]) == 0
    scores = json.loads((tmp_path / "s" / "scores.json").read_text(encoding="utf-8"))
    for name in ("a", "b"):
        model = scores["models"][name]
        for tag in ("ko", "en", "km"):
            entry = model["languages"][tag]
            assert {
                "tokens_per_passage",
                "bytes_per_token",
                "byte_fallback",
                "nll_per_passage",
            } <= entry.keys()
            # The same tokens, whether the tokenizer or the model counts them.
            assert entry["tokens_per_passage"]["tokens"] == entry["nll_per_passage"]["tokens"]
    assert 0.1 <= scores["models"]["b"]["languages"]["km"]["kl"]["collapse"]["share"] <= 1


def test_what_the_machine_needs_is_told(tiny: Path, tmp_path: Path) -> None:
    words = ["evaluate", str(tiny), "--languages", "ko,en,km", "--limit", "1", "--cost"]
    assert main([*words, "--out", str(tmp_path / "s"), "--quiet"]) == 0
    found = json.loads((tmp_path / "s" / "scores.json").read_text(encoding="utf-8"))["models"]["tiny"]["cost"]
    assert found["disk_bytes"] > 0 and found["decode_tokens_per_second"]["value"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--text", "probe"], "gives no log-likelihoods"),
        (["--tasks", "continents", "--choices", "scored"], "does not tell how likely a choice is"),
        (["--prompts", "p.jsonl", "--budget", "3"], "budget: needs input_price"),
        (["--tasks", "sums", "--judge", "m"], "judge: has nothing to judge"),
        (["--prompts", "p.jsonl", "--concurrency", "0"], "concurrency: 0"),
    ],
)
def test_what_a_server_cannot_do(
    served: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["evaluate", served, *words, "--out", str(tmp_path / "s")]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--tasks", "capitals", "--shots", "9"], "has 5 solved items"),
        (["--tasks", "capitals", "--languages", "yi"], "capitals is in none of yi"),
        (["--prompts", "nowhere.jsonl"], "there is no such file"),
        (["--tasks", ","], "is not a list of names"),
    ],
)
def test_mistakes(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert main(["evaluate", str(tiny), *words, "--out", str(tmp_path / "s")]) == 1
    assert said in capsys.readouterr().err


def test_the_list_of_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--list-tasks"]) == 0
    assert "capitals" in capsys.readouterr().out

"""`onggi rate` as its user meets it: answers made or taken, what a study can show, links, results, one line for a mistake."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from onggi import ledger, recipe
from onggi.cli import main
from onggi.errors import OnggiError
from onggi.rate import outlook
from onggi.rate.store import Event, Store
from onggi.rate.study import Study
from onggi.stages import RateConfig, rate
from onggi.stages.rate_people import CloseConfig, InviteConfig, close, invite
from onggi.stages.rate_results import ResultsConfig, results
from rate_examples import answers


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def prompts(path: Path) -> str:
    return write(
        path,
        {"_id": "1", "lang": "ko", "prompt": "김치는 어떻게 담그나요?"},
        {"_id": "2", "lang": "ko", "turns": ["한 문장으로 소개해 주세요.", "더 짧게."]},
        {"_id": "3", "lang": "ar", "prompt": "ما عاصمة كوريا؟"},
        {"_id": "4", "lang": "th", "messages": [{"role": "user", "content": "สวัสดี"}]},
    )


def test_models_answer_and_a_second_run_does_nothing(tiny: Path, tiny_gemma: Path, tmp_path: Path) -> None:
    config = RateConfig(
        [f"base={tiny}", f"other={tiny_gemma}"],
        prompts(tmp_path / "p.jsonl"),
        max_tokens=6,
        raters=2,
        attention=1,
    )
    made = rate(config, tmp_path / "study")
    rows = [
        json.loads(line) for line in (made.path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(rows) == 2 * 5 and {row["model"] for row in rows} == {"base", "other"}
    [second] = [row for row in rows if row.get("turn") == 2 and row["model"] == "other"]
    first = next(row for row in rows if row.get("turn") == 1 and row["model"] == "other")
    assert [m["content"] for m in second["messages"]] == [
        "한 문장으로 소개해 주세요.",
        first["answer"],
        "더 짧게.",
    ]
    study = Study(made.path)
    assert study.languages == ["ko", "ar", "th"] and study.key()["reference"] == "base"
    before = (made.path / "stage.json").read_bytes()
    assert rate(config, tmp_path / "study").record == made.record
    assert (made.path / "stage.json").read_bytes() == before
    # The same answers, taken from the file: the same pairs.
    taken = RateConfig(
        [f"{name}={made.path / 'answers.jsonl'}" for name in ("base", "other")], raters=2, attention=1
    )
    again = rate(taken, tmp_path / "taken")
    assert (again.path / "pairs.jsonl").read_bytes() == (made.path / "pairs.jsonl").read_bytes()
    assert made.record["command"].startswith("onggi rate plan base=")


def test_a_stopped_plan_goes_on_with_the_answers_it_has(tiny: Path, tmp_path: Path) -> None:
    asked = prompts(tmp_path / "p.jsonl")
    config = RateConfig(
        [f"base={tiny}", f"gone={tmp_path / 'gone'}"], asked, max_tokens=4, raters=1, overlap=1
    )
    import shutil

    shutil.copytree(tiny, tmp_path / "gone")
    (tmp_path / "gone" / "tokenizer.json").write_text("{")
    with pytest.raises(OnggiError, match="tokenizer"):
        rate(config, tmp_path / "study")
    kept = tmp_path / "study" / ".partial" / "answers-0.jsonl"
    lines = kept.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 5 and not (tmp_path / "study" / "stage.json").exists()
    marked = [json.loads(line) | {"output": f"답 {n}"} for n, line in enumerate(lines)]
    kept.write_text("".join(json.dumps(row) + "\n" for row in marked), encoding="utf-8")
    # The model is mended in place: what is on the line is another now, so that work begins afresh …
    shutil.copy(tiny / "tokenizer.json", tmp_path / "gone" / "tokenizer.json")
    config = RateConfig(
        [f"base={tiny}", f"gone={tmp_path / 'gone'}"], asked, max_tokens=4, raters=1, overlap=1
    )
    with pytest.raises(OnggiError, match="answered the same"):
        rate(config, tmp_path / "study")
    # … and one that failed on the way keeps what was answered.
    kept = tmp_path / "study" / ".partial" / "answers-0.jsonl"
    rows = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    kept.write_text(
        "".join(json.dumps(row | {"output": f"답 {row['item']}"}) + "\n" for row in rows), encoding="utf-8"
    )
    made = rate(config, tmp_path / "study")
    whole = (made.path / "answers.jsonl").read_text(encoding="utf-8")
    assert sum(json.loads(line)["answer"].startswith("답 ") for line in whole.splitlines()) == 5


def evaluation(folder: Path) -> Path:
    """A folder as `onggi evaluate --prompts --judge` leaves it; one prompt of two turns, one was judged in pairs too."""
    job = ledger.begin(folder, "evaluate", {}, {})
    rows, verdicts = [], []
    for name, words in (("base", "또렷한 답"), ("other", "흐릿한 답")):
        for number in range(4):
            key = f"ko-{number}"
            first = {"_id": key, "lang": "ko", "messages": [{"role": "user", "content": f"질문 {number}"}]}
            said = [(1, first, f"{words} {number}")]
            if number == 3:
                before = [*first["messages"], {"role": "assistant", "content": f"{words} 3"}]
                then = first | {"messages": [*before, {"role": "user", "content": "더요"}]}  # type: ignore[misc]
                said.append((2, then, f"{words} 더"))
            for turn, row, answer in said:
                more = {"turn": turn} if number == 3 else {}
                rows.append({**row, "model": name, "answer": answer, "finish": "stop", "terms": None, **more})
                grade = {"_id": key, "turn": turn, "lang": "ko", "item": f"{key}/{turn}", "model": name}
                # The judge prefers base, but for one that it could not grade.
                verdicts.append(grade | {"score": None if number == 2 else 9 if name == "base" else 3})
    for a, b in (("base", "other"), ("other", "base")):  # side by side it says the opposite of one
        pair = {"_id": "ko-0", "turn": 1, "lang": "ko", "category": None, "a": a, "b": b, "status": "judged"}
        verdicts.append(pair | {"winner": "other"})
    with job:
        write(job.work / "answers.jsonl", *rows)
        write(job.work / "verdicts.jsonl", *verdicts)
        ledger.write_json(job.work / "scores.json", {"judge": {"model": "심판"}})
        return job.finish(
            ["answers.jsonl", "verdicts.jsonl", "scores.json"], command="onggi evaluate", before=[]
        ).path


def test_answers_of_an_evaluation_and_its_judge(tmp_path: Path) -> None:
    scores = evaluation(tmp_path / "scores")
    study = rate(
        RateConfig([f"{n}={scores}" for n in ("base", "other")], raters=1, overlap=1), tmp_path / "study"
    ).path
    own = Study(study)
    invite(InviteConfig(str(study), "ko"))
    store = Store(own.ratings, own.id)
    [rater] = store.raters()
    key, mine = own.key()["pairs"], own.schedule["ko"][0]
    first = {s.id: key[s.pair]["models"][1 if s.swapped else 0] == "base" for s in mine}
    store.add([Event(rater.id, s.id, str(i), "left" if first[s.id] else "right") for i, s in enumerate(mine)])
    close(CloseConfig(str(study)))
    made = results(ResultsConfig(str(study), str(scores)), tmp_path / "people")
    found = ledger.read_json(made.path / "results.json")
    # People prefer base in all four; the judge in two, in one not, and in one it said nothing.
    assert found["judge"] == "심판"
    assert (found["languages"]["ko"]["judge"]["n"], found["languages"]["ko"]["judge"]["agreement"]) == (
        3,
        2 / 3,
    )
    assert found["languages"]["ko"]["models"]["other"]["preference"]["value"] == 0
    with pytest.raises(OnggiError, match="is not a finished folder of `onggi evaluate` with --judge"):
        results(ResultsConfig(str(study), str(study)), tmp_path / "other")
    # Verdicts on other answers than those that people saw are none on these.
    other = tmp_path / "others"
    taken = [json.loads(line) for line in (scores / "answers.jsonl").read_text(encoding="utf-8").splitlines()]
    write(tmp_path / "mended.jsonl", *({**row, "answer": row["answer"] + "."} for row in taken))
    mended = [f"{n}={tmp_path / 'mended.jsonl'}" for n in ("base", "other")]
    again = Study(rate(RateConfig(mended, raters=1, overlap=1), other).path)
    invite(InviteConfig(str(other), "ko"))
    store = Store(again.ratings, again.id)
    store.add([Event(store.raters()[0].id, s.id, "1", "left") for s in again.schedule["ko"][0][:1]])
    close(CloseConfig(str(other)))
    counted = ledger.read_json(
        results(ResultsConfig(str(other), str(scores)), tmp_path / "p2").path / "results.json"
    )
    assert "judge" not in counted["languages"]["ko"]


def test_what_a_study_can_show_is_said_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = outlook.outlook({"ko": 120}, {"ko": 120}, 6, {"ko": 44}, {"ko": 4})
    [sentence] = outlook.sentences(found)
    assert "With 120 pairs in Korean a preference under 60 to 40 cannot be told from chance" in sentence
    three = outlook.outlook(
        *[dict.fromkeys(("ko", "ja", "en"), n) for n in (120, 120)],
        6,
        *[dict.fromkeys(("ko", "ja", "en"), 4)] * 2,
    )
    assert "under 62 to 38 cannot" in outlook.sentences(three)[0]
    line = answers(tmp_path, ("ko", "ar", "km"), 8)
    assert main(["rate", "plan", *line, "--raters", "4", "--dry-run"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3 and said[0].startswith(
        "Korean (ko): 24 pairs for 4 raters, 14 each (about 7 min), 2 of them"
    )
    assert "With 8 pairs in Arabic a preference under 100 to 0 cannot be told" in said[1]
    assert main(["rate", "plan", *line, "--dry-run", "--json", "--limit", "3"]) == 0
    assert json.loads(capsys.readouterr().out)["km"]["seen"] is None
    # The plan itself says the same of what came out.
    assert main(["rate", "plan", *line, "--raters", "4", "--out", str(tmp_path / "s")]) == 0
    assert said[0] in capsys.readouterr().out


def test_from_plan_to_results_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, out = str(tmp_path / "연구"), str(tmp_path / "결과")
    line = answers(tmp_path, ("ko", "en", "ar"), 3)

    def said(*words: str) -> Any:
        assert main([*words, "--json"]) == 0
        told = capsys.readouterr()
        return json.loads(told.out)

    made = said(
        "rate", "plan", *line, "--languages", "kor_Hang,ar", "--raters", "1", "--overlap", "1", "--out", study
    )
    assert made["verb"] == "rate" and set(Study(Path(study)).languages) == {"ko", "ar"}
    assert main(["rate", "serve", study]) == 1
    assert "nobody is invited yet" in capsys.readouterr().err
    [link] = said("rate", "invite", study, "--language", "ko", "--url", "https://rate.example.org/")[
        "invitations"
    ]
    assert link["url"].startswith("https://rate.example.org/i/") and link["kind"] == "person"
    assert said("rate", "status", study)["raters"][0]["done"] == 0
    assert main(["rate", "invite", study, "--language", "ar", "--quiet"]) == 0
    assert re.search(r"^http://127\.0\.0\.1:8321/i/\S+$", capsys.readouterr().out, re.M)
    mine = Study(Path(study)).schedule["ko"][0]
    rows = [{"assignment": shown.id, "choice": "good", "rater": 3} for shown in mine]
    assert said("rate", "import", study, write(tmp_path / "r.jsonl", *rows))["new"] == len(mine)
    assert main(["rate", "results", study, "--out", out]) == 1
    assert "is open, and which answer is whose" in capsys.readouterr().err
    assert said("rate", "close", study)["closed"]
    assert main(["rate", "results", study, "--out", out]) == 0
    told = capsys.readouterr().out
    assert "Korean" in told and "50%" in told and "alpha not known" in told
    # What people said is not planned over; a study without raters, looked at, is.
    looked = str(tmp_path / "looked")
    for options in (["--raters", "2"], ["--raters", "3"]):
        assert main(["rate", "plan", *line, *options, "--out", looked, "--quiet"]) == 0
        assert said("rate", "status", looked)["raters"] == []
    assert main(["rate", "plan", *line, "--out", study]) == 1
    assert "holds the ratings of a study that was planned otherwise" in capsys.readouterr().err
    assert (
        main(
            ["rate", "plan", *line, "--languages", "ko,ar", "--raters", "1", "--overlap", "1", "--out", study]
        )
        == 0
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("plan a=x.jsonl --out {out}", "models: a study compares two or more"),
        ("plan a=x b=y --out {out}", "prompts: a is to answer some; name them, as --prompts everyday"),
        ("plan a=x.jsonl b=y.jsonl --out {out}", "x.jsonl: there is no such file"),
        ("plan a=x a=y --prompts everyday --out {out}", "two models are named 'a'"),
        ("plan a=x b=y --overlap 3 --raters 2 --out {out}", "overlap: 3 of 2 raters cannot see each pair"),
        ("plan a=x b=y --raters 0 --out {out}", "raters: 0 is not a number of raters"),
        ("plan a=x b=y --attention -1 --out {out}", "attention: -1 is not a number of pairs"),
        ("plan a={one} b={other} --out {out}", "models: b was asked 'ko-0' in other words than a was"),
        ("plan a={one} b={three} --out {out}", "three.jsonl: has no answers of 'b', only of x, y"),
        ("plan a={one} b={empty} --out {out}", "prompts: there is none that all models answered"),
        (
            "plan a={one} b={other} --languages th --out {out}",
            "prompts: there is none that all models answered in th",
        ),
        ("plan a={one} b={bad} --out {out}", "bad.jsonl, line 1: answer is not a text"),
        ("invite {tmp} --language ko", "{tmp}: is not a finished study"),
        ("invite {tmp}", "language: say which one the rater is to rate"),
        ("invite {tmp} --language ko --url rate.example.org", "url: rate.example.org is no address"),
        ("invite {tmp} --language ko --days 0", "days: 0.0 is not a number of days"),
        ("serve {tmp} --port 99999", "port: 99999 is not a port"),
        ("results {tmp} --margin 0.5 --out {out}", "margin: 0.5 is not a share between 0 and 0.5"),
        ("results {tmp} --out {out}", "{tmp}: is not a finished study"),
        ("invite", "onggi rate invite needs study; see onggi rate invite --help."),
        ("serv {tmp}", "there is no command 'rate serv'. Did you mean 'serve'?"),
        ("close {tmp} --yes", "onggi rate close has no option --yes"),
    ],
)
def test_a_mistake_is_one_line(
    words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"_id": "ko-0", "lang": "ko", "prompt": "질문", "answer": "답"}
    places = {
        "tmp": str(tmp_path),
        "out": str(tmp_path / "out"),
        "one": write(tmp_path / "one.jsonl", row),
        "other": write(tmp_path / "other.jsonl", row | {"prompt": "다른 질문"}),
        "three": write(tmp_path / "three.jsonl", row | {"model": "x"}, row | {"model": "y"}),
        "empty": write(tmp_path / "empty.jsonl", row | {"_id": "ar-9", "lang": "ar"}),
        "bad": write(tmp_path / "bad.jsonl", row | {"answer": None}),
    }
    assert main(["rate", *(word.format(**places) for word in words.split())]) == 1
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and said.format(**places) in error
    assert not (tmp_path / "out" / "stage.json").exists()


def test_broken_utf8_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write(tmp_path / "good.jsonl", {"_id": "1", "lang": "ko", "prompt": "질문", "answer": "답"})
    (tmp_path / "bad.jsonl").write_bytes(
        '{"_id": "1", "lang": "ko", "prompt": "질문", "answer": "'.encode() + b'\xed\x95"}'
    )
    assert (
        main(["rate", "plan", f"a={good}", f"b={tmp_path / 'bad.jsonl'}", "--out", str(tmp_path / "out")])
        == 1
    )
    assert "bad.jsonl: is not UTF-8 (byte" in capsys.readouterr().err


def test_help_of_the_peoples_verbs_needs_no_torch() -> None:
    code = (
        "import contextlib, io, sys; from onggi.cli import main\n"
        "for verb in ('invite', 'serve', 'status', 'close', 'export', 'import', 'results'):\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit): main(['rate', verb, '--help'])\n"
        "    assert 'study' in out.getvalue()\n"
        "print(sorted({'torch', 'transformers', 'starlette'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_recipe_plans_a_study_of_three_models() -> None:
    loaded = recipe.load(Path(__file__).parents[2] / "recipes" / "rate-korean.yaml")
    folders = {step.name: Path("runs") / step.name for step in loaded.steps}
    steps = {step.name: step for step in loaded.steps}
    config = recipe.config(steps["study"], folders)
    assert isinstance(config, RateConfig) and len(config.models) == 3 and config.languages == ("ko",)
    assert config.models[0] == str(folders["assistant"])
    for step, key in (("rounded", "model"), ("balanced", "model"), ("scores", "reference")):
        assert steps[step].options[key] == "${assistant}"
    # It is the assistant of the other recipe, so that a copy of that stage's folder stands for it.
    other = recipe.load(Path(__file__).parents[2] / "recipes" / "finetune-korean.yaml")
    assert steps["assistant"].options == other.steps[0].options

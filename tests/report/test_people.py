"""People's verdicts in the report: beside the measured ones, part of the choice, and a test's plainly a test's."""

from __future__ import annotations

import copy
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from onggi import ledger
from onggi.phrases import Phrases
from onggi.report import choice, compare, content, html, markdown, people
from onggi.stages import VERBS, ReportConfig
from onggi.stages import report as report_stage
from scores_examples import BASE, RECORD, SERVED, W4, W8, compared

EN, KO = Phrases("en"), Phrases("ko")
AGAIN = "onggi report scores people --out report"


def preference(value: float, verdict: str, **more: Any) -> dict[str, Any]:
    ends = {"low": value - 0.08, "high": value + 0.08}
    return {"value": value, **ends, "n": 42, "verdict": verdict, "without_inattentive": None, **more}


def results(by: str = "people", korean: str = "worse") -> dict[str, Any]:
    """`results.json` of three of the models, in Korean, Khmer and Arabic; in Arabic nobody has rated."""

    def own(verdict: str, value: float) -> dict[str, Any]:
        out = {"raters": 1, "value": value - 0.02, "low": None, "high": None, "n": 40}
        models: dict[str, Any] = {
            name: {
                "rating": {"value": -i / 2, "low": -i / 2 - 0.3, "high": -i / 2 + 0.3, "n": 84},
                "accepted": {"value": 0.7 - i / 10, "low": 0.6 - i / 10, "high": 0.8 - i / 10, "n": 42},
                "shown": 168,
                "reasons": {"unnatural": 40 * i, "register": 10 * i} if i else {},
            }
            for i, name in enumerate((BASE, W8, W4))
        }
        models[W8]["preference"] = preference(0.49, "equivalent within 5 points")
        models[W4]["preference"] = preference(value, verdict, without_inattentive=out)
        return {
            "ratings": 252,
            "pairs_rated": 126,
            "identical": 3,
            "models": models,
            "pairs": [],
            "agreement": {
                "preference": {"value": 0.41, "low": 0.3, "high": 0.5, "n": 126},
                "choice": {"value": 0.28, "low": 0.2, "high": 0.36, "n": 126},
            },
            "left": 0.52,
            "attention": {"same": {"shown": 12, "failed": 1}, "broken": {"shown": 12, "failed": 3}},
            "raters": {str(i): {"failed": 3 * (i == 0), "checks": 4, "ratings": 42} for i in range(6)},
            "judge": {"agreement": 0.62, "kappa": 0.31, "n": 126},
            "planned": {"raters": 6},
            "invited": 6,
        }

    empty = copy.deepcopy(own("", 0.5))
    empty |= {"ratings": 0, "raters": {}, "left": None, "identical": 0}
    del empty["judge"]
    for model in empty["models"].values():
        model.pop("preference", None)
        model |= {"rating": None, "shown": 0, "reasons": {}, "accepted": {"value": None}}
    empty["agreement"] = {key: {"value": None, "low": None} for key in ("preference", "choice")}
    return {
        "by": by,
        "tests_left_out": 14 if by == "people" else 0,
        "reference": BASE,
        "margin": 0.05,
        "models": {name: {"source": f"runs/{name}", "terms": "Gemma …"} for name in (BASE, W8, W4)},
        "languages": {"ko": own(korean, 0.31), "km": own("no significant difference", 0.47), "ar": empty},
    }


def page(found: dict[str, Any], say: Phrases = EN) -> tuple[dict[str, Any], str]:
    whole = compared()
    people.add(found, whole)
    return whole, markdown.section(content.section(whole, RECORD, AGAIN, say, (), [found]))


def test_peoples_verdict_stands_beside_kl_flips_and_judge() -> None:
    _, text = page(results())
    [row] = [
        line
        for line in text.split("\n")
        if line.startswith(f"| Korean (ko) | {W4.replace('|', chr(92) + '|')} | 31%")
    ]
    assert "31% [23%, 39%] | worse |" in row and "−6 +4 / 200" in row and "no significant difference" in row
    assert "0.41 [0.30, 0.50]" in text and "4 / 24" in text and "at most 3 by one rater" in text
    assert "62%, κ 0.31 (126)" in text and "unnatural 48%, wrong politeness 12%" in text
    assert "Without 1 rater who failed" in text and "14 ratings of tests are left out" in text
    assert "6 pairs of answers that were the same" in text
    assert "Arabic (ar) | 0 / 6 | 0 | – | – | – |" in text


def test_what_people_find_worse_is_not_recommended() -> None:
    before = compared()
    assert choice.choose(before, "ko").pick == W4
    whole, text = page(results())
    assert choice.choose(whole, "ko").pick == W8 and choice.word(whole, W4, "ko") == "damaged"
    assert choice.choose(whole, "km").pick == choice.choose(before, "km").pick
    assert "people prefer it to “base” on 49% of the prompts (equivalent within 5 points)" in text
    assert "31% [23%, 39%] people" in compare.cell(whole, W4, "ko", "damaged", EN)
    assert choice.choose(whole, "ar").pick == SERVED  # nothing was said of it there


@pytest.mark.parametrize("say", [EN, KO])
def test_a_test_is_plainly_a_test_and_no_evidence(say: Phrases) -> None:
    found = results("test")
    whole, text = page(found, say)
    assert f"**{say('people.test')}**" in text
    assert choice.choose(whole, "ko").pick == W4 and choice.PEOPLE not in str(whole)
    alone = markdown.section(people.alone(found, RECORD, AGAIN, say))
    assert alone.startswith(f"**{say('people.test')}") and alone.count(say("people.test")) == 1


@pytest.mark.parametrize("say", [EN, KO])
def test_a_study_alone(say: Phrases) -> None:
    found = results()
    blocks = people.alone(found, RECORD, AGAIN, say)
    text = markdown.section(blocks)
    verdict = say("verdict.worse")
    assert verdict in people.lead(found, say) and say.name("ko") in people.lead(found, say)
    assert RECORD["command"] in text and AGAIN in text and "None" not in text
    assert "<table" in html.page([blocks], content.title([found]), say)
    quiet = results(korean="no significant difference")
    assert people.lead(quiet, say) == say("people.none", reference=BASE)


def folder(path: Path, verb: str, name: str, found: dict[str, Any]) -> str:
    """A finished folder as `onggi VERB` leaves it."""
    with ledger.begin(path, verb, RECORD["options"], {}) as job:  # type: ignore[arg-type]
        ledger.write_json(job.work / name, found)
        job.finish([name], command=f"onggi {verb} made", before=RECORD["before"])
    return str(path)


def window(page: Path) -> str:
    """The title of a page without what all pages have."""
    title = page.read_text(encoding="utf-8").split("<title>")[1].split("</title>")[0]
    return unescape(title.split(" · ", 1)[1])


def tuning() -> dict[str, Any]:
    """`tuning.json` of dialogues in Korean, which Arabic paid for."""
    facts = {
        **{"method": "lora", "objective": "sft", "steps": 9, "learning_rate": 2e-4, "replay": 0.0},
        **{"dialogues": {"ko": 90}, "held_out": 5, "left_out": 0, "data": ["seed"], "template": "chatml"},
        "parameters": {"trained": 10, "all": 1000},
    }
    answers = {"before": 3.0, "after": 2.1, "dialogues": 5, "verdict": "better"}
    probe = {"before": 100.0, "after": 105.0, "passages": 24, "verdict": "worse"}
    return {
        **{
            "name": "assistant",
            "base": "tiny",
            "facts": facts,
            "trained": ["ko"],
            "right": {},
            "samples": [],
        },
        **{"answers": {"ko": answers}, "probe": {"ar": probe}, "lines": [{"step": 1, "loss": 2.0}]},
    }


def test_scores_a_tuning_and_what_people_said_in_one_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the order given; the study that belongs to the scores stands with them, the other by itself."""
    other = results() | {"reference": "another"}
    made = report_stage(
        ReportConfig(
            [
                folder(tmp_path / "tuned", "finetune", "tuning.json", tuning()),
                folder(tmp_path / "alone", "results", "results.json", other),
                folder(tmp_path / "scores", "evaluate", "scores.json", compared()),
                folder(tmp_path / "study", "results", "results.json", results()),
            ]
        ),
        tmp_path / "report",
    )
    text = (made.path / "report.md").read_text(encoding="utf-8")
    tuned, alone, scored = text.split("\n---\n")
    assert "You gained 30.0% in Korean and lost 5.0% in Arabic." in tuned and "onggi finetune made" in tuned
    assert people.lead(other, EN) in alone and EN("people.title") in scored
    assert window(made.path / "report.html") == content.title([compared(), other])
    show = VERBS["report"].show
    assert show
    show(made)
    said = capsys.readouterr().out
    assert "You gained 30.0% in Korean" in said and "preferred to another" in said and BASE in said


def test_tunings_alone_give_the_page_their_names(tmp_path: Path) -> None:
    tuned = folder(tmp_path / "tuned", "finetune", "tuning.json", tuning())
    made = report_stage(ReportConfig([tuned], "ko"), tmp_path / "report")
    assert (made.path / "report.md").read_text().startswith("# assistant: tiny 미세 조정\n")
    assert window(made.path / "report.html") == "assistant: tiny 미세 조정"


def test_which_evaluation_a_study_belongs_to() -> None:
    whole = compared()
    assert people.belongs(results(), whole)
    assert not people.belongs(results() | {"reference": W8}, whole)
    assert not people.belongs(results() | {"models": {BASE: {}, "other": {}}}, whole)
    assert not people.belongs(results() | {"languages": {"th": {}}}, whole)

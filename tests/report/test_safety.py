"""A page about one language says in plain words what is safe there, and no more than the verdicts say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from onggi import ledger, recipe
from onggi.errors import OnggiError
from onggi.phrases import Phrases
from onggi.report import content, html, markdown, safety
from onggi.stages import ReportConfig
from onggi.stages import report as report_stage
from onggi.stages.quantize import SCHEME_NAMES
from scores_examples import RECORD, SERVED, W4, W8, answers, compared

EN, KO = Phrases("en"), Phrases("ko")


@pytest.mark.parametrize(
    ("tag", "found"),
    [
        ("ko", {W8: "safe", W4: "unshown", SERVED: "unsafe"}),
        ("en", {W8: "safe", W4: "unsafe", SERVED: "unsafe"}),
        ("km", {W8: "unsafe", W4: "unsafe", SERVED: "unsafe"}),
        ("ar", {W8: "safe", W4: "unsafe", SERVED: "unshown"}),  # no text behind a server
        ("th", dict.fromkeys((W8, W4, SERVED), "unmeasured")),
    ],
)
def test_judged_by_the_verdicts(tag: str, found: dict[str, str]) -> None:
    scores = compared()
    assert {name: safety.judge(scores, name, tag) for name in found} == found


def test_the_page_begins_with_it_in_the_readers_language() -> None:
    scores = compared()
    blocks = content.section(scores, RECORD, "onggi report scores", KO, answers(), focus="ko")
    page, as_html = markdown.section(blocks), html.page([blocks], "제목", KO)
    assert page.startswith(
        "## 한국어에 써도 되는 모델\n\n**한국어에 써도 되는 모델은 w8입니다. 아직 알 수 없는 모델은 "
    )
    assert (
        "**w8**: 크기는 기준 모델의 63%입니다. 글을 예측하는 힘은 기준 모델과 같습니다(손실 변화 +0.2%, 1% 이내)."
        in page
    )
    assert "다음 토큰을 100번 고르게 하면 10번은 기준 모델과 다른 토큰을 고릅니다." in page
    assert "과제 점수가 떨어졌습니다(capitals, sums)" in page or "과제 점수가 떨어졌습니다(capitals)" in page
    # The first prompts with every model's answer, as text whatever it holds.
    assert re.search(r"질문 \d개에 모델마다", page) and "한국의 수도는 서울입니다." in page
    assert "<script>alert(1)" not in as_html and "한국어에 써도 되는 모델은 w8입니다." in as_html
    assert (
        as_html.index("써도 됩니다") < as_html.index("아직 알 수 없습니다") < as_html.index("쓰지 마십시오")
    )


def test_of_a_language_in_which_nothing_is_safe() -> None:
    lead = safety.lead(compared(), "km", EN)
    assert lead.startswith("Nothing here is shown to be safe in Khmer. Not safe in Khmer: ")
    page = markdown.section(safety.section(compared(), "ar", [], EN))
    assert "Answers with another script in them went from 5% to 40%." in page
    assert "The judge's grade fell" in page and "It finds the same text 21.0% harder to predict." in page


def test_what_is_worse_elsewhere_does_not_speak_of_the_text() -> None:
    scores = compared()
    own = scores["models"][W4]["languages"]["ko"]
    own["capitals/acc"] |= {"verdict": "worse"}
    page = markdown.section(safety.section(scores, "ko", [], EN))
    said = next(line for line in page.splitlines() if line.startswith("- **w4"))
    assert "changed by +0.6%, which may be chance" in said and "It scores worse on capitals." in said
    own["nll_per_passage"] |= {"verdict": "better", "relative_change": -0.02}
    assert "2.0% easier to predict" in markdown.section(safety.section(scores, "ko", [], EN))


def test_the_recipes_speak_of_every_scheme_and_of_korean() -> None:
    folder = Path(__file__).parents[2] / "recipes"
    study, korean = (recipe.load(folder / f"quantization-{name}.yaml") for name in ("study", "korean"))
    steps = {step.name: step for step in study.steps}
    places = {name: Path("runs") / name for name in steps}
    made = {n: recipe.config(s, places) for n, s in steps.items() if s.stage.verb == "quantize"}
    assert {config.scheme for config in made.values()} == set(SCHEME_NAMES)
    scores = recipe.config(steps["scores"], places)
    assert {line.partition("=")[2] for line in scores.models} == {str(places[name]) for name in made}
    assert {config.model for config in made.values()} == {scores.reference} == {str(places["off_grid"])}
    steps = {step.name: step for step in korean.steps}
    places = {name: Path("runs") / name for name in steps}
    page = recipe.config(steps["report"], places)
    assert (page.language, page.focus) == ("ko", "ko")
    asked = recipe.config(steps["scores"], places)
    quantised = {str(places[n]) for n, s in steps.items() if s.stage.verb == "quantize"}
    assert {line.partition("=")[2] for line in asked.models} == quantised and asked.languages == ("ko", "en")


def test_a_focus_that_was_not_measured(tmp_path: Path) -> None:
    with pytest.raises(OnggiError, match="focus: 'kling' is not a"):
        ReportConfig(["scores"], focus="kling")
    assert ReportConfig(["scores"], focus="kor_Hang").focus == "ko"
    job = ledger.begin(tmp_path / "scores", "evaluate", {}, {}, 1)
    with job:
        ledger.write_json(job.work / "scores.json", compared())
        job.finish(["scores.json"], command="onggi evaluate", before=[])
    with pytest.raises(OnggiError, match=r"focus: nothing was measured in Thai \(th\); evaluate it there"):
        report_stage(ReportConfig([str(tmp_path / "scores")], focus="th"), tmp_path / "report")
    made = report_stage(ReportConfig([str(tmp_path / "scores")], "ko", "ko"), tmp_path / "report")
    assert "한국어에 써도 되는 모델은" in (made.path / "report.html").read_text(encoding="utf-8")

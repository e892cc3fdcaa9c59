"""The page in a real browser: nothing fetched, no script error, every letter drawn, no width too narrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from browsing import MISSING
from onggi.phrases import Phrases
from onggi.report import content, html, markdown
from scores_examples import BALANCED, COMPARED, RECORD, answers, compared, model, scores

TAGS = ("en", "de", "ko", "km", "th", "ar", "he", "ja", "ta")
WORSE = {tag: 0.4 + i / 3 for i, tag in enumerate(TAGS)}
BETTER = {tag: 0.3 + i / 50 for i, tag in enumerate(TAGS)}
CALIBRATED = {"text": "starter", "licence": "MIT", "tokens": {"en": 50, "ko": 50}}
NAMES = ("한국어만 보정", "ភាសាខ្មែរ <b>&amp;", "โมเดลไทย", "نموذج عربي")
AGAIN = "onggi report 점수 --language ko --out 보고서"


def whole() -> dict[str, Any]:
    about = {"made_by": "onggi quantize", "scheme": "w4a16-g128", "method": "gptq", "fairness": "balanced"}
    variants = {
        NAMES[0]: model(WORSE, calibration=CALIBRATED, precision="bfloat16", **about),
        NAMES[1]: model(BETTER),
        NAMES[2]: model({tag: 1 / (i + 1) for i, tag in enumerate(TAGS)}),
        NAMES[3]: model(dict.fromkeys(TAGS, 0.5), terms="Gemma is provided under …"),
    }
    return scores(variants, "better", text="한국어|ខ្មែរ.jsonl")


def write(path: Path, language: str, *evaluations: dict[str, Any]) -> Path:
    say = Phrases(language)
    sections = [content.section(found, RECORD, AGAIN, say) for found in evaluations]
    path.write_text(html.page(sections, content.title(evaluations), say), encoding="utf-8")
    return path


class Visit:
    """A page that was opened, and what happened in it."""

    def __init__(self, browser: Any, path: Path, width: int = 1280, scripts: bool = True):
        self.requests: list[str] = []
        self.errors: list[str] = []
        self.context = browser.new_context(
            viewport={"width": width, "height": 800}, java_script_enabled=scripts
        )
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(path.as_uri())


@pytest.mark.parametrize("language", ["en", "ko"])
def test_nothing_is_fetched_fails_or_lacks_a_letter(browser: Any, tmp_path: Path, language: str) -> None:
    path = write(tmp_path / "보고서.html", language, whole(), whole())
    visit = Visit(browser, path)
    assert visit.requests == [path.as_uri()]
    assert visit.errors == []
    found = visit.page.evaluate(MISSING)
    assert found["missing"] == [] and found["seen"] > 150
    text = visit.page.inner_text("body")
    for letters in (*NAMES, "ខ្មែរ", "ไทย", "العربية", "עברית", "한국어"):
        assert letters in text
    assert visit.page.get_attribute("html", "lang") == language


def test_the_search_for_missing_letters_finds_one(browser: Any, tmp_path: Path) -> None:
    other = whole()
    other["text"] = "\U0003fffd.jsonl"
    visit = Visit(browser, write(tmp_path / "r.html", "en", other))
    assert visit.page.evaluate(MISSING)["missing"] == ["\U0003fffd"]


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_no_page_is_wider_than_its_window(browser: Any, tmp_path: Path, width: int) -> None:
    long = model(BETTER)
    named = scores({"w4a16-g128-" + 60 * "x": long, "balanced": model(WORSE), **whole()["models"]})
    visit = Visit(browser, write(tmp_path / "r.html", "ko", named), width)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    # Letters in the drawings stay legible: their size on the screen.
    sizes = visit.page.evaluate(
        "[...document.querySelectorAll('svg text')].map(t => 13 * t.getScreenCTM().a)"
    )
    assert min(sizes) >= 8.5


def test_without_scripts_nothing_is_lost(browser: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "r.html", "ko", whole())
    cells = "[...document.querySelectorAll('th, td, p.lead')].map(cell => cell.textContent)"
    plain = Visit(browser, path, scripts=False)
    assert plain.page.evaluate(cells) == Visit(browser, path).page.evaluate(cells)
    assert not plain.page.locator("input, button").count()


def test_columns_sort_and_languages_filter(browser: Any, tmp_path: Path) -> None:
    page = Visit(browser, write(tmp_path / "r.html", "en", whole())).page
    table = page.locator("table.languages").nth(1)
    column = "rows => [...rows].map(row => row.querySelector('td:nth-child(4)').dataset.value)"

    def shown() -> list[float]:
        return [float(value) for value in table.locator("tbody tr").evaluate_all(column)]

    before = shown()
    button = table.locator("thead button").nth(3)
    button.click()
    assert shown() == sorted(before, reverse=True) != before
    assert table.locator("thead th").nth(3).get_attribute("aria-sort") == "descending"
    button.click()
    assert shown() == sorted(before)
    assert table.locator("tfoot tr").first.inner_text().startswith("worst")

    visible = "rows => rows.filter(row => !row.hidden).map(row => row.dataset.language)"
    box = page.locator("input[type=search]")
    for typed, wanted in (("ខ្មែរ", ["km"]), ("arab, ko", ["ar", "ko"]), ("german", ["de"])):
        box.fill(typed)
        assert sorted(table.locator("tbody tr").evaluate_all(visible)) == sorted(wanted)
    box.fill("")
    assert len(table.locator("tbody tr").evaluate_all(visible)) == len(TAGS)


def test_it_prints(browser: Any, tmp_path: Path) -> None:
    page = Visit(browser, write(tmp_path / "r.html", "ko", whole())).page
    assert page.locator(".filter").is_visible()
    page.emulate_media(media="print")
    assert not page.locator(".filter").is_visible()
    assert page.pdf().startswith(b"%PDF")


def test_the_page_says_what_the_markdown_says(browser: Any, tmp_path: Path) -> None:
    """Every sentence and every cell: only the drawings, their captions and names in other scripts are more."""
    say, found = Phrases("ko"), scores({"balanced": model(BALANCED)})
    blocks = content.section(found, RECORD, AGAIN, say)
    from markdown_it import MarkdownIt

    rendered = tmp_path / "markdown.html"
    page = MarkdownIt("commonmark").enable("table").render(markdown.section(blocks))
    rendered.write_text(f"<meta charset=utf-8>{page}", encoding="utf-8")
    cells = "[...document.querySelectorAll('p, td, th, li')].map(e => e.textContent.trim())"
    visit = Visit(browser, write(tmp_path / "r.html", "ko", found))
    visit.page.evaluate("document.querySelectorAll('bdi, .mark, .legend').forEach(e => e.remove())")
    assert set(Visit(browser, rendered).page.evaluate(cells)) <= set(visit.page.evaluate(cells))


# ── models side by side ────────────────────────────────────────────────────────────────────────


def side_by_side(path: Path, language: str) -> Path:
    say = Phrases(language)
    section = content.section(compared(), RECORD, AGAIN, say, answers())
    path.write_text(html.page([section, section], content.title([compared()]), say), encoding="utf-8")
    return path


def test_answers_stay_text(browser: Any, tmp_path: Path) -> None:
    path = side_by_side(tmp_path / "r.html", "ko")
    visit = Visit(browser, path)
    assert visit.requests == [path.as_uri()] and visit.errors == []
    assert visit.page.evaluate("document.querySelectorAll('.said :not(details, summary), b').length") == 0
    said = visit.page.evaluate("[...document.querySelectorAll('.answer .said')].map(e => e.textContent)")
    hostile = [text for text in said if "alert(1)" in text]
    assert hostile and all(text.startswith("<script>alert(1)</script><img src=x") for text in hostile)
    assert visit.page.evaluate("document.querySelectorAll('main script, main img').length") == 0
    found = visit.page.evaluate(MISSING)
    assert found["missing"] == []


def test_answers_bear_their_language_and_direction(browser: Any, tmp_path: Path) -> None:
    page = Visit(browser, side_by_side(tmp_path / "r.html", "en")).page
    marked = "[...document.querySelectorAll('.said')].map(e => [e.lang, e.dir, e.textContent])"
    found = page.evaluate(marked)
    assert {language for language, _, _ in found} == set(COMPARED)
    for language, direction, text in found:
        if "عاصمة" in text:
            assert (language, direction) == ("ar", "rtl")
        if "서울" in text:
            assert direction == "ltr"


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_it_fits_narrow_windows(browser: Any, tmp_path: Path, width: int) -> None:
    visit = Visit(browser, side_by_side(tmp_path / "r.html", "ko"), width)
    for link in visit.page.locator("nav.pages").first.locator("a").all():
        link.click()
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width


def test_one_language_at_a_time_and_all_of_them_without_scripts_or_on_paper(
    browser: Any, tmp_path: Path
) -> None:
    path = side_by_side(tmp_path / "r.html", "en")
    page = Visit(browser, path).page
    shown = "[...document.querySelectorAll('.page')].filter(e => e.offsetHeight).map(e => e.id)"
    assert page.evaluate(shown) == ["s1-ko", "s2-ko"]
    page.locator("nav.pages").nth(1).get_by_text("Arabic").click()
    assert page.evaluate(shown) == ["s1-ko", "s2-ar"]
    assert page.locator("nav.pages a[aria-current=true]").all_inner_texts() == ["Korean", "Arabic"]
    assert page.url.endswith("#s2-ar")
    every = [f"s{section}-{tag}" for section in (1, 2) for tag in COMPARED]
    page.emulate_media(media="print")
    assert page.evaluate(shown) == every
    assert Visit(browser, path, scripts=False).page.evaluate(shown) == every
    page.goto(path.as_uri() + "#s1-km")
    page.emulate_media(media="screen")
    page.reload()
    assert page.evaluate(shown) == ["s1-km", "s2-ko"]


def test_the_matrix_says_in_words_what_it_says_in_colour_and_sorts_by_its_numbers(
    browser: Any, tmp_path: Path
) -> None:
    page = Visit(browser, side_by_side(tmp_path / "r.html", "en")).page
    matrix = page.locator("table.matrix").first
    for colour, words in (("good", ("best", "better")), ("bad", ("damaged", "mixed"))):
        cells = matrix.locator(f"td.{colour}").all_inner_texts()
        assert cells and all(cell.startswith(words) for cell in cells)
    column = "rows => rows.map(row => [row.dataset.language, Number(row.cells[4].dataset.value)])"
    matrix.locator("thead button").nth(4).click()
    found = matrix.locator("tbody tr").evaluate_all(column)
    assert found == [["ar", 21.0], ["km", 14.2], ["en", 5.2], ["ko", 0.6]]

"""The report says what the numbers say, no more, and no name breaks its tables."""

from __future__ import annotations

import io
import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from onggi import ledger
from onggi.errors import OnggiError
from onggi.phrases import Phrases
from onggi.report import blocks as blocks_of
from onggi.report import content, markdown, terminal, wording
from onggi.stages import ReportConfig
from onggi.stages import report as report_stage
from scores_examples import BALANCED, ENGLISH, LANGUAGES, RECORD, compared, model, scores

EN, KO = Phrases("en"), Phrases("ko")
AGAIN = "onggi report scores --out report"


def tables(page: str) -> list[list[list[str]]]:
    """Every table as a Markdown reader sees it: rows of cells."""
    found: list[list[list[str]]] = []
    tokens = MarkdownIt("commonmark").enable("table").parse(page)
    for token, after in itertools.pairwise(tokens):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("th_open", "td_open"):
            found[-1][-1].append("".join(child.content for child in after.children or ()))
    return found


def written(whole: dict[str, Any], record: dict[str, Any], say: Phrases = EN) -> str:
    """One evaluation as Markdown."""
    return markdown.section(content.section(whole, record, AGAIN, say))


DAMAGE = ["language", "script"]


def headed(page: str, *header: str) -> list[list[str]]:
    """The first table that begins with these columns."""
    return next(table for table in tables(page) if table[0][: len(header)] == list(header))


def shown(whole: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=200, highlight=False)
    terminal.show(console, whole, EN)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


# ── the headline ───────────────────────────────────────────────────────────────────────────────

WORST = "Khmer pays most: with “english” it drifts 2.98 nats a token, 8.1× what English pays."
MENDED = " With “balanced” it drifts 0.68 nats a token, 1.7× what English pays."
BETWEEN = " “balanced” against “english”: {} in Khmer."


@pytest.mark.parametrize(
    ("verdict", "rest"),
    [
        ("better", MENDED),
        ("no significant difference", BETWEEN.format("no significant difference")),
        ("equivalent within 1%", BETWEEN.format("equivalent within 1%")),
    ],
)
def test_a_mend_is_claimed_only_where_it_is_significant(verdict: str | None, rest: str) -> None:
    whole = scores({"english": model(ENGLISH), "balanced": model(BALANCED)}, verdict)
    assert wording.headline(whole, EN) == WORST + rest


@pytest.mark.parametrize(("verdict", "rest"), [("worse", MENDED), ("better", BETWEEN.format("worse"))])
def test_a_comparison_counts_the_other_way_round(verdict: str, rest: str) -> None:
    whole = scores({"balanced": model(BALANCED), "english": model(ENGLISH)}, verdict)
    assert wording.headline(whole, EN) == WORST + rest


def test_one_variant_alone() -> None:
    assert wording.headline(scores({"english": model(ENGLISH)}), EN) == WORST


def test_english_may_be_the_worst_or_not_there() -> None:
    english_worst = scores({"w4": model({**BALANCED, "en": 0.9})})
    assert wording.headline(english_worst, EN) == "English pays most: with “w4” it drifts 0.90 nats a token."
    nothing = scores({"w4": model({**BALANCED, "en": 0.0})})
    assert wording.headline(nothing, EN).endswith("0.68 nats a token, many times what English pays.")
    without = scores({"w4": model(BALANCED)}, languages=["ko", "el", "km"])
    assert wording.headline(without, EN) == "Khmer pays most: with “w4” it drifts 0.68 nats a token."


def test_a_variant_with_another_vocabulary() -> None:
    only = scores({"other": model(None)})
    assert wording.headline(only, EN).startswith("No variant shares the reference's vocabulary")
    page = written(only, RECORD)
    assert "No variant shares the reference's vocabulary." in page
    assert headed(page, "language", "other")[1:] == [[name, "worse (+4.0%)"] for name in TAGGED]

    both = scores({"english": model(ENGLISH), "other": model(None)})
    page = written(both, RECORD)
    assert headed(page, *DAMAGE)[0] == [*DAMAGE, "english"]
    assert headed(page, "language", "english")[0] == ["language", "english", "other"]
    sizes = headed(page, "model", "weights on disk")
    assert [row[3] for row in sizes[1:]] == ["reference", "2.98 (Khmer)", "–"]
    assert "other" not in shown(both)


TAGGED = ["English (en)", "Korean (ko)", "Greek (el)", "Khmer (km)"]


def test_a_divergence_in_some_languages_only() -> None:
    """Tokenizers that differ on some text: what there is is in `scores.json`, the tables do without."""
    partly = model(ENGLISH)
    del partly["languages"]["ko"]["kl"]
    whole = scores({"partly": partly, "balanced": model(BALANCED)})
    assert headed(written(whole, RECORD), *DAMAGE)[0] == [*DAMAGE, "balanced"]
    assert "partly" not in shown(whole)


def test_tasks_may_be_asked_in_more_languages_than_the_text() -> None:
    """A language of the tasks alone has no divergence, and takes none from those that have one."""
    whole = scores({"english": model(ENGLISH), "balanced": model(BALANCED)})
    for about in whole["models"].values():
        about["languages"]["th"] = {"capitals/acc": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 90}}
    whole["tasks"] = {"capitals": {"metric": "acc", "about": "…", "shots": 0, "languages": ["th"]}}
    assert wording.variants(whole) == ["english", "balanced"]
    page = written(whole, RECORD)
    assert headed(page, *DAMAGE)[0] == [*DAMAGE, "english", "balanced"]
    assert "Thai" in headed(page, "language", "ship")[5][0]


def test_names_written_from_the_right_keep_to_themselves_in_sentences() -> None:
    whole = scores({"نموذج": model(ENGLISH), "한국": model(BALANCED)}, "better")
    assert "with “\u2068نموذج\u2069” it drifts" in wording.headline(whole, EN)
    assert "With “한국” it drifts" in wording.headline(whole, EN)
    page = written(whole, RECORD)
    assert "- 한국 against \u2068نموذج\u2069: better" in page


def test_many_variants_stand_in_a_table() -> None:
    many = {f"v{i}": model({tag: kl + i / 9 for tag, kl in BALANCED.items()}) for i in range(7)}
    whole = scores(many)
    better = {"verdict": "better"}
    whole["comparisons"] = [
        {"first": a, "second": b, "languages": {"en": better, "ko": better, "km": {"verdict": "worse"}}}
        for a, b in itertools.combinations(many, 2)
    ]
    table = headed(written(whole, RECORD), "variant, against →")
    assert len(table) == 7 and table[1][1] == "better: 2<br>worse: 1" and table[1][2] == ""


def test_what_is_known_only_of_some_models() -> None:
    whole = compared()
    page = written(whole, RECORD)
    assert "Damage is a tail event: with “w8” in Khmer the worst 10% of the passages carry 45% of it." in page
    sizes = headed(page, "model", "weights on disk")
    assert [row[1] for row in sizes[1:]] == ["536 MB", "340 MB", "180 MB", "–"]
    tokenizers = headed(page, "language", "tokenizer of")
    assert tokenizers[3][1:3] == ["base, w8, w4|작은", "80.0 [76.0, 84.0]"] and "13.0%" in tokenizers[3][5]
    here, served = headed(page, "model", "engine"), headed(page, "model", "requests")
    assert here[1][-2:] == ["310 [298, 322]", "18.5 [17.5, 19.5]"] and len(here) == 4
    assert served[1][1:] == ["160", "0.80 s", "2.50 s", "41.5", "4,000", "9,000", "0.0123"]
    assert "for up to 20% of the time" in page and "behind a server, which gives no likelihoods" in page
    assert "5.0% (−6 +4 / 200)" in page and "writes the letter of its choice" in page
    pairs = headed(page, "language", "first")
    assert pairs[1][1:] == ["w8", "w4|작은", "20", "12", "8", "2"]
    trust = headed(page, "language", "orders agree")
    assert trust[1][1:] == ["71%", "0.42", "40", "58%", "–"]
    ratings = next(table for table in tables(page) if table[-1][1:2] == ["+0.00 [-0.40, +0.40]"])
    assert len(ratings) == 4  # none in Khmer
    assert "None" not in page and "None" not in written(whole, RECORD, KO)
    assert "Ship “w4|작은” in Korean" in shown(whole)


def test_only_a_package_that_was_a_gguf_is_unpacked() -> None:
    whole = scores({"file": model(ENGLISH), "balanced": model(BALANCED)})
    for name, source in (("base", "package:gemma3-270m"), ("file", "models/한국어.gguf")):
        whole["models"][name] |= {"source": source, "about": {"format": "gguf"}}
    sizes = headed(written(whole, RECORD), "model", "weights on disk")
    assert [row[1] for row in sizes[1:]] == ["300 MB, unpacked to bf16", "300 MB", "300 MB"]
    assert "base came as a GGUF file" in written(whole, RECORD)


# ── the tables ─────────────────────────────────────────────────────────────────────────────────


def test_the_table_of_damage() -> None:
    tokens = {"tokens": {"en": 50, "ko": 50}, "text": "starter"}
    about = {"made_by": "onggi quantize", "scheme": "w4a16-g128", "method": "gptq", "fairness": "balanced"}
    about |= {"precision": "bf16"}
    balanced = model(BALANCED, calibration=tokens, **about)
    page = written(
        scores({"english": model(ENGLISH), "balanced": balanced}, "better"),
        RECORD,
    )
    damage = headed(page, *DAMAGE)
    assert damage[0] == ["language", "script", "english", "balanced"]
    assert damage[1:5] == [
        ["English (en)", "Latin", "0.37 [0.33, 0.41]", "0.40 [0.36, 0.44]"],
        ["Khmer (km)", "other", "2.98 [2.68, 3.28]", "0.68 [0.61, 0.75]*"],
        ["Greek (el)", "other", "1.26 [1.13, 1.39]", "0.44 [0.40, 0.48]*"],
        ["Korean (ko)", "other", "0.88 [0.79, 0.97]", "0.37 [0.33, 0.41]"],
    ]
    assert damage[5:] == [
        ["worst", "", "2.98 (km)", "0.68 (km)"],
        ["worst of those calibrated on", "", "–", "0.40 (en)"],
        ["worst of the others*", "", "–", "0.68 (km)"],
        ["mean, Latin script", "", "0.37", "0.40"],
        ["mean, other scripts", "", "1.71", "0.50"],
        ["mean, all", "", "1.37", "0.47"],
    ]
    assert "- balanced against english: better in English, Korean, Greek, Khmer." in page
    assert (
        "w4a16-g128, error feedback (GPTQ), languages in balance, on `starter` (en 50, ko 50 tokens), "
        "pass in bf16" in page
    )
    assert "\n".join([*RECORD["before"], RECORD["command"], AGAIN]) in page


def test_intervals_that_cannot_be_had_are_left_out() -> None:
    whole = scores({"w4": model(BALANCED, n=1)}, passages=dict.fromkeys(LANGUAGES, 1))
    page = written(whole, RECORD)
    assert headed(page, *DAMAGE)[2] == ["Khmer (km)", "other", "0.68"]
    assert "None" not in page + shown(whole)


ODD = ["a|b", "한국어|ខ្មែរ", "two\nlines", "w4[bold]", "[/]", "*star*", "`tick`", "<b>", "\\", ":smile:"]


@pytest.mark.parametrize("name", ODD)
def test_no_name_breaks_a_table(name: str) -> None:
    whole = scores({name: model(ENGLISH), "balanced": model(BALANCED)}, "better", text=name)
    found = tables(written(whole, RECORD))
    flat = " ".join(name.split())
    # Ship, damage, verdicts, size, tokens, and a page for each language.
    assert [len(table) for table in found] == [5, 9, 5, 4, 5, 4, 4, 4, 4]
    for table in found:
        assert len({len(row) for row in table}) == 1
    assert found[0][0] == ["language", "ship", "base", flat, "balanced"]
    assert found[1][0] == ["language", "script", flat, "balanced"]
    assert found[3][2][0] == flat
    header = re.search(r"language.*balanced", shown(whole))
    if "\n" not in name:
        assert header and name in header[0]


def test_many_variants_stand_one_under_the_other_on_a_narrow_terminal() -> None:
    whole = scores({f"variant-{n}": model(ENGLISH if n % 2 else BALANCED) for n in range(12)}, "better")
    console = Console(file=io.StringIO(), width=80, highlight=False)
    terminal.show(console, whole, KO)
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    rows = [line for line in lines if "variant-" in line and "│" in line]
    assert len(rows) == 12 and "variant-1 " in rows[1]
    assert "2.98 (km)" in rows[1] and "0.68 (km)" in rows[0] and "1.37" in rows[1]
    assert any("평균(로마자)" in line for line in lines) and not any("…" in line for line in lines)


# ── the stage ──────────────────────────────────────────────────────────────────────────────────


def evaluation(folder: Path, whole: dict[str, Any]) -> str:
    """A finished folder as `onggi evaluate` leaves it."""
    with ledger.begin(folder, "evaluate", RECORD["options"], {"text": str(whole["text"])}) as job:  # type: ignore[arg-type]
        ledger.write_json(job.work / "scores.json", whole)
        job.finish(["scores.json"], command=RECORD["command"], before=RECORD["before"])
    return str(folder)


def test_from_folders_to_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = evaluation(tmp_path / "one[1]", scores({"english": model(ENGLISH)}))
    second = evaluation(tmp_path / "two", scores({"balanced": model(BALANCED)}, text="own.jsonl"))
    out = tmp_path / "[report]"
    made = report_stage(ReportConfig([first, second]), out)
    page = (out / "report.md").read_text(encoding="utf-8")
    assert page.index("with “english” it drifts 2.98") < page.index("with “balanced” it drifts 0.68")
    assert page.count("# What it costs in each language") == 1
    from onggi.stages import VERBS

    show = VERBS["report"].show
    assert show
    show(made)
    said = capsys.readouterr().out
    assert WORST in said and str(out / "report.html") in said

    before = (out / "report.md").stat().st_mtime_ns
    report_stage(ReportConfig([first, second]), out)
    assert (out / "report.md").stat().st_mtime_ns == before
    with pytest.raises(OnggiError, match="is not a finished folder of `onggi evaluate`"):
        report_stage(ReportConfig([str(out)]), tmp_path / "other")
    with pytest.raises(OnggiError, match="name at least one folder"):
        report_stage(ReportConfig([]), tmp_path / "other")


def test_what_was_done_beside_rounding_is_told_with_what_it_bought(tmp_path: Path) -> None:
    made = {"made_by": "onggi quantize", "method": "gptq", "fairness": "balanced", "precision": "bf16"}
    made |= {"calibration": {"text": "starter", "tokens": {"en": 50, "ko": 50, "km": 50}}}
    price = {"worst": {"worst": 0.5, "mean": 0.31}, "mean": {"worst": 0.62, "mean": 0.29}}
    bits = {"bits_per_weight": 3.5991, "objective": "worst", "price": price}
    damage = {"before": {"en": 0.2, "ko": 0.41, "km": 0.5}, "after": {"en": 0.21, "ko": 0.33, "km": 0.3}}
    mixed = model(BALANCED, **made, scheme="mixed", bits=bits) | {"source": str(tmp_path / "mixed")}
    units = [
        {"layer": layer, "names": ["q_proj", "k_proj"], "bits": {"w3a16-g128": 3.1, "w8a16": 8.0}}
        | {"damage": {choice: {"en": 0.1, "ko": 0.3, "km": 0.5} for choice in ("w3a16-g128", "w8a16")}}
        for layer in range(2)
    ]
    (tmp_path / "mixed").mkdir()
    matrix = {"units": units, "chosen": ["w3a16-g128", "w8a16"], "nats": {}, "damage": "kl"}
    ledger.write_json(tmp_path / "mixed" / "sensitivity.json", matrix)
    ledger.write_json(tmp_path / "mixed" / "onggi.json", {"bits": bits})
    variants = {
        "mixed": mixed,
        "best": model(
            BALANCED, **made, scheme="w4a16-g128", healed={"damage": damage, "measure": "relative"}
        ),
        "all": model(BALANCED, **made, scheme="w8a16", embedding="w8"),
    }
    given = evaluation(tmp_path / "scores", scores(variants))
    for language, words, drawing in (
        (
            "en",
            [
                "3.60 bits a weight, chosen for the worst language (held-out text beforehand, KL, nats a token: worst 0.500, "
                "mean 0.310; chosen for the mean: worst 0.620, mean 0.290)",
                "tuned end to end (worst language of held-out text: 0.500 → 0.330 KL, nats for each nat of the text)",
                "embedding and output head rounded too (w8)",
            ],
            ["share of each layer in what w3a16-g128 costs", "bits chosen", "Khmer"],
        ),
        (
            "ko",
            ["가중치당 3.60비트", "0.500 → 0.330", "임베딩과 출력층도 반올림(w8)"],
            ["손해 중 층별 비중(%)", "배분된 비트 수", "층 1~2", "크메르어"],
        ),
    ):
        out = report_stage(ReportConfig([given], language), tmp_path / f"report-{language}").path
        page = (out / "report.md").read_text(encoding="utf-8")
        assert all(word in page for word in words)
        drawn = (out / "report.html").read_text(encoding="utf-8")
        assert all(word in drawn for word in drawing)
    # Quantised again since with other bits: its matrix is another's.
    ledger.write_json(tmp_path / "mixed" / "onggi.json", {"bits": {**bits, "bits_per_weight": 4.0}})
    out = report_stage(ReportConfig([given]), tmp_path / "report-en").path
    assert "bits chosen" not in (out / "report.html").read_text(encoding="utf-8")


# ── where the reference's weights lay ──────────────────────────────────────────────────────────

GGUF = {"linears": {"Q5_0": 81, "Q4_K": 27}, "embedding": "Q8_0"}
FURTHER = {"steps": 200, "text": "starter", "tokens": {"ko": 5120, "el": 5120}}
LEFT = {**FURTHER, "moved": {"linears": {"off_grid": 0.381}}}


@pytest.mark.parametrize(
    ("about", "english", "korean"),
    [
        ({}, "on no grid that onggi knows of", "격자 위에도 있지 않았습니다"),
        ({"grid": GGUF}, "already lay on a grid", "격자"),
        (
            {"continued": FURTHER, "base": {"source": "package:gemma3-270m"}},
            "trained on from `package:gemma3-270m`",
            "`package:gemma3-270m`",
        ),
        (
            {"continued": LEFT, "base": {"source": "package:gemma3-270m"}},
            "now lie at least 38% as far from",
            "38%만큼 떨어져",
        ),
    ],
)
def test_the_references_own_grid(about: dict[str, Any], english: str, korean: str) -> None:
    whole = scores({"w4": model(BALANCED)})
    whole["models"]["base"]["about"] = about
    page = written(whole, RECORD)
    assert "## The reference's own grid" in page and english in page
    own = written(whole, RECORD, KO).split("## ")
    found = next(part for part in own if "격자" in part.split("\n")[0])
    assert korean in found
    if about.get("grid"):
        assert "Q5_0 × 81" in page and "Q8_0" in found


def test_a_variant_that_was_trained_further() -> None:
    further = model(BALANCED, continued=FURTHER, made_by="onggi pretrain")
    page = written(scores({"further": further}), RECORD)
    assert "trained further in full precision for 200 steps on `starter` (ko 5,120, el 5,120 tokens)" in page


# ── figures that lie beside the page ───────────────────────────────────────────────────────────


def test_a_figure_is_shown_where_it_lies_beside_the_page_and_no_heading_is_bare() -> None:
    def blocks(file: str | None) -> list[blocks_of.Block]:
        drawing = blocks_of.Figure([blocks_of.Panel("<svg/>", "", "학습 곡선")], "학습 곡선", file=file)
        heads = [blocks_of.Heading(text) for text in ("답변", "ขณะฝึก", "Made")]
        return [heads[0], blocks_of.Paragraph("text"), heads[1], drawing, heads[2], blocks_of.Code("onggi")]

    page = markdown.section(blocks("curves.svg"))
    assert "## ขณะฝึก\n\n![학습 곡선](curves.svg)\n\n## Made" in page
    page = markdown.section(blocks(None))
    assert "ขณะฝึก" not in page and "svg" not in page and "## 답변\n\ntext\n\n## Made" in page

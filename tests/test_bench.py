"""What decides of a bench's page: which goals count as met, which files are made anew, which are measured."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onggi import recipe

ROOT = Path(__file__).parents[1]
JUDGED = ("Q4_0", "Q2_K")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A module of bench/ by its name."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module


def met(goals: list[dict[str, Any]], words: str) -> dict[str, Any]:
    """The one row that says `words`."""
    (found,) = [goal for goal in goals if words in goal["what"]]
    return found


def test_minimax_is_met_only_where_the_interval_lies_below_one(bench: Callable[[str], Any]) -> None:
    goals = bench("parts.quantize_goals").goals
    side = {"tag": "km", "kl": 0.6, "mean": 0.4}

    def found(high: float) -> dict[str, Any]:
        of = {
            "worst": {"value": 0.8, "low": 0.7, "high": high},
            "mean": {"value": 1.0, "low": 0.9, "high": 1.1},
        }
        of |= {"first": side, "second": side, "languages": 8}
        probe = {"ratios": {"minimax:balanced": {"calibrated": of}}}
        result = {"probe": probe, "titles": {}} | dict.fromkeys(("other", "speed", "artifacts", "growth"))
        return met(goals(result), "minimax against balanced")

    assert found(0.99)["met"] and not found(1.0)["met"]
    assert "must lie below 1, and does not" in found(1.2)["note"] and found(1.2)["measured"] == 0.8


def passages(kl: float) -> dict[str, dict[str, list[float]]]:
    return {tag: {str(i): [10 * kl * (1 + i / 10), 10] for i in range(6)} for tag in ("ko", "en", "ar")}


def gguf(files: dict[str, tuple[float, int]], **speed: list[float]) -> dict[str, Any]:
    """A result of the GGUF bench: file → KL, bytes; file → tokens a second of each turn."""
    types = list(dict.fromkeys(name.rpartition("-")[0] for name in files))
    return {
        "types": types,
        "autoround": {"Q2_K": "Q2_K_S"},
        "scores": {"files": {name: passages(kl) for name, (kl, _) in files.items()}},
        "files": {"records": {name: {"bytes": size, "wall": 1.0} for name, (_, size) in files.items()}},
        "speed": {"files": {n.replace("__", "-"): {"prefill": v, "decode": v} for n, v in speed.items()}},
    }


def test_a_gguf_goal_is_met_at_the_same_bytes_alone(bench: Callable[[str], Any]) -> None:
    goals = bench("parts.gguf_report").goals
    files = {"Q4_0-onggi": (0.1, 1000), "Q4_0-balanced": (0.3, 1009), "Q4_0-plain": (0.3, 985)}
    found = goals(gguf(files), JUDGED)
    assert met(found, "imatrix of the same text")["met"] and met(found, "gains least")["met"]
    larger = next(goal for goal in found if goal["what"].endswith("against llama-quantize"))
    assert larger["measured"] < 0.4 and not larger["met"] and "same within 1%" in larger["note"]

    # AutoRound has another type, which the row names.
    files = {"Q2_K-onggi": (0.1, 1000), "Q2_K-autoround": (0.3, 960)}
    row = met(goals(gguf(files), JUDGED), "AutoRound")
    assert "AutoRound's Q2_K_S (it has no Q2_K)" in row["what"] and not row["met"]

    # A mixture may be smaller than a Q4_K_M, but no larger.
    def mixed(size: int) -> bool:
        files = {"mixed-onggi": (0.1, size), "Q5_K_M-plain": (0.2, 1200), "Q4_K_M-onggi": (0.2, 1000)}
        found: bool = met(goals(gguf(files), JUDGED), "mixed types")["met"]
        return found

    assert mixed(990) and mixed(1010) and not mixed(1011)


def test_the_speed_goal_is_the_issues_and_tells_its_spread(bench: Callable[[str], Any]) -> None:
    goals = bench("parts.gguf_report").goals

    def found(*ours: float) -> dict[str, Any]:
        result = gguf({"Q4_0-onggi": (0.1, 1000)}, Q4_0__onggi=list(ours), Q4_0__balanced=[100.0] * 3)
        return met(goals(result, JUDGED), "decode")

    as_fast, slow = found(99, 100, 104), found(98, 98, 98)
    assert (as_fast["goal"], as_fast["measured"], as_fast["met"]) == (1.0, 1.0, True)
    assert "0.96–1.01" in as_fast["note"]
    assert slow["measured"] == pytest.approx(100 / 98) and not slow["met"]


def test_a_file_made_of_other_inputs_is_made_anew(bench: Callable[[str], Any], tmp_path: Path) -> None:
    record = bench("parts.record")
    source, file, times = tmp_path / "옹기.txt", tmp_path / "files" / "ملف.gguf", []
    file.parent.mkdir()

    def make() -> dict[str, Any]:
        times.append(1)
        file.write_bytes(source.read_bytes() * 2)
        return {"wall": 1.5}

    def made() -> dict[str, Any]:
        found: dict[str, Any] = record.made(file, {"text": record.digest(source), "words": ("a", 1)}, make)
        return found

    source.write_text("하나")
    first = made()
    assert made() == first and len(times) == 1 and first["wall"] == 1.5
    source.write_text("둘")
    assert made()["sha256"] != first["sha256"] and len(times) == 2
    file.write_bytes(b"another's")  # as it was not made
    made()
    assert len(times) == 3
    (file.parent / "stage.json").write_text("{}")
    before = record.digest(file.parent)
    (file.parent / "stage.json").write_text('{"wall_seconds": 3}')
    assert record.digest(file.parent) == before
    (file.parent / "model.safetensors").write_bytes(b"w")
    assert record.digest(file.parent) != before


def test_what_each_file_is_made_of_is_in_its_key(
    bench: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = bench("quantize_gguf")
    one = module.Bench(tmp_path, module.QUICK, ["Q4_0", "Q2_K"])
    one.absent, one.of_reference, one.of_text = None, "reference", "text"
    one.ids("balanced").write_text("ids")
    for name in ("BF16", "imatrix-english", "imatrix-balanced"):
        one.records[name] = {"sha256": name}
    before = {name: dict(inputs) for name, (_, inputs) in one.wanted().items()}
    assert (
        before["Q4_0-balanced"]["BF16"] == "BF16" and before["Q4_0-balanced"]["imatrix"] == "imatrix-balanced"
    )

    def changed() -> set[str]:
        return {name for name, (_, inputs) in one.wanted().items() if inputs != before[name]}

    own, rounded = {n for n in before if n.endswith("onggi")}, {n for n in before if n.endswith("autoround")}
    theirs = before.keys() - own - rounded
    one.of_reference = "another"
    assert changed() == own | rounded
    one.of_reference = "reference"
    one.ids("balanced").write_text("other ids")
    assert changed() == rounded
    one.ids("balanced").write_text("ids")
    one.records["imatrix-english"] = {"sha256": "another"}
    assert changed() == {"Q4_0-english", "Q2_K-english"}
    monkeypatch.setattr(bench("parts.llama_build"), "PACKAGE", "llama-cpp-python==0.0.1")
    assert changed() == theirs


def test_only_the_files_of_the_records_are_measured(bench: Callable[[str], Any], tmp_path: Path) -> None:
    module = bench("quantize_gguf")
    one = module.Bench(tmp_path, module.QUICK, ["Q4_0"])
    records = {}
    for name in ("BF16", "Q4_0-onggi", "Q4_0-plain", "Q8_0-onggi", "Q4_0-english"):
        one.path(name).write_bytes(name.encode())
        records[name] = {"sha256": module.ledger.sha256(one.path(name)), "bytes": 1}
    assert one.names() == []
    del records["Q4_0-english"]  # left over
    (tmp_path / "files.json").write_text(json.dumps({"records": records}))
    one.path("Q4_0-plain").write_bytes(b"another run's")
    assert one.names() == ["BF16", "Q4_0-onggi"]
    digests = {"Q4_0-onggi": records["Q4_0-onggi"]["sha256"], "Q4_0-plain": "another"}
    scores = {"files": {"Q4_0-onggi": {}, "Q4_0-plain": {}}, "digests": digests}
    result = module.of_these_files({"files": {"records": records}, "scores": scores, "speed": None})
    assert list(result["scores"]["files"]) == ["Q4_0-onggi"]


def test_a_trial_works_in_a_folder_of_its_own(bench: Callable[[str], Any], tmp_path: Path) -> None:
    folder = bench("parts.record").folder
    assert (
        folder(tmp_path, "bench", False) == tmp_path and folder(tmp_path, "bench", True) == tmp_path / "quick"
    )
    assert folder(None, "bench", True) != folder(None, "bench", False)


def test_best_has_the_tokens_of_the_others(bench: Callable[[str], Any]) -> None:
    module = bench("quantize")
    for tokens in (module.Sizes().tokens, module.QUICK.tokens):
        best = module.artifacts(tokens)["best"]
        solved = int(best.words[best.words.index("--tokens") + 1])
        held_out = module.TUNED * len(module.EIGHT.split(","))
        assert solved > 0 and solved + held_out == tokens
        assert f"{solved:,} to solve and tune on, {held_out:,} held out" in best.title


def test_the_recipe_starts_from_the_reference_of_the_bench() -> None:
    off_grid, gguf = (recipe.load(ROOT / "recipes" / f"{name}.yaml") for name in ("off-grid", "gguf"))
    first, second = ({step.name: step for step in one.steps} for one in (off_grid, gguf))
    places = {name: Path(name) for name in second}
    for name in ("text", "off_grid"):
        assert recipe.config(first[name], places) == recipe.config(second[name], places)
    made = {n: recipe.config(s, places) for n, s in second.items() if s.stage.verb == "quantize"}
    trimmed = {name: one.format for name, one in made.items() if one.model == "trimmed"}
    assert set(trimmed.values()) == {"gguf:Q8_0", "gguf:Q4_K_M"} and len(made) == 6
    assert {one.model for name, one in made.items() if name not in trimmed} == {"off_grid"}
    for line in (ROOT / "recipes" / "gguf.yaml").read_text(encoding="utf-8").splitlines():
        assert not line.startswith("    ") or "verb:" in line or " # " in line, line


def items(file: Path, after: dict[str, list[float]]) -> Path:
    """Of a model w3, which loses 1 nat a token everywhere, and of what it became: language → nats a token of each passage."""
    rows = [
        {"model": model, "language": tag, "item": str(i), "metric": "kl", "value": 50.0 * kl, "tokens": 50}
        for tag, own in after.items()
        for i, now in enumerate(own)
        for model, kl in (("w3", 1.0), ("w3-scales", now))
    ]
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file


@pytest.mark.parametrize(
    ("worst", "met"),
    [
        ([0.5] * 12, True),
        ([0.7] * 12, False),
        ([6.0] + [0.0] * 11, False),  # 0.5, and up to 1.5
    ],
)
def test_a_recovery_is_judged_by_its_worst_language_and_its_interval(
    bench: Callable[[str], Any], tmp_path: Path, worst: list[float], met: bool
) -> None:
    effort = bench("effort")
    after = {"ko": [0.2] * 12, "en": [0.1] * 12, "ar": worst}
    file = items(tmp_path / "items.parquet", after)
    found = effort.quantize_goals.ratios(file, [("w3-scales", "w3")], ["ko", "en"])
    result = {"ratios": found, "steps": 8, "seconds": {"w3-scales": 60.0}}
    (goal,) = effort.goals(result)
    assert goal["met"] is met and goal["measured"] == pytest.approx(sum(worst) / 12)
    assert "(ar) against 1.000" in goal["note"] and goal["goal"] == 0.6


@pytest.mark.parametrize(("thai", "won"), [(-0.2, True), (0.0, False), (0.1, False)])
def test_a_taught_student_must_win_in_every_language(
    bench: Callable[[str], Any], tmp_path: Path, thai: float, won: bool
) -> None:
    report = bench("parts.distill_report")
    rows = []
    for tag, change in {"ko": -0.3, "en": -0.1, "th": thai}.items():
        for number in range(12):
            alone = 100.0 + 7 * (number % 5)
            own = alone * (1 + change) + (number % 3 - 1)
            values = {"taught": {"nll": own, "bytes": 90.0}, "alone": {"nll": alone, "bytes": 90.0}}
            for model, of in values.items():
                rows += [
                    {"model": model, "language": tag, "item": str(number), "metric": metric, "value": value}
                    for metric, value in of.items()
                ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "items.parquet")
    languages = report.taught_against_alone(tmp_path / "items.parquet", "taught", "alone")
    result = {"head": None, "stored": None, "text": {"languages": languages}}
    (goal,) = report.goals(result)
    assert goal["met"] is won
    assert languages["ko"]["high"] < 0 and languages["ko"]["taught"] < languages["ko"]["alone"]
    assert ("all 3 languages" in goal["note"]) is won and ("not in th" in goal["note"]) is not won


def test_a_page_of_distillation_says_what_was_measured(bench: Callable[[str], Any]) -> None:
    report = bench("parts.distill_report")
    begun = {"command": "python bench/distill.py ", "date": "2026-11-28", "versions": {"onggi": "0.1.0"}}
    begun["machine"] = {"processor": "a processor", "cores": 2}
    way = {"seconds": [1.0, 1.2, 1.1], "bytes": 10 << 20, "loss": 0.5}
    kind = {"onggi": way, "dense": {**way, "seconds": [2.0, 2.2, 2.1], "bytes": 200 << 20}, "trl": way}
    kind["apart"] = {"dense": {"loss": 1e-7, "gradients": 2e-6}, "trl": {"loss": 1e-7, "gradients": 3e-4}}
    sizes = {"positions": 64, "vocabulary": 4096, "hidden": 64, "turns": 3}
    bits = {
        "resident": {"ko": 1.0, "en": 1.1, "km": 0.9},
        "stored, bucket": {"ko": 1.005, "en": 1.1, "km": 0.92},
    }
    result: dict[str, Any] = {
        "quick": False,
        "head": {**begun, **sizes, "kinds": {"kl": kind}},
        "tail": None,
        "stored": {
            **begun,
            "steps": 24,
            "ceiling": 2.0,
            "tokens_per_second": {"resident": 100.0, "stored, bucket": 190.0},
            "bits_per_byte": bits,
        },
        "text": None,
    }
    result["goals"] = report.goals(result)
    said = {goal["what"]: goal for goal in result["goals"]}
    assert said["kl: time against a dense loss"]["met"] and said["kl: memory against a dense loss"]["met"]
    assert not said["kl: time against trl"]["met"]  # as fast, but its gradients are others
    assert said["the arithmetic's ceiling : what a stored teacher gains"]["met"]
    apart = said["bits per byte after, stored and resident, the language furthest apart"]
    assert not apart["met"] and "(km)" in apart["note"]
    page = report.page(result)
    assert "| kl | onggi | 1.10 (1.00–1.20) | 10 | 0.500000 |" in page and "## A stored teacher" in page
    assert "## The tail" not in page and "**missed**" in page


def test_what_other_code_left_is_made_anew(bench: Callable[[str], Any], tmp_path: Path) -> None:
    code, package = bench("parts.code"), tmp_path / "package"
    (package / "text" / "data").mkdir(parents=True)
    (package / "text" / "data" / "시작.jsonl").write_text("하나")
    (package / "report.py").write_text("")
    first = code.digest(["text"], package=package)
    (package / "report.py").write_text("changed")
    assert code.digest(["text"], package=package) == first
    out = code.fresh(tmp_path / "out", first)
    out.mkdir()
    (out / "model").write_text("")
    assert (code.fresh(out, first) / "model").is_file()
    (package / "text" / "data" / "시작.jsonl").write_text("둘")
    second = code.digest(["text"], package=package)
    assert second != first and not code.fresh(out, second).exists()
    with pytest.raises(FileNotFoundError):  # a room that was renamed
        code.digest(["texts"], package=package)
    assert code.digest(code.MAKES) != code.digest(code.MEASURES)

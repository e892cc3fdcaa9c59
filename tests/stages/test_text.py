"""`onggi text --rows`: what goes in is dropped, kept or repeated, and each is counted, however a run ends."""

from __future__ import annotations

import functools
import json
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from onggi import cli, recipe, text
from onggi.errors import OnggiError
from onggi.languages import Languages
from onggi.ledger import artifact
from onggi.stages import TextConfig
from onggi.stages import text as stage
from onggi.text.corpus import jobs, rows

TAGS = ("en", "ko", "th", "ar")
PROBE = text.load("probe")
# Passages to be kept, as documents of their own: pairs, so that no passage stands alone.
KEPT = {
    tag: ["\n".join(pair) for pair in zip(*[iter(PROBE.passages(tag).values())] * 2, strict=True)]
    for tag in TAGS
}
FREE = "against: []\n"  # the probe is what the tests are made of


def rows_of(folder: Path) -> list[dict[str, Any]]:
    made = artifact(folder)
    assert made
    return [row for shard in text.shards(made) for row in pq.read_table(shard).to_pylist()]


def funnel(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "funnel.json").read_text("utf-8")))


def write(path: Path, records: list[Any]) -> str:
    path.write_text(
        "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8"
    )
    return str(path)


@pytest.fixture
def dirty(tmp_path: Path) -> list[str]:
    """Three sources in four languages with something for every filter."""
    records = [{"text": doc, "lang": tag, "licence": "CC0-1.0"} for tag in TAGS for doc in KEPT[tag]]
    for tag in TAGS:
        doc = KEPT[tag][3]
        records += [
            {"text": doc.upper() + "!", "lang": tag},  # exact
            {"text": f"{KEPT[tag][4]} {KEPT[tag][5]} {KEPT[tag][6]} {KEPT[tag][7]}", "lang": tag},
            {
                "text": f"{KEPT[tag][4]} {KEPT[tag][5]} {KEPT[tag][6]} {KEPT[tag][7]} {doc[:12]}",
                "lang": tag,
            },  # near
            {"text": (doc[:30] + "\n") * 20, "lang": tag},  # repetition
            {"text": "…", "lang": tag},
            {"text": " \u200b\n", "lang": tag},
        ]
    records += [
        {"text": KEPT["en"][9], "lang": "ko"},
        {"text": KEPT["th"][9], "lang": "ar"},
        {"text": "Dieser Satz ist auf Deutsch, und danach hat niemand gefragt.", "lang": "de"},
    ]
    main = write(tmp_path / "main.jsonl", records)
    folder = tmp_path / "mail"
    (folder / "ko").mkdir(parents=True)
    (folder / "ko" / "1.txt").write_text(
        "안녕하세요. 궁금하신 점은 hong@example.kr 또는 010-1234-5678로 연락해 주십시오. 담당자가 곧 답장을 드리겠습니다.",
        "utf-8",
    )
    (folder / "2.txt").write_text(
        "Please write to jane@example.org about the missing parcel, not to me.", "utf-8"
    )
    (folder / "3.txt").write_text(
        "Bitte schreiben Sie uns wegen des fehlenden Pakets noch einmal an.", "utf-8"
    )
    table = tmp_path / "more.parquet"
    more = list(text.load("starter").passages("ko").values())
    pq.write_table(pa.table({"text": more, "language": ["kor_Hang"] * len(more)}), table, row_group_size=3)
    return [main, str(folder), str(table)]


def test_from_sources_to_rows(dirty: list[str], tmp_path: Path) -> None:
    clean = tmp_path / "clean.yaml"
    clean.write_text(FREE)
    config = TextConfig(dirty, Languages(TAGS), rows=True, config=str(clean), licence="MIT")
    made = stage(config, tmp_path / "out")
    found = rows_of(made.path)
    assert set(found[0]) == {"text", "lang", "licence", "source"}
    by_language = Counter(row["lang"] for row in found)
    facts = funnel(made.path)
    for tag, one in facts["languages"].items():
        assert one["in"]["rows"] == sum(d["rows"] for d in one["dropped"].values()) + one["kept"]["rows"]
        assert one["in"]["bytes"] == sum(d["bytes"] for d in one["dropped"].values()) + one["kept"]["bytes"]
        assert one["out"]["rows"] == by_language[tag] == made.record["passages"][tag] == one["kept"]["rows"]
        assert one["out"]["bytes"] == sum(len(row["text"].encode()) for row in found if row["lang"] == tag)
        dropped = {reason: d["rows"] for reason, d in one["dropped"].items()}
        assert dropped["empty"] == dropped["length"] == dropped["exact"] == 1
        # The one beside the joined pair, and the joined pair with a word more.
        assert dropped["near"] >= 1, (tag, dropped)
        assert set(one["samples"]) == {"kept", *dropped}
        kept = {row["text"] for row in found if row["lang"] == tag}
        assert set(KEPT[tag][:3]) <= kept
    assert facts["languages"]["ko"]["dropped"]["language"]["rows"] == 1
    assert facts["languages"]["ar"]["dropped"]["language"]["rows"] == 1
    assert facts["other_languages"] == {"de": 2}
    assert {name: source["records"] for name, source in facts["sources"].items()} == {
        dirty[0]: 4 * 26 + 3,
        dirty[1]: 3,
        dirty[2]: 14,
    }
    assert facts["languages"]["ko"]["masked"] == {"email": 1, "phone": 1}
    mail = next(row for row in found if row["text"].startswith("안녕하세요. 궁금"))
    assert "<EMAIL>" in mail["text"] and "<PHONE>" in mail["text"] and mail["licence"] == "MIT"
    assert {row["licence"] for row in found} == {"CC0-1.0", "MIT"} and made.record[
        "licence"
    ] == "CC0-1.0, MIT"
    # The folder is a source for every other command.
    again = text.load(str(made.path))
    assert not again.parallel and set(again.languages) == set(TAGS)
    assert len(again.passages("th")) == by_language["th"]


def test_evaluation_text_is_found_and_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe = {tag: list(PROBE.passages(tag).values()) for tag in TAGS}
    other = list(text.load("starter").passages("ko").values())
    source = write(
        tmp_path / "a.jsonl",
        [{"text": f"{other[i]} {probe['ko'][i]}", "lang": "ko"} for i in range(3)]
        + [{"text": doc, "lang": "ko"} for doc in other[4:]]
        + [{"text": probe["th"][0], "lang": "th"}],
    )
    made = stage(TextConfig([source], Languages("ko,th"), rows=True), tmp_path / "out")
    found = funnel(made.path)
    assert found["languages"]["ko"]["dropped"]["contaminated"]["rows"] == 3
    assert found["evaluation"]["found"] == {
        "probe ko 1": 1,
        "probe ko 2": 1,
        "probe ko 3": 1,
        "probe th 1": 1,
    }
    assert found["evaluation"]["items"] == 80 and found["evaluation"]["too_short"]["capitals"] > 0
    assert found["languages"]["th"]["out"]["rows"] == 0
    kept = tmp_path / "clean.yaml"
    kept.write_text("contaminated: keep")
    assert (
        cli.main(
            [
                "text",
                source,
                "--languages",
                "ko,th",
                "--rows",
                "--config",
                str(kept),
                "--out",
                str(tmp_path / "kept"),
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "3 rows in Korean hold text of an evaluation set." in out
    one = funnel(tmp_path / "kept")["languages"]["ko"]
    assert one["contaminated"]["rows"] == 3 and "contaminated" not in one["dropped"]


def test_an_exam_of_ones_own(tmp_path: Path) -> None:
    exam = write(tmp_path / "exam.jsonl", [{"text": KEPT["ar"][0], "lang": "ar"}])
    clean = tmp_path / "clean.yaml"
    clean.write_text(f"against: [{exam}]")
    source = write(tmp_path / "a.jsonl", [{"text": doc, "lang": "ar"} for doc in KEPT["ar"]])
    made = stage(TextConfig([source], Languages("ar"), rows=True, config=str(clean)), tmp_path / "out")
    assert funnel(made.path)["evaluation"]["found"] == {f"{exam} ar 1": 1}


def test_boilerplate(tmp_path: Path) -> None:
    clean = tmp_path / "clean.yaml"
    clean.write_text(FREE)
    line = {"en": "Accept all cookies", "ko": "모든 쿠키를 허용합니다", "th": "ยอมรับคุกกี้ทั้งหมด"}
    records = [{"text": f"{line[tag]}\n{doc}\n{line[tag]}", "lang": tag} for tag in line for doc in KEPT[tag]]
    source = write(tmp_path / "a.jsonl", records)
    made = stage(TextConfig([source], Languages(list(line)), rows=True, config=str(clean)), tmp_path / "out")
    found = rows_of(made.path)
    assert len(found) == 60 and not any(line[row["lang"]] in row["text"] for row in found)
    assert funnel(made.path)["languages"]["th"]["boilerplate"]["rows"] == 20


def test_the_mix_repeats_and_leaves_out(tmp_path: Path) -> None:
    clean = tmp_path / "clean.yaml"
    clean.write_text(FREE + "shares: {en: 1, ko: 3, th: 1}\nepochs: 2.5\n")
    source = write(
        tmp_path / "a.jsonl", [{"text": doc, "lang": tag} for tag in ("en", "ko", "th") for doc in KEPT[tag]]
    )
    made = stage(TextConfig([source], Languages("en,ko,th"), rows=True, config=str(clean)), tmp_path / "out")
    found = funnel(made.path)["languages"]
    counts = Counter(Counter(row["text"] for row in rows_of(made.path) if row["lang"] == "ko").values())
    assert set(counts) <= {1, 2} and counts[2] > 10  # 1.8 times
    assert found["ko"]["mix"]["epochs"] == pytest.approx(1.8, abs=0.01)
    assert found["en"]["left_out"]["rows"] > 0
    for one in found.values():
        assert one["out"]["rows"] == one["kept"]["rows"] - one["left_out"]["rows"] + one["repeated"]["rows"]
    assert "Korean repeats: each of its rows is there 1.80 times." in (made.path / "funnel.md").read_text(
        "utf-8"
    )


# ── bad input ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def broken(tmp_path: Path) -> str:
    """A file of six good lines, an empty file and five bad records."""
    folder = tmp_path / "broken"
    folder.mkdir()
    good = [
        json.dumps({"text": KEPT[tag][i], "lang": tag}, ensure_ascii=False).encode()
        for tag in TAGS[:3]
        for i in (0, 1)
    ]
    bad = [b'{"lang": "ko"}', '{"text": "깨'.encode() + b'\xff"}', b'{"text": "x", "lang": "nobody"}', b"{"]
    (folder / "a.jsonl").write_bytes(b"\n".join([*good[:3], *bad, *good[3:]]) + b"\n")
    (folder / "b.jsonl").write_bytes(b"")
    (folder / "c.parquet").write_bytes(b"not parquet")
    return str(folder)


def test_bad_input_is_left_out_and_listed(
    broken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean = tmp_path / "clean.yaml"
    clean.write_text(FREE)
    words = [
        "text",
        broken,
        "--languages",
        "en,ko,th",
        "--rows",
        "--config",
        str(clean),
        "--out",
        str(tmp_path / "out"),
    ]
    assert cli.main(words) == 1
    assert "c.parquet: cannot be read (" in capsys.readouterr().err
    assert cli.main([*words, "--bad", "skip"]) == 0
    assert "5 records were bad input and left out; bad.jsonl names each." in capsys.readouterr().out
    listed = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text("utf-8").splitlines()]
    assert [Path(bad["place"]).name for bad in listed] == [
        "c.parquet",
        *(f"a.jsonl, line {n}" for n in (4, 5, 6, 7)),
    ]
    assert funnel(tmp_path / "out")["sources"] == {broken: {"records": 11, "bad": 5, "rows": 6}}
    assert len(rows_of(tmp_path / "out")) == 6


def test_the_first_bad_line_stops(broken: str, tmp_path: Path) -> None:
    (Path(broken) / "c.parquet").unlink()
    with pytest.raises(OnggiError) as error:
        stage(TextConfig([broken], Languages("en,ko,th"), rows=True), tmp_path / "out")
    assert (
        str(error.value) == f'{broken}/a.jsonl, line 4: has no "text". --bad skip leaves it out, and says so.'
    )


def test_nothing_left(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{"text": doc, "lang": "th"} for doc in KEPT["th"]])
    with pytest.raises(OnggiError, match=r"a\.jsonl: no row is left in ko"):
        stage(TextConfig([source], Languages("ko"), rows=True), tmp_path / "out")


def test_a_full_disk(tmp_path: Path) -> None:
    """A limit on the size of files is what a full disk looks like to a program."""
    source = write(tmp_path / "a.jsonl", [{"text": doc, "lang": tag} for tag in TAGS for doc in KEPT[tag]])
    out = tmp_path / "out"
    words = [
        sys.executable,
        "-m",
        "onggi",
        "text",
        source,
        "--languages",
        ",".join(TAGS),
        "--rows",
        "--out",
        str(out),
    ]
    clean = tmp_path / "clean.yaml"
    clean.write_text(FREE)
    words += ["--config", str(clean)]

    def small() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))

    done = subprocess.run(words, capture_output=True, text=True, preexec_fn=small)
    assert done.returncode == 1 and "could not be written (" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (out / "stage.json").exists()
    assert cli.main(words[3:]) == 0
    assert len(rows_of(out)) == 80


# ── pieces ─────────────────────────────────────────────────────────────────────────────────────


def outputs(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in folder.iterdir()
        if path.is_file() and path.name != "stage.json"
    }


def test_the_same_however_it_is_cut_and_by_however_many(
    dirty: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clean = tmp_path / "clean.yaml"
    clean.write_text(FREE + "temperature: 2\nkorean: characters\n")

    def make(name: str, workers: int) -> dict[str, bytes]:
        config = TextConfig(dirty, Languages(TAGS), rows=True, config=str(clean), workers=workers)
        return outputs(stage(config, tmp_path / name).path)

    whole = make("one", 1)
    assert make("two", 2) == whole
    monkeypatch.setattr(rows, "PIECE", 2000)
    monkeypatch.setattr(jobs, "SHARD", 10_000)
    cut = make("cut", 1)
    assert len(cut) > len(whole) > 2
    monkeypatch.undo()

    def texts(name: str) -> list[tuple[Any, ...]]:
        return sorted(tuple(row.values()) for row in rows_of(tmp_path / name))

    assert texts("cut") == texts("one")
    assert json.loads(cut["funnel.json"]) == json.loads(whole["funnel.json"])


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """With two processes at work: nothing of them is left, and the rows are those of an undisturbed run."""
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(8):
        write(
            folder / f"{i}.jsonl", [{"text": f"{doc} {i}", "lang": tag} for tag in TAGS for doc in KEPT[tag]]
        )
    clean = tmp_path / "clean.yaml"
    clean.write_text(FREE + "near: false\n")
    whole = stage(
        TextConfig([str(folder)], Languages(TAGS), rows=True, config=str(clean), workers=1),
        tmp_path / "whole",
    )
    out = tmp_path / "killed"
    words = [sys.executable, "-m", "onggi", "text", str(folder), "--languages", ",".join(TAGS), "--rows"]
    words += ["--config", str(clean), "--workers", "2", "--out", str(out)]
    generator = random.Random(0)
    kept = []
    for phase in ("read", "sift"):
        process = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        done = out / ".partial" / phase
        while process.poll() is None and len(list(done.glob("*.json"))) < 2:
            time.sleep(0.002)
        time.sleep(generator.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if not (out / "stage.json").exists():
            kept.append(len(list(done.glob("*.json"))))
        deadline = time.monotonic() + 20
        while _group(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not _group(process.pid), "workers outlive the process that started them"
    assert kept, "every kill came after the end"
    assert cli.main(words[3:]) == 0
    assert outputs(out) == outputs(whole.path)


def test_a_stop_does_not_wait_for_the_pieces_in_work(tmp_path: Path) -> None:
    for name in "ab":
        write(
            tmp_path / f"{name}.jsonl",
            [{"text": f"{doc} {i}", "lang": "th"} for i in range(5000) for doc in KEPT["th"]],
        )
    out = tmp_path / "out"
    words = [sys.executable, "-m", "onggi", "text", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    words += ["--languages", "th", "--rows", "--workers", "2", "--out", str(out)]
    # A process that shells started in the background hands on that interrupts are ignored.
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        words, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heard
    )
    while process.poll() is None and len(list((out / ".partial" / "read").glob(".*.part"))) < 4:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.stderr and process.stderr.read().endswith("Stopped. The same command goes on from here.\n")
    assert process.wait() == 130
    assert not list((out / ".partial" / "read").glob("*.json"))  # neither piece was waited for
    deadline = time.monotonic() + 5  # the last of them may still be on its way out
    while _group(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _group(process.pid)


def _group(leader: int) -> list[str]:
    """Processes of the session that `leader` led."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(stat.parent.name)
    return found


# ── the command ────────────────────────────────────────────────────────────────────────────────


def test_a_rerun_does_nothing_and_another_cleaning_does(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{"text": doc, "lang": "th"} for doc in KEPT["th"]])
    clean = tmp_path / "clean.yaml"
    clean.write_text(FREE)
    config = TextConfig([source], Languages("th"), rows=True, config=str(clean))
    stage(config, tmp_path / "out")
    stamp = (tmp_path / "out" / "stage.json").stat().st_mtime_ns
    stage(TextConfig([source], Languages("th"), rows=True, config=str(clean), workers=2), tmp_path / "out")
    assert (tmp_path / "out" / "stage.json").stat().st_mtime_ns == stamp
    clean.write_text(FREE + "length: 400\n")
    made = stage(config, tmp_path / "out")
    assert made.record["passages"]["th"] < 20 and made.record["cleaning"]["length"] == 400


def test_in_a_recipe_and_on_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(
        "stages: {corpus: {verb: text, source: [probe, ko=x.txt], languages: [en, ko], rows: true, bad: skip}}"
    )
    config = recipe.config(recipe.load(file).steps[0], {})
    assert config == TextConfig(["probe", "ko=x.txt"], Languages("en,ko"), rows=True, bad="skip")
    out = tmp_path / "out"
    assert (
        cli.main(["text", "starter", "--languages", "en,km", "--rows", "--limit", "12", "--out", str(out)])
        == 0
    )
    said = capsys.readouterr().out
    assert "en" in said and "epochs" in said
    made = artifact(out)
    assert (
        made
        and made.record["command"] == f"onggi text starter --languages en,km --rows --limit 12 --out {out}"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"source": ["probe", "starter"]}, "source: several sources are mixed into rows; add --rows"),
        ({"bad": "skip"}, "bad: is of --rows"),
        ({"config": "clean.yaml"}, "config: is of --rows"),
        ({"rows": True, "limit": 0}, "limit: 0 is not a number of records."),
        ({"rows": True, "workers": 0}, "workers: 0 is not a number of processes."),
        ({"source": []}, "source: name at least one."),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], said: str) -> None:
    with pytest.raises(OnggiError, match=said):
        TextConfig(**{"source": ["probe"], "languages": Languages("en,ko,km"), **options})


def test_a_source_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    config = TextConfig(["someone/nothing"], Languages("en,ko"), rows=True)
    with pytest.raises(OnggiError, match="someone/nothing: the hub's data set cannot be had"):
        stage(config, tmp_path / "out")
    other = TextConfig(["someone/nothing"], Languages("en,ko"), rows=True, fallback="starter")
    made = stage(other, tmp_path / "out")
    assert made.record["text"] == "starter" and "someone/nothing" in made.record["unavailable"]

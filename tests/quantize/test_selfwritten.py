"""Text that the model writes to be calibrated on: what is kept, what is not, a run that is stopped."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from onggi import ledger
from onggi.engines.protocol import Answer, Prompt, Sampling
from onggi.errors import OnggiError
from onggi.languages import Languages
from onggi.quantize import balance, selfwritten
from onggi.stages import QuantizeConfig, quantize, quantize_text
from onggi.stages.base import Names

SAID = {
    "ko": " 마을 사람들은 해마다 가을이 되면 모여서 함께 김치를 담그고 이웃과 나누어 먹습니다.",
    "en": " the whole village comes together every autumn to prepare food for the winter.",
    "th": "ชาวบ้านจะมารวมตัวกันทุกปีเพื่อเตรียมอาหารสำหรับฤดูหนาวและแบ่งปันให้เพื่อนบ้าน",
    "ar": " يجتمع أهل القرية كل خريف لإعداد الطعام للشتاء وتقاسمه مع الجيران.",
}
STARTS = {
    "ko": ["우리 동네에서는", "옛날 어느"],
    "th": ["ที่หมู่บ้านของเรา", "กาลครั้งหนึ่ง"],
    "ar": ["في قريتنا", "منذ زمن"],
}


class Writer:
    """Goes on from a start as it is told, noting what it was asked; stops the run after `last` answers."""

    def __init__(self, says: dict[str, str], last: int = 10**6):
        self.says, self.left, self.seeds = says, last, []

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[tuple[int, Answer]]:
        assert sampling.temperature > 0 and len(sampling.seeds) == len(prompts)
        for number, prompt in enumerate(prompts):
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            self.seeds.append(sampling.seeds[number])
            language = next(tag for tag, own in STARTS.items() if prompt in own)
            said = f"{self.says[language]} {sampling.seeds[number]}"
            yield number, Answer(said, "length", 5, 20, 0.1)


def write(writer: Writer, file: Path, tokens: int = 300) -> dict[str, dict[str, str]]:
    return selfwritten.write(
        writer,
        STARTS,
        dict.fromkeys(STARTS, tokens),
        lambda text: len(text.encode()) // 2,
        file,
        0,
        lambda _: None,
    )


def test_as_much_as_was_asked_for_and_nothing_of_a_language_that_drifts(tmp_path: Path) -> None:
    found = write(Writer({**SAID, "th": SAID["en"]}), tmp_path / "rows.jsonl")
    assert not found["th"]
    for language in ("ko", "ar"):
        sizes = [len(text.encode()) // 2 for text in found[language].values()]
        assert sum(sizes) >= 300 > sum(sizes[:-1])
        assert all(text.startswith(tuple(STARTS[language])) for text in found[language].values())
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["left_out"] for row in rows if row["lang"] == "th"} == {"letters in Latn"}


def test_a_stopped_run_writes_only_what_is_missing(tmp_path: Path) -> None:
    whole, first, second = Writer(SAID), Writer(SAID, 5), Writer(SAID)
    expected = write(whole, tmp_path / "whole.jsonl")
    file = tmp_path / "rows.jsonl"
    with pytest.raises(KeyboardInterrupt):
        write(first, file)
    with file.open("ab") as out:
        out.write('{"_id": "ar-0-1", "text": "في'.encode()[:-1])  # killed within a line, and a letter
    assert write(second, file) == expected
    assert first.seeds + second.seeds == whole.seeds and len(set(whole.seeds)) == len(whole.seeds)


@pytest.mark.parametrize(
    ("text", "language", "why"),
    [
        (SAID["ko"], "ko", ""),
        (SAID["th"], "th", ""),
        (SAID["ar"], "ar", ""),
        (SAID["en"], "ko", "letters in Latn"),
        ("the 김치 김치 is made by the people of the village", "en", ""),
        ("좋아요 " * 30, "ko", "repeats itself"),
        ("안녕\ufffd하세요 여러분 반갑습니다", "ko", "broken characters"),
        (" 12, 34 ...", "th", "no words"),
        ("Die Leute im Dorf kommen jeden Herbst zusammen.", "en", "is in de"),
    ],
)
def test_what_is_kept(text: str, language: str, why: str) -> None:
    assert selfwritten.why_not(text, language) == why


def test_a_model_that_writes_noise_is_told_so(tiny: Path, tmp_path: Path) -> None:
    config = QuantizeConfig(str(tiny), text="self", languages=Languages("km,th"), tokens=200)
    with pytest.raises(OnggiError, match="wrote nothing that serves"):
        quantize(config, tmp_path / "w4")


def test_a_model_that_does_not_fit_in_memory_is_told_before_it_writes(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = QuantizeConfig(str(tiny), self_share=0.25, languages=Languages("en,ko,km"), tokens=200)
    monkeypatch.setattr("onggi.engines.transformers.memory_of", lambda _: 1 << 20)
    with pytest.raises(
        OnggiError, match=r"its own calibration text the model is whole in memory.* a layer at a time"
    ):
        quantize(config, tmp_path / "w4")


def test_less_than_was_asked_for_is_said(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One start in sixteen brings something: too few to ask again."""
    turn = itertools.count()
    monkeypatch.setattr(selfwritten, "why_not", lambda *_: "no words" if next(turn) % 16 else "")
    languages = Languages("en,ko,km")
    made = quantize(QuantizeConfig(str(tiny), text="self", languages=languages, tokens=9000), tmp_path / "w4")
    got = sum(ledger.read_json(made.path / "onggi.json")["calibration"]["tokens"].values())
    said = capsys.readouterr()
    assert got < 9000 and f"These are {got:,} of the 9,000 tokens asked for" in said.out + said.err


def test_a_language_without_starts_is_named_with_the_mend(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(
        "".join(
            json.dumps({"text": f"{word} {n}", "lang": tag}, ensure_ascii=False) + "\n"
            for tag, word in {"ko": "항아리", "en": "jar", "dz": "རྫོང"}.items()
            for n in range(20)
        ),
        encoding="utf-8",
    )
    config = QuantizeConfig(str(tiny), text=str(tmp_path / "rows.jsonl"), self_share=0.5, tokens=200)
    with pytest.raises(
        OnggiError, match=r"no starts in Dzongkha .* \(--languages\), or .* leave --self_share out"
    ):
        quantize(config, tmp_path / "w4")


def test_written_text_goes_beside_the_rest(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selfwritten, "why_not", lambda *_: "")
    options = {"text": "starter", "languages": Languages("en,ko,km"), "tokens": 600}
    made = quantize(QuantizeConfig(str(tiny), self_share=0.5, **options), tmp_path / "half")
    about = ledger.read_json(made.path / "onggi.json")["calibration"]
    assert about["text"] == "starter, 50% written by the model"
    assert list(about["tokens"].values()) == pytest.approx([200, 200, 200], abs=30)
    assert "calibration.jsonl" in made.record["outputs"]
    alone = quantize(QuantizeConfig(str(tiny), **options), tmp_path / "none")
    assert (made.path / "model-00001-of-00004.safetensors").read_bytes() != (
        alone.path / "model-00001-of-00004.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"fairness": "minimax"},
        {"budget": "4.3", "choices": Names("w4a16-g128,w8a16")},
        {"format": "gguf:Q8_0"},
        {"format": "imatrix"},
    ],
    ids=str,
)
def test_what_the_text_lacks_the_model_writes_alone(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    monkeypatch.setattr(selfwritten, "why_not", lambda *_: "")
    for name in ("WATCHED", "PARTS_WATCHED"):
        monkeypatch.setattr(quantize_text, name, 20)
    rows = [
        {"text": f"{word} {n}", "lang": tag}
        for tag, word in {"ko": "항아리에 김치를 담근다", "en": "a jar for pickles"}.items()
        for n in range(40)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    options = {"text": str(file), "languages": Languages("ko,th,ar,en"), "tokens": 800}
    with pytest.raises(OnggiError, match="no text in th, ar"):
        quantize(QuantizeConfig(str(tiny), **options), tmp_path / "lacking")
    made = quantize(QuantizeConfig(str(tiny), self_share=0.25, **more, **options), tmp_path / "made")
    about = ledger.read_json(
        made.path / ("imatrix.json" if more.get("format") == "imatrix" else "onggi.json")
    )
    own = about["calibration"]
    assert own["text"] == "rows.jsonl, 25% written by the model, all of Thai, Arabic written by the model"
    assert list(own["tokens"]) == ["ko", "th", "ar", "en"]
    assert list(own["tokens"].values()) == pytest.approx([200] * 4, abs=50)
    if more.get("format") == "imatrix":
        assert {f"imatrix-{tag}.gguf" for tag in own["tokens"]} <= set(made.record["outputs"])


def test_its_own_text_beside_a_pot_of_all(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selfwritten, "why_not", lambda *_: "")
    options = {"text": "starter", "languages": Languages("en,ko,km"), "tokens": 600}
    made = quantize(QuantizeConfig(str(tiny), self_share=0.5, fairness="none", **options), tmp_path / "pot")
    counts = ledger.read_json(made.path / "onggi.json")["calibration"]["tokens"]
    assert set(counts) == {"en", "ko", "km"} and sum(counts.values()) == pytest.approx(600, abs=30)


def test_of_its_own_text_some_is_held_out(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantize_text, "WATCHED", 100)
    # Of Thai one piece only: none is left when it is held out.
    monkeypatch.setattr(
        selfwritten, "why_not", lambda _, tag, __: "odd" if tag == "th" and next(seen) else ""
    )
    seen = itertools.count()
    drawn: list[balance.Calibration] = []
    plain = balance.draw
    monkeypatch.setattr(balance, "draw", lambda *a, **k: drawn.append(plain(*a, **k)) or drawn[-1])
    options = {"text": "self", "languages": Languages("ko,th,ar"), "tokens": 300}
    quantize(QuantizeConfig(str(tiny), fairness="minimax", **options), tmp_path / "w4")
    held, rest = drawn
    assert set(held.counts) == set(rest.counts) == {"ko", "ar"}
    assert all(count > 80 for one in drawn for count in one.counts.values())


def test_a_language_that_the_model_does_not_write_in_keeps_its_share() -> None:
    read = {tag: {str(i): f"{i} " * 40 for i in range(20)} for tag in ("ko", "th", "en")}
    found = balance.draw(
        read,
        lambda text: [len(word) for word in text.split()],
        0,
        600,
        balanced=True,
        beside={"ko": {"w": "w " * 400}},
        beside_share=0.25,
    )
    assert found.names == ("ko", "th", "en") and set(found.counts.values()) == {200}
    shares = [float(found.weights[found.owner == n][:, 1:].sum()) for n in range(3)]
    assert shares == pytest.approx([shares[0]] * 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"self_share": 1.5}, "self_share: 1.5"),
        ({"text": "self", "self_share": 0.5}, "there is no other text"),
        ({"text": "self", "share": "content"}, "share: content needs the same passages"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(OnggiError, match=words):
        QuantizeConfig(**{"model": "m", "text": "starter", **options})  # type: ignore[arg-type]

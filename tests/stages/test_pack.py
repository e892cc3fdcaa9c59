"""`onggi pack` on real text: what it writes is read back, checked, and gone on with after a kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from onggi import cli, text
from onggi.errors import OnggiError
from onggi.languages import Languages
from onggi.stages import PackConfig, TokenizerConfig, pack, tokenizer
from onggi.text import packing
from onggi.text.packing import Packed
from onggi.text.tokens import Tokens

LANGUAGES = Languages("ko,en,km")


@pytest.fixture(scope="module")
def packed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "독"
    return pack(PackConfig("starter", str(tiny), 128, LANGUAGES, shard=12_000), out).path


def test_every_document_is_there_once(packed: Path, tiny: Path) -> None:
    found, tokens = Packed(packed), Tokens(tiny)
    starter = text.load("starter", LANGUAGES)
    wanted = [(tag, passage) for tag in LANGUAGES for passage in starter.passages(tag).values()]
    back: dict[int, dict[int, list[int]]] = {}
    for number in range(len(found)):
        ids = found.batch(number).ids[0]
        for part in found.parts(number):
            assert found.languages[part["language"]] == wanted[part["row"]][0]
            back.setdefault(int(part["row"]), {})[int(part["part"])] = ids[
                part["start"] : part["stop"]
            ].tolist()
    assert sorted(back) == list(range(len(wanted)))
    for row, (_, passage) in enumerate(wanted):
        ids = [token for part in sorted(back[row]) for token in back[row][part][1:]]
        assert ids == [*tokens.encode(passage, special=False), 1]
    assert len(found.index["shards"]) > 1
    assert found.index["tokens"] == sum(len(ids) for parts in back.values() for ids in parts.values())


def test_a_batch_is_what_a_model_takes(packed: Path) -> None:
    found = Packed(packed)
    batch = found.batch(2, 5)
    assert (
        batch.ids.shape == batch.positions.shape == batch.predicted.shape == batch.languages.shape == (5, 128)
    )
    for row in range(5):
        stop = 0
        for part in found.parts(2 + row):
            start, stop = int(part["start"]), int(part["stop"])
            assert batch.ids[row, start] == 0 and not batch.predicted[row, start]
            assert batch.positions[row, start:stop].tolist() == list(range(stop - start))
            assert batch.predicted[row, start + 1 : stop].all()
            assert (batch.languages[row, start:stop] == part["language"]).all()
        assert not batch.predicted[row, stop:].any() and (batch.ids[row, stop:] == 1).all()


def test_a_model_sees_no_other_document(packed: Path, tiny: Path) -> None:
    """In a sequence a document's logits are those it has alone."""
    found = Packed(packed)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    number = next(number for number in range(len(found)) if len(found.parts(number)) > 2)
    batch, parts = found.batch(number), found.parts(number)
    with torch.no_grad():
        together = model(
            torch.from_numpy(batch.ids), position_ids=torch.from_numpy(batch.positions), use_cache=False
        ).logits[0]
        for part in parts:
            alone = model(
                torch.from_numpy(batch.ids[:, part["start"] : part["stop"]]), use_cache=False
            ).logits[0]
            assert torch.allclose(together[part["start"] : part["stop"]], alone, atol=1e-3)
        mixed = model(torch.from_numpy(batch.ids), use_cache=False).logits[0]
        assert not torch.allclose(mixed[parts[1]["start"] :], together[parts[1]["start"] :], atol=1e-3)


def test_reading_goes_on_from_anywhere(packed: Path) -> None:
    found = Packed(packed)
    whole = np.concatenate([batch.ids for batch in found.batches(4)])
    assert whole.shape == (len(found), 128)
    for start in (0, 1, 5, len(found) - 1, len(found)):
        later = [batch.ids for batch in Packed(packed).batches(3, start)]
        assert (np.concatenate(later) == whole[start:]).all() if later else start == len(found)
    for start, count in ((len(found), 1), (-1, 1), (0, len(found) + 1)):
        with pytest.raises(IndexError):
            found.batch(start, count)


def test_the_record_says_what_is_in_it(packed: Path) -> None:
    record = json.loads((packed / "stage.json").read_text())
    index = json.loads((packed / "index.json").read_text())
    assert {tag: facts["documents"] for tag, facts in record["languages"].items()} == {
        "ko": 14,
        "en": 102,
        "km": 13,
    }
    assert index["dtype"] == "uint16" and index["licence"] == "Apache-2.0" and index["length"] == 128
    assert sum(shard["tokens"] for shard in index["shards"]) == index["tokens"] == record["tokens"]
    assert {entry[name] for entry in index["shards"] for name in ("tokens_file", "parts_file")} < set(
        record["outputs"]
    )
    assert 0 < min(shard["fill"] for shard in index["shards"]) <= record["fill"] <= 1


def test_killed_and_gone_on_with(
    packed: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PackConfig("starter", str(tiny), 128, LANGUAGES, shard=12_000)
    pack_shard, calls = packing.pack, []

    def killed(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return pack_shard(*arguments)

    monkeypatch.setattr(packing, "pack", killed)
    with pytest.raises(KeyboardInterrupt):
        pack(config, tmp_path / "x")
    made = pack(config, tmp_path / "x")
    assert len(calls) == len(Packed(packed).index["shards"]) + 1
    assert made.record["outputs"] == json.loads((packed / "stage.json").read_text())["outputs"]
    assert pack(config, tmp_path / "x").record == made.record


def test_another_tokenizer_is_refused(packed: Path, tiny: Path, tmp_path: Path) -> None:
    found = Packed(packed)
    found.check(tiny)
    AutoTokenizer.from_pretrained(tiny).save_pretrained(tmp_path / "again")  # other bytes, the same tokenizer
    found.check(tmp_path / "again")
    other = tokenizer(TokenizerConfig("starter", 400, LANGUAGES, parity=9.0), tmp_path / "other")
    with pytest.raises(OnggiError, match=r"was packed with the tokenizer of .* and .*other has another"):
        found.check(other.path)


def test_a_damaged_shard_is_named(packed: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(packed, tmp_path / "ខូច")
    file = copy / "shard-00000.tokens.npy"
    content = bytearray(file.read_bytes())
    content[-3] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(OnggiError, match=r"shard-00000.tokens.npy: is damaged"):
        Packed(copy).batch(0)
    file.write_bytes(content[:-3])
    with pytest.raises(OnggiError, match="is no packed text"):
        Packed(copy)


def test_what_is_no_packed_text(tiny: Path) -> None:
    with pytest.raises(OnggiError, match="is no packed text"):
        Packed(tiny)


def test_a_tokenizer_alone_will_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tokenizer(TokenizerConfig("starter", 2000, LANGUAGES, parity=9.0), tmp_path / "t")
    words = ["pack", "starter", "--tokenizer", str(made.path), "--length", "64", "--languages", "ko,km"]
    assert cli.main([*words, "--out", str(tmp_path / "x")]) == 0
    assert "Khmer (km)" in capsys.readouterr().out
    found = Packed(tmp_path / "x")
    assert found.index["tokenizer"] | {"source": None, "fingerprint": None} == {
        **{"source": None, "fingerprint": None, "vocabulary": 2000, "start": 0, "end": 1, "pad": 2}
    }
    found.check(made.path)


def test_too_little_to_fill_is_said(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "글.jsonl"
    file.write_text(
        '{"text": "안녕하세요", "lang": "ko"}\n{"text": "שלום", "lang": "he"}\n', encoding="utf-8"
    )
    made = pack(PackConfig(str(file), str(tiny), 512), tmp_path / "x")
    assert made.record["sequences"] == 1 and made.record["fill"] < 0.2
    assert "The sequences are filled to" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [({"text": "probe"}, "text: the probe"), ({"length": 4}, "length: 4"), ({"shard": 0}, "shard: 0")],
)
def test_what_cannot_work_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OnggiError, match=message):
        PackConfig(**{"text": "starter", "tokenizer": "model", **options})

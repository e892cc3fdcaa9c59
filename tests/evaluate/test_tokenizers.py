"""The price of a language: counted by hand, for every kind of tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from conftest import save_fallback_tokenizer
from onggi import text
from onggi.errors import OnggiError
from onggi.evaluate import entries, tokenizers
from onggi.models import references
from onggi.text.tokens import Tokens

PASSAGES = {
    "en": ["The bus is late.", "It rains, so bring an umbrella 🌧."],
    "ko": ["버스가 늦는다.", "비가 오니 우산을 가져오세요 🌧."],
    "th": ["รถเมล์มาช้า", "ฝนตก เอาร่มมาด้วย 👩🏽‍💻"],
    "ar": ["الحافلة متأخرة", "السَّمَاءُ تُمطر e\u0301 \ufffd"],
}


def whole(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def byte_level(token: str) -> bool:
    """GPT-2's table: bytes that print stand for themselves, the others for characters from U+0100 on."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printing]
    table = {chr(byte): byte for byte in printing} | {chr(256 + i): byte for i, byte in enumerate(others)}
    return not whole(bytes(table[character] for character in token))


def sentencepiece(token: str) -> bool:
    return token.startswith("<0x") and int(token[3:5], 16) > 0x7F


def check_shares(
    tokens: Tokens, passages: Mapping[str, Sequence[str]], part: Callable[[str], bool]
) -> dict[str, float]:
    """Every share as the pieces themselves say it; returns them."""
    found = tokenizers.price(tokens, passages, parallel=True)
    for language, texts in passages.items():
        pieces = [tokens.tokenizer.id_to_token(i) for one in texts for i in tokens.encode(one)]
        expected = sum(map(part, pieces)) / len(pieces)
        assert found[language]["byte_fallback"]["value"] == pytest.approx(expected)
        assert found[language]["byte_fallback"]["tokens"] == len(pieces)
    return {language: entry["byte_fallback"]["value"] for language, entry in found.items()}


def test_parts_of_characters_in_bytes(tiny: Path) -> None:
    shares = check_shares(Tokens(tiny), PASSAGES, byte_level)
    assert 0 < shares["en"] < shares["th"] < 1


def test_parts_of_characters_as_fallback(tmp_path: Path) -> None:
    shares = check_shares(Tokens(save_fallback_tokenizer(tmp_path)), PASSAGES, sentencepiece)
    assert 0 < shares["en"] < shares["ko"] < shares["th"] < 1


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
def test_what_cannot_be_said(kind: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<unk>", "<s>", "bus", "late", "버스", "รถ", "."]
    model = (
        models.Unigram([(word, -1.0) for word in words], 0, False)
        if kind == "unigram"
        else models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>"}))
    passages = {"en": ["bus late ."], "ko": ["버스 늦다 ."], "th": ["รถ ช้า มาก ."]}
    found = tokenizers.price(Tokens(tmp_path), passages, parallel=True)
    shares = {language: entry["unknown"]["value"] for language, entry in found.items()}
    assert shares == pytest.approx({"en": 0, "ko": 1 / 3, "th": 1 / 2})
    assert {entry["byte_fallback"]["value"] for entry in found.values()} == {0.0}


def test_tokens_bytes_and_parity_by_hand(tiny: Path) -> None:
    tokens = Tokens(tiny)
    found = tokenizers.price(tokens, PASSAGES, parallel=True)
    english = [len(tokens.encode(one)) for one in PASSAGES["en"]]
    for language, texts in PASSAGES.items():
        counts = [len(tokens.encode(one)) for one in texts]
        entry = found[language]
        assert entry["tokens_per_passage"]["value"] == sum(counts) / 2
        assert entry["bytes_per_token"]["value"] == sum(len(one.encode()) for one in texts) / sum(counts)
        for numbers in entry.values():
            assert numbers["low"] <= numbers["value"] <= numbers["high"]
            assert numbers["n"] == 2 and numbers["tokens"] == sum(counts)
        if language != "en":
            # As the evaluation of a model says it.
            assert entry["parity"] == entries.parity(counts, english)
            assert entry["parity"]["value"] == sum(counts) / sum(english)
    assert "parity" not in found["en"]


def test_no_parity_without_the_same_passages_in_english(tiny: Path) -> None:
    other = {language: texts for language, texts in PASSAGES.items() if language != "en"}
    for passages, parallel in ((PASSAGES, False), (other, True)):
        found = tokenizers.price(Tokens(tiny), passages, parallel)
        assert list(found) == list(passages)
        assert not any("parity" in entry for entry in found.values())


def test_one_passage_has_no_interval_and_none_without_tokens(tiny: Path) -> None:
    tokens = Tokens(tiny)
    found = tokenizers.price(tokens, {"km": ["រថយន្តក្រុងយឺត។"], "ko": ["늦다"], "en": ["late"]}, parallel=True)
    assert found["km"]["parity"]["value"] > 1 and found["km"]["parity"]["low"] is None
    with pytest.raises(OnggiError, match="km: passage 2 has no tokens"):
        tokenizers.price(
            tokens, {"km": ["យឺត", ""], "ko": ["늦다", "비"], "he": ["אוטובוס", "גשם"]}, parallel=False
        )


@pytest.mark.long
@pytest.mark.real
def test_what_real_tokenizers_charge() -> None:
    found = text.load("probe")
    passages = {tag: list(own.values()) for tag, own in found.common(found.languages).items()}
    gemma = Tokens(references.resolve("package:gemma3-270m"))
    smol = Tokens(references.resolve("package:smollm2-135m"))
    check_shares(gemma, passages, sentencepiece)
    shares = check_shares(smol, passages, byte_level)
    assert shares["en"] == 0 and shares["ko"] > 0.9 and shares["km"] > 0.9
    parity = {tag: entry.get("parity") for tag, entry in tokenizers.price(smol, passages, True).items()}
    assert parity["km"] and parity["km"]["low"] > 8

"""Every sequence begins with the one token that stood before a document in training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import save_fallback_tokenizer
from onggi.errors import OnggiError
from onggi.text.tokens import Stream, Tokens

TEXTS = ["The bus is late.", "버스가 늦는다.", "រថយន្តក្រុងយឺត។", "الحافلة متأخرة 🌧"]


@pytest.fixture
def changed(tiny: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the tiny model's tokenizer, one of its files changed."""

    def changed(file: str, change: Callable[[dict[str, Any]], Any]) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("*.safetensors"))
        content = json.loads((folder / file).read_text(encoding="utf-8"))
        content = change(content) or content
        (folder / file).write_text(json.dumps(content), encoding="utf-8")
        return folder

    return changed


@pytest.mark.parametrize("model", ["tiny", "tiny_gemma"])
def test_content_alone_and_the_start_token_apart(model: str, request: pytest.FixtureRequest) -> None:
    from transformers import AutoTokenizer

    folder = request.getfixturevalue(model)
    tokens, wrapped = Tokens(folder), AutoTokenizer.from_pretrained(folder)
    assert tokens.prefix == wrapped.bos_token_id == 0
    for text in TEXTS:
        ids = tokens.encode(text)
        assert tokens.prefix not in ids
        assert tokens.tokenizer.decode(ids) == text
        assert wrapped(text).input_ids == [tokens.prefix, *ids]
    assert tokens.encode("") == []


def no_start(content: dict[str, Any]) -> None:
    """The tokenizer no longer sets the start token it has."""
    content["post_processor"] = None


def test_a_start_token_that_is_not_set(changed: Callable[..., Path]) -> None:
    assert Tokens(changed("tokenizer.json", no_start)).prefix == 0


def test_end_of_text_stands_in_where_it_is_there(changed: Callable[..., Path]) -> None:
    def rename(content: dict[str, Any]) -> dict[str, Any]:
        no_start(content)
        whole = json.dumps(content).replace("</s>", "<|endoftext|>")
        made: dict[str, Any] = json.loads(whole)
        return made

    folder = changed("tokenizer.json", rename)
    file = folder / "tokenizer_config.json"
    file.write_text(file.read_text().replace("</s>", "<|endoftext|>"))
    assert Tokens(folder).prefix == 1


def test_the_end_token_where_there_is_no_start_token(changed: Callable[..., Path]) -> None:
    assert (
        Tokens(changed("tokenizer_config.json", lambda content: content.pop("bos_token") and None)).prefix
        == 1
    )


def test_neither(changed: Callable[..., Path]) -> None:
    def drop(content: dict[str, Any]) -> None:
        del content["bos_token"], content["eos_token"]

    with pytest.raises(OnggiError, match="neither a start nor an end token"):
        Tokens(changed("tokenizer_config.json", drop))


@pytest.mark.parametrize("harm", ["half", "empty object", "absent", "all absent"])
def test_a_tokenizer_that_does_not_load(tiny: Path, tmp_path: Path, harm: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    file = folder / "tokenizer.json"
    if harm == "half":
        file.write_text(file.read_text()[:500])
    elif harm == "empty object":
        file.write_text("{}")
    else:
        file.unlink()
    if harm == "all absent":
        (folder / "tokenizer_config.json").unlink()
    with pytest.raises(OnggiError) as error:
        Tokens(folder)
    assert str(error.value).startswith(f"{folder}: no tokenizer that loads (")
    assert "\n" not in str(error.value)


ODD = [*TEXTS, "ที่นี่ฝนตก", "👩🏽‍💻 e\u0301 ក្រុង", "한국어와 العَرَبِيَّة", "𒍅가🧿𒍅"]


@pytest.mark.parametrize("kind", ["bytes", "fallback"])
def test_a_stream_gives_whole_characters(kind: str, tiny: Path, tmp_path: Path) -> None:
    tokens = Tokens(tiny) if kind == "bytes" else Tokens(save_fallback_tokenizer(tmp_path))
    for text in ODD:
        ids = tokens.encode(text)
        assert len(ids) > 4
        stream = Stream(tokens)
        pieces = [stream.push(token) for token in ids]
        assert "".join(pieces) == text == tokens.tokenizer.decode(ids)
        assert stream.end() == ""
        assert ("" in pieces) != text.isascii()  # something was held back


@pytest.mark.parametrize("kind", ["bytes", "fallback"])
def test_a_stream_cut_within_a_character(kind: str, tiny: Path, tmp_path: Path) -> None:
    tokens = Tokens(tiny) if kind == "bytes" else Tokens(save_fallback_tokenizer(tmp_path))
    ids = [*tokens.encode("가 b"), *tokens.encode("𒍅")[:-1]]
    stream = Stream(tokens)
    assert "".join(stream.push(token) for token in ids) == "가 b"
    assert set(stream.end()) == {"\ufffd"}


def test_special_tokens_do_not_show_and_need_not_count(tiny: Path) -> None:
    tokens = Tokens(tiny)
    assert tokens.starts
    stream = Stream(tokens)
    assert "".join(stream.push(token) for token in [0, *tokens.encode("늦다 รถ bus"), 1]) == "늦다 รถ bus"
    for text in ("a</s>", "늦다</s>", "</s> รถ"):
        plain = tokens.encode(text, special=False)
        assert 1 in tokens.encode(text) and 1 not in plain
        assert tokens.tokenizer.decode(plain) == text
        assert 1 in tokens.encode(text)  # as before

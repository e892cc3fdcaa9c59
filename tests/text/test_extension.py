"""New tokens for a language: old ids stay, other languages are cut as before, every text comes back."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, trainers

from onggi import text
from onggi.errors import OnggiError
from onggi.text import extension, vocabulary

PROBE = text.load("probe")
ODD = ["", "  x ", "😀👨‍👩‍👧", "ab 12 ▁", "한국어 ภาษาไทย ខ្មែរ 한\u1112\u1161", "\n\n\tעברית"]


def passages(*languages: str) -> dict[str, dict[str, str]]:
    return {tag: PROBE.passages(tag) for tag in languages}


def trained(*languages: str, kind: str = "bpe", size: int = 900) -> Tokenizer:
    found = passages(*languages)
    texts = vocabulary.drawn(found, dict.fromkeys(found, 1.0), 60_000, 0)
    return vocabulary.train(texts, size, kind, "qwen35")


def sentencepiece(*languages: str) -> Tokenizer:
    """BPE on letters with bytes to fall back on and nothing that cuts before the merges, as Gemma has it."""
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    rows = [
        row.replace(" ", " \n").split("\n")
        for texts in passages(*languages).values()
        for row in texts.values()
    ]
    learner.train_from_iterator(
        (word for row in rows for word in row), trainers.BpeTrainer(vocab_size=500, show_progress=False)
    )
    learned = json.loads(learner.to_str())["model"]
    tokens = ["<unk>", *(f"<0x{value:02X}>" for value in range(256)), *learned["vocab"]]
    made = Tokenizer(
        models.BPE(
            {token: index for index, token in enumerate(tokens)},
            [tuple(merge) for merge in learned["merges"]],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    made.normalizer = learner.normalizer
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens(["<bos>"])  # behind the vocabulary, as in Llama 3
    return made


def ids(tokenizer: Tokenizer, content: str) -> list[int]:
    return list(tokenizer.encode(content, add_special_tokens=False).ids)


def total(tokenizer: Tokenizer, texts: Mapping[str, str]) -> int:
    return sum(len(ids(tokenizer, content)) for content in texts.values())


KINDS = {
    "bpe": lambda: trained("en", "ja", "ar"),
    "sentencepiece": lambda: sentencepiece("en", "ja", "ar"),
    "unigram": lambda: trained("en", "ja", "ar", kind="unigram", size=2600),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("language", ["ko", "km", "th"])
def test_new_tokens_for_a_language(kind: str, language: str) -> None:
    old = KINDS[kind]()
    new = PROBE.passages(language)
    made = extension.extend(old, {language: new.values()}, 150)
    before, after = old.get_vocab(), made.tokenizer.get_vocab()
    assert made.first == max(before.values()) + 1
    assert before.items() <= after.items()
    added = {index: piece for piece, index in after.items() if index >= made.first}
    assert sorted(added) == list(range(made.first, made.first + len(made.made_of)))
    assert len(added) == 150
    assert total(made.tokenizer, new) < 0.8 * total(old, new)
    # Other scripts are cut as ever, and every text comes back.
    for other in ("en", "ar", "ru", "hi"):
        assert extension.changed(old, made.tokenizer, PROBE.passages(other).values()) == 0, other
    for content in [*new.values(), *PROBE.passages("en").values()]:
        assert made.tokenizer.decode(ids(made.tokenizer, content)) == content
    for content in ODD:
        back = made.tokenizer.decode(ids(made.tokenizer, content))
        assert back == content or (kind == "sentencepiece" and "▁" in content)
    # What a token stands for are the old tokens of its text.
    names = {index: piece for piece, index in before.items()}
    for index, pieces in enumerate(made.made_of, made.first):
        assert all(piece < made.first for piece in pieces)
        if kind != "unigram" and not any(names[piece].startswith("<0x") for piece in pieces):
            assert "".join(names[piece] for piece in pieces) == added[index]
    again = extension.extend(old, {language: new.values()}, 150)
    if kind != "unigram":
        assert again.tokenizer.to_str() == made.tokenizer.to_str()


def test_the_merges_are_those_of_the_rule() -> None:
    """By hand: the most frequent pair first, ties by the lower ids, and no digit or other script."""
    old = vocabulary.train(["x"], 262, "bpe", "qwen35")
    old = Tokenizer.from_str(old.to_str())
    rows = ["가가", "가가", "가나", "a1", "a1", "a1", "ab", "ab", "ab"]
    made = extension.extend(old, {"ko": rows}, 9)
    names = [
        piece
        for piece, index in sorted(made.tokenizer.get_vocab().items(), key=lambda item: item[1])
        if index >= made.first
    ]
    spelt = [vocabulary.spelt(old, piece) for piece in names]
    # 가 is EA B0 80: its bytes come 5 times; 나, once, gives nothing.
    assert spelt[1:] == ["가", "가가"] and spelt[0] == "\ufffd"
    assert [len(pieces) for pieces in made.made_of] == [2, 3, 6]
    assert ids(made.tokenizer, "가가가") == [made.first + 2, made.first + 1]
    assert ids(made.tokenizer, "a1ab 나") == ids(old, "a1ab 나")


def test_a_language_in_the_same_script_is_measured() -> None:
    old = trained("en", "ko", "el")
    made = extension.extend(old, {"de": PROBE.passages("de").values()}, 200)
    assert 0 < extension.changed(old, made.tokenizer, PROBE.passages("en").values()) < 0.5
    assert extension.changed(old, made.tokenizer, PROBE.passages("ko").values()) == 0


def test_two_languages_at_once() -> None:
    old = trained("en", "ru", "ja")
    made = extension.extend(old, {tag: PROBE.passages(tag).values() for tag in ("ko", "th")}, 200)
    for tag in ("ko", "th"):
        assert total(made.tokenizer, PROBE.passages(tag)) < total(old, PROBE.passages(tag))


def test_text_that_gives_nothing() -> None:
    old = trained("en", "ko", "el")
    with pytest.raises(OnggiError, match="gives no new token"):
        extension.extend(old, {"km": ["1 2 3", "hello hello"]}, 10)


def test_another_kind_is_refused() -> None:
    made = Tokenizer(models.WordLevel({"가": 0, "ខ": 1, "a": 2}, unk_token="a"))
    with pytest.raises(OnggiError, match="WordLevel; BPE and Unigram can be extended"):
        extension.extend(made, {"ko": ["가"]}, 1)

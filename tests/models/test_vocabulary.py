"""Vocabularies cut to some languages: what they keep means what it did, what they lack falls apart in pieces."""

from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import Tokenizer
from tokenizers.models import BPE, Unigram, WordPiece

from conftest import probe_texts
from onggi import text
from onggi.errors import OnggiError
from onggi.models.reshape import vocabulary as vocabularies
from onggi.models.reshape.vocabulary import Vocabulary

LANGUAGES = ("ko", "el", "th")


def passages(*languages: str) -> dict[str, list[str]]:
    probe = text.load("probe")
    return {language: list(probe.passages(language).values()) for language in languages}


def byte_level(folder: Path, tiny: Path) -> Path:
    shutil.copytree(tiny, folder)
    return folder


def sentencepiece(folder: Path, unigram: bool) -> Path:
    """A vocabulary as Gemma's (BPE) or XLM-R's and T5's (Unigram): ▁ for a space, bytes for the rest."""
    from tokenizers import decoders, normalizers, pre_tokenizers, processors, trainers

    special = ["<pad>", "</s>", "<s>", "<unk>", "<unused0>", "<unused1>", "<turn>"]
    special += [f"<0x{byte:02X}>" for byte in range(256)]
    folder.mkdir(parents=True)
    whole = Tokenizer(Unigram() if unigram else BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    whole.normalizer = normalizers.Replace(" ", "▁")
    whole.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    if unigram:
        trainer: Any = trainers.UnigramTrainer(
            vocab_size=3000, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    else:
        trainer = trainers.BpeTrainer(vocab_size=3000, special_tokens=special, show_progress=False)
    whole.train_from_iterator(probe_texts(), trainer)
    whole.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    whole.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 1)]
    )
    document = json.loads(whole.to_str())
    document["model"]["byte_fallback"] = True
    document["added_tokens"] = [t for t in document["added_tokens"] if not t["content"].startswith("<0x")]
    (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


@pytest.fixture(params=["byte-level", "sentencepiece", "unigram"])
def folder(request: pytest.FixtureRequest, tiny: Path, tmp_path: Path) -> Path:
    if request.param == "byte-level":
        return byte_level(tmp_path / "낱말", tiny)
    return sentencepiece(tmp_path / "낱말", request.param == "unigram")


def test_what_is_kept_is_cut_as_before(folder: Path, tmp_path: Path) -> None:
    vocabulary = Vocabulary(folder)
    texts = passages(*LANGUAGES)
    kept = vocabularies.choose(vocabulary, texts, {}, 1.0, [], "{{ bos_token }}<turn>user")
    assert len(kept) < 0.9 * len(vocabulary.pieces) and kept == sorted(set(kept))
    vocabularies.write(vocabulary, kept, tmp_path)
    after = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert after.get_vocab_size() == len(kept)
    for text_ in [*texts["ko"], *texts["el"], *texts["th"], "{{ bos_token }}<turn>user"]:
        was, now = vocabulary.tokenizer.encode(text_), after.encode(text_)
        assert now.tokens == was.tokens and [kept[new] for new in now.ids] == was.ids
    # Other languages fall apart, and not one character of them is lost.
    for language, others in passages("hi", "ar", "ja", "en").items():
        for text_ in others:
            was, now = vocabulary.tokenizer.encode(text_), after.encode(text_)
            assert after.decode(now.ids) == vocabulary.tokenizer.decode(was.ids), language
        assert len(now.ids) > len(was.ids)
    never_seen = "𓀀 🏺 ဟ"
    assert after.decode(after.encode(never_seen).ids) == vocabulary.tokenizer.decode(
        vocabulary.tokenizer.encode(never_seen).ids
    )


def test_special_tokens_stay_and_placeholders_go(tmp_path: Path) -> None:
    vocabulary = Vocabulary(sentencepiece(tmp_path / "a", unigram=False))
    pieces = lambda kept: {vocabulary.pieces[index] for index in kept}  # noqa: E731
    kept = pieces(vocabularies.choose(vocabulary, passages("el"), {}, 0.9, []))
    assert {"<pad>", "<s>", "</s>", "<unk>", "<turn>", "<0x00>", "<0xFF>"} <= kept
    assert not {"<unused0>", "<unused1>"} & kept
    # One that the text uses stands for something, and so does one that a config names.
    used = {"el": [*passages("el")["el"], "<unused0> Καλημέρα"]}
    assert "<unused0>" in pieces(vocabularies.choose(vocabulary, used, {}, 0.9, []))
    named = vocabularies.choose(vocabulary, passages("el"), {}, 0.9, [vocabulary.ids["<unused1>"]])
    assert "<unused1>" in pieces(named)


def test_every_token_has_the_pieces_that_it_is_merged_from(tmp_path: Path) -> None:
    vocabulary = Vocabulary(sentencepiece(tmp_path / "a", unigram=False))
    for coverage in (0.5, 0.8, 0.97):
        kept = vocabularies.choose(vocabulary, passages(*LANGUAGES), {}, coverage, [])
        document = vocabularies.cut(vocabulary, kept)
        after = Tokenizer.from_str(json.dumps(document))
        for index in kept:
            piece = vocabulary.pieces[index]
            if index in vocabulary.added or piece.startswith("<0x"):
                continue
            alone = after.encode(piece.replace("▁", " "), add_special_tokens=False).tokens
            assert alone == [piece], piece


def test_coverage_is_of_each_language(tmp_path: Path) -> None:
    vocabulary = Vocabulary(sentencepiece(tmp_path / "a", unigram=True))
    texts = passages("en", "vi" if "vi" in text.load("probe").languages else "es", "th")
    sizes = []
    for coverage in (0.6, 0.9, 1.0):
        kept = vocabularies.choose(vocabulary, texts, {}, coverage, [])
        sizes.append(len(kept))
        vocabularies.write(vocabulary, kept, tmp_path)
        after = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        for language, content in texts.items():
            words = vocabularies.running(content)
            other = vocabularies.retokenised(vocabulary.tokenizer, after, words)
            same = 1 - sum(one["frequency"] for one in other) / sum(words.values())
            assert same >= coverage, language
            for one in other:
                assert one["before"] != one["after"] and one["frequency"] == words[one["word"]]
    assert sizes[0] <= sizes[1] < sizes[2]


def test_lists_of_words_count_beside_the_text(tmp_path: Path) -> None:
    pytest.importorskip("wordfreq")
    assert set(vocabularies.lists(["ko", "zh-Hans", "no", "km"])) == {"ko", "zh-Hans", "no"}
    vocabulary = Vocabulary(sentencepiece(tmp_path / "a", unigram=False))
    few = {"el": passages("el")["el"][:1]}
    alone = set(vocabularies.choose(vocabulary, few, {}, 1.0, []))
    both = set(vocabularies.choose(vocabulary, few, vocabularies.lists(["el"]), 1.0, []))
    assert alone <= both


def test_running_words_keep_their_space() -> None:
    found = vocabularies.running(["장독, 장독 (장독)", "don't ἔστι हिन्दी", "โอ่งใบใหญ่ๆ"])
    assert found == {"장독": 2, " 장독": 1, "don't": 1, " ἔστι": 1, " हिन्दी": 1, "โอ่งใบใหญ่ๆ": 1}


def test_ids_in_configs_follow() -> None:
    config = {
        "eos_token_id": [1, 106],
        "pad_token_id": None,
        "vocab_size": 106,
        "boi_token_index": 5,
        "text_config": {"bos_token_id": 2},
        "suppress_tokens": [7],
        "bad_words_ids": [[1, 7]],
        "image_token_id": 9999,
    }
    assert set(vocabularies.named(config)) == {1, 106, 5, 2, 7, 9999}
    assert vocabularies.renumbered(config, {1: 0, 2: 1, 5: 2, 7: 3, 106: 4}) == {
        "eos_token_id": [0, 4],
        "pad_token_id": None,
        "vocab_size": 106,
        "boi_token_index": 2,
        "text_config": {"bos_token_id": 1},
        "suppress_tokens": [3],
        "bad_words_ids": [[0, 3]],
        "image_token_id": None,
    }


def test_files_with_numbers_of_their_own_follow(tmp_path: Path) -> None:
    folder = sentencepiece(tmp_path / "a", unigram=False)
    tokens = {str(index): {"content": name} for index, name in enumerate(["<pad>", "</s>", "<s>", "<unk>"])}
    tokens["4"] = {"content": "<unused0>"}
    tokens["6"] = {"content": "<turn>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": tokens}))
    (folder / "added_tokens.json").write_text(json.dumps({"<unused0>": 4, "<turn>": 6}))
    vocabulary = Vocabulary(folder)
    kept = vocabularies.choose(vocabulary, passages("ko"), {}, 0.9, [])
    names = vocabularies.write(vocabulary, kept, tmp_path)
    assert names == ["tokenizer.json", "tokenizer_config.json", "added_tokens.json"]
    after = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    decoder = json.loads((tmp_path / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert {int(index): token["content"] for index, token in decoder.items()} == {
        after.token_to_id(name): name for name in ("<pad>", "</s>", "<s>", "<unk>", "<turn>")
    }
    assert json.loads((tmp_path / "added_tokens.json").read_text()) == {"<turn>": after.token_to_id("<turn>")}
    assert after.encode("안녕").ids[0] == after.token_to_id("<s>")


def test_vocabularies_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OnggiError, match=r"has no tokenizer.json; only vocabularies in that form"):
        Vocabulary(tmp_path)
    pieces = {"[UNK]": 0, "항": 1, "##아리": 2}
    tokenizers.Tokenizer(WordPiece(pieces, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(OnggiError, match="is a WordPiece vocabulary; BPE and Unigram can be cut"):
        Vocabulary(tmp_path)
    ends = BPE({"항": 0, "아리</w>": 1}, [], end_of_word_suffix="</w>")
    tokenizers.Tokenizer(ends).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(OnggiError, match="marks the insides or ends of words"):
        Vocabulary(tmp_path)

    real = builtins.__import__

    def lacks(name: str, *rest: Any, **named: Any) -> Any:
        if name == "wordfreq":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", lacks)
    with pytest.raises(OnggiError, match=r"pip install 'onggi\[words\]' brings it, and --words none"):
        vocabularies.lists(["ko", "el", "th"])

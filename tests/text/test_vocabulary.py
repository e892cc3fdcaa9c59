"""Tokenizers that are trained: every text comes back, llama.cpp cuts it the same, and parity is watched."""

from __future__ import annotations

import json
import unicodedata
import urllib.request
from importlib import resources
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import xllamacpp
from tokenizers import Tokenizer

from onggi import text
from onggi.errors import OnggiError
from onggi.text import vocabulary
from onggi.text.chat import template
from onggi.text.tokens import Tokens

LANGUAGES = ("en", "ko", "km", "ar", "th")
ODD = [
    *("", " ", "  x  ", "\n\n\t x\r\n", " " * 40 + "x", "\x00\x01\x7f", "\u200bzero\u200dwidth\ufeff"),
    *("😀👨‍👩‍👧‍👦🏳️‍🌈", "e\u0301 한 \u1112\u1161\u11ab", "𐎀𐎁 ꙮ \U0001f9ff", "İıßẞﬁ", "\ufffd"),
    *(
        "1234567890 3.14 १२३ ៤៥",
        "don't WON'T I'll",
        "▁a ▁ ▁▁",
        "<0xE2> <0x96>",
        "# ## == foo() // ok",
        "</s>",
    ),
    *("עברית \u200fשלום\u200e abc", "ก็ กํา ก ำ", "a\u00a0b\u3000c\u2003d"),
]


def probe() -> dict[str, dict[str, str]]:
    found = text.load("probe")
    return {tag: found.passages(tag) for tag in LANGUAGES}


@pytest.fixture(scope="module")
def passages() -> dict[str, dict[str, str]]:
    return probe()


def train(passages: dict[str, dict[str, str]], kind: str = "bpe", pre: str = "qwen35") -> Tokenizer:
    shares = vocabulary.by_content(passages, passages)
    return vocabulary.train(vocabulary.drawn(passages, shares, 100_000, 0), 1500, kind, pre)


MADE = [("bpe", pre) for pre in vocabulary.CUTS] + [("unigram", "")]


@pytest.fixture(scope="module", params=MADE, ids=lambda made: made[1] or made[0])
def made(request: pytest.FixtureRequest, passages: dict[str, dict[str, str]]) -> Tokenizer:
    return train(passages, *request.param)


def back(tokenizer: Tokenizer, content: str) -> str:
    return str(tokenizer.decode(tokenizer.encode(content, add_special_tokens=False).ids))


def test_every_text_comes_back(made: Tokenizer, passages: dict[str, dict[str, str]]) -> None:
    starter = (resources.files("onggi.text") / "data" / "starter.jsonl").read_text(encoding="utf-8")
    for content in [*ODD, *starter.split("\n"), *(t for texts in passages.values() for t in texts.values())]:
        assert back(made, content) == content


def test_every_byte_has_a_token(made: Tokenizer) -> None:
    every = [chr(code) for code in (*range(0x80), *range(0x80, 0x3000, 37), 0xAC00, 0x10FFFF)]
    assert all(back(made, f"x{letter}y") == f"x{letter}y" for letter in every)
    assert made.get_vocab_size() == 1500


def test_special_tokens_and_the_start(made: Tokenizer) -> None:
    assert [made.token_to_id(token) for token in vocabulary.SPECIAL] == [0, 1, 2, 3, 4]
    assert made.encode("안녕 ជំរាបសួរ hi").ids[0] == 0
    assert made.encode(vocabulary.TURN_END, add_special_tokens=False).ids == [4]


def test_it_loads_in_transformers(made: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    names = vocabulary.save(made, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(names)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for content in (*ODD, "한국어와 ភាសាខ្មែរ, English"):
        assert loaded(content)["input_ids"] == made.encode(content).ids
        assert loaded.decode(loaded(content)["input_ids"], skip_special_tokens=True) == content
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (0, 1, 2)
    said = loaded.apply_chat_template([{"role": "user", "content": "សួស្តី 안녕"}], tokenize=False)
    assert said == "<|begin_of_text|><|im_start|>user\nសួស្តី 안녕<|im_end|>\n"
    tokens = Tokens(tmp_path)
    assert (tokens.prefix, tokens.starts) == (0, True)
    turn = template(tmp_path, tokens)
    assert turn and turn.encode([{"role": "user", "content": "x"}])[:2] == [0, 3]


def test_the_digest_is_of_what_decides_the_tokens(made: Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    vocabulary.save(made, tmp_path)
    AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    made.enable_padding(length=7)
    again = Tokens(tmp_path / "again").tokenizer
    assert vocabulary.fingerprint(again) == vocabulary.fingerprint(made)
    made.no_padding()
    described = json.loads(made.to_str())
    described["added_tokens"][0]["content"] = "<|시작|>"
    assert vocabulary.fingerprint(Tokenizer.from_str(json.dumps(described))) != vocabulary.fingerprint(made)


def test_bpe_is_the_same_each_time(passages: dict[str, dict[str, str]]) -> None:
    assert vocabulary.fingerprint(train(passages)) == vocabulary.fingerprint(train(passages))


def test_marks_stay_with_their_letters(passages: dict[str, dict[str, str]]) -> None:
    """Why qwen35: the others cut Khmer at its vowel signs."""
    costs = {
        pre: vocabulary.parity(train(passages, "bpe", pre), passages, "en")[0] for pre in ("qwen35", "qwen2")
    }
    assert costs["qwen35"]["km"]["tokens_per_passage"] < 0.95 * costs["qwen2"]["km"]["tokens_per_passage"]


def test_too_small_a_vocabulary() -> None:
    with pytest.raises(
        OnggiError, match="vocabulary: 261 is too small; bytes and special tokens alone are 261"
    ):
        vocabulary.train(["안녕", "ជំរាបសួរ", "hi"], 261, "bpe", "qwen35")
    with pytest.raises(OnggiError, match="too small"):
        vocabulary.train(["안녕", "ជំរាបសួរ", "hi"], 300, "unigram", "")


# ── drawing and measuring ──────────────────────────────────────────────────────────────────────


def test_drawing_follows_the_shares_and_begins_again() -> None:
    texts = {
        "en": {str(i): f"line {i:04}" for i in range(50)},
        "ko": {"1": "하나", "2": "둘둘"},
        "km": {"1": "មួយ"},
    }
    taken = list(vocabulary.drawn(texts, {"en": 2, "ko": 1, "km": 1}, 360, 0))
    assert sum(len(t) for t in taken if t.startswith("line")) == 180
    assert taken.count("មួយ") == 10 and sorted((taken.count("하나"), taken.count("둘둘"))) == [7, 8]
    assert taken == list(vocabulary.drawn(texts, {"en": 2, "ko": 1, "km": 1}, 360, 0))
    assert taken != list(vocabulary.drawn(texts, {"en": 2, "ko": 1, "km": 1}, 360, 1))


def test_shares_are_content_not_bytes(passages: dict[str, dict[str, str]]) -> None:
    shares = vocabulary.by_content(passages, [*LANGUAGES, "he"])
    assert shares["km"] > 2 * shares["en"]
    assert min(shares.values()) < shares["he"] < max(shares.values())
    assert vocabulary.by_content({}, ["ko", "he"]) == {"ko": 1.0, "he": 1.0}


def test_rare_characters_are_left_to_the_bytes() -> None:
    texts = {"1": "가나다 " * 5000, "2": "희귀 𐎀"}
    assert vocabulary.without_rare(texts) == {"1": "가나다 " * 5000, "2": " " * 4}


def test_costs_by_hand() -> None:
    made = vocabulary.train(["ab ab ab"] * 9, 262, "bpe", "qwen35")  # one merge: "ab"
    assert made.encode("abc 가", add_special_tokens=False).tokens == ["ab", "c", "Ġ", "ê", "°", "Ģ"]
    facts = vocabulary.costs(made, {"1": "abc 가", "2": "ab"})
    assert facts == {
        "passages": 2,
        "tokens_per_passage": 3.5,
        "bytes_per_token": round(9 / 7, 3),
        "byte_fallback": round(3 / 7, 4),
    }
    table, base = vocabulary.parity(made, {"ko": {"1": "가"}, "km": {"1": "កខ"}, "en": {"1": "ab"}})
    assert base == "en" and {tag: entry["parity"] for tag, entry in table.items()} == {
        "ko": 3,
        "km": 6,
        "en": 1,
    }


def test_only_the_dear_are_raised() -> None:
    raised = vocabulary.raised(
        {"en": 1.0, "ko": 1.0, "km": 1.0, "he": 1.0}, {"en": 1, "ko": 1.5, "km": 1.6}, 1.5
    )
    assert (raised["en"], raised["ko"], raised["he"]) == (1, 1, 1) and 1.3 < raised["km"] < 2
    assert vocabulary.raised({"km": 1.0}, {"km": 9.0}, 1.5) == {"km": 4.0}


# ── llama.cpp ──────────────────────────────────────────────────────────────────────────────────


def write_gguf(tokenizer: Tokenizer, path: Path, kind: str, pre: str) -> Path:
    """A model of one layer of zeros around the tokenizer."""
    described = json.loads(tokenizer.to_str())["model"]
    unigram = kind == "unigram"
    entries = described["vocab"]
    pieces = [piece for piece, _ in entries] if unigram else sorted(entries, key=entries.get)
    special = set(vocabulary.SPECIAL)
    types = [
        3 if p in special else 2 if p == vocabulary.UNKNOWN else 6 if unigram and p.startswith("<0x") else 1
        for p in pieces
    ]
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in {"context_length": 4096, "embedding_length": 32, "block_count": 1}.items():
        writer.add_uint32(f"llama.{name}", value)
    for name, value in {
        "feed_forward_length": 32,
        "attention.head_count": 2,
        "rope.dimension_count": 16,
    }.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_string("tokenizer.ggml.model", "t5" if unigram else "gpt2")
    writer.add_string("tokenizer.ggml.pre", "default" if unigram else pre)
    writer.add_array("tokenizer.ggml.tokens", pieces)
    writer.add_array("tokenizer.ggml.token_type", types)
    if unigram:
        writer.add_array("tokenizer.ggml.scores", [float(score) for _, score in entries])
        writer.add_uint32("tokenizer.ggml.unknown_token_id", len(special))
        writer.add_bool("tokenizer.ggml.add_space_prefix", False)
        writer.add_bool("tokenizer.ggml.remove_extra_whitespaces", False)
    else:
        writer.add_array("tokenizer.ggml.merges", [" ".join(merge) for merge in described["merges"]])
    writer.add_uint32("tokenizer.ggml.bos_token_id", 0)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 1)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_bool("tokenizer.ggml.add_eos_token", False)
    square, wide = np.zeros((32, 32), np.float32), np.zeros((len(pieces), 32), np.float32)
    writer.add_tensor("token_embd.weight", wide)
    writer.add_tensor("output.weight", wide)
    writer.add_tensor("output_norm.weight", square[0])
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", square[0])
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{name}.weight", square)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


class Llama:
    """llama.cpp in this process."""

    def __init__(self, path: Path):
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.warmup, params.verbosity = 256, 1, False, -1
        params.cpuparams.n_threads = 1
        self.server = xllamacpp.Server(params)

    def tokens(self, content: str) -> list[int]:
        body = json.dumps({"content": content, "add_special": True}).encode()
        request = urllib.request.Request(
            f"{self.server.listening_address}/tokenize", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            return list(json.load(reply)["tokens"])


def texts_for_llama(passages: dict[str, dict[str, str]]) -> list[str]:
    return [
        *(content for texts in passages.values() for content in list(texts.values())[:12]),
        *("안녕하세요, 3시 15분에 만나요!", "សួស្តី ពិភពលោក ១២៣។", "Don't panic — it's 42.", "😀👨‍👩‍👧‍👦 🏳️‍🌈 ok"),
        *(odd for odd in ODD if odd and "\x00" not in odd),
    ]


@pytest.mark.parametrize("pre", vocabulary.CUTS)
def test_llama_cpp_cuts_alike(pre: str, passages: dict[str, dict[str, str]], tmp_path: Path) -> None:
    made = train(passages, "bpe", pre)
    llama = Llama(write_gguf(made, tmp_path / "옹기.gguf", "bpe", pre))
    for content in texts_for_llama(passages):
        assert llama.tokens(content) == made.encode(content).ids, content


def test_the_comparison_sees_another_cut(passages: dict[str, dict[str, str]], tmp_path: Path) -> None:
    made = train(passages, "bpe", "qwen35")
    llama = Llama(write_gguf(made, tmp_path / "x.gguf", "bpe", "gpt-2"))
    assert any(llama.tokens(content) != made.encode(content).ids for content in texts_for_llama(passages))


def test_our_own_reader_cuts_alike(passages: dict[str, dict[str, str]], tmp_path: Path) -> None:
    from onggi.models.gguf.container import File
    from onggi.models.gguf.tokenizer import Vocabulary, make_tokenizer

    for pre in vocabulary.CUTS:
        made = train(passages, "bpe", pre)
        file = File(write_gguf(made, tmp_path / f"{pre}.gguf", "bpe", pre))
        read = make_tokenizer(Vocabulary(file, made.get_vocab_size()))
        for content in texts_for_llama(passages):
            if pre != "qwen2" or unicodedata.is_normalized("NFC", content):  # composed first, as Qwen does
                ids = made.encode(content, add_special_tokens=False).ids
                assert read.encode(content, add_special_tokens=False).ids == ids, content


def test_llama_cpp_cuts_unigram_alike_where_it_knows_the_letters(
    passages: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """It has no bytes to fall back on: that is stated, and this shows that it is all there is to state."""
    made = train(passages, "unigram")
    llama = Llama(write_gguf(made, tmp_path / "x.gguf", "unigram", ""))
    known: set[str] = {piece for piece in made.get_vocab() if len(piece) == 1} - {"▁"} | {" "}
    compared: dict[bool, Any] = {True: 0, False: 0}
    for content in texts_for_llama(passages):
        same = llama.tokens(content) == made.encode(content).ids
        all_known = set(content) <= known
        compared[all_known] += 1
        assert same or not all_known, content
    assert compared[True] > 20 and compared[False]

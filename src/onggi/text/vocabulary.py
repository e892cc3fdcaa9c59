"""Tokenizers trained on a mix of languages, and what each language pays for its text.

A tokenizer trained on one pot of text is paid for by the languages that have little in it: the same
content costs Khmer four times the tokens of English, which is four times the price of an answer and
a quarter of the context. So the text is drawn by content, each language as many bytes as the same
passages take in it, and where a language is still dearer than a stated parity its share is raised
and the vocabulary trained anew.

What comes out has to run in llama.cpp too, which knows how text is cut before merging by name only
(`tokenizer.ggml.pre`): of the names it has, four are offered. `qwen35` is the default because it
keeps combining marks with their letters; the three others cut Khmer, Hindi and Thai within words, at
every vowel sign that Unicode counts as a mark, and no merge crosses a cut.
"""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from .. import ledger
from ..errors import OnggiError, one_line
from .draw import Passages
from .tokens import Parts

START, END, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|pad|>"
TURN, TURN_END = "<|im_start|>", "<|im_end|>"
SPECIAL = (START, END, PAD, TURN, TURN_END)
UNKNOWN = "<unk>"
# The ids come in this order, so that a start token is 0 in every tokenizer of ours.
CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content"
    " + '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% endif %}"
)

# How text is cut before merging, by llama.cpp's names; None is GPT-2's rule, which `tokenizers` has built in.
_APOSTROPHE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_BREAKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
CUTS: dict[str, str | None] = {
    "qwen35": rf"{_APOSTROPHE}[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_BREAKS}",
    "qwen2": rf"{_APOSTROPHE}[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_BREAKS}",
    "llama-bpe": rf"{_APOSTROPHE}[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_BREAKS}",
    "gpt-2": None,
}

# Where words are not parted by spaces a "word" is a sentence: tokens longer than this are sentences learnt
# by heart. In bytes for a byte-level vocabulary (16 letters of Hangul or Thai), in letters for Unigram.
LONGEST_BYTES, LONGEST_LETTERS = 48, 16

# SentencePiece writes a space as ▁ and so cannot tell one that stands in the text from a space. Here it
# is put out of the way, as a code point that Unicode keeps out of text for good.
_SPACE, _HIDDEN = "▁", "\ufdd0"
# Byte pieces stand for bytes, never for the text `<0x41>`: no segmentation is as bad as this score.
_NEVER = -10_000.0
# Of each language the rarest characters, which together are one in two thousand, are left to the bytes.
COVERED = 0.9995
_BYTES = 256


def train(texts: Iterable[str], size: int, kind: str, pre: str) -> Tokenizer:
    """A tokenizer of `size` tokens (special tokens and all 256 bytes among them) trained on `texts`.

    kind: `bpe`, on bytes behind the cut `pre` (a key of `CUTS`), or `unigram`, on letters with bytes to
    fall back on. Every text comes back from its tokens as it was; there is no normalisation. Raises
    OnggiError where `size` leaves no room for a word.
    """
    least = _BYTES + len(SPECIAL) + (1 + len(_ascii()) if kind == "unigram" else 0)
    if size <= least:
        raise OnggiError(f"vocabulary: {size} is too small; bytes and special tokens alone are {least}.")
    made = _bpe(texts, size, pre) if kind == "bpe" else _unigram(texts, size)
    start = made.token_to_id(START)
    made.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", pair=f"{START} $A $B:1", special_tokens=[(START, start)]
    )
    return made


def _bpe(texts: Iterable[str], size: int, pre: str) -> Tokenizer:
    # llama.cpp takes a whole word of the vocabulary before it tries merges, where text is cut as Llama 3's.
    made = Tokenizer(models.BPE(ignore_merges=pre == "llama-bpe"))
    split = CUTS[pre]
    if split is None:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    else:
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=LONGEST_BYTES,
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return made


def _ascii() -> list[str]:
    return [*map(chr, range(33, 127)), "\n", "\t", _SPACE]


def _unigram(texts: Iterable[str], size: int) -> Tokenizer:
    learner = Tokenizer(models.Unigram())
    learner.normalizer = normalizers.Replace(_SPACE, _HIDDEN)
    learner.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="never")
    trainer = trainers.UnigramTrainer(
        vocab_size=size - _BYTES,
        special_tokens=[*SPECIAL, UNKNOWN],
        unk_token=UNKNOWN,
        initial_alphabet=_ascii(),
        max_piece_length=LONGEST_LETTERS,
        show_progress=False,
    )
    try:
        learner.train_from_iterator(texts, trainer)
    except Exception as error:  # the library raises nothing more special
        raise OnggiError(
            f"vocabulary: {size} is too small for unigram, which has a token for every letter of the text "
            f"({one_line(error)}); raise it or use --kind bpe."
        ) from error
    pieces = _rounded(json.loads(learner.to_str())["model"]["vocab"])
    names = _byte_names()
    known = set(names)
    first = len(SPECIAL) + 1
    pieces = [
        *pieces[:first],
        *((name, _NEVER) for name in names),
        *(piece for piece in pieces[first:] if piece[0] not in known),
    ]
    made = Tokenizer(models.Unigram(pieces[:size], unk_id=len(SPECIAL), byte_fallback=True))
    made.normalizer, made.pre_tokenizer = learner.normalizer, learner.pre_tokenizer
    made.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Replace(_HIDDEN, _SPACE),
        ]
    )
    made.add_special_tokens([*SPECIAL, UNKNOWN])
    return made


def _rounded(entries: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """Pieces with their scores in as many digits as `tokenizers` reads back as it wrote them."""
    return [(piece, round(score, 6)) for piece, score in entries]


def _byte_names() -> list[str]:
    """The pieces that stand for bytes, `<0x00>` to `<0xFF>`."""
    return [f"<0x{value:02X}>" for value in range(_BYTES)]


def without_rare(texts: Mapping[str, str]) -> dict[str, str]:
    """`texts` of one language with its rarest characters made spaces.

    Unigram keeps a piece for every character it has seen, and a language of many (Chinese) would spend
    its share on those that come once.
    """
    counts = Counter(itertools.chain.from_iterable(texts.values()))
    room, total = sum(counts.values()) * COVERED, 0
    kept = set()
    for character, count in counts.most_common():
        if total >= room:
            break
        kept.add(character)
        total += count
    rare = str.maketrans({character: " " for character in counts if character not in kept})
    return {key: text.translate(rare) for key, text in texts.items()}


def drawn(passages: Passages, shares: Mapping[str, float], total: int, seed: int) -> Iterator[str]:
    """Passages of every language, `total` bytes of UTF-8 in all, split by `shares` (any positive numbers).

    In an order shuffled by `seed`; a language whose text is used up begins again, which counts for a
    tokenizer as more of it would.
    """
    whole = sum(shares.values())
    for language, texts in passages.items():
        rows = list(texts.values())
        random.Random(f"{seed}:{language}").shuffle(rows)
        room = total * shares[language] / whole
        for text in itertools.cycle(rows):
            if room <= 0:
                break
            yield text
            room -= len(text.encode())


def by_content(measured: Passages, languages: Iterable[str]) -> dict[str, float]:
    """Shares of bytes that are the same content in each language: the bytes that the passages of
    `measured` take in it. A language that is not there gets the mean of those that are.
    """
    sizes = {language: float(_bytes(texts)) for language, texts in measured.items()}
    mean = sum(sizes.values()) / len(sizes) if sizes else 1.0
    return {language: sizes.get(language, mean) for language in languages}


def _bytes(texts: Mapping[str, str]) -> int:
    return sum(len(text.encode()) for text in texts.values())


def costs(tokenizer: Tokenizer, texts: Mapping[str, str]) -> dict[str, float | int]:
    """What the passages `texts` (id → text) cost in tokens.

    `tokens_per_passage`; `bytes_per_token` (of UTF-8); `byte_fallback`: the share of tokens that are less than
    a character, 0 to 1.
    """
    parts = Parts(tokenizer)
    ids = [token for text in texts.values() for token in tokenizer.encode(text, add_special_tokens=False).ids]
    broken = sum(token in parts for token in ids)
    return {
        "passages": len(texts),
        "tokens_per_passage": round(len(ids) / len(texts), 2),
        "bytes_per_token": round(_bytes(texts) / len(ids), 3),
        "byte_fallback": round(broken / len(ids), 4),
    }


def spelt(tokenizer: Tokenizer, piece: str) -> str:
    """The text of one token; half a character is U+FFFD."""
    text: str = tokenizer.decoder.decode([piece]) if tokenizer.decoder else piece
    return text


def parity(
    tokenizer: Tokenizer, measured: Passages, reference: str | None = None
) -> tuple[dict[str, dict[str, Any]], str]:
    """language → `costs` and `parity`, tokens for the same passages relative to `reference`; and that
    language: the one given, or else the cheapest. `measured` holds the same passages in each.
    """
    found: dict[str, dict[str, Any]] = {tag: dict(costs(tokenizer, texts)) for tag, texts in measured.items()}
    base = reference or min(found, key=lambda tag: found[tag]["tokens_per_passage"])
    for facts in found.values():
        facts["parity"] = round(facts["tokens_per_passage"] / found[base]["tokens_per_passage"], 3)
    return found, base


def raised(shares: Mapping[str, float], parities: Mapping[str, float], bound: float) -> dict[str, float]:
    """`shares` with those of the languages dearer than `bound` raised, at most fourfold.

    By the fourth power of how much dearer: tokens fall slowly with more text (Khmer's by 5% for half as
    much again), but more would overshoot where several are raised at once. A little under the bound is aimed at, or the last hundredth would take rounds of its own.
    """
    return {
        tag: share * min(4.0, max(1.0, parities[tag] / (0.95 * bound)) ** 4)
        if parities.get(tag, 0.0) > bound
        else share
        for tag, share in shares.items()
    }


def save(tokenizer: Tokenizer, folder: Path) -> list[str]:
    """Write `tokenizer` as a folder that transformers loads; returns the names of its files."""
    with ledger.writing(folder / "tokenizer.json") as aside:
        tokenizer.save(str(aside), pretty=False)
    ledger.write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": START,
            "eos_token": END,
            "pad_token": PAD,
            "add_bos_token": True,
            "clean_up_tokenization_spaces": False,
        },
    )
    with ledger.writing(folder / "chat_template.jinja") as aside:
        aside.write_text(CHAT, encoding="utf-8")
    return ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]


def fingerprint(tokenizer: Tokenizer) -> str:
    """A digest of what decides the tokens of a text: vocabulary, merges, cuts and special tokens.

    The same for a file that transformers has written again, with other settings for padding and such.
    """
    whole = json.loads(tokenizer.to_str())
    if whole["model"]["type"] == "Unigram":
        whole["model"]["vocab"] = _rounded(whole["model"]["vocab"])
    return ledger.digest(
        {key: whole.get(key) for key in ("model", "normalizer", "pre_tokenizer", "added_tokens")}
    )

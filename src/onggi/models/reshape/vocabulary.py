"""A vocabulary cut to what some languages need, with every token that stays meaning what it did.

Of a multilingual model's tokens a language uses a few. Which, is told by text in the language and by lists of
its words with their frequencies; how many are kept follows from one number, the share of running words of each
language that are still cut into the very same tokens.

A token of a byte-pair vocabulary is made by merging smaller ones, always along the same path: what is
merged within a token does not depend on what stands around it. So a vocabulary that holds the pieces of that path
for each of its tokens (is closed) cuts every word whose tokens it holds exactly as before; other words fall apart
into smaller tokens. A Unigram vocabulary looks for the likeliest cut, which stays the likeliest while it is there.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import regex
import tokenizers

from ... import languages as tags
from ... import ledger
from ...errors import OnggiError
from ...text.scripts import unicode_scripts

# Files that number tokens in their own way; tokenizer.json says all that they do.
STALE = ("tokenizer.model", "vocab.json", "merges.txt", "vocab.txt")
# A script with no more tokens than this is kept whole: Hangul has 5 thousand of Gemma's 262, Latin 150.
_WHOLE_SCRIPT = 8192
# Scripts that put no space between words.
_UNSPACED = ("Hans", "Hant", "Jpan", "Thai", "Laoo", "Khmr", "Mymr", "Tibt")
_WORDS = regex.compile(r" ?[\p{L}\p{M}\p{N}]+(?:['’][\p{L}\p{M}]+)?")
_PLACEHOLDER = re.compile(r"<?[<|\[]*\W*(unused|reserved|extra_id)\w*\d+\W*", re.IGNORECASE)
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_UNSEEN = 0.5
_BATCH = 20_000


class Vocabulary:
    """The tokens of a model folder's tokenizer.json: `document` as it stands, `pieces` id → piece.

    Raises OnggiError where there is none, or of a kind that cannot be cut.
    """

    def __init__(self, folder: Path):
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise OnggiError(f"{folder}: has no tokenizer.json; only vocabularies in that form can be cut.")
        self.folder = folder
        self.document: dict[str, Any] = ledger.read_json(file)
        self.tokenizer = tokenizers.Tokenizer.from_file(str(file))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        model = self.document["model"]
        self.kind: str = model.get("type") or ("BPE" if "merges" in model else "Unigram")
        if self.kind not in ("BPE", "Unigram"):
            raise OnggiError(f"{file}: is a {self.kind} vocabulary; BPE and Unigram can be cut.")
        if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
            raise OnggiError(f"{file}: marks the insides or ends of words, which onggi cannot cut.")
        if self.kind == "BPE":
            self.pieces: dict[int, str] = {index: piece for piece, index in model["vocab"].items()}
        else:
            self.pieces = {index: piece for index, (piece, _) in enumerate(model["vocab"])}
        self.added = {token["id"]: token for token in self.document.get("added_tokens", [])}
        self.pieces |= {index: token["content"] for index, token in self.added.items()}
        self.ids = {piece: index for index, piece in self.pieces.items()}
        self._letters = _byte_letters() if '"ByteLevel"' in _kinds(self.document) else None
        merges = model.get("merges", ()) if self.kind == "BPE" else ()
        self.merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
        self._ranks = {pair: rank for rank, pair in reversed(list(enumerate(self.merges)))}

    def encode(self, texts: Iterable[str]) -> list[list[int]]:
        """Token ids of each text, nothing added."""
        return encode(self.tokenizer, texts)

    def text(self, index: int) -> str | None:
        """The text of a token, None where it is a part of a character."""
        piece = self.pieces[index]
        if self._letters is None:
            return piece.replace("▁", " ")
        try:
            return bytes(self._letters[letter] for letter in piece).decode()
        except (KeyError, UnicodeDecodeError):
            return None

    def parts(self, index: int) -> list[int]:
        """The other tokens without which this one is never made: characters and what they are merged to,
        the smaller first.
        """
        if index in self.added:
            return []
        piece = self.pieces[index]
        symbols, made = list(piece), []
        found = [self.ids[symbol] for symbol in symbols if symbol in self.ids]
        never = len(self._ranks)
        while len(symbols) > 1:
            rank, at = min(
                (self._ranks.get((symbols[i], symbols[i + 1]), never), i) for i in range(len(symbols) - 1)
            )
            if rank == never:
                break
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
            made.append(symbols[at])
        return [i for i in dict.fromkeys(found + [self.ids[piece] for piece in made]) if i != index]

    def essential(self, languages: Iterable[str], used: Iterable[int], named: Iterable[int]) -> set[int]:
        """Tokens that stay whatever the text: special tokens, bytes, the characters of the languages' scripts
        and those that belong to none (digits, punctuation, emoji), and scripts that have few tokens, whole.

        Placeholders (`<unused12>`), tokens that no model has seen, stay where they are in `used`.
        named: ids that the model's configs name.
        """
        # Han is by use: Korean and Japanese text has some of it, and Chinese not all.
        scripts = sorted({s for tag in languages for s in unicode_scripts(tags.script(tag))} - {"Hani"})
        neutral = r"\p{Zyyy}\p{Zinh}"
        letters = "".join(rf"\p{{{script}}}" for script in scripts)
        one = regex.compile(rf" ?[{neutral}{letters}]")
        # A letter of the script at least, and no other script's.
        of = {s: regex.compile(rf"[{neutral}]*\p{{{s}}}[{neutral}\p{{{s}}}]*") for s in scripts}
        used, kept = set(used), set(named)
        unknown = self.document["model"].get("unk_id")
        if isinstance(unknown, int):
            kept.add(unknown)
        if self.document["model"].get("unk_token") in self.ids:
            kept.add(self.ids[self.document["model"]["unk_token"]])
        whole: dict[str, set[int]] = {script: set() for script in scripts}
        for index, piece in self.pieces.items():
            if index in self.added:
                if index in used or not _PLACEHOLDER.fullmatch(piece):
                    kept.add(index)
                continue
            if _BYTE.fullmatch(piece) or (self._letters and len(piece) == 1):
                kept.add(index)
                continue
            text = self.text(index)
            if text is None:
                continue
            if one.fullmatch(text):
                kept.add(index)
            for script, pattern in of.items():
                if pattern.fullmatch(text):
                    whole[script].add(index)
        for tokens in whole.values():
            if len(tokens) <= _WHOLE_SCRIPT:
                kept |= tokens
        return kept & self.pieces.keys()


def encode(tokenizer: tokenizers.Tokenizer, texts: Iterable[str]) -> list[list[int]]:
    """Token ids of each text, nothing added; a batch at a time, since what a batch returns is large."""
    todo, found = list(texts), []
    for start in range(0, len(todo), _BATCH):
        batch = tokenizer.encode_batch_fast(todo[start : start + _BATCH], add_special_tokens=False)
        found += [one.ids for one in batch]
    return found


def running(texts: Iterable[str]) -> Counter[str]:
    """Words of `texts` as they stand, with a space before them where there is one, and how often each comes:
    letters and digits between what is neither. Where a script puts no spaces, what stands between two marks of
    punctuation is one.
    """
    return Counter(chain.from_iterable(_WORDS.findall(text) for text in texts))


def spelt(words: Iterable[str], language: str) -> list[str]:
    """Words as they stand within a text, after a space where the language has them."""
    space = "" if tags.script(language) in _UNSPACED else " "
    return [space + word for word in words]


def choose(
    vocabulary: Vocabulary,
    passages: Mapping[str, Sequence[str]],
    lists: Mapping[str, Mapping[str, float]],
    coverage: float,
    named: Iterable[int],
    template: str = "",
) -> list[int]:
    """The ids to keep, ascending: as few as leave `coverage` of each language's running words as they are.

    passages: language → its text. lists: language → word → frequency; may lack languages. The two count
    half each where a language has both. Tokens are taken by the largest share of use that any language gives
    them, each after the pieces it is merged from. named: ids that must stay. template: text that must.
    """
    size = max(vocabulary.pieces) + 1
    seen = {index for ids in vocabulary.encode([template]) for index in ids}
    kept = seen | set(named)
    use = np.zeros(size)
    words: dict[str, list[tuple[list[list[int]], np.ndarray]]] = {}
    for language, texts in passages.items():
        counts, listed = running(texts), lists.get(language, {})
        cut = vocabulary.encode(counts)
        weights = np.array(list(counts.values()), dtype=float)
        own = _use(vocabulary.encode(texts), np.ones(len(texts)), size)
        seen.update(np.flatnonzero(own).tolist())
        # What comes once in a text is, more often than not, not seen again.
        own = np.maximum(own - _UNSEEN, 0)
        words[language] = [(cut, weights)]
        shares = [own / own.sum()]
        if listed:
            cut = vocabulary.encode(spelt(listed, language))
            weights = np.array(list(listed.values()))
            words[language].append((cut, weights))
            own = sum(
                (
                    share * _use(vocabulary.encode(form), weights, size)
                    for share, form in _forms(listed, language)
                ),
                np.zeros(size),
            )
            shares.append(own / own.sum())
        np.maximum(use, sum(shares) / len(shares), out=use)
    kept |= vocabulary.essential(passages, seen, kept)
    order = _order(vocabulary, kept, use)
    place = {index: at for at, index in enumerate(order)}
    enough = max(place[index] for index in kept if index in place) + 1
    never = len(order) - 1
    if coverage == 1:  # what is between the words, too
        return sorted(order)
    for sources in words.values():
        last = np.array(
            [max((place.get(i, never) for i in ids), default=0) for cut, _ in sources for ids in cut]
        )
        each = np.concatenate([weights / weights.sum() / len(sources) for _, weights in sources])
        by = np.argsort(last, kind="stable")
        reached = np.searchsorted(np.cumsum(each[by]), coverage - 1e-12)
        enough = max(enough, int(last[by[min(int(reached), len(by) - 1)]]) + 1)
    return sorted(order[:enough])


def _forms(words: Iterable[str], language: str) -> Iterator[tuple[float, list[str]]]:
    """Ways in which the words of a list stand in a text, and how often each."""
    words = list(words)
    yield 0.97, spelt(words, language)
    yield 0.02, spelt((word.capitalize() for word in words), language)
    yield 0.005, words
    yield 0.005, [word.capitalize() for word in words]


def _use(cut: Iterable[list[int]], weights: Iterable[float], size: int) -> np.ndarray:
    """How often each token comes, (size,): tokens of texts that come `weights` times."""
    cut = list(cut)
    each = np.repeat(np.fromiter(weights, float), [len(ids) for ids in cut])
    return np.bincount(np.fromiter(chain.from_iterable(cut), int), each, size)


def _order(vocabulary: Vocabulary, kept: set[int], use: np.ndarray) -> list[int]:
    """Ids in the order in which they are kept, pieces before what is merged from them: those that must, then
    by use. Any beginning of it that holds `kept` is closed.
    """
    order: dict[int, None] = {}
    for index in [*sorted(kept), *np.flatnonzero(use)[np.argsort(-use[use > 0], kind="stable")].tolist()]:
        if index in vocabulary.pieces and index not in order:
            order.update(dict.fromkeys(vocabulary.parts(index)))
            order[index] = None
    return list(order)


def cut(vocabulary: Vocabulary, kept: Sequence[int]) -> dict[str, Any]:
    """The tokenizer.json of the tokens `kept` (old ids, ascending), numbered anew in that order."""
    new = {old: index for index, old in enumerate(kept)}
    document = {**vocabulary.document, "model": dict(vocabulary.document["model"])}
    model = document["model"]
    if vocabulary.kind == "BPE":
        pieces = {piece: new[index] for piece, index in model["vocab"].items() if index in new}
        model["vocab"] = dict(sorted(pieces.items(), key=lambda item: item[1]))
        together = isinstance(next(iter(model["merges"]), ""), str)
        model["merges"] = [
            " ".join(pair) if together else list(pair)
            for pair in vocabulary.merges
            if pair[0] in pieces and pair[1] in pieces and pair[0] + pair[1] in pieces
        ]
    else:
        model["vocab"] = [model["vocab"][old] for old in kept if old < len(model["vocab"])]
        if model.get("unk_id") is not None:
            model["unk_id"] = new[model["unk_id"]]
    document["added_tokens"] = [
        {**token, "id": new[token["id"]]} for token in vocabulary.added.values() if token["id"] in new
    ]
    if document.get("post_processor"):
        document["post_processor"] = _processor(document["post_processor"], vocabulary.ids, new)
    return document


def _processor(value: Any, ids: Mapping[str, int], new: Mapping[int, int]) -> Any:
    """A post-processor whose special tokens have their new ids: `{"id": …, "ids": […]}` of a template,
    `["</s>", 2]` of BERT's and RoBERTa's.
    """
    if isinstance(value, list):
        if len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int):
            return [value[0], new[value[1]]]
        return [_processor(one, ids, new) for one in value]
    if isinstance(value, dict):
        return {
            key: [new[one] for one in content] if key == "ids" else _processor(content, ids, new)
            for key, content in value.items()
        }
    return value


def named(config: Mapping[str, Any]) -> Iterator[int]:
    """The token ids that a config names: `eos_token_id`, one or a list, `suppress_tokens`, and those within."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from named(value)
        elif _NAMES_TOKENS.search(key):
            yield from _ints(value)


def renumbered(config: Mapping[str, Any], new: Mapping[int, int]) -> dict[str, Any]:
    """A config in which every token id is the new one."""
    return {
        key: renumbered(value, new)
        if isinstance(value, dict)
        else _map(value, new)
        if _NAMES_TOKENS.search(key)
        else value
        for key, value in config.items()
    }


_NAMES_TOKENS = re.compile(r"(_token_ids?|_token_index|suppress_tokens|bad_words_ids|decoder_ids)$")


def _ints(value: Any) -> Iterator[int]:
    if isinstance(value, list):
        for one in value:
            yield from _ints(one)
    elif isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        yield value


def _map(value: Any, new: Mapping[int, int]) -> Any:
    """None for an id that is no token: configs name some that the vocabulary lacks."""
    if isinstance(value, list):
        return [_map(one, new) for one in value]
    return new.get(value) if isinstance(value, int) and not isinstance(value, bool) else value


def lists(languages: Iterable[str]) -> dict[str, dict[str, float]]:
    """Language → word → how often it comes, as a share, from wordfreq; languages that it lacks are left out.

    Raises OnggiError where wordfreq is not installed.
    """
    try:
        import wordfreq
    except ImportError as error:
        raise OnggiError(
            "words: the lists of words come from wordfreq, which is not installed; "
            "pip install 'onggi[words]' brings it, and --words none does without."
        ) from error
    there = wordfreq.available_languages("best")
    found = {}
    for tag in languages:
        base = tag.split("-")[0]
        name = {"no": "nb", "hr": "sh", "sr": "sh", "bs": "sh"}.get(base, base)
        if name in there:
            found[tag] = wordfreq.get_frequency_dict(name, "best")
    return found


def retokenised(
    before: tokenizers.Tokenizer, after: tokenizers.Tokenizer, words: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Those of `words`, as they stand, that are cut otherwise than before, the most frequent first, with both cuts."""
    found = []
    for (word, weight), old, new in zip(
        words.items(), encode(before, words), encode(after, words), strict=True
    ):
        pieces = [before.id_to_token(index) for index in old], [after.id_to_token(index) for index in new]
        if pieces[0] != pieces[1]:
            found.append({"word": word, "frequency": weight, "before": pieces[0], "after": pieces[1]})
    return sorted(found, key=lambda one: -one["frequency"])


def write(vocabulary: Vocabulary, kept: Sequence[int], out: Path) -> list[str]:
    """Write the tokenizer of the tokens `kept` to the folder `out`; returns the names of the files."""
    new = {old: index for index, old in enumerate(kept)}
    document = cut(vocabulary, kept)
    ledger.write_json(out / "tokenizer.json", document)
    names = ["tokenizer.json"]
    file = vocabulary.folder / "tokenizer_config.json"
    if file.is_file():
        config = ledger.read_json(file)
        decoder = config.get("added_tokens_decoder")
        if decoder:
            config["added_tokens_decoder"] = {
                str(new[int(old)]): token for old, token in decoder.items() if int(old) in new
            }
        ledger.write_json(out / file.name, config)
        names.append(file.name)
    file = vocabulary.folder / "added_tokens.json"
    if file.is_file():
        tokens = {piece: new[old] for piece, old in ledger.read_json(file).items() if old in new}
        ledger.write_json(out / file.name, tokens)
        names.append(file.name)
    return names


def _kinds(document: Mapping[str, Any]) -> str:
    """Pre-tokenizer and decoder, as text to look for a name in."""
    return json.dumps([document.get("pre_tokenizer"), document.get("decoder")])


def _byte_letters() -> dict[str, int]:
    """The letters in which byte-level vocabularies write bytes (GPT-2): those that can be seen stand for
    themselves, the others for what follows U+0100 in order.
    """
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + n): byte for n, byte in enumerate(hidden)}

"""New tokens for a language, added to a tokenizer that a model already has.

A model trained on English pays three tokens for a syllable of Hangul, and no training makes that
cheaper: its vocabulary has to grow. The new tokens come after the old ones and the new merges after
the old merges. A text is thus first cut as ever, and only then do new merges join what the old ones
left: old ids stay, and a text in which no new merge finds its pair is cut as before. To leave other
languages alone, a new token may hold no letter of another script and no digit. Where scripts are
shared (German beside English) that is no protection, and the change has to be measured.

`tokenizers` trains from nothing only, so the merges are learnt here, by the same rule: the pair that
is most frequent, again and again, over words that stand as the old tokenizer leaves them.
"""

from __future__ import annotations

import heapq
import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from tokenizers import Tokenizer, models, trainers

from .. import languages as tags
from ..errors import OnggiError
from ..progress import progress
from . import scripts
from .vocabulary import COVERED, LONGEST_BYTES, LONGEST_LETTERS, spelt

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# Where nothing cuts text before the merges (SentencePiece), it is counted by words all the same.
_WORDS = re.compile(r"▁*[^▁]+|▁+")
_DIGITS = re.compile(r"\d")


@dataclass(frozen=True)
class Extended:
    """tokenizer: the old one and the new tokens. first: the id of the first new one. made_of: the old ids
    that each new token takes the place of, in the order of its id.
    """

    tokenizer: Tokenizer
    first: int
    made_of: list[list[int]]


def extend(tokenizer: Tokenizer, texts: Mapping[str, Collection[str]], count: int) -> Extended:
    """`tokenizer` with at most `count` new tokens, learnt from `texts` (language → texts).

    Fewer come out where no pair is left that comes twice. Raises OnggiError for a tokenizer that is neither
    BPE nor Unigram, or where nothing could be added.
    """
    whole = json.loads(tokenizer.to_str())
    model = whole["model"]
    used = tokenizer.get_vocab(with_added_tokens=True)
    first = max(used.values()) + 1
    bytewise = '"ByteLevel"' in json.dumps(whole["decoder"])
    allowed = _Allowed(tokenizer, bytewise, tuple(texts))
    if model["type"] == "BPE":
        # An added token that is not in the vocabulary leaves a hole in its ids; there it takes its own place.
        model["vocab"] |= used
        counts = sum((words(tokenizer, rows) for rows in texts.values()), Counter[str]())
        letters = {} if bytewise else _letters(tokenizer, counts, count, allowed)
        model["vocab"] |= {letter: first + index for index, letter in enumerate(letters)}
        learner = Tokenizer.from_str(json.dumps(whole)) if letters else tokenizer
        made_of = {first + index: pieces for index, pieces in enumerate(letters.values())}
        merges = _merges(learner, counts, count, first, made_of, allowed)
        as_text = bool(model["merges"]) and isinstance(model["merges"][0], str)
        for index, (left, right) in enumerate(merges, first + len(letters)):
            model["vocab"][left + right] = index
            model["merges"].append(f"{left} {right}" if as_text else [left, right])
        pieces = list(made_of.values())
    elif model["type"] == "Unigram":
        found, pieces = _pieces(tokenizer, texts, count, allowed)
        # A Unigram's ids are places in its list: what is only an added token has its place there too.
        known = {piece for piece, _ in model["vocab"]}
        late = sorted((index, token) for token, index in used.items() if token not in known)
        if [index for index, _ in late] != list(range(len(known), first)):
            raise OnggiError("its added tokens leave gaps among the ids; a Unigram vocabulary has none.")
        lowest = min(score for _, score in model["vocab"])
        model["vocab"] += [[token, lowest] for _, token in late] + found
    else:
        raise OnggiError(f"it is of the kind {model['type']}; BPE and Unigram can be extended.")
    if not pieces:
        raise OnggiError("the text gives no new token: it is too little, or every pair in it is known.")
    return Extended(Tokenizer.from_str(json.dumps(whole)), first, pieces)


def _letters_of_bytes() -> list[str]:
    """How a byte-level vocabulary spells each byte: a visible one as itself (of Latin-1), the others, in
    their order, as the letters from U+0100 on.
    """
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = itertools.count(0x100)
    return [chr(byte if byte in visible else next(spare)) for byte in range(256)]


class _Allowed:
    """Whether a new token may be: its letters in a script of the languages, without digits, not too long."""

    def __init__(self, tokenizer: Tokenizer, bytewise: bool, languages: tuple[str, ...]):
        self.tokenizer, self.bytes = tokenizer, bytewise
        self.scripts = [tags.script(tag) for tag in languages]
        self.inside = set(_letters_of_bytes()[0x80:0xC0])  # bytes that go on with a character

    def __call__(self, piece: str) -> bool:
        if len(piece) > (LONGEST_BYTES if self.bytes else LONGEST_LETTERS):
            return False
        # One that begins within a character would join the bytes of other scripts.
        if self.bytes and piece[0] in self.inside:
            return False
        text = spelt(self.tokenizer, piece) if self.bytes else piece
        letters = text.replace("\ufffd", "")
        if _DIGITS.search(letters) or not any(self._fits(letters, script) for script in self.scripts):
            return False
        # Punctuation alone and spaces belong to every language.
        return scripts.count(letters) > 0 or "\ufffd" in text

    def _fits(self, text: str, script: str) -> bool:
        return scripts.count_in(text, script) == scripts.count(text)


def words(tokenizer: Tokenizer, texts: Iterable[str]) -> Counter[str]:
    """How often each word stands in `texts`, cut as the tokenizer does before it looks up anything."""
    found: Counter[str] = Counter()
    for text in texts:
        if tokenizer.normalizer is not None:
            text = tokenizer.normalizer.normalize_str(text)
        if tokenizer.pre_tokenizer is None:
            found.update(_WORDS.findall(text))
        else:
            found.update(word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text))
    return found


def _letters(
    tokenizer: Tokenizer, counts: Mapping[str, int], count: int, allowed: _Allowed
) -> dict[str, list[int]]:
    """Letters that a vocabulary of letters lacks, and the byte tokens that stand for each until now.

    The most frequent, at most `count`, that make up all but one in two thousand of what it lacks.
    """
    missing: Counter[str] = Counter()
    known = tokenizer.get_vocab(with_added_tokens=True)
    for word, times in counts.items():
        for letter in word:
            if letter not in known and allowed(letter):
                missing[letter] += times
    room, found = missing.total() * COVERED, {}
    for letter, times in sorted(missing.items(), key=lambda entry: (-entry[1], entry[0]))[:count]:
        if room <= 0 or times < 2:
            break
        found[letter] = [token.id for token in tokenizer.model.tokenize(letter)]
        room -= times
    return found


def _merges(
    tokenizer: Tokenizer,
    words: Mapping[str, int],
    count: int,
    first: int,
    made_of: dict[int, list[int]],
    allowed: _Allowed,
) -> list[tuple[str, str]]:
    """Merges that follow the tokenizer's own, until there are `count` new tokens.

    words: how often each comes. made_of: new id → old ids, of the new tokens that there are already; those
    of the merges are added.
    """
    names: dict[int, str] = {}
    sequences: list[list[int]] = []
    counts: list[int] = []
    for word, times in words.items():
        tokens = tokenizer.model.tokenize(word)
        names.update((token.id, token.value) for token in tokens)
        if len(tokens) > 1:
            sequences.append([token.id for token in tokens])
            counts.append(times)
    pairs: Counter[tuple[int, int]] = Counter()
    where: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for number, sequence in enumerate(sequences):
        for pair in itertools.pairwise(sequence):
            pairs[pair] += counts[number]
            where[pair].add(number)
    # The most frequent first; of those that come equally often the one of the lowest ids, so that the
    # same text gives the same tokens.
    heap = [(-times, pair) for pair, times in pairs.items()]
    heapq.heapify(heap)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    merges: list[tuple[str, str]] = []
    with progress("new tokens", count) as bar:
        while heap and len(made_of) < count:
            times, pair = heapq.heappop(heap)
            if pairs[pair] != -times:  # it has changed since; it stands in the heap with its new count too
                continue
            if times > -2:
                break
            left, right = (names[index] for index in pair)
            joined = left + right
            if joined in vocabulary or _BYTE.search(joined) or not allowed(joined):
                continue
            new = first + len(made_of)
            vocabulary[joined] = new
            names[new] = joined
            merges.append((left, right))
            made_of[new] = [old for index in pair for old in made_of.get(index, [index])]
            for changed in _join(sequences, counts, pairs, where, pair, new):
                heapq.heappush(heap, (-pairs[changed], changed))
            bar.step(1)
    return merges


def _join(
    sequences: list[list[int]],
    counts: list[int],
    pairs: Counter[tuple[int, int]],
    where: defaultdict[tuple[int, int], set[int]],
    pair: tuple[int, int],
    new: int,
) -> set[tuple[int, int]]:
    """Put `new` for `pair` in all words; returns the pairs whose counts have changed and are not 0."""
    changed: set[tuple[int, int]] = set()
    for number in where.pop(pair):
        old, times = sequences[number], counts[number]
        made: list[int] = []
        at = 0
        while at < len(old):
            if at + 1 < len(old) and (old[at], old[at + 1]) == pair:
                made.append(new)
                at += 2
            else:
                made.append(old[at])
                at += 1
        for gone in itertools.pairwise(old):
            pairs[gone] -= times
            changed.add(gone)
        for come in itertools.pairwise(made):
            pairs[come] += times
            where[come].add(number)
            changed.add(come)
        sequences[number] = made
    del pairs[pair]
    changed.discard(pair)
    return {other for other in changed if pairs[other] > 0}


def _pieces(
    tokenizer: Tokenizer, texts: Mapping[str, Collection[str]], count: int, allowed: _Allowed
) -> tuple[list[tuple[str, float]], list[list[int]]]:
    """At most `count` new pieces with their scores, the likeliest in the language, and what they were."""
    known = tokenizer.get_vocab(with_added_tokens=True)
    learner = Tokenizer(models.Unigram())
    learner.normalizer, learner.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    letters = set().union(*(text for rows in texts.values() for text in rows))
    # More than are wanted: many are in the vocabulary already, or may not be added.
    trainer = trainers.UnigramTrainer(
        vocab_size=4 * count + len(letters),
        special_tokens=[],
        unk_token=None,
        max_piece_length=LONGEST_LETTERS,
        show_progress=False,
    )
    learner.train_from_iterator((text for rows in texts.values() for text in rows), trainer)
    found = [(piece, round(score, 6)) for piece, score in json.loads(learner.to_str())["model"]["vocab"]]
    found.sort(key=lambda entry: (-entry[1], entry[0]))
    chosen = [
        (piece, score)
        for piece, score in found
        if piece not in known and not _BYTE.fullmatch(piece) and allowed(piece)
    ][:count]
    return chosen, [[token.id for token in tokenizer.model.tokenize(piece)] for piece, _ in chosen]


def changed(old: Tokenizer, new: Tokenizer, texts: Iterable[str]) -> float:
    """The share of the tokens of `texts` that `old` makes and `new` does not, 0 to 1."""
    total = lost = 0
    for text in texts:
        before, after = (
            Counter(zip(made.ids, made.offsets, strict=True))
            for made in (it.encode(text, add_special_tokens=False) for it in (old, new))
        )
        total += before.total()
        lost += (before - after).total()
    return lost / total if total else 0.0

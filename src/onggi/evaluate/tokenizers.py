"""What a language pays before the model even starts: its tokens, by the tokenizer alone.

Each token is a step of the model: it takes its time, its place in the window and, behind a server,
its price. A tokenizer that knows a script badly cuts the same content into more tokens, in the end into
the bytes of single characters, which the model must then spell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import OnggiError
from ..text.tokens import Parts, Tokens
from .entries import mean, parity, ratio


def price(
    tokens: Tokens, passages: Mapping[str, Sequence[str]], parallel: bool
) -> dict[str, dict[str, dict[str, Any]]]:
    """language → measure → entry (`value`, `low`, `high`, `n` passages, `tokens`).

    passages: language → texts. parallel: the n-th text of every language says the same.

    - `tokens_per_passage`: mean; between languages it says something only of parallel text.
    - `parity`: tokens for each token of English on the same passages; of parallel text that has English.
    - `bytes_per_token`: of UTF-8, in which a Hangul syllable is three bytes: for one language under several
      tokenizers.
    - `byte_fallback`: share of tokens that are a part of a character and no whole one.
    - `unknown`: share of tokens that stand for what the tokenizer cannot say at all.

    The start token of a sequence does not count. Raises OnggiError for a passage without tokens.
    """
    parts, unknown = Parts(tokens.tokenizer), _unknown(tokens)
    encoded = {language: [tokens.encode(text) for text in texts] for language, texts in passages.items()}
    counts = {language: [len(ids) for ids in own] for language, own in encoded.items()}
    found = {}
    for language, own in encoded.items():
        lengths, total = counts[language], sum(counts[language])
        if 0 in lengths:
            raise OnggiError(f"{language}: passage {lengths.index(0) + 1} has no tokens.")
        sizes = [len(text.encode()) for text in passages[language]]
        broken = [sum(map(parts.__contains__, ids)) for ids in own]
        unsaid = [sum(token == unknown for token in ids) for ids in own]
        entry = {
            "tokens_per_passage": mean(lengths, total),
            "bytes_per_token": ratio(sizes, lengths, total),
            "byte_fallback": ratio(broken, lengths, total, bounds=(0.0, 1.0)),
            "unknown": ratio(unsaid, lengths, total, bounds=(0.0, 1.0)),
        }
        if parallel and "en" in counts and language != "en":
            entry["parity"] = parity(lengths, counts["en"])
        found[language] = entry
    return found


def _unknown(tokens: Tokens) -> int | None:
    """The token for what is not in the vocabulary, None where the tokenizer has none."""
    model: Any = tokens.tokenizer.model
    if hasattr(model, "unk_token"):
        return tokens.tokenizer.token_to_id(model.unk_token) if model.unk_token else None
    # Of a Unigram model the library says it in the file only.
    found: int | None = json.loads(tokens.tokenizer.to_str())["model"]["unk_id"]
    return found

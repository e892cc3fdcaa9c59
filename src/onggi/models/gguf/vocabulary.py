"""A tokenizer.json as the `tokenizer.ggml.*` metadata that make llama.cpp cut text the same way.

llama.cpp knows two kinds that are wanted here. `llama` is SentencePiece's: it joins whatever two
neighbours make the token with the best score, and has bytes for what it does not know. `gpt2` is byte-level
BPE: it takes a list of merges, behind a rule for cutting text that goes by a name. A tokenizer that neither can
express is refused here, before anything is made: a model with other tokens than it was trained on looks
well and talks nonsense.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ... import ledger
from ...errors import OnggiError
from .tokenizer import _CONTROL, _LLAMA3_KIND, _NORMAL, _UNKNOWN, _USER_DEFINED

_UNUSED, _BYTE = 5, 6
_BYTE_NAME = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "▁"
# The names that are written, of the many that mean the same cut.
_CUT_NAMES = ("llama-bpe", "qwen2", "qwen35", "tekken", "gpt-4o")


def vocabulary(folder: Path, rows: int, ends: list[int]) -> dict[str, Any]:
    """Metadata of the tokenizer in `folder` for an embedding of `rows` rows. ends: ids that end generation.

    Raises OnggiError, naming the file and why, for a tokenizer that llama.cpp could not follow.
    """
    from transformers import AutoTokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise OnggiError(f"{folder}: has no tokenizer.json; save the tokenizer with transformers first.")
    whole: dict[str, Any] = ledger.read_json(file)
    model = whole.get("model") or {}
    kind = model.get("type") or ("BPE" if "merges" in model else "Unigram")
    if kind != "BPE":
        raise OnggiError(
            f"{file}: is a {kind} vocabulary, which llama.cpp has for T5 alone, without bytes for letters it does "
            "not know; GGUF takes BPE (onggi tokenizer --kind bpe)."
        )
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(name):
            raise OnggiError(f"{file}: has a {name}, which GGUF has no word for.")
    if '"ByteLevel"' in json.dumps([whole.get("pre_tokenizer"), whole.get("normalizer")]):
        found = _byte_level(file, whole)
    else:
        found = _pieces(file, whole)
    found |= _tokens(file, whole, rows, plain=found["tokenizer.ggml.model"] == "llama")
    try:
        loaded: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the library raises many kinds
        raise OnggiError(f"{folder}: transformers cannot load its tokenizer ({error}).") from error
    found |= _special(file, loaded, ends)
    if loaded.chat_template:
        template = loaded.chat_template
        found["tokenizer.chat_template"] = (
            template if isinstance(template, str) else template.get("default", next(iter(template.values())))
        )
    return found


def _tokens(file: Path, whole: Mapping[str, Any], rows: int, *, plain: bool) -> dict[str, Any]:
    """Every token and its type. plain: spaces within user-defined tokens are written as spaces."""
    tokens: dict[int, tuple[str, int]] = {}
    unknown = whole["model"].get("unk_token")
    for token, index in whole["model"]["vocab"].items():
        kind = _BYTE if plain and _BYTE_NAME.fullmatch(token) else _NORMAL
        tokens[index] = token, _UNKNOWN if plain and token == unknown else kind
    for added in whole.get("added_tokens", []):
        content, index = added["content"], added["id"]
        for side in ("lstrip", "rstrip", "single_word"):
            if added.get(side):
                raise OnggiError(
                    f"{file}: its token {content!r} takes in what stands beside it ({side}), which GGUF cannot say."
                )
        if plain and content == unknown:
            continue
        if not added["special"] and plain:
            content = content.replace(_SPACE, " ")
        tokens[index] = content, _CONTROL if added["special"] else _USER_DEFINED
    if max(tokens) >= rows:
        raise OnggiError(
            f"{file}: knows token {max(tokens)} ({tokens[max(tokens)][0]!r}), but the embedding has only {rows} "
            "rows; they are of different models."
        )
    filled = [tokens.get(index, (f"[PAD{index}]", _UNUSED)) for index in range(rows)]
    names = [token for token, _ in filled]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise OnggiError(f"{file}: token {twice!r} occurs twice in its vocabulary.")
    return {"tokenizer.ggml.tokens": names, "tokenizer.ggml.token_type": [kind for _, kind in filled]} | (
        {"tokenizer.ggml.scores": _scores(file, whole, rows)} if plain else {}
    )


def _special(file: Path, loaded: Any, ends: list[int]) -> dict[str, Any]:
    """The tokens that have a part to play, and which of them every text gets."""
    found: dict[str, Any] = {}
    stated: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (file.parent / name).is_file():
            stated |= ledger.read_json(file.parent / name)
    for ours, theirs in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items():
        index = getattr(loaded, f"{ours}_token_id")
        # A family's own class has an unknown token and the like where the files state none.
        if index is not None and stated.get(f"{ours}_token"):
            found[f"tokenizer.ggml.{theirs}_token_id"] = int(index)
    others = [index for index in ends if index != found.get("tokenizer.ggml.eos_token_id")]
    if "tokenizer.ggml.eos_token_id" not in found and others:
        found["tokenizer.ggml.eos_token_id"] = others.pop(0)
    for name, index in zip(("eot", "eom"), others, strict=False):
        found[f"tokenizer.ggml.{name}_token_id"] = index
    bare, dressed = (loaded("a", add_special_tokens=flag)["input_ids"] for flag in (False, True))
    bos, eos = (found.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
    before = bos is not None and dressed[:1] == [bos]
    after = eos is not None and len(dressed) > len(bare) + before and dressed[-1:] == [eos]
    if dressed != [bos] * before + bare + [eos] * after:
        raise OnggiError(
            f"{file}: puts more than a start and an end token around a text, which GGUF has no words for."
        )
    return found | {"tokenizer.ggml.add_bos_token": before, "tokenizer.ggml.add_eos_token": after}


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """A normalizer or pre-tokenizer, its sequences taken apart."""
    if not part:
        return
    if part["type"] == "Sequence":
        for inner in part.get("normalizers") or part.get("pretokenizers") or []:
            yield from _steps(inner)
    else:
        yield part


def _merges(whole: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (first, second)
        for first, second in (
            merge.split(" ") if isinstance(merge, str) else merge for merge in whole["model"]["merges"]
        )
    ]


# ── SentencePiece's kind ─────────────────────────────────────────────────────────────────────────


def _pieces(file: Path, whole: Mapping[str, Any]) -> dict[str, Any]:
    """`llama`: what stands before the merges may only turn spaces into ▁ and put one in front."""
    prefix = replaced = False
    for step in _steps(whole.get("normalizer")):
        if step["type"] == "Prepend" and step["prepend"] == _SPACE:
            prefix = True
        elif step["type"] == "Replace" and (step["pattern"], step["content"]) == ({"String": " "}, _SPACE):
            replaced = True
        else:
            raise OnggiError(
                f"{file}: changes text by {step['type']} before it is cut, which llama.cpp cannot be told."
            )
    for step in _steps(whole.get("pre_tokenizer")):
        if step["type"] == "Split" and step["pattern"] == {"String": " "} and replaced:
            continue  # of spaces there are none left
        inside = any(
            _SPACE in token.lstrip(_SPACE) for token in whole["model"]["vocab"]
        )  # pieces across words
        if step["type"] == "Metaspace" and not (step.get("split", True) and inside):
            prefix = prefix or step.get("prepend_scheme", "always") != "never"
            replaced = True
        else:
            raise OnggiError(
                f"{file}: cuts text by {step['type']} before merging, which llama.cpp cannot be told."
            )
    lacking = [f"<0x{i:02X}>" for i in range(256) if f"<0x{i:02X}>" not in whole["model"]["vocab"]]
    if not replaced or not whole["model"].get("byte_fallback") or lacking:
        raise OnggiError(
            f"{file}: is neither byte-level BPE nor of SentencePiece's kind (▁ for spaces, bytes for what it does "
            f"not know{f'; {lacking[0]} is missing' if replaced and lacking else ''}): llama.cpp knows these two."
        )
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.add_space_prefix": prefix,
    }


def _scores(file: Path, whole: Mapping[str, Any], rows: int) -> list[float]:
    """A score for each token by which merging goes in the order of the merges.

    llama.cpp joins any two neighbours whose whole is a token, the best score first; a list of merges may
    leave a pair out, or make the same token early from one pair and late from another. Neither can be said
    by scores.
    """
    vocab = whole["model"]["vocab"]
    merges = _merges(whole)
    ranks: dict[str, int] = {}
    last = ""
    for first, second in merges:
        made = first + second
        if made in ranks and made != last:
            raise OnggiError(
                f"{file}: makes {made!r} early from one pair of pieces and late from another; llama.cpp has one "
                "score for a token and would cut text differently. A byte-level tokenizer (onggi tokenizer "
                "--kind bpe) has no such limit."
            )
        ranks.setdefault(made, len(ranks))
        last = made
    pairs = set(merges)
    added = {token["content"] for token in whole.get("added_tokens", [])}
    normal = {t for t in vocab if t not in added and not _BYTE_NAME.fullmatch(t)}
    for token in ranks.keys() & normal:
        for cut in range(1, len(token)):
            pair = token[:cut], token[cut:]
            if pair not in pairs and pair[0] in normal and pair[1] in normal:
                raise OnggiError(
                    f"{file}: does not merge {pair[0]!r} and {pair[1]!r} though it has {token!r}; llama.cpp would, and "
                    "cut text differently. A byte-level tokenizer (onggi tokenizer --kind bpe) has no such limit."
                )
    scores = [0.0] * rows
    for token, index in vocab.items():
        if token in ranks:
            scores[index] = -float(ranks[token])
        elif token in normal:
            # Letters are there from the start, and a piece that no merge makes is never looked for.
            scores[index] = -float(len(ranks) + index)
    return scores


# ── byte-level BPE ───────────────────────────────────────────────────────────────────────────────


def _byte_level(file: Path, whole: Mapping[str, Any]) -> dict[str, Any]:
    """`gpt2`, with the name of the rule by which text is cut before merging."""
    for step in _steps(whole.get("normalizer")):
        if step["type"] != "NFC":  # which llama.cpp leaves to the caller
            raise OnggiError(
                f"{file}: changes text by {step['type']} before it is cut, which llama.cpp cannot be told."
            )
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": _cut(file, whole),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in _merges(whole)],
    }


def _cut(file: Path, whole: Mapping[str, Any]) -> str:
    """llama.cpp's name for how text is cut."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    steps = list(_steps(whole.get("pre_tokenizer")))
    at_once = bool(whole["model"].get("ignore_merges"))
    last = steps[-1]
    if last["type"] == "ByteLevel" and last.get("add_prefix_space"):
        raise OnggiError(
            f"{file}: puts a space before every text, which llama.cpp's byte-level BPE does not."
        )
    name = None
    if [step["type"] for step in steps] == ["ByteLevel"] and last.get("use_regex", True):
        name = "gpt-2"
    elif [step["type"] for step in steps] == ["Digits", "ByteLevel"]:
        if last.get("use_regex", True) and steps[0].get("individual_digits"):
            name = "smollm"
    elif [step["type"] for step in steps] == ["Split", "ByteLevel"] and not last.get("use_regex", True):
        pattern = steps[0]["pattern"].get("Regex")
        whole_pieces = steps[0]["behavior"] == "Isolated" and not steps[0].get("invert")
        known = {str(GGUF_PRE_TOKENIZER_SPLITS[one]): one for one in _CUT_NAMES}
        name = known.get(pattern) if whole_pieces else None
    if name is None:
        raise OnggiError(
            f"{file}: cuts text before merging in a way that llama.cpp has no name for. It knows those of GPT-2, "
            f"SmolLM, {', '.join(_CUT_NAMES)} (onggi tokenizer --pre)."
        )
    if at_once != (name in _LLAMA3_KIND):
        raise OnggiError(
            f"{file}: {'takes' if at_once else 'does not take'} a whole word of its vocabulary before merging, which "
            f"llama.cpp {'does not' if at_once else 'does'} behind the cut {name!r}."
        )
    return name

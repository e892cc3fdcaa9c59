"""The tokenizer that a file's `tokenizer.ggml.*` metadata describe.

Built from the parts of `tokenizers` and not by transformers' classes for each family: those rebuild
parts of what they load, and what decides here is that text is cut as llama.cpp cuts it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import OnggiError
from .container import Facts, File

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4  # GGUF's token types, SentencePiece's numbers

# Byte-level BPE is nothing without the rule that cuts text before the merges. transformers keeps the
# patterns of the llama3, qwen2, tekken and gpt-4o kinds; these two kinds it takes for plain GPT-2,
# which is wrong for the second: there each digit stands alone.
_GPT2_SPLIT = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "a.x-4.0", "exaone4", "granite-docling"}
_DIGITS_THEN_GPT2 = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"}

# A whole word of the vocabulary is taken before any merge is tried, and BOS is added unasked.
_LLAMA3_KIND = {
    "llama3",
    "llama-v3",
    "llama-bpe",
    "falcon3",
    "falcon-h1",
    "pixtral",
    "midm-2.0",
    "lfm2",
    "tekken",
}

# Texts of tokens that end an answer, for files that name one end only (llama.cpp knows them by text too).
_ENDS = (
    "<end_of_turn>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
)


# Of Phi-3's special tokens, those that do not swallow the white space behind them.
_NEVER_STRIP = ("<unk>", "<s>", "<|endoftext|>")


class Vocabulary:
    """The `tokenizer.ggml.*` metadata, checked."""

    def __init__(self, file: File, rows: int):
        get = file.metadata.get
        self.path = file.path
        self.kind, self.pre = get("tokenizer.ggml.model"), get("tokenizer.ggml.pre")
        tokens, types = get("tokenizer.ggml.tokens"), get("tokenizer.ggml.token_type")
        if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], str):
            raise OnggiError(f"{file.path}: there is no vocabulary in it (tokenizer.ggml.tokens).")
        self.tokens: list[str] = tokens
        self.types: list[int] = types if isinstance(types, list) else [_NORMAL] * len(tokens)
        self.scores = get("tokenizer.ggml.scores")
        self.merges = get("tokenizer.ggml.merges")
        if len(self.types) < len(tokens):
            raise OnggiError(
                f"{file.path} is damaged: {len(tokens)} tokens but {len(self.types)} token types."
            )
        if len(tokens) > rows:
            raise OnggiError(f"{file.path} is damaged: {len(tokens)} tokens but {rows} rows of embedding.")
        if len(set(tokens)) < len(tokens):
            twice = Counter(tokens).most_common(1)[0][0]
            raise OnggiError(f"{file.path}: token {twice!r} occurs twice in its vocabulary.")
        sentencepiece = self.kind == "llama"
        self.add_bos = bool(get("tokenizer.ggml.add_bos_token", sentencepiece or self.pre in _LLAMA3_KIND))
        self.add_eos = bool(get("tokenizer.ggml.add_eos_token", False))
        self.space_prefix = bool(get("tokenizer.ggml.add_space_prefix", sentencepiece))
        self.name = str(get("general.name", "")).lower()

    def typed(self) -> Iterator[tuple[str, int]]:
        """Each token with its type."""
        return zip(self.tokens, self.types, strict=False)


def _piece_merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Merges in the order SentencePiece makes them: by the score of what they give, best first.

    A file of this kind has scores and no merges. Control, byte and user-defined tokens take no part:
    SentencePiece finds them whole in the text or not at all.
    """
    scores = vocabulary.scores
    if not isinstance(scores, list) or len(scores) < len(vocabulary.tokens):
        raise OnggiError(f"{vocabulary.path}: its vocabulary has no scores (tokenizer.ggml.scores).")
    normal = {
        token: score
        for (token, its), score in zip(vocabulary.typed(), scores, strict=False)
        if its == _NORMAL
    }
    merges: list[tuple[str, str]] = []
    for token in sorted((t for t in normal if len(t) > 1), key=lambda t: -normal[t]):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in normal and right in normal:
                merges.append((left, right))
    return merges


def make_tokenizer(vocabulary: Vocabulary) -> Any:
    """A `tokenizers.Tokenizer` that cuts text as llama.cpp does, all but BOS."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    path, pre = vocabulary.path, vocabulary.pre
    if vocabulary.kind == "llama":
        unknown = next((t for t, its in vocabulary.typed() if its == _UNKNOWN or t == "<unk>"), None)
        tokenizer = Tokenizer(
            models.BPE(ids, _piece_merges(vocabulary), unk_token=unknown, fuse_unk=True, byte_fallback=True)
        )
        # Spaces become ▁ without a pre-tokenizer: pieces cross words. The prefix is one for every stretch
        # of text between two special tokens, as in llama.cpp.
        steps: list[Any] = [normalizers.Prepend("▁")] if vocabulary.space_prefix else []
        tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
        back: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        tokenizer.decoder = decoders.Sequence(
            back + ([decoders.Strip(" ", 1, 0)] if vocabulary.space_prefix else [])
        )
    elif vocabulary.kind == "gpt2":
        if not isinstance(vocabulary.merges, list):
            raise OnggiError(f"{path}: its vocabulary has no merges (tokenizer.ggml.merges).")
        merges = [tuple(merge.split(" ", 1)) for merge in vocabulary.merges]
        if any(len(merge) != 2 or not {*merge, "".join(merge)} <= ids.keys() for merge in merges):
            raise OnggiError(f"{path} is damaged: its merges do not fit its vocabulary.")
        tokenizer = Tokenizer(models.BPE(ids, merges, ignore_merges=pre in _LLAMA3_KIND))
        if pre in _GPT2_SPLIT:
            split: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
        elif pre in _DIGITS_THEN_GPT2:
            split = [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        elif pre in GGUF_PRE_TOKENIZER_SPLITS:
            split = [
                pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[pre]), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        else:
            known = sorted(_GPT2_SPLIT | _DIGITS_THEN_GPT2 | set(GGUF_PRE_TOKENIZER_SPLITS))
            raise OnggiError(
                f"{path}: how it cuts text before merging (tokenizer.ggml.pre = {pre!r}) is not known, and a "
                f"guess would give wrong tokens. Known: {', '.join(known)}."
            )
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
        tokenizer.decoder = decoders.ByteLevel()
        if pre == "qwen2":
            # Qwen's own tokenizer composes first; llama.cpp leaves it to the caller. The models
            # were trained on composed text.
            tokenizer.normalizer = normalizers.NFC()
    else:
        raise OnggiError(
            f"{path}: tokenizers of kind {vocabulary.kind!r} are not supported (llama and gpt2 are)."
        )

    # Phi-3's special tokens swallow the white space behind them. No key says so: llama.cpp goes by the name.
    strip = "phi-3" in vocabulary.name or "phi3" in vocabulary.name
    for kinds, special in (((_CONTROL, _UNKNOWN), True), ((_USER_DEFINED,), False)):
        added = [
            AddedToken(token, normalized=False, special=special, rstrip=strip and token not in _NEVER_STRIP)
            for token, its in vocabulary.typed()
            if its in kinds and token
        ]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    return tokenizer


def write_tokenizer(file: File, vocabulary: Vocabulary, backend: Any, out: Path) -> None:
    from tokenizers import processors

    facts = Facts(file)
    special: dict[str, str] = {}
    for ours, theirs in {
        "bos": "bos",
        "eos": "eos",
        "unk": "unknown",
        "pad": "padding",
        "mask": "mask",
    }.items():
        if (index := facts.token_id(theirs)) is not None:
            special[f"{ours}_token"] = vocabulary.tokens[index]
    bos = special.get("bos_token") if vocabulary.add_bos else None
    eos = special.get("eos_token") if vocabulary.add_eos else None
    ends = [(token, backend.token_to_id(token)) for token in dict.fromkeys((bos, eos)) if token]
    one, two = (
        " ".join(filter(None, (bos and f"{bos}:{i}", f"${'AB'[i]}:{i}", eos and f"{eos}:{i}")))
        for i in (0, 1)
    )
    backend.post_processor = processors.TemplateProcessing(
        single=one, pair=f"{one} {two}", special_tokens=ends
    )
    backend.save(str(out / "tokenizer.json"), pretty=False)
    config = special | {
        "add_bos_token": bos is not None,
        "add_eos_token": eos is not None,
        "clean_up_tokenization_spaces": False,
        "model_max_length": facts.integer("context_length"),
        # The class that takes tokenizer.json as it is; the families' own classes rebuild parts of it.
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")
    template = file.metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and template:
        (out / "chat_template.jinja").write_text(template)


def end_ids(vocabulary: Vocabulary, facts: Facts) -> int | list[int] | None:
    """Ids that end generation: the file's own, and the turn's end that base models have in store."""
    ends = [facts.token_id(name) for name in ("eos", "eot", "eom")]
    index = {t: i for i, t in enumerate(vocabulary.tokens) if t in _ENDS and vocabulary.types[i] == _CONTROL}
    ids = [i for i in dict.fromkeys([*ends, *(index.get(t) for t in _ENDS)]) if i is not None]
    return (ids[0] if len(ids) == 1 else ids) if ids else None

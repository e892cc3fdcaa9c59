"""A folder as GGUF: read again it is the same model, to llama.cpp it is the same text, and what it cannot be is said.

The families and texts are those of `gguf_families`, whose files test_gguf reads the other way.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import conftest
from gguf_families import GEMMA, LLAMA3, ODD, QWEN2, TEXTS, TINY, Llama, assert_same_tokens, fuzz
from onggi.errors import OnggiError
from onggi.models import gguf as reading
from onggi.models.gguf import container, writing
from onggi.quantize.formats import gguf as format_

FAMILIES = [
    "llama",
    "llama, biases",
    "llama, Llama 3's rope",
    "llama, linear rope",
    "qwen2, yarn",
    "qwen3",
    "smollm3",
    "gemma",
    "gemma2",
    "gemma3, linear rope",
    "gemma3, its own pattern",
]


def folder_of(name: str, tmp: Path) -> tuple[Path, Path]:
    """(a file of a family as llama.cpp's own converter writes it, the folder that it makes)"""
    made, out = TINY[name].write(tmp / "first.gguf"), tmp / "folder"
    out.mkdir()
    reading.convert(made, out)
    return made, out


def written(folder: Path, path: Path, kind: str = "F32") -> Path:
    described = writing.describe(folder)
    kinds = format_.chosen_types(described, kind, calibrated=False)
    format_.write(path, described, kinds, lambda _: None, name="tiny", mixture=kind)
    return path


@pytest.mark.parametrize("name", FAMILIES, ids=lambda name: name.replace(" ", "_").replace(",", ""))
def test_read_again_it_is_the_same(name: str, tmp_path: Path) -> None:
    first, folder = folder_of(name, tmp_path)
    second = written(folder, tmp_path / "second.gguf")
    one, two = container.File(first), container.File(second)
    assert one.tensors.keys() == two.tensors.keys()
    for tensor in one.tensors:
        values = [next(file.values(file.tensors[tensor])) for file in (one, two)]
        assert values[0] == pytest.approx(values[1], rel=1e-6), tensor
    # Every token, type and merge; scores are another way of saying the same order.
    same = ("tokens", "token_type", "merges", "model", "bos_token_id", "eos_token_id", "unknown_token_id")
    for key in same:
        assert one.metadata.get(f"tokenizer.ggml.{key}") == two.metadata.get(f"tokenizer.ggml.{key}"), key
    again = tmp_path / "again"
    again.mkdir()
    reading.convert(second, again)
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert json.loads((again / file).read_text()) == json.loads((folder / file).read_text()), file
    before, after = load_file(folder / "model.safetensors"), load_file(again / "model.safetensors")
    assert all(after[key].equal(value) for key, value in before.items())


@pytest.mark.parametrize("name", ["gemma3, its own pattern", "llama, linear rope", "smollm3"])
def test_llama_cpp_cuts_text_as_transformers(name: str, tmp_path: Path) -> None:
    _, folder = folder_of(name, tmp_path)
    path = written(folder, tmp_path / "second.gguf", "BF16")
    assert_same_tokens(
        Llama(path, 256), AutoTokenizer.from_pretrained(folder), [*TEXTS.values(), *ODD, *fuzz(60)]
    )


def test_the_tokenizers_of_tests_and_of_ours_are_known(tiny_gemma: Path, tmp_path: Path) -> None:
    """Byte-level BPE with a start token, the windows in a pattern of their own."""
    shutil.copytree(tiny_gemma, tmp_path / "model")
    described = writing.describe(tmp_path / "model")
    assert described.metadata["tokenizer.ggml.pre"] == "gpt-2"
    assert described.metadata["tokenizer.ggml.add_bos_token"] is True
    assert described.metadata["gemma3.attention.sliding_window_pattern"] == 4
    path = written(tmp_path / "model", tmp_path / "model.gguf", "BF16")
    assert_same_tokens(
        Llama(path, 256), AutoTokenizer.from_pretrained(tmp_path / "model"), [*TEXTS.values(), *ODD]
    )


def spoilt(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        whole = json.loads((folder / "tokenizer.json").read_text())
        change(whole)
        (folder / "tokenizer.json").write_text(json.dumps(whole))

    return spoil


def configured(**wrong: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | wrong))

    return spoil


def unigram(folder: Path) -> None:
    backend = Tokenizer(models.Unigram([("<unk>", 0.0), ("버", -1.0), ("a", -2.0)], unk_id=0))
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>").save_pretrained(folder)


def lowercase(folder: Path) -> None:
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.normalizer = normalizers.Lowercase()
    backend.save(str(folder / "tokenizer.json"))


def unknown_cut(folder: Path) -> None:
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\p{L}"), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    backend.save(str(folder / "tokenizer.json"))


def three_letters(*order: tuple[int, int, int, int]) -> Callable[[dict[str, Any]], None]:
    """Merges of three letters a, b, c to abc; each of `order` is a pair of slices of that word."""

    def change(whole: dict[str, Any]) -> None:
        vocab = whole["model"]["vocab"]
        added = {token["content"] for token in whole["added_tokens"]}
        word = "".join([token for token in vocab if len(token) == 1 and token not in added][-3:])
        old = [token for token in vocab if len(token) > 1 and token not in added and token[0] != "<"][:3]
        for known, new in zip(old, (word[:2], word[1:], word), strict=True):
            assert new not in vocab
            vocab[new] = vocab.pop(known)
        whole["model"]["merges"] = [[word[i:j], word[k:end]] for i, j, k, end in order]

    return change


A_B, B_C, AB_C, A_BC = (0, 1, 1, 2), (1, 2, 2, 3), (0, 2, 2, 3), (0, 1, 1, 3)
REFUSED = {
    "another kind": ("qwen3", unigram, "is a Unigram vocabulary"),
    "changes text": ("qwen3", lowercase, "changes text by Lowercase"),
    "an unknown cut": ("qwen3", unknown_cut, "in a way that llama.cpp has no name for"),
    "merges out of order": (
        "gemma",
        spoilt(three_letters(A_B, AB_C, B_C, A_BC)),
        "early from one pair of pieces and late from another",
    ),
    "a merge left out": ("gemma", spoilt(three_letters(A_B, B_C, AB_C)), "does not merge"),
    "more tokens than rows": (
        "gemma",
        spoilt(lambda whole: whole["model"]["vocab"].update({"버섯국": 100_000})),
        "they are of different models",
    ),
    "a token that takes in spaces": (
        "gemma",
        spoilt(lambda whole: whole["added_tokens"][1].update(lstrip=True)),
        "takes in what stands beside it",
    ),
    "an architecture": ("phi3", lambda _: None, "models of type 'phi3' cannot be written"),
    "a scale": ("gemma2", configured(query_pre_attn_scalar=17), "query_pre_attn_scalar is 17"),
    "an activation": ("llama", configured(hidden_act="gelu"), "computes with gelu"),
    "layers": (
        "gemma3, its own pattern",
        configured(
            layer_types=["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
        ),
        "layer_types",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_said_is_refused(case: str, tmp_path: Path) -> None:
    name, spoil, why = REFUSED[case]
    _, folder = folder_of(name, tmp_path)
    spoil(folder)
    with pytest.raises(OnggiError, match=why):
        writing.describe(folder)


def test_a_windowed_mistral_is_refused(tiny: Path, tmp_path: Path) -> None:
    model = tmp_path / "mistral"
    model.mkdir()
    conftest.save_model(model, "Mistral", num_hidden_layers=1, sliding_window=16, head_dim=32)
    with pytest.raises(OnggiError, match="sees only 16 before it"):
        writing.describe(model)


def test_the_three_kinds_of_vocabulary_say_what_they_are() -> None:
    """So that the round trip above is over all of them."""
    used = [TINY[name].tokenizer for name in FAMILIES]
    assert all(any(one is kind for one in used) for kind in (GEMMA, LLAMA3, QWEN2))

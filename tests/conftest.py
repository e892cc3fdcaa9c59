"""Tiny real models, with a tokenizer trained on the shipped probe, and a cache of the test's own."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from clusters import cluster

# Files that take longest, which begin first: else one process would still be at them when the others are done.
_LONG = (
    "test_real.py",
    "test_on_ray.py",
    "test_finetune.py",
    "test_text.py",
    "test_gguf.py",
    "test_debian.py",
    "test_pretrain_packed.py",
    "test_reshape.py",
    "test_resume.py",
    "test_stream.py",
    "test_cost.py",
)


def pytest_configure(config: pytest.Config) -> None:
    """A GPU is for the tests that are marked so: the others compare with what is on the CPU."""
    chosen = config.option.markexpr.replace("not gpu", "")
    if "gpu" not in chosen:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long files before the others."""
    items.sort(key=lambda item: _LONG.index(item.path.name) if item.path.name in _LONG else len(_LONG))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several processes (pytest-xdist): the tests of a file in one, which shares what they share, in the order of
    the files; and those that want the Ray cluster in one, for there is one.

    Not `--dist loadgroup`, whose marks pytest 9.2 does not see (xdist 3.8): tests of a file went to both processes, and
    each made all that they share.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "ray" if file.endswith(("on_ray.py", "test_fanout.py")) else file

    config.option.loadscopereorder = False
    return Scheduling(config, log)


@pytest.fixture(autouse=True)
def cache(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path | None:
    """ONGGI_CACHE in a folder of the test's own; tests marked `real` share the user's cache."""
    if request.node.get_closest_marker("real"):
        return None
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ONGGI_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, headless. Of a module, not of the session: while it is open, asyncio.run cannot be called beside it."""
    sync = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium fonts-noto-cjk fonts-noto-core")
    with sync.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])


def probe_texts() -> Iterator[str]:
    """Every passage of the probe in every language."""
    content = (resources.files("onggi.text") / "data" / "probe.jsonl").read_text(encoding="utf-8")
    for line in content.split("\n"):
        if line.strip():
            yield from (text for key, text in json.loads(line).items() if key != "_id")


def save_tokenizer(folder: Path, vocabulary: int = 1024) -> int:
    """A byte-level BPE tokenizer that begins every sequence with its start token; returns its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(probe_texts(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)
    return len(fast)


def save_fallback_tokenizer(folder: Path) -> Path:
    """A tokenizer as SentencePiece's: words' spaces are ▁, what it does not know goes as bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    alphabet = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdehilrstu버가"]
    backend = Tokenizer(
        models.BPE({token: i for i, token in enumerate(alphabet)}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.add_special_tokens(["<s>", "</s>"])
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return folder


def save_model(folder: Path, kind: str, vocabulary: int = 1024, **options: Any) -> Path:
    """A random decoder of a few layers in bf16, 128 wide, with its tokenizer, in HF layout. options: of its config."""
    import torch
    import transformers

    given: dict[str, Any] = {
        "vocab_size": save_tokenizer(folder, vocabulary),
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": None,
        # Wide enough that the next-token distributions are not flat.
        "initializer_range": 0.1,
    }
    config = getattr(transformers, f"{kind}Config")(**given | options)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def save_outliers(model: Path, out: Path, *, one_plus: bool) -> Path:
    """A copy of a tiny model whose norms give a few channels fifty times the others' size. one_plus: Gemma's norms."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, out)
    stored = load_file(out / "model.safetensors")
    for name, value in stored.items():
        if name.endswith(
            ("input_layernorm.weight", "post_attention_layernorm.weight", "feedforward_layernorm.weight")
        ):
            if one_plus and "pre_feedforward" not in name and "input" not in name:
                continue  # Gemma's norms behind attention and MLP
            value[3::40] = 50.0
    save_file(stored, out / "model.safetensors", {"format": "pt"})
    return out


@pytest.fixture(scope="session")
def ray() -> Iterator[None]:
    """A local Ray cluster of two workers, one for all tests."""
    with cluster():
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 3 layers with an output head of its own. Do not write into it; copy it first."""
    return save_model(
        tmp_path_factory.mktemp("models") / "tiny", "Llama", num_hidden_layers=3, tie_word_embeddings=False
    )


@pytest.fixture(scope="session")
def tiny_gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Gemma 3 of 4 layers, windows and whole context in turn, tied embeddings. Copy before writing."""
    return save_model(
        tmp_path_factory.mktemp("models") / "tiny_gemma",
        "Gemma3Text",
        num_hidden_layers=4,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=16,
        layer_types=["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
        tie_word_embeddings=True,
    )

"""Tiny models of every family that GGUF and onggi share, as llama.cpp's own converter writes them, and llama.cpp itself."""

from __future__ import annotations

import json
import math
import random
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import xllamacpp
from gguf import GGMLQuantizationType as GridType
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from onggi.models import gguf as ours

TEXTS = {
    "ko": "어제부터 내린 비가 그치자 마을 사람들은 하나둘씩 밖으로 나와 무너진 담장을 고치기 시작했다.",
    "en": "The committee decided on Tuesday that the bridge, closed since 1987, would be open to cyclists.",
    "km": "ថ្ងៃនេះអាកាសធាតុល្អណាស់ យើងនឹងទៅផ្សារដើម្បីទិញបន្លែ និងផ្លែឈើសម្រាប់អាហារពេលល្ងាច។",
    "ar": "وصل القطار إلى المحطة متأخراً ساعتين، فجلس المسافرون في المقهى يشربون الشاي.",
    "ru": "Врач посоветовал ему больше гулять и меньше работать, но через неделю он снова сидел за столом.",
    "hi": "कल शाम को हम सब नदी के किनारे गए और वहाँ देर तक बैठकर सूर्यास्त देखते रहे।",
    "th": "เมื่อวานนี้ฝนตกหนักมากจนถนนหน้าบ้านน้ำท่วม พวกเราจึงต้องเดินไปโรงเรียน",
    "el": "Ο γιατρός του συνέστησε να περπατά περισσότερο και να δουλεύει λιγότερο.",
    "zh": "昨天晚上下了一场大雨，今天早上街道上到处都是积水，孩子们高兴地在水里跳来跳去。",
    "ja": "昨日の夜から降り続いた雨がやっと止んで、子どもたちは水たまりで遊び始めた。",
}

ODD = [
    *(
        "",
        " ",
        "  x",
        "a  b   c    d",
        " leading",
        "trailing ",
        "\n",
        "\n\n\n",
        "a\n\n b\t\tc\r\nd",
        "  \n  \n",
    ),
    *(" " * 40 + "x", "\n" * 40, "\t" * 35, "x" * 300, "1234567890 3.14159 12,345", "don't WON'T I'll we'Ve"),
    *("😀👨‍👩‍👧‍👦🏳️‍🌈", "é e\u0301 한 \u1112\u1161\u11ab", "\u200bzero\u200dwidth\ufeff", "ก็ กํา ก ำ", "İıßẞﬁ"),
    *("עברית \u200fשלום\u200e abc 123", "𐎀𐎁 𓀀 ꙮ \U0001f9ff \ue000", "\x01\x7f", "a\u00a0b\u3000c\u2003d"),
    *("<0x0A><0xE3>", "<b>bold</b><h1>x</h1><table><tr>", "▁▁ x ▁y", "== foo() { return !x; } // ok"),
    *(
        "<start_of_turn>user\nhi<end_of_turn>\n",
        "<|im_start|>user\n<|im_end|> x",
        "<unused7> <unk> <pad> </s> <s>",
    ),
]


def fuzz(count: int, seed: int = 0) -> list[str]:
    """Random mixtures of all scripts, spaces, marks and markup."""
    draw = random.Random(seed)
    pool = [*"".join(TEXTS.values()), " ", "  ", "\n", "\t", "😀", "1", "a", "<", "<b>", "'s", "▁"]
    return ["".join(draw.choices(pool, k=draw.randint(1, 60))) for _ in range(count)]


class Llama:
    """llama.cpp in this process, with one model."""

    def __init__(self, path: Path, context: int = 512):
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.warmup, params.verbosity = context, 1, False, -1
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.cpuparams.n_threads = 2
        self.server = xllamacpp.Server(params)

    def post(self, path: str, **body: Any) -> Any:
        url = self.server.listening_address + path
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as reply:
            return json.load(reply)

    def tokens(self, text: str) -> list[int]:
        return list(self.post("/tokenize", content=text, add_special=True)["tokens"])

    def next(self, ids: list[int], top: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and log-probabilities of the `top` likeliest next tokens, before any sampling."""
        # The server tells nothing of a token that ends the text or is half a character; a bias makes it
        # sample another one. The probabilities it reports are those before the bias.
        bias = [[self.printable, 1000.0]]
        reply = self.post("/completion", prompt=ids, n_predict=1, n_probs=top, temperature=0, logit_bias=bias)
        likeliest = reply["completion_probabilities"][0]["top_logprobs"]
        values = torch.tensor([t["logprob"] for t in likeliest], dtype=torch.float64)
        return torch.tensor([t["id"] for t in likeliest]), values

    @property
    def printable(self) -> int:
        return int(self.post("/tokenize", content="x", add_special=False)["tokens"][-1])


def divergences(
    llama: Llama, model: torch.nn.Module, ids: list[int], ends: list[int], top: int
) -> list[float]:
    """KL(llama.cpp ‖ model) of the token after each of the prefixes `ids[:end]`, in nats.

    Over llama.cpp's `top` likeliest tokens and one bin for all the rest.
    """
    with torch.no_grad():
        logits = model(torch.tensor([ids]), logits_to_keep=torch.tensor([end - 1 for end in ends])).logits[0]
    result = []
    for row, end in zip(logits.double().log_softmax(-1), ends, strict=True):
        which, p = llama.next(ids[:end], top)
        rest, our_rest = (max(1 - x.exp().sum().item(), 1e-12) for x in (p, row[which]))
        kept = p > -40
        kl = (p[kept].exp() * (p - row[which])[kept]).sum().item()
        result.append(kl + (rest * math.log(rest / our_rest) if top < len(row) else 0.0))
    return result


def load(folder: Path) -> torch.nn.Module:
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


def assert_same_tokens(llama: Llama, tokenizer: Any, texts: list[str]) -> None:
    for text in texts:
        assert tokenizer(text)["input_ids"] == llama.tokens(text), text


# ── tiny models of every family ──────────────────────────────────────────────────────────────────

SAMPLE = list(TEXTS.values()) * 3 + ["don't it's we'll 123 4567 89, 10.5 <b>x</b>  two\n\nlines\t tab"] * 3


def sentencepiece(prefix: bool = True, extra: tuple[str, ...] = (), bos: str = "<s>") -> dict[str, Any]:
    """A vocabulary with scores and byte fallback; `extra` are user-defined tokens."""
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=[], show_progress=False)
    trained = Tokenizer(models.BPE())
    trained.train_from_iterator([text.replace(" ", "▁") for text in SAMPLE], trainer)
    vocabulary = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    kept = [token for token, _ in vocabulary if token not in (*extra, "ញ")]  # one letter is left to the bytes
    letters, pieces = [t for t in kept if len(t) == 1], [t for t in kept if len(t) > 1]
    start = ["<unk>", bos, "</s>", "<|assistant|>", "<|end|>", "<|endoftext|>"]
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    tokens = [*start, *extra, *bytes_, *pieces, *letters]
    types = [2, 3, 3, 3, 3, 3] + [4] * len(extra) + [6] * 256 + [1] * (len(pieces) + len(letters))
    plain = len(start) + len(extra) + 256
    scores = [0.0] * plain + [-float(i) for i in range(len(pieces) + len(letters))]
    return {
        **{"ggml.model": "llama", "ggml.pre": "default", "ggml.tokens": tokens, "ggml.token_type": types},
        **{"ggml.scores": scores, "ggml.bos_token_id": 1, "ggml.eos_token_id": 2, "ggml.unknown_token_id": 0},
        "ggml.add_space_prefix": prefix,
    }


def byte_level(pre: str, split: str | None, bos: bool = False) -> dict[str, Any]:
    """A byte-level BPE, trained behind the split that goes by the name `pre` in GGUF."""
    trained = Tokenizer(models.BPE())
    steps: list[Any] = [pre_tokenizers.Split(Regex(split), "isolated")] if split else []
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [*steps, pre_tokenizers.ByteLevel(False, use_regex=not split)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator(SAMPLE, trainer)
    described = json.loads(trained.to_str())["model"]
    tokens = sorted(described["vocab"], key=described["vocab"].get)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return {
        **{"ggml.model": "gpt2", "ggml.pre": pre, "ggml.tokens": tokens + special},
        **{"ggml.token_type": [1] * len(tokens) + [3] * len(special)},
        "ggml.merges": [" ".join(merge) for merge in described["merges"]],
        **{"ggml.bos_token_id": len(tokens), "ggml.eos_token_id": len(tokens) + 2, "ggml.add_bos_token": bos},
        "chat_template": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
        "{% endfor %}",
    }


WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{%s}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = byte_level("qwen2", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + WORDS % 1)
LLAMA3 = byte_level("llama-bpe", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + WORDS % "1,3", bos=True)
PIECES = sentencepiece()
GEMMA = sentencepiece(False, ("  ", "   ", "\n", "\n\n", "\t", "<b>", "</b>"), "<bos>")


@dataclass
class Tiny:
    """A random model of one family: what transformers calls it, and what GGUF does."""

    architecture: str
    config: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    tokenizer: dict[str, Any] = field(default_factory=lambda: PIECES)
    vectors: dict[str, list[float]] = field(default_factory=dict)
    layers: int = 3
    head_dim: int = 16
    grid: GridType = GridType.F32
    name: str = "tiny"

    def model(self) -> torch.nn.Module:
        shape = {
            **{
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": self.layers,
                "head_dim": self.head_dim,
            },
            **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256},
            **{"vocab_size": len(self.tokenizer["ggml.tokens"]), "rms_norm_eps": 1e-5},
            **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None, "tie_word_embeddings": self.gemma},
        }
        config = AutoConfig.for_model(ours.ARCHITECTURES[self.architecture].model_type, **shape | self.config)
        model: torch.nn.Module = AutoModelForCausalLM.from_config(config).eval()
        source = torch.Generator().manual_seed(0)
        for name, weight in model.named_parameters():
            values = torch.randn(weight.shape, generator=source) * (
                0.3 if weight.ndim == 1 else weight.shape[1] ** -0.5
            )
            if name.endswith("norm.weight") and not self.gemma:
                values += 1
            if "q_proj" in name or "k_proj" in name:
                values *= 2  # attention that looks somewhere, so that positions matter
            weight.data = values.to(torch.bfloat16).float()
        return model

    @property
    def gemma(self) -> bool:
        return self.architecture.startswith("gemma")

    def metadata(self) -> dict[str, Any]:
        own = {
            **{
                "context_length": 256,
                "embedding_length": 64,
                "block_count": self.layers,
                "feed_forward_length": 96,
            },
            **{
                "attention.head_count": 4,
                "attention.head_count_kv": 2,
                "attention.key_length": self.head_dim,
            },
            **{"attention.value_length": self.head_dim, "attention.layer_norm_rms_epsilon": 1e-5},
            **{"rope.dimension_count": self.head_dim, "rope.freq_base": 10_000.0} | self.facts,
        }
        general = {"general.name": self.name, "general.license": "mit", "general.base_model.0.name": "Base"}
        return (
            general
            | {f"{self.architecture}.{key}": value for key, value in own.items()}
            | {f"tokenizer.{key}": value for key, value in self.tokenizer.items()}
        )

    def tensors(self) -> dict[str, np.ndarray]:
        """What convert_hf_to_gguf.py of llama.cpp does to the weights."""
        arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture)
        names = gguf.get_tensor_name_map(arch, self.layers)
        found: dict[str, np.ndarray] = {}
        for name, weight in self.model().named_parameters():
            values = weight.detach().numpy()
            if self.gemma and name.endswith("norm.weight"):
                values = values + 1
            if self.architecture in ("llama", "smollm3") and ("q_proj" in name or "k_proj" in name):
                halves = values.reshape(-1, 2, self.head_dim // 2, *values.shape[1:])
                values = halves.swapaxes(1, 2).reshape(values.shape)
            theirs = names.get_name(name, (".weight", ".bias"))
            assert theirs
            found[theirs] = values
        return found | {name: np.array(values, np.float32) for name, values in self.vectors.items()}

    def write(
        self,
        path: Path,
        change: Callable[[dict[str, Any], dict[str, np.ndarray]], None] = lambda facts, tensors: None,
        architecture: str | None = None,
    ) -> Path:
        facts, tensors = self.metadata(), self.tensors()
        change(facts, tensors)
        writer = gguf.GGUFWriter(path, architecture or self.architecture)
        for key, value in facts.items():
            kinds = {
                bool: writer.add_bool,
                int: writer.add_uint32,
                float: writer.add_float32,
                list: writer.add_array,
            }
            kinds.get(type(value), writer.add_string)(key, value)
        for name, values in tensors.items():
            if values.ndim > 1 and self.grid != GridType.F32:
                writer.add_tensor(name, gguf.quantize(values, self.grid), raw_dtype=self.grid)
            else:
                writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def rope(theta: float = 10_000.0, kind: str = "default", **rest: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **rest}}


def gemma3_rope(theta: float, local: float = 10_000.0, **scaling: Any) -> dict[str, Any]:
    full = {"rope_type": "default", "rope_theta": theta} | scaling
    return {
        "rope_parameters": {
            "full_attention": full,
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        }
    }


LLAMA3_ROPE = rope(
    5e5,
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)


def llama3_divisors(dim: int) -> list[float]:
    """transformers' own scaling of Llama 3, as what it divides each frequency by."""
    config = AutoConfig.for_model("llama", head_dim=dim, max_position_embeddings=16384, **LLAMA3_ROPE)
    plain = 5e5 ** (-torch.arange(0, dim, 2).float() / dim)
    return list((plain / ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")[0]).tolist())


LONG, SHORT = [1.0 + 0.5 * i for i in range(8)], [1.0 + 0.1 * i for i in range(8)]
LONGROPE = rope(
    kind="longrope",
    long_factor=LONG,
    short_factor=SHORT,
    original_max_position_embeddings=256,
    attention_factor=math.sqrt(1 + math.log(4) / math.log(256)),
)
WINDOW = {"attention.sliding_window": 8}

TINY = {
    "llama": Tiny("llama"),
    "llama, tied, theta": Tiny(
        "llama", {"tie_word_embeddings": True, **rope(5e5)}, {"rope.freq_base": 5e5}, tokenizer=LLAMA3
    ),
    "llama, biases": Tiny("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama, Mistral's wide heads": Tiny(
        "llama", facts={"attention.key_length": 32, "rope.dimension_count": 32}, head_dim=32
    ),
    "llama, Llama 3's rope": Tiny(
        "llama",
        LLAMA3_ROPE | {"max_position_embeddings": 16384},
        {"rope.freq_base": 5e5, "context_length": 16384},
        vectors={"rope_freqs.weight": llama3_divisors(16)},
    ),
    "llama, linear rope": Tiny(
        "llama",
        rope(kind="linear", factor=4.0),
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        tokenizer=byte_level("smollm", None),
    ),
    "qwen2": Tiny("qwen2", rope(1e6), {"rope.freq_base": 1e6}, QWEN2),
    "qwen2, yarn": Tiny(
        "qwen2",
        rope(1e4, "yarn", factor=4.0, original_max_position_embeddings=64),
        {
            **{"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0},
            **{"rope.scaling.original_context_length": 64},
        },
        QWEN2,
    ),
    "qwen3": Tiny("qwen3", rope(1e6), {"rope.freq_base": 1e6}, QWEN2, head_dim=32),
    "smollm3": Tiny("smollm3", rope(2e6), {"rope.freq_base": 2e6}, LLAMA3, layers=5),
    "phi3": Tiny("phi3", {"sliding_window": 200}, {"attention.sliding_window": 200}, name="Phi-3 tiny"),
    "phi3, part of the head": Tiny("phi3", rope(partial_rotary_factor=0.5), {"rope.dimension_count": 8}),
    "phi3, longrope": Tiny(
        "phi3",
        {"max_position_embeddings": 1024, "original_max_position_embeddings": 256, **LONGROPE},
        {
            "context_length": 1024,
            "rope.scaling.original_context_length": 256,
            "rope.scaling.attn_factor": LONGROPE["rope_parameters"]["attention_factor"],
        },
        vectors={"rope_factors_long.weight": LONG, "rope_factors_short.weight": SHORT},
    ),
    "gemma": Tiny("gemma", tokenizer=GEMMA, head_dim=32),
    "gemma2": Tiny(
        "gemma2",
        {
            **{"sliding_window": 8, "query_pre_attn_scalar": 32},
            **{"attn_logit_softcapping": 2.0, "final_logit_softcapping": 2.0},
        },
        {**WINDOW, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 2.0},
        GEMMA,
        head_dim=32,
    ),
    "gemma3": Tiny(
        "gemma3",
        {"sliding_window": 8, "query_pre_attn_scalar": 32, **gemma3_rope(1e6)},
        {**WINDOW, "rope.freq_base": 1e6},
        GEMMA,
        layers=7,
        head_dim=32,
    ),
    "gemma3, linear rope": Tiny(
        "gemma3",
        {
            "sliding_window": 8,
            "query_pre_attn_scalar": 32,
            **gemma3_rope(1e6, rope_type="linear", factor=8.0),
        },
        {**WINDOW, "rope.freq_base": 1e6, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
        GEMMA,
        layers=7,
        head_dim=32,
    ),
    "gemma3, its own pattern": Tiny(
        "gemma3",
        {
            **{"sliding_window": 8, "query_pre_attn_scalar": 32, **gemma3_rope(1e6, 2e4)},
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
        },
        {**WINDOW, "rope.freq_base": 1e6, "attention.sliding_window_pattern": 3, "rope.freq_base_swa": 2e4},
        GEMMA,
        layers=4,
        head_dim=32,
    ),
}

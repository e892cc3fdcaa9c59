"""A Llama of given shapes and random weights, for the cost of quantising alone, a file a layer.

    python bench/parts/large_model.py HIDDEN MLP HEADS GROUPS LAYERS OUT

LAYERS: numbers as 2,4,8; OUT/2, OUT/4, OUT/8 are models of so many layers, whose files are links to one set. Weights
are normal with a spread of 0.02, in bf16, norms are one; the vocabulary is the 256 bytes and a start token.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, PreTrainedTokenizerFast


def tokenizer(folder: Path) -> int:
    """Bytes, and <s> before every text; returns the size."""
    names = ["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>").save_pretrained(folder)
    return len(names)


def main(hidden: int, mlp: int, heads: int, groups: int, layers: list[int], out: Path) -> None:
    """Write them."""
    parts = out / "files"
    parts.mkdir(parents=True, exist_ok=True)
    draw = torch.Generator().manual_seed(0)
    head = hidden // heads

    def weight(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=draw) * 0.02).to(torch.bfloat16)

    shapes = {
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (groups * head, hidden),
        "self_attn.v_proj": (groups * head, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (mlp, hidden),
        "mlp.up_proj": (mlp, hidden),
        "mlp.down_proj": (hidden, mlp),
    }
    one = torch.ones(hidden, dtype=torch.bfloat16)
    names: dict[str, list[str]] = {}
    for number in range(max(layers)):
        place = f"model.layers.{number}."
        tensors = {f"{place}{name}.weight": weight(*shape) for name, shape in shapes.items()}
        tensors |= {
            f"{place}{norm}.weight": one.clone() for norm in ("input_layernorm", "post_attention_layernorm")
        }
        names[f"layer-{number}.safetensors"] = list(tensors)
        save_file(tensors, parts / f"layer-{number}.safetensors", metadata={"format": "pt"})
        del tensors
    for count in layers:
        folder = out / str(count)
        folder.mkdir(exist_ok=True)
        vocabulary = tokenizer(folder)
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=mlp,
            num_hidden_layers=count,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            max_position_embeddings=2048,
            bos_token_id=0,
            eos_token_id=None,
            tie_word_embeddings=True,
            architectures=["LlamaForCausalLM"],
            dtype="bfloat16",
        )
        config.save_pretrained(folder)
        rest = {"model.embed_tokens.weight": weight(vocabulary, hidden), "model.norm.weight": one}
        save_file(rest, folder / "rest.safetensors", metadata={"format": "pt"})
        where = dict.fromkeys(rest, "rest.safetensors")
        for number in range(count):
            file = f"layer-{number}.safetensors"
            (folder / file).unlink(missing_ok=True)
            os.link(parts / file, folder / file)
            where |= dict.fromkeys(names[file], file)
        index = {"metadata": {}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:5]]
    main(*numbers, [int(n) for n in sys.argv[5].split(",")], Path(sys.argv[6]))

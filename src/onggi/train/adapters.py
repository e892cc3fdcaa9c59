"""Adapters (peft): which weights a tuning trains, and how they become a model again.

Low-rank adapters (Hu et al., arXiv 2106.09685) on every linear weight of the layers, with DoRA's magnitudes (Liu et al.,
arXiv 2402.09353) where asked for. Tokens that mark turns and that the model has never seen have rows of their own, peft's `trainable_token_indices`: two
rows, where saving the embedding would copy all of a vocabulary of 262,144.

peft trains such rows through a copy of the whole table that it makes in every pass, twice where the head is tied. Here the
rows are written into the frozen table itself before each pass, and what flows back to them is gathered from where they
stand (`_embedding`) and from the head's logits (`head.cross_entropy`): the same numbers, without the copies.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import OnggiError, one_line

Method = Literal["lora", "dora", "qlora"]
FOLDER = "adapter"
_NAME = "default"  # peft's


@dataclass(frozen=True)
class Shape:
    """rank: of the two factors. alpha: their product counts alpha / rank times. dropout: of what goes in."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    magnitudes: bool = False


@dataclass(frozen=True)
class Adapter:
    """peft: the model with adapters, whose layers are the model's own. rows: (ids, values) of trained tokens as the head has
    them; None where there are none.
    """

    peft: Any
    rows: tuple[Tensor, Tensor] | None

    def save(self, folder: Path, base: str) -> None:
        """Write adapter_model.safetensors and adapter_config.json; base: the name of the model they are for."""
        self.peft.peft_config[_NAME].base_model_name_or_path = base
        with _quiet():
            self.peft.save_pretrained(
                folder, safe_serialization=True, save_embedding_layers=False, selected_adapters=[_NAME]
            )
        (folder / "README.md").unlink(missing_ok=True)

    def merged(self) -> nn.Module:
        """The model with the adapters in its weights, its names as before; the adapters are gone."""
        for layer in _token_layers(self.peft):
            # In place, where peft would make a table of its own for embedding and head each.
            values, ids = layer.trainable_tokens_delta[_NAME], layer.token_indices[_NAME]
            with torch.no_grad():
                layer.base_layer.weight[torch.tensor(ids)] = values.to(layer.base_layer.weight)
            layer.merged_adapters.append(_NAME)
        found: nn.Module = self.peft.merge_and_unload(adapter_names=[_NAME])
        return found


def attach(model: nn.Module, shape: Shape, tokens: Sequence[int], seed: int, patched: bool = True) -> Adapter:
    """Freeze `model` and give it adapters, drawn by `seed`. tokens: ids whose rows are trained. patched: whether they are
    trained as the module says; else as peft does, for trainers that are not ours.

    Raises OnggiError where peft is not installed, or the model has no linear weights that it knows.
    """
    peft = imported()
    tied = _tied(model)
    where: dict[str, list[int]] | None = None
    if tokens:
        places = [model.get_input_embeddings(), *([] if tied else [model.get_output_embeddings()])]  # type: ignore[operator]
        names = {id(module): name for name, module in model.named_modules()}
        where = {names[id(place)].split(".")[-1]: list(tokens) for place in places}
    settings = peft.LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,
        lora_dropout=shape.dropout,
        target_modules="all-linear",
        use_dora=shape.magnitudes,
        trainable_token_indices=where,
        task_type="CAUSAL_LM",
    )
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    try:
        with _quiet():
            made = peft.get_peft_model(model, settings, adapter_name=_NAME)
    except ValueError as error:
        raise OnggiError(
            f"method: peft finds no place for adapters in this model ({one_line(error)})."
        ) from error
    finally:
        torch.set_rng_state(state)
    if tokens and not patched:
        head = model.get_output_embeddings()  # type: ignore[operator]
        if not hasattr(head, "bias"):  # trl reads it, and peft's wrapper has none
            head.bias = None
    return Adapter(made, _patch(made, tokens) if tokens and patched else None)


def load(model: nn.Module, folder: Path) -> Adapter:
    """A base model with the adapters that `save` wrote, to be merged or looked at."""
    with _quiet():
        return Adapter(imported().PeftModel.from_pretrained(model, str(folder), adapter_name=_NAME), None)


def imported() -> Any:
    """peft. Raises OnggiError where it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise OnggiError(
            "method: adapters need peft; pip install 'onggi[finetune]' (or --method full)."
        ) from error
    return peft


def quantized(folder: Path, device: torch.device) -> nn.Module:
    """The model in `folder` with its linear weights in 4 bits (NF4, twice quantised), frozen, as QLoRA (Dettmers et al.,
    arXiv 2305.14314) has it. Raises OnggiError where there is no GPU or no bitsandbytes.
    """
    check_quantized(device)
    import transformers

    model: nn.Module = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.bfloat16,
        device_map={"": device},
        trust_remote_code=False,
        use_safetensors=True,
        quantization_config=transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
    )
    return model.requires_grad_(False)


def check_quantized(device: torch.device) -> None:
    """OnggiError where `device` cannot train over weights of 4 bits."""
    import importlib.util

    if device.type != "cuda":
        raise OnggiError(
            "method: qlora multiplies with 4-bit weights that only a GPU unpacks fast enough; here is none. "
            "--method lora trains the same adapters over full weights."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise OnggiError("method: qlora needs bitsandbytes; pip install bitsandbytes.")


def _patch(made: Any, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Train rows without copies of the tables; returns (ids, values) of the head."""
    layers = _token_layers(made)
    ids = torch.tensor(list(tokens), device=layers[0].base_layer.weight.device)
    tables = [(layer.base_layer, layer.trainable_tokens_delta[_NAME]) for layer in layers]
    for layer, (base, values) in zip(layers, tables, strict=True):
        # What is asked for the weight is given the table, which holds the rows.
        layer.get_merged_weights = lambda _, base=base: base.weight
        if isinstance(base, nn.Embedding):
            layer.forward = _embedding(base, values, ids)

    def write(*_: Any) -> None:
        with torch.no_grad():
            for base, values in tables:
                base.weight[ids] = values.to(base.weight.dtype)

    # Every pass begins with the embedding.
    made.get_input_embeddings().register_forward_pre_hook(write)
    return ids, tables[-1][1]


def _token_layers(made: Any) -> list[Any]:
    from peft.tuners.trainable_tokens.layer import TrainableTokensLayer

    return [module for module in made.modules() if isinstance(module, TrainableTokensLayer)]


def _embedding(base: Any, values: Tensor, ids: Tensor) -> Callable[[Tensor], Tensor]:
    """The forward pass of an embedding that holds trained rows."""
    places = torch.full((len(base.weight),), -1, dtype=torch.int64, device=ids.device)
    places[ids] = torch.arange(len(ids), device=ids.device)

    def forward(tokens: Tensor, *_: Any, **__: Any) -> Tensor:
        out: Tensor = base(tokens)
        if not torch.is_grad_enabled():
            return out
        # Nothing in value; in the backward pass all that reaches these rows.
        slope = (values - values.detach()) * getattr(base, "embed_scale", 1.0)
        place = places[tokens]
        chosen = place >= 0
        return out.index_put((chosen,), slope[place[chosen]].to(out.dtype), accumulate=True)

    return forward


def _tied(model: Any) -> bool:
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


def noise(model: Any, alpha: float) -> None:
    """Add noise to what the embedding gives while training (NEFTune: Jain et al., arXiv 2310.05914): uniform,
    ± alpha / √(places of a row × width).
    """
    from transformers.integrations.neftune import neftune_post_forward_hook

    embedding = model.get_input_embeddings()
    embedding.neftune_noise_alpha = alpha
    embedding.register_forward_hook(neftune_post_forward_hook)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """peft's advice is for those who write to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

"""`onggi quantize`: a model's linear weights on a coarse grid, with no language paying for another."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .. import languages as tags
from .. import ledger
from ..errors import OnggiError
from ..languages import Languages
from ..ledger import Artifact
from ..progress import progress, release_memory, say
from .base import Plan, Stage, command, no_probe, options, precision

_REVISION = 1
SCHEMES: dict[str, int | None] = {"w4a16-g128": 128, "w4a16-g64": 64, "w4a16-g32": 32, "w4a16": None}
_NO_PROBE = no_probe("calibration")


@dataclass(frozen=True)
class QuantizeConfig:
    """Quantise the linear weights of a model's decoder layers to 4 bits.

    The result is a compressed-tensors checkpoint that transformers and vLLM load. Layers are read,
    solved and written one at a time; a killed run goes on after its last finished layer.
    """

    model: str
    """The model: a hub id, a folder, a .gguf file, or package:NAME (gemma3-270m, smollm2-135m)."""
    scheme: Literal["w4a16-g128", "w4a16-g64", "w4a16-g32", "w4a16"] = "w4a16-g128"
    """Bits of weights and activations, and how many weights share a scale (128, 64, 32; none: a
    whole row). Smaller groups cost more bytes and lose less."""
    method: Literal["gptq", "rtn"] = "gptq"
    """gptq: error feedback on calibration text. rtn: round to nearest, without text."""
    fairness: Literal["balanced", "none"] = "balanced"
    """How calibration treats languages. balanced: an equal share each. none: all text in one pot,
    as other tools do."""
    text: str | None = None
    """Calibration text: a source as `onggi text` takes, or a folder it made. Not the probe, which is
    for measuring. rtn needs none."""
    languages: Languages | None = None
    """Languages to calibrate on, as en,ko; default: all that the text has."""
    tokens: int = 8192
    """Calibration tokens in all, not per language. More help slowly: four times as many took about a
    tenth off the damage."""
    share: Literal["tokens", "content"] = "tokens"
    """What balanced means equal in: the same number of tokens each, or the same passages each."""
    damping: float = 0.01
    """Added to the diagonal of the second moments, as a share of its mean; more is steadier."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the calibration pass. auto: bf16 where the processor multiplies in it, else fp32."""
    seed: int = 0
    """Of the order in which calibration rows are drawn."""

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises OnggiError naming the option and the mend."""
        if self.method == "gptq" and not self.text:
            raise OnggiError("text: gptq needs calibration text (--text debian:libreoffice-help, or a file).")
        if self.text == "probe":
            raise OnggiError(_NO_PROBE)
        if self.tokens < 1:
            raise OnggiError(f"tokens: {self.tokens} is not a number of tokens.")
        if self.share == "content" and self.fairness == "none":
            raise OnggiError("share: content is a way to be balanced; it needs --fairness balanced.")
        if not 0 < self.damping < 10:
            raise OnggiError(f"damping: {self.damping} is not between 0 and 10.")


def inputs(config: QuantizeConfig) -> dict[str, Any]:
    """Fingerprints of model and text."""
    from .. import text
    from ..models import references

    found: dict[str, Any] = {"model": references.fingerprint(config.model)}
    if config.method != "rtn" and config.text:
        found["text"] = text.fingerprint(config.text, config.languages)
    return found


def quantize(config: QuantizeConfig, out: Path) -> Artifact:
    """Write a quantised checkpoint to `out`; see `QuantizeConfig`.

    Raises OnggiError for a model or text that is not sound, naming it.

    >>> from pathlib import Path
    >>> from onggi.stages import QuantizeConfig, quantize
    >>> made = quantize(QuantizeConfig("model", text="calibration", tokens=768), Path("w4"))
    >>> {"config.json", "tokenizer.json", "README.md"} <= set(made.record["outputs"])
    True
    >>> from transformers import AutoModelForCausalLM
    >>> loaded = AutoModelForCausalLM.from_pretrained("w4")
    """
    job = ledger.begin(out, "quantize", options(config), inputs(config), _REVISION)
    if job.done:
        return job.done
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    with job:
        return _quantize(config, job)


def _quantize(config: QuantizeConfig, job: ledger.Job) -> Artifact:

    from ..engines.transformers import default_device
    from ..grids import IntegerGrid
    from ..models import checkpoint as checkpoints
    from ..models import references
    from ..models.decoder import skeleton
    from ..quantize import stream
    from ..quantize.formats import compressed_tensors
    from ..report import card

    folder = references.resolve(config.model)
    source = checkpoints.Checkpoint(folder)
    if "quantization_config" in source.config:
        raise OnggiError(f"{config.model}: is quantised already; name the model it was made from.")
    device = default_device()
    dtype = precision(job, config.precision, device)
    calibration, source_text = (None, {}) if config.method == "rtn" else _calibration(config, folder)
    release_memory()
    decoder = skeleton(folder, dtype)
    tied = getattr(decoder.model, "all_tied_weights_keys", {})
    for name, parameter in decoder.model.named_parameters():
        entry = source.entries.get(name)
        if entry is None and name not in tied and not name.startswith(f"{decoder.prefix}."):
            raise OnggiError(f"{config.model}: holds no tensor named {name}.")
        if entry and entry.shape != tuple(parameter.shape):
            raise OnggiError(
                f"{config.model}: tensor {name} has shape {entry.shape}, "
                f"its config.json asks for {tuple(parameter.shape)}."
            )
    total = len(decoder.layers)
    with progress(f"quantize {job.out.name}", total) as bar:
        layers = stream.quantize_layers(
            source,
            decoder,
            IntegerGrid(4, SCHEMES[config.scheme]),
            compressed_tensors.store,
            job.work,
            calibration,
            bar,
            job.tick,
            device,
            config.damping,
        )
        stream.write_rest(source, decoder, job.work)
    smaller = sorted({layer.group or 0 for layer in layers if layer.group != SCHEMES[config.scheme]})
    if smaller:
        say(
            f"Some matrices are not a multiple of {SCHEMES[config.scheme]} wide; they have groups of {smaller}."
        )

    ledger.write_json(
        job.work / "config.json",
        source.config
        | {"quantization_config": compressed_tensors.quantization_config(layers, 4, decoder.others())},
    )
    shards = {
        stream.shard_name(i, total): checkpoints.shard_sizes(job.work / stream.shard_name(i, total))
        for i in range(total + 1)
    }
    checkpoints.write_index(job.work, shards)
    base = references.about(folder)
    about = {
        **{key: base[key] for key in ("licence", "terms", "base_model") if base.get(key)},
        "base": {
            "name": references.parse(config.model).name,
            "source": config.model,
            "grid": base.get("grid"),
        },
        "made_by": "onggi quantize",
        "scheme": config.scheme,
        "method": config.method,
        "fairness": config.fairness if calibration else None,
        "calibration": {**source_text, "tokens": calibration.counts, "short": calibration.short}
        if calibration
        else None,
        "precision": str(dtype).removeprefix("torch.") if calibration else None,
        "layers": [vars(layer) for layer in layers],
    }
    ledger.write_json(job.work / references.ABOUT, about)
    names = [*shards, checkpoints.INDEX, "config.json", references.ABOUT]
    for file in checkpoints.companions(folder):
        shutil.copyfile(file, job.work / file.name)
        names.append(file.name)
    (job.work / "README.md").write_text(card.quantized(about), encoding="utf-8")
    return job.finish([*names, "README.md"], command=command(STAGE, config, job.out))


def _calibration(config: QuantizeConfig, folder: Path) -> tuple[Any, dict[str, Any]]:
    """The tokens drawn, and what text they are from. Tokenizer and text do not outlive this: for a
    small model with a large vocabulary they are most of the memory.
    """
    from .. import text
    from ..quantize import balance
    from ..text.tokens import Tokens

    assert config.text
    found = text.load(config.text, config.languages)
    if found.name == "probe":  # a folder that `onggi text` made of it
        raise OnggiError(_NO_PROBE)
    languages = config.languages or Languages(found.languages)
    tokens = Tokens(folder)
    drawn = balance.draw(
        {language: found.passages(language) for language in languages},
        tokens.encode,
        tokens.prefix,
        config.tokens,
        balanced=config.fairness == "balanced",
        share=config.share,
        seed=config.seed,
    )
    said = ", ".join(f"{tags.name(tag)} {count:,}" for tag, count in drawn.counts.items())
    say(f"Calibration tokens: {said} (from {found.name}).")
    return drawn, {"text": found.name, "licence": found.licence}


def plan(config: QuantizeConfig) -> Plan:
    """About the tokens, memory and disk, where the model is at hand."""
    from ..models import references

    size = references.size(config.model)
    tokens = config.tokens if config.method == "gptq" else 0
    if size is None:
        return Plan(tokens=tokens)
    # The interpreter with its libraries, one layer in three copies, its moments, its activations.
    working = (
        3 * size.layer_bytes + 12 * size.widest**2 + tokens * 4 * 2 * (4 * size.widest + 4 * size.hidden)
    )
    return Plan(tokens, 450_000_000 + working, size.bytes - size.layers * size.layer_bytes * 72 // 100)


STAGE = Stage("quantize", QuantizeConfig, quantize, inputs, plan, {"model": None}, _REVISION)

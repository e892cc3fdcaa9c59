"""`onggi quantize --format gguf:TYPE`: the file that llama.cpp, Ollama and LM Studio run, `DIR/model.gguf`."""

from __future__ import annotations

import dataclasses
import functools
import shlex
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import ledger
from ..errors import OnggiError
from ..ledger import Artifact
from ..progress import progress, say
from . import quantize_bits, quantize_gguf_bits, quantize_model, quantize_text, quantize_verify

if TYPE_CHECKING:
    from ..models.gguf.writing import Description
    from .quantize import QuantizeConfig

PREFIX = "gguf:"
# Raised when what a GGUF holds changes.
REVISION = 4
# As in quantize/mixtures.py (a test compares them; importing it here would import torch for --help).
PLAIN = ("F32", "F16", "BF16")
BITS = {
    **{"F32": 32.0, "F16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.5625, "Q5_K": 5.5, "Q5_0": 5.5},
    **{"Q5_1": 6.0, "Q4_K": 4.5, "Q4_0": 4.5, "Q4_1": 5.0, "IQ4_NL": 4.5, "IQ4_XS": 4.25, "Q3_K": 3.4375},
    "Q2_K": 2.625,
}
MODELFILE = "Modelfile"
_ROWS = 1 << 23  # weights of the embedding or the head that are solved at a time
_MOMENTS = "moments.safetensors"
# How the turns of a dialogue are written → the same in Ollama's templates, by a token that gives the kind away.
_TURNS = {
    "<|im_start|>": "{{- range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}"
    "<|im_start|>assistant\n",
    "<start_of_turn>": '{{- range .Messages }}<start_of_turn>{{ if eq .Role "assistant" }}model{{ else }}user{{ end }}\n'
    "{{ .Content }}<end_of_turn>\n{{ end }}<start_of_turn>model\n",
    "<|start_header_id|>": "{{- range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n"
    "{{ .Content }}<|eot_id|>{{ end }}<|start_header_id|>assistant<|end_header_id|>\n\n",
}


def kind(config: QuantizeConfig) -> str | None:
    """The type that a GGUF is asked for in, `mixed` for one by a budget; None where another format is."""
    if config.format != "gguf" and not config.format.startswith(PREFIX):
        return None
    return "mixed" if config.mixes else config.format.removeprefix(PREFIX)


def bits(name: str) -> float:
    """About the bits of a weight in a file of a name; of a mixture by a budget as of Q4_K_M."""
    name = "Q4_K_M" if name == "mixed" else name
    return BITS[name] if name in BITS else BITS["_".join(name.split("_")[:2])]


def check(config: QuantizeConfig) -> None:
    """Raises OnggiError for options that do not go with a GGUF, naming them."""
    if config.scheme != "w4a16-g128":
        raise OnggiError(
            f"scheme: the type of a GGUF stands in --format {config.format}; leave --scheme {config.scheme} out."
        )
    if config.method == "awq":
        raise OnggiError("method: awq is not for GGUF; use gptq, or rtn without text.")
    if config.embedding:
        raise OnggiError(
            "embedding: a GGUF's type says how embedding and head are rounded; leave --embedding out."
        )
    if config.tunes:
        raise OnggiError(
            f"effort: best does not tune a GGUF's blocks; use --effort default or fast with --format {config.format}."
        )
    if config.format == "gguf" and not config.mixes:
        raise OnggiError(
            "format: gguf alone says no size; write a type, as gguf:Q4_K_M, or give --budget or --like."
        )
    if config.mixes:
        _check_mix(config)
    if kind(config) in PLAIN and (config.fairness == "minimax" or config.self_share):
        raise OnggiError(
            f"format: {config.format} rounds to plain numbers, and needs neither text nor shares."
        )


def _check_mix(config: QuantizeConfig) -> None:
    if config.budget and config.like:
        raise OnggiError("like: --budget and --like both say a size; give one.")
    if config.budget:
        quantize_bits.parse(config.budget)
    if config.method != "gptq":
        raise OnggiError(
            f"{'like' if config.like else 'budget'}: types are given by what they cost on text; "
            f"{config.method} does not serve."
        )
    if config.choices != quantize_bits.CHOICES:
        for name in config.choices:
            if name not in BITS or name in PLAIN:
                raise OnggiError(
                    f"choices: {name} is no type that a GGUF is mixed of; as in {quantize_gguf_bits.CHOICES}."
                )
        if len(config.choices) < 2:
            raise OnggiError("choices: one is no choice; name two or more.")


def quantize(config: QuantizeConfig, job: ledger.Job, line: str) -> Artifact:
    """The work of `onggi quantize` on a GGUF; line: the command that asked for it. Raises OnggiError, before any of it, for
    a model that GGUF cannot express.
    """
    from ..engines import llamacpp
    from ..models import checkpoint as checkpoints
    from ..models import references
    from ..models.gguf import writing
    from ..quantize.formats import gguf
    from ..report import card

    mixture = kind(config)
    assert mixture
    folder = quantize_model.resolved(config)
    if config.verify:
        llamacpp.require("verify")
    described = writing.describe(folder)
    source = described.source
    model, text, decoder = quantize_model.opened(config, job, folder, source)
    mixed = None
    if config.mixes:
        kinds, mixed = quantize_gguf_bits.allocate(config, job, described, model, text)
        fallen: dict[str, int] = {}
    else:
        kinds = gguf.chosen_types(described, mixture, calibrated=text.drawn is not None)
        fallen = _say_what_fell_back(described, mixture, kinds, calibrated=text.drawn is not None)
    layers, balance = _layers(config, job, described, kinds, model, text)
    quantize_model.say_what_is_odd(layers, decoder, source)
    outside = _outside(config, job, described, kinds, model.device)

    base = references.about(folder)
    name = references.parse(config.model).name
    languages = [tag for tag in (text.drawn.names if text.drawn else ()) if tag != "pooled"]
    total = len(decoder.layers)
    lie_in = {
        tensor: file
        for file in [*(job.work / _shard(i, total) for i in range(total)), job.work / _shard(total, total)]
        if file.is_file()
        for tensor in checkpoints.shard_sizes(file)
    }
    size = sum(entry.bytes for entry in source.entries.values())
    with progress(f"write {gguf.FILE}", size) as bar:
        gguf.write(
            job.work / gguf.FILE,
            described,
            kinds,
            functools.partial(_packed, lie_in),
            name=name,
            mixture=mixture,
            facts=gguf.origin(name, base, languages),
            step=bar.step,
        )
    verified = None
    if config.verify:
        verified = quantize_verify.verify(job.work / gguf.FILE, job.partial, source=folder)
    _modelfile(job.work / MODELFILE, described, base)
    about = {
        **{key: base[key] for key in ("licence", "terms", "base_model") if base.get(key)},
        "base": {"name": name, "source": config.model, "grid": base.get("grid")},
        "made_by": "onggi quantize",
        "scheme": mixture,
        "bits": mixed,
        "format": "gguf",
        "types": dict(Counter(kinds[theirs] for theirs in described.names.values()).most_common()),
        "fallback": fallen,
        "method": config.method if config.calibrates else "rtn",
        "fairness": config.fairness if text.drawn else None,
        "balance": balance,
        "calibration": text.noted(balance),
        "precision": str(model.dtype).removeprefix("torch.") if text.drawn else None,
        "verified": verified,
        "serve": f"llama-server -m FOLDER/{gguf.FILE}",
        "layers": [vars(layer) for layer in [*layers, *outside]],
    }
    ledger.write_json(job.work / references.ABOUT, about)
    (job.work / "README.md").write_text(card.quantized(about), encoding="utf-8")
    names = [gguf.FILE, MODELFILE, references.ABOUT, "README.md", *text.files]
    names += [quantize_bits.MATRIX, quantize_bits.FIGURE] if mixed else []
    for pattern in ("LICENSE*", "NOTICE*"):
        for file in sorted(folder.glob(pattern)):
            shutil.copyfile(file, job.work / file.name)
            names.append(file.name)
    made = job.finish(names, command=line)
    _say_how_to_serve(config, job.out, name, folder)
    return made


def _shard(index: int, total: int) -> str:
    from ..quantize.stream import shard_name

    return shard_name(index, total)


def _packed(lie_in: Mapping[str, Path], tensor: str) -> Any:
    from safetensors import safe_open

    with safe_open(lie_in[tensor], framework="pt") as file:
        return file.get_tensor(tensor)


def _layers(
    config: QuantizeConfig,
    job: ledger.Job,
    described: Description,
    kinds: Mapping[str, str],
    model: quantize_model.Model,
    text: quantize_text.Drawn,
) -> tuple[list[Any], dict[str, Any] | None]:
    """The layers' shards, in the folder of the work, and the second moments that the head is solved with;
    what was done to each matrix, and the shares of the languages where they moved.
    """
    from ..grids import BLOCKS
    from ..quantize import stream
    from ..quantize.formats import gguf
    from ..quantize.mixtures import scheme
    from ..quantize.passes import Method

    schemes = {
        tensor.removesuffix(".weight"): scheme(kinds[theirs])
        for tensor, theirs in described.names.items()
        if kinds[theirs] in BLOCKS and theirs.startswith("blk.")
    }
    total = len(model.skeleton().layers)

    def solve(calibration: Any, place: Path, watch: Any = None) -> list[Any]:
        def reached(states: Any) -> None:
            _keep_moments(place / _MOMENTS, calibration.weights, states)
            if watch:
                watch(states[len(states) - calibration.watched :])

        # All of the text goes along to the head, which is solved for it; what is held out weighs nothing in that.
        seen = calibration and dataclasses.replace(calibration, watched=len(calibration.ids))
        with progress(f"quantize {job.out.name}", total) as bar:
            return stream.quantize_layers(
                model.source,
                model.skeleton(),
                schemes,
                gguf.store,
                place,
                seen,
                bar,
                job.tick,
                model.device,
                Method(config.method, config.damping),
                watch=reached if calibration else None,
            )

    if config.fairness != "minimax":
        return solve(text.drawn, job.work), None
    found, balance = quantize_model.minimax(config, job, model, text, solve)
    for pattern in ("model-*.safetensors", _MOMENTS):
        for file in found.folder.glob(pattern):
            file.replace(job.work / file.name)
    return found.layers, balance


def _keep_moments(file: Path, weights: Any, states: Any) -> None:
    """Second moments of what reaches the head; weights (sequences, length) of its tokens."""
    from ..models import checkpoint as checkpoints
    from ..quantize.moments import second_moments

    length = min(weights.shape[1], states.shape[1])
    rows = states[:, :length].reshape(-1, states.shape[-1]).float()
    found = second_moments(rows, weights[:, :length].reshape(-1).to(rows.device))
    checkpoints.write_shard(file, {"moments": checkpoints.pending(found)})


def _outside(
    config: QuantizeConfig, job: ledger.Job, described: Description, kinds: Mapping[str, str], device: Any
) -> list[Any]:
    """The shard of embedding and head, a piece at a time: the head for the states that reach it, and an
    embedding that is the head as well for these. One that is only looked up has no inputs to be solved for:
    every token's row is rounded for itself, whatever the others do, so no token's row costs another's bits.
    """
    from safetensors.torch import load_file

    from ..grids import BLOCKS
    from ..models import checkpoint as checkpoints
    from ..quantize.mixtures import EMBEDDING, HEAD
    from ..quantize.records import Layer

    source = described.source
    there = {
        tensor: kinds[theirs]
        for tensor, theirs in described.names.items()
        if theirs in (EMBEDDING, HEAD) and kinds[theirs] in BLOCKS
    }
    total = int(described.metadata[f"{described.architecture}.block_count"])
    file = job.work / _shard(total, total)
    moments = job.work / _MOMENTS
    if there and not file.is_file():
        rows = sum(source.entries[tensor].shape[0] for tensor in there)
        with progress(f"quantize {job.out.name}: embedding and head", rows) as bar:
            pieces = {}
            for tensor, type_ in there.items():
                reached = described.tied or described.names[tensor] == HEAD
                found = load_file(moments)["moments"] if reached and moments.is_file() else None
                pieces[tensor] = _in_pieces(config, source, tensor, type_, found, device, bar)
            checkpoints.write_shard(file, pieces)
    return [
        Layer(tensor.removesuffix(".weight"), BLOCKS[type_].group, scheme=type_)
        for tensor, type_ in there.items()
    ]


def _in_pieces(
    config: QuantizeConfig, source: Any, tensor: str, type_: str, moments: Any, device: Any, bar: Any
) -> Any:
    """The packed rows of a large matrix, solved some at a time as they are written."""
    import torch

    from ..grids import BLOCKS
    from ..models import checkpoint as checkpoints
    from ..quantize import solver

    grid = BLOCKS[type_]
    rows, columns = source.entries[tensor].shape
    moments = None if moments is None else moments.to(device)

    def write(to: Any) -> None:
        step = max(1, _ROWS // columns)
        for start in range(0, rows, step):
            part = source.part(tensor, slice(start, start + step)).to(device)
            if moments is None:
                codes, steps = solver.round_to_nearest(part, grid)
            else:
                # Eight bits are near enough that feedback is not worth its time.
                feedback = config.method == "gptq" and grid.bits < 8
                found = solver.solve(part, moments, grid, damping=config.damping, feedback=feedback)
                codes, steps = found.codes, found.steps
            to.write(grid.pack(codes, steps).cpu().numpy().tobytes())
            bar.step(len(part), tensor)

    return checkpoints.Pending(torch.uint8, (rows, columns // grid.block * grid.bytes), write)


def _say_what_fell_back(
    described: Description, mixture: str, kinds: Mapping[str, str], *, calibrated: bool
) -> dict[str, int]:
    """`Q4_K → Q5_0` and how many matrices; said, since a file of that name is then larger than its name."""
    from ..quantize.formats import gguf

    shapes = gguf.shapes(described)
    asked = gguf.wanted_types(described, mixture, calibrated=calibrated)
    fell = Counter(f"{asked[name]} → {kinds[name]}" for name in shapes if asked[name] != kinds[name])
    if fell:
        widths = sorted({shapes[name][-1] for name in shapes if asked[name] != kinds[name]})
        told = ", ".join(f"{count} × {change}" for change, count in fell.most_common())
        say(
            f"Rows of {', '.join(map(str, widths))} weights are not whole blocks of 256; as in llama.cpp (or better "
            f"at the same bytes) they are in another type: {told}."
        )
    return dict(fell)


def _modelfile(file: Path, described: Description, base: Mapping[str, Any]) -> None:
    """What `ollama create` reads."""
    get = described.metadata.get
    tokens = get("tokenizer.ggml.tokens") or []
    types = get("tokenizer.ggml.token_type") or []
    template = str(get("tokenizer.chat_template") or "")
    turns = next((turns for mark, turns in _TURNS.items() if mark in template), None)
    ids = [get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    control = 3
    stops = [tokens[i] for i in dict.fromkeys(ids) if i is not None and types[i] == control]
    lines = ["FROM ./model.gguf"]
    lines.append(f'TEMPLATE """{turns or "{{ .Prompt }}"}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in stops if '"' not in stop]
    if base.get("terms"):
        lines.append(f'LICENSE """{base["terms"]}"""')
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _say_how_to_serve(config: QuantizeConfig, out: Path, name: str, folder: Path) -> None:
    file = shlex.quote(str(out / "model.gguf"))
    say(f"llama.cpp: llama-server -m {file}")
    say(f"Ollama: ollama create {shlex.quote(name)} -f {shlex.quote(str(out / MODELFILE))}")
    say(
        "vLLM (from 0.24 on after `pip install vllm-gguf-plugin`): "
        f"vllm serve {file} --tokenizer {shlex.quote(str(folder))}"
    )
    say(
        f"What it costs in each language: onggi evaluate {shlex.quote(str(out))} --reference {config.model} …"
    )

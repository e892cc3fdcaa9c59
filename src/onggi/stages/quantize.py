"""`onggi quantize`: a model's linear weights on a coarse grid, with no language paying for another."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from .. import ledger
from ..errors import OnggiError
from ..languages import Languages
from ..ledger import Artifact
from ..progress import progress, say
from . import (
    healing,
    pretrain_plan,
    quantize_bits,
    quantize_gguf,
    quantize_imatrix,
    quantize_model,
    quantize_text,
)
from .base import Names, Plan, Stage, command, options

_REVISION = 4
_CHOICES = quantize_bits.CHOICES
Scheme = Literal[
    "w4a16-g128",
    "w4a16-g64",
    "w4a16-g32",
    "w4a16",
    "w4a16-g128-asym",
    "w3a16-g128",
    "w2a16-g32",
    "w8a16",
    "w8a16-g128",
    "w8a8",
    "w8a8-smooth",
    "fp8",
    "nf4",
    "int8",
]
SCHEME_NAMES: tuple[str, ...] = get_args(Scheme)
Format = Literal[
    "compressed-tensors",
    "gptq",
    "gguf",
    "gguf:Q4_K_M",
    "gguf:Q4_K_S",
    "gguf:Q8_0",
    "gguf:Q6_K",
    "gguf:Q5_K_M",
    "gguf:Q5_K_S",
    "gguf:Q5_1",
    "gguf:Q5_0",
    "gguf:Q4_1",
    "gguf:Q4_0",
    "gguf:IQ4_NL",
    "gguf:IQ4_XS",
    "gguf:Q3_K_L",
    "gguf:Q3_K_M",
    "gguf:Q3_K_S",
    "gguf:Q2_K",
    "gguf:BF16",
    "gguf:F16",
    "gguf:F32",
    "imatrix",
]
# The types of GGUF that say a size for another mixture of types.
Like = Literal[
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S",
    "Q2_K",
]  # fmt: skip
# The schemes whose activations are quantised as well, those that bitsandbytes makes by itself, and those that
# the GPTQ layout can hold: as in quantize/schemes.py and quantize/formats/gptq.py (tests compare them; importing
# them here would import torch for --help).
ACTIVATIONS = ("w8a8", "w8a8-smooth", "fp8")
LIBRARY = ("nf4", "int8")
GPTQ_LAYOUT = ("w4a16-g128", "w4a16-g64", "w4a16-g32", "w4a16", "w8a16")
# Calibration tokens where none are named. More than that wins little for the time it takes: bench/effort.py.
TOKENS = {"fast": 8192, "default": 16384, "best": 32768}
# Of the tuning of --effort best: sequences of a step, how often it goes over the text, and the fewest steps.
_SEQUENCES, _ROUNDS, _LEAST_STEPS = 8, 2, 16
# The scheme of the layers that an embedding of each kind goes with.
EMBEDDING = {"w8": "w8a16", "w8-g128": "w8a16-g128", "w4-g32": "w4a16-g32"}


@dataclass(frozen=True)
class QuantizeConfig:
    """Quantise the linear weights of a model's decoder layers.

    The result is a checkpoint that transformers loads, and vLLM too where the scheme allows. Layers are
    read, solved and written one at a time; a killed run goes on after its last finished layer.
    """

    model: str
    """The model: a hub id, a folder, a .gguf file, or package:NAME (gemma3-270m, smollm2-135m)."""
    scheme: Scheme = "w4a16-g128"
    """Bits of weights (w) and activations (a), and how many weights share a scale (g; none: a whole
    row). Smaller groups cost more bytes and lose less; asym adds a zero point to each. w8a8 and fp8 also
    round activations, to a scale for each token; w8a8-smooth moves their outliers into the weights first.
    w3 and w2 are for transformers only. nf4 and int8 are bitsandbytes' own, for comparison."""
    method: Literal["gptq", "awq", "rtn"] = "gptq"
    """gptq: error feedback on calibration text. awq: scales for the input columns, searched by each
    group's output error, equal weight for each language; then rounding. rtn: round to nearest, without text.
    nf4 and int8 are rounded by bitsandbytes whatever stands here. What rounds without text looks at no option
    of calibration, and says so."""
    effort: Literal["fast", "default", "best"] = "default"
    """What is spent on it. fast: the solver on 8192 tokens. default: on 16384. best: on 32768, and then scales and norms
    are tuned by KL from the original on the same text, as long as the worst language of text that is held out gains; codes, format and size stay. It holds original and quantised model in memory."""
    tune: healing.Tune = "scales"
    """What best tunes. scales: scales (and zeros) and the weights of norms. rounding: afterwards the codes too, by
    straight-through rounding; four times the memory."""
    fairness: Literal["balanced", "minimax", "none"] = "balanced"
    """How calibration treats languages. balanced: an equal share each. minimax: shares that follow the
    damage to text that is held out, so that the worst language leads; quantises up to six times. none: all
    text in one pot, as other tools do."""
    damage: Literal["kl", "kl_per_passage", "relative"] = "kl"
    """What minimax and a budget even out: KL from the original in nats a token; nats for the same text (it must be parallel);
    or nats for each nat that the model needs for the text itself."""
    text: str = "starter"
    """Calibration text: a source as `onggi text` takes, or a folder it made; or self: the model writes its own
    from starts that ship in 55 languages, kept where it stays in the language. The default ships too, eight languages with
    a little of each: text of your own domain and languages is better. Not the probe, which is for measuring. rtn needs
    none (but for w8a8-smooth)."""
    self_share: float | None = None
    """Of the calibration tokens, the share that the model writes itself beside the text (default: 0; with
    --text self 1). Above 0, --languages may name some that the text lacks: all of theirs is the model's own."""
    languages: Languages | None = None
    """Languages to calibrate on, as en,ko; default: all that the text has."""
    tokens: int | None = None
    """Calibration tokens in all, not per language. Default: by --effort. More help slowly: four times as many took
    about a tenth off the damage. They take time and disk, not memory."""
    share: Literal["tokens", "content"] = "tokens"
    """What balanced means equal in: the same number of tokens each, or the same passages each."""
    format: Format = "compressed-tensors"
    """Layout of the files. compressed-tensors: what vLLM and transformers load. gptq: the older layout
    of 4 and 8 bits, for servers that know only that; transformers then needs gptqmodel. gguf:TYPE: one file,
    model.gguf, for llama.cpp, Ollama and LM Studio, its types as llama-quantize's of that name; gguf: types mixed by
    --budget or --like. imatrix: no weights, but what llama-quantize weighs rounding errors by, for each language and
    balanced."""
    verify: bool = False
    """Of a GGUF: run it in llama.cpp and compare its tokens and distributions with what was written, some seconds for
    a small model (pip install 'onggi[llama]'). It holds the model in 32 bits in memory."""
    embedding: Literal["w8", "w8-g128", "w4-g32"] | None = None
    """Round the embedding and the output head too: w8 with --scheme w8a16, w8-g128 with w8a16-g128, w4-g32 with w4a16-g32,
    for transformers only. In a small model with a large vocabulary they are most of the weights; w8-g128 is the safe one:
    the others cost some languages far more than English."""
    budget: str | None = None
    """Mix bits instead of one --scheme: bits of a quantised weight with its scales (4.25), or the size of all files
    (190MB). What each part of the model costs each language is measured first, some minutes for a small model,
    once: another budget reuses it."""
    like: Like | None = None
    """For a GGUF instead of --budget: the size of a file of this type, with the types chosen by what they cost."""
    choices: Names = _CHOICES
    """What a budget picks among for each part: symmetric schemes of weights alone; for a GGUF its types (default:
    Q2_K,Q3_K,IQ4_XS,Q4_K,Q5_K,Q6_K,Q8_0)."""
    objective: Literal["worst", "mean"] = "worst"
    """What a budget minimises: the damage of the language that pays most, or the mean; the price of each is said."""
    damping: float = 0.1
    """Added to the diagonal of the second moments, as a share of its mean. More is steadier: the calibration text decides less,
    which languages and subjects that it lacks gain from (docs/quantize.md)."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the calibration pass. auto: bf16 where the processor multiplies in it, else fp32."""
    seed: int = 0
    """Of the order in which calibration rows are drawn."""

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises OnggiError naming the option and the mend."""
        if self.scheme in LIBRARY and self.method == "awq":
            raise OnggiError(f"method: {self.scheme} is rounded by bitsandbytes alone; leave --method out.")
        if self.scheme in ACTIVATIONS and self.method == "awq":
            raise OnggiError(
                f"method: awq is for weights alone and {self.scheme} rounds activations too; use w8a8-smooth, "
                "which moves scales with both in mind, or --method gptq."
            )
        if self.text == "probe":
            raise OnggiError(quantize_text.NO_PROBE)
        if self.tokens is not None and self.tokens < 1:
            raise OnggiError(f"tokens: {self.tokens} is not a number of tokens.")
        if self.tunes and (self.scheme in LIBRARY or self.method == "rtn"):
            raise OnggiError(
                "effort: best tunes what error feedback or awq has made on text; use --method gptq and a scheme that is not "
                "bitsandbytes' own, or --effort fast."
            )
        if self.tunes and self.embedding:
            raise OnggiError(
                "effort: best does not tune a model whose embedding is packed; leave --embedding out."
            )
        if self.tune != "scales" and not self.tunes:
            raise OnggiError("tune: is for --effort best.")
        if self.tune == "rounding" and (self.method == "awq" or self.scheme in ("w8a8-smooth", "fp8")):
            raise OnggiError(
                "tune: rounding starts from the original's own weights on a grid of integers, which awq, w8a8-smooth and fp8 "
                "do not have; tune scales."
            )
        if self.self_share is not None and not 0 <= self.self_share <= 1:
            raise OnggiError(f"self_share: {self.self_share} is not between 0 and 1.")
        if self.text == "self" and self.self_share not in (None, 1.0):
            raise OnggiError("self_share: with --text self there is no other text; name one with --text.")
        if self.share == "content" and self.written:
            raise OnggiError(
                "share: content needs the same passages in each language; a model writes others."
            )
        if self.share == "content" and self.fairness == "none":
            raise OnggiError("share: content is a way to be balanced; it needs --fairness balanced.")
        if self.fairness == "minimax" and not (self.calibrates and self.method == "gptq"):
            raise OnggiError(
                f"fairness: minimax moves the languages' shares in error feedback, and {self.scheme} by {self.method} "
                "has none; use --method gptq."
            )
        if self.damage != "kl" and self.fairness != "minimax" and not self.mixes:
            raise OnggiError(f"damage: {self.damage} is for --fairness minimax and for --budget.")
        if self.format == quantize_imatrix.FORMAT:
            quantize_imatrix.check(self)
        if self.verify and not quantize_gguf.kind(self):
            raise OnggiError(f"verify: runs a GGUF in llama.cpp, and --format is {self.format}.")
        if quantize_gguf.kind(self):
            quantize_gguf.check(self)
        elif self.like:
            raise OnggiError(f"like: {self.like} is a type of GGUF; ask for one with --format gguf.")
        elif self.budget:
            quantize_bits.check(self)
        if not self.mixes and (self.choices, self.objective) != (_CHOICES, "worst"):
            raise OnggiError("choices: these and --objective are for --budget; give one, as --budget 4.25.")
        if not 0 < self.damping < 10:
            raise OnggiError(f"damping: {self.damping} is not between 0 and 10.")
        if self.embedding and (self.scheme, self.format) != (EMBEDDING[self.embedding], "compressed-tensors"):
            raise OnggiError(
                f"embedding: {self.embedding} goes with --scheme {EMBEDDING[self.embedding]} and the "
                "compressed-tensors layout only: transformers loads a packed embedding where it unpacks the whole "
                "model by one scheme. For other mixes make a GGUF, whose embedding has a type of its own (--format "
                "gguf:Q4_K_M, or --format gguf with --budget or --like), or leave --embedding out."
            )
        if self.format == "gptq" and self.scheme not in GPTQ_LAYOUT:
            raise OnggiError(
                f"format: the GPTQ layout does not hold {self.scheme}, only {', '.join(GPTQ_LAYOUT)}; "
                "use --format compressed-tensors."
            )

    @property
    def written(self) -> float:
        """The share of calibration tokens that the model writes itself."""
        return 1.0 if self.text == "self" else self.self_share or 0.0

    @property
    def tunes(self) -> bool:
        """Whether scales are tuned end to end."""
        return self.effort == "best"

    @property
    def mixes(self) -> bool:
        """Whether each part of the model gets a choice of its own."""
        return bool(self.budget or self.like)

    @property
    def holds_out(self) -> bool:
        """Whether some of the text is kept from calibration, to measure damage on."""
        return self.fairness == "minimax" or self.mixes or self.tunes

    @property
    def calibration_tokens(self) -> int:
        """Tokens to calibrate on."""
        return TOKENS[self.effort] if self.tokens is None else self.tokens

    @property
    def calibrates(self) -> bool:
        """Whether text is needed."""
        if quantize_gguf.kind(self) in quantize_gguf.PLAIN:
            return False
        return self.scheme not in LIBRARY and (self.method != "rtn" or self.scheme == "w8a8-smooth")


def inputs(config: QuantizeConfig) -> dict[str, Any]:
    """Fingerprints of model and text, and of a GGUF the revision of how it is made."""
    from .. import text
    from ..models import references

    found: dict[str, Any] = {"model": references.fingerprint(config.model)}
    if config.calibrates:
        sources = [config.text] if config.text != "self" else []
        sources += ["starts"] if config.written else []
        languages = quantize_text.divided(config)[0]
        prints = [text.fingerprint(name, languages) for name in sources]
        found["text"] = prints[0] if len(prints) == 1 else ledger.digest(prints)
    if quantize_gguf.kind(config):  # a revision of its own: what other formats made stays as it is
        found["format"] = f"{config.format}:{quantize_gguf.REVISION}"
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
        line = command(STAGE, config, job.out)
        if config.format == quantize_imatrix.FORMAT:
            return quantize_imatrix.quantize(config, job, line)
        return (quantize_gguf.quantize if quantize_gguf.kind(config) else _quantize)(config, job, line)


def _quantize(config: QuantizeConfig, job: ledger.Job, line: str) -> Artifact:
    import torch

    from ..engines.transformers import default_device
    from ..models import checkpoint as checkpoints
    from ..models import references
    from ..quantize import stream
    from ..quantize.formats import bitsandbytes, compressed_tensors, gptq
    from ..quantize.passes import Method
    from ..quantize.schemes import SCHEMES
    from ..report import card

    scheme = SCHEMES[config.scheme]
    if scheme.grid is None:
        bitsandbytes.require()
    folder = quantize_model.resolved(config)
    source = checkpoints.Checkpoint(folder)
    # Where what is solved is tuned afterwards, it lies apart until it is.
    solved = job.partial / "solved" if config.tunes else job.work
    solved.mkdir(exist_ok=True)
    if config.tunes:
        healing.check_memory(folder, config.tune, default_device(), "--effort fast needs a layer at a time")
    model, text, decoder = quantize_model.opened(config, job, folder, source)
    calibration = text.drawn
    if config.format == "gptq":
        scheme = scheme.stored_in(torch.float16)
    unfit = {} if config.budget else stream.unfit(scheme, decoder)
    if unfit:
        _check_fit(config, unfit, decoder)
    if config.format == "gptq" or config.embedding or config.scheme.endswith("asym"):
        scheme = stream.uniform(scheme, decoder, embedding=bool(config.embedding))
    store = gptq.store if config.format == "gptq" else compressed_tensors.store
    total = len(decoder.layers)
    schemes: Any = scheme
    mixed = None
    if config.budget:
        schemes, mixed = quantize_bits.allocate(config, job, model, text)

    def solve(calibration: Any, place: Path, watch: Any = None) -> list[Any]:
        with progress(f"quantize {job.out.name}", total) as bar:
            return stream.quantize_layers(
                source,
                model.skeleton(),
                schemes,
                store,
                place,
                calibration,
                bar,
                job.tick,
                model.device,
                Method(config.method, config.damping),
                store_weight=bitsandbytes.store,
                watch=watch,
            )

    balance = None
    if config.fairness != "minimax":
        layers = solve(calibration, solved)
    else:
        found, balance = quantize_model.minimax(config, job, model, text, solve)
        layers = found.layers
        for shard in found.folder.glob("model-*.safetensors"):
            shard.replace(solved / shard.name)
    embedding = stream.write_rest(
        source, decoder, solved, scheme if config.embedding else None, store, model.device
    )
    quantize_model.say_what_is_odd(layers, decoder, source, unfit)

    names = [*text.files, *((quantize_bits.MATRIX, quantize_bits.FIGURE) if mixed else ())]
    used = [SCHEMES[name] for name in dict.fromkeys(layer.scheme for layer in layers)]
    vllm = all(one.vllm for one in used) and not config.embedding
    served_with = bitsandbytes.SERVED_WITH if vllm and scheme.grid is None else None
    if config.format == "gptq":
        made = gptq.quantization_config(scheme)
        ledger.write_json(job.work / "quantize_config.json", made)
        names.append("quantize_config.json")
    elif scheme.grid is None:
        made = bitsandbytes.quantization_config(scheme, decoder.others())
    else:
        made = compressed_tensors.quantization_config(
            layers,
            {one.name: one for one in used} | {scheme.name: scheme},
            [*decoder.others(), *unfit],
            embedding,
        )
    ledger.write_json(solved / "config.json", source.config | {"quantization_config": made})
    shards = {
        stream.shard_name(i, total): checkpoints.shard_sizes(solved / stream.shard_name(i, total))
        for i in range(total + 1)
    }
    checkpoints.write_index(solved, shards)
    records = [vars(layer) for layer in [*layers, *embedding]]
    tuned = None
    if config.tunes:
        tuned = _tune(config, job, model, solved, records, text)
        for name in ("config.json", checkpoints.INDEX):
            shutil.copyfile(solved / name, job.work / name)
    base = references.about(folder)
    about = {
        **{key: base[key] for key in ("licence", "terms", "base_model") if base.get(key)},
        "base": {
            "name": references.parse(config.model).name,
            "source": config.model,
            "grid": base.get("grid"),
        },
        "made_by": "onggi quantize",
        "scheme": "mixed" if mixed else config.scheme,
        "bits": mixed,
        "format": made.get("format", config.format) if scheme.grid else "bitsandbytes",
        "method": config.method if scheme.grid else "bitsandbytes",
        "embedding": config.embedding,
        "serve": "vllm serve FOLDER" if vllm else None,
        **({"serve_with": served_with} if served_with else {}),
        "fairness": config.fairness if calibration else None,
        "balance": balance,
        "effort": config.effort,
        "healed": tuned,
        "calibration": text.noted(balance),
        "precision": str(model.dtype).removeprefix("torch.") if calibration else None,
        "layers": records,
    }
    ledger.write_json(job.work / references.ABOUT, about)
    names += [*shards, checkpoints.INDEX, "config.json", references.ABOUT]
    for file in checkpoints.companions(folder):
        shutil.copyfile(file, job.work / file.name)
        names.append(file.name)
    (job.work / "README.md").write_text(card.quantized(about), encoding="utf-8")
    facts = {"damage": tuned["damage"]} if tuned else {}
    made_at = job.finish([*names, "README.md"], command=line, **facts)
    _say_how_to_serve(config, job.out, vllm=vllm, beside=served_with)
    return made_at


def _check_fit(config: QuantizeConfig, unfit: Mapping[str, int], decoder: Any) -> None:
    """Raises OnggiError where matrices that no group divides cannot stay as they are."""
    name, columns = next(iter(unfit.items()))
    layers = range(len(decoder.layers))
    if config.format == "gptq":
        raise OnggiError(
            f"format: {name} has {columns} columns, which no group divides, and the GPTQ layout has all matrices of the layers "
            "quantised; use --format compressed-tensors, or a scheme with a scale for each row (w4a16, w8a16)."
        )
    if len(unfit) == sum(len(decoder.linears(i)) for i in layers) and not any(map(decoder.experts, layers)):
        raise OnggiError(
            f"scheme: {config.scheme} fits no matrix of this model (first: {name}, {columns} columns, no multiple of 32); use "
            "one with a scale for each row (w4a16, w8a16)."
        )


def _tune(
    config: QuantizeConfig,
    job: ledger.Job,
    model: quantize_model.Model,
    solved: Path,
    records: list[dict[str, Any]],
    text: quantize_text.Drawn,
) -> dict[str, Any]:
    """Tune what lies in `solved` and write its weights to the job's work; what to note of it."""
    from ..engines.transformers import Engine
    from ..train.tokens import batches

    drawn = text.tuning
    assert drawn and text.held_out
    runs = {
        name: [
            row[there > 0].tolist()
            for row, there, owner in zip(drawn.ids, drawn.weights, drawn.owner, strict=True)
            if owner == number
        ]
        for number, name in enumerate(drawn.names)
    }
    steps = max(
        _ROUNDS * config.calibration_tokens // (_SEQUENCES * quantize_text.TUNED_LENGTH), _LEAST_STEPS
    )
    source = batches(runs, int(drawn.ids[0, 0]), steps, _SEQUENCES, config.seed)
    course = healing.Course(
        steps, config.tune, fairness=config.fairness, damage=config.damage, seed=config.seed
    )
    teacher = Engine(model.folder, model.device)
    healed = healing.heal(job, teacher, solved, records, source, text.held_out, model.dtype, course)
    return healing.noted(healed, course, source.tokens, text.about["text"], config.model)


def _say_how_to_serve(config: QuantizeConfig, out: Path, *, vllm: bool, beside: str | None) -> None:
    if vllm:
        say(f"Serve it: vllm serve {shlex.quote(str(out))}" + (f" after {beside}" if beside else ""))
    elif config.embedding:
        say("A packed embedding loads in transformers only: vLLM computes with embeddings as they are.")
    else:
        say("It loads in transformers only: vLLM's kernels for weights take 4 and 8 bits.")


def plan(config: QuantizeConfig) -> Plan:
    """About the tokens, memory and disk, where the model is at hand."""
    from ..models import references

    size = references.size(config.model)
    tokens = config.calibration_tokens if config.calibrates else 0
    if size is None:
        return Plan(tokens=tokens)
    # The interpreter with its libraries, one layer in three copies, its moments, the activations of one batch,
    # and the states between two layers as far as they are held (quantize/states.py).
    batch = min(tokens, _BATCH // size.widest)
    working = 3 * size.layer_bytes + 12 * size.widest**2 + batch * 4 * 2 * (4 * size.widest + 3 * size.hidden)
    held = min(2 * tokens * 4 * size.hidden, _HELD)
    budget = quantize_bits.parse(config.budget) if config.budget else None
    kind = quantize_gguf.kind(config)
    bits = (
        budget.bits
        if budget and budget.bits
        else quantize_gguf.bits(config.like or kind)
        if kind
        else _bits(config.scheme)
    )
    saved = 1 - bits / 16  # of a model in 16 bits
    made = size.bytes - int(
        (size.bytes if config.embedding or kind else size.layers * size.layer_bytes) * saved
    )
    made = 0 if config.format == quantize_imatrix.FORMAT else made
    made = budget.bytes if budget and budget.bytes else made
    if config.fairness == "minimax" or config.mixes:  # the output head is at hand to see the damage
        held += 2 * size.vocabulary * size.hidden
    # The best round of minimax is kept while another is made.
    disk = made * (2 if config.fairness == "minimax" else 1)
    memory = 450_000_000 + working + held
    shape = pretrain_plan.shape_of(config.model)
    if config.calibrates and config.written and shape:  # to write, the model is whole in memory
        memory = max(memory, 450_000_000 + 4 * shape.parameters)
    if config.tunes and shape:
        memory = max(memory, healing.memory(shape, config.tune))
        # What was solved, apart; scales and norms with their moments, in two checkpoints and as the best.
        disk += made + (12 * size.bytes if config.tune == "rounding" else size.bytes // 4)
    return Plan(tokens, memory, disk + 2 * tokens * 2 * size.hidden)


_BATCH, _HELD = 1 << 26, 1 << 30


def _bits(scheme: str) -> float:
    """Bits of a weight with its scale, from the scheme's name."""
    if scheme in ("fp8", "int8"):
        return 8.0
    if scheme == "nf4":
        return 4.5
    bits, _, group = scheme.partition("-g")
    number = int(bits[1])
    size = int(group.split("-")[0]) if group else 0
    return number + ((16 + number * scheme.endswith("asym")) / size if size else 0)


STAGE = Stage("quantize", QuantizeConfig, quantize, inputs, plan, {"model": None}, _REVISION)

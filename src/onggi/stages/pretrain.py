"""`onggi pretrain`: train a model further on text, all of its weights, an equal share for each language."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .. import languages as tags
from .. import ledger
from ..errors import OnggiError
from ..languages import Languages
from ..ledger import Artifact
from ..progress import progress, release_memory, say
from .base import Plan, Stage, command, options, precision

_REVISION = 1
_NO_PROBE = (
    "text: the probe is for measuring and never for training; "
    "use --text starter, debian:libreoffice-help or your own."
)
# One passage in so many is kept from training; of each language so many tokens of them are measured.
_ONE_IN, _HELD_OUT_TOKENS = 50, 512


@dataclass(frozen=True)
class PretrainConfig:
    """Train a model further on text, in full precision, each language an equal share.

    The result is a checkpoint in bf16, with the loss on text held out before and after, and how far
    the weights have moved from where they were. A killed run goes on from its last checkpoint.
    """

    text: str
    """Text to train on: a source as `onggi text` takes, or a folder it made. One passage in fifty is
    held out and measured. Not the probe, which is for measuring."""
    init: str
    """The model to begin with: a hub id, a folder, a .gguf file, or package:NAME."""
    languages: Languages | None = None
    """Languages to train on, as en,ko; default: all that the text has."""
    steps: int = 240
    """Updates of the weights."""
    batch_tokens: int = 1024
    """Tokens of one step, in whole sequences; of all languages together."""
    length: int = 256
    """Tokens of one sequence, its start token included."""
    learning_rate: float = 3e-5
    """At its peak; it falls as a cosine to a tenth. Higher moves the weights further and sooner harms
    languages that the text has little of."""
    warmup: int = 20
    """Steps in which the learning rate rises from nothing."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the matrix products; weights and moments are fp32. auto: bf16 where the processor multiplies
    in it, else fp32."""
    seed: int = 0
    """Of the order in which text is drawn and batches are mixed."""

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises OnggiError naming the option and the mend."""
        if self.text == "probe":
            raise OnggiError(_NO_PROBE)
        if self.steps < 1:
            raise OnggiError(f"steps: {self.steps} is not a number of steps.")
        if self.length < 2:
            raise OnggiError(f"length: a sequence of {self.length} has nothing to predict; 256 is usual.")
        if self.batch_tokens < self.length:
            raise OnggiError(
                f"batch_tokens: {self.batch_tokens} are less than one sequence of {self.length} (--length)."
            )
        if not 0 < self.learning_rate < 1:
            raise OnggiError(f"learning_rate: {self.learning_rate} is not between 0 and 1; 3e-5 is usual.")
        if self.warmup < 0:
            raise OnggiError(f"warmup: {self.warmup} is not a number of steps.")


def inputs(config: PretrainConfig) -> dict[str, Any]:
    """Fingerprints of model and text."""
    from .. import text
    from ..models import references

    return {
        "init": references.fingerprint(config.init),
        "text": text.fingerprint(config.text, config.languages),
    }


def pretrain(config: PretrainConfig, out: Path) -> Artifact:
    """Write a trained checkpoint to `out`; see `PretrainConfig`.

    Raises OnggiError for a model or text that is not sound, and where the loss ceases to be finite.

    >>> from pathlib import Path
    >>> from onggi.languages import Languages
    >>> from onggi.stages import PretrainConfig, pretrain
    >>> few = PretrainConfig("starter", "model", Languages("ko,el,km"), steps=2, batch_tokens=64, length=32)
    >>> made = pretrain(few, Path("further"))
    >>> sorted(made.record["moved"])
    ['embedding', 'linears', 'norms']
    """
    job = ledger.begin(out, "pretrain", options(config), inputs(config), _REVISION)
    if job.done:
        return job.done
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    with job:
        return _pretrain(config, job)


def _pretrain(config: PretrainConfig, job: ledger.Job) -> Artifact:
    from ..engines.transformers import Engine
    from ..models import checkpoint as checkpoints
    from ..models import references
    from ..report import card
    from ..train import loop, tokens

    folder = references.resolve(config.init)
    source = checkpoints.Checkpoint(folder)
    if "quantization_config" in source.config:
        raise OnggiError(f"{config.init}: is quantised; name the model it was made from.")
    window = source.config.get("max_position_embeddings")
    if window and config.length > window:
        raise OnggiError(f"length: {config.length} exceeds the window of {config.init}, {window}.")
    engine = Engine(folder)
    parameters = dict(engine.model.named_parameters())
    stored = dict(engine.model.named_parameters(remove_duplicate=False))
    kept = {id(stored[name]) for name in source.entries if name in stored}
    for name, parameter in parameters.items():
        if id(parameter) not in kept:
            raise OnggiError(f"{config.init}: holds no tensor named {name}.")
    dtype = precision(job, config.precision, engine.device)
    training, held_out, source_text = _texts(config)
    batches = _batches(config, engine.tokens, training)
    facts = {
        "steps": config.steps,
        "batch_tokens": batches.ids[0].numel(),
        "length": batches.ids.shape[-1],
        "learning_rate": config.learning_rate,
        "warmup": config.warmup,
        "seed": config.seed,
        "precision": str(dtype).removeprefix("torch."),
        **source_text,
        "tokens": batches.tokens,
    }
    del training
    release_memory()

    noted = job.partial / "held-out.json"
    if not noted.is_file():
        ledger.write_json(noted, _loss(engine, held_out))
    before = ledger.read_json(noted)
    with progress(f"pretrain {job.out.name}", config.steps) as bar:
        losses = loop.train(
            parameters,
            tokens.next_token(engine.body, engine.head, dtype),
            batches.ids,
            batches.weights,
            loop.Schedule(config.steps, config.learning_rate, config.warmup),
            job.partial,
            bar,
            job.tick,
        )

    base = references.about(folder)
    moved = _write(source, engine.model, stored, job.work, on_grid=bool(base.get("grid")))
    after = _loss(engine, held_out)
    say(
        f"Loss on text held out, nats a token, mean of the languages: {_mean(before):.3f} → {_mean(after):.3f}."
    )
    ledger.write_json(job.work / "losses.json", losses)
    about = {
        **{key: base[key] for key in ("licence", "terms", "base_model") if base.get(key)},
        "base": {
            "name": references.parse(config.init).name,
            "source": config.init,
            "grid": base.get("grid"),
        },
        "made_by": "onggi pretrain",
        "grid": None,  # left behind; `moved` says how far
        "continued": {**facts, "held_out": {"before": before, "after": after}, "moved": moved},
    }
    ledger.write_json(job.work / references.ABOUT, about)
    # bf16 because that is what it is served and quantised from. Its rounding is relative to each weight
    # alone, with eight bits, and so no grid that a quantiser could hit upon.
    config_json = {key: value for key, value in source.config.items() if key != "torch_dtype"}
    ledger.write_json(job.work / "config.json", config_json | {"dtype": "bfloat16"})
    names = [checkpoints.SINGLE, "config.json", "losses.json", references.ABOUT]
    for file in checkpoints.companions(folder):
        shutil.copyfile(file, job.work / file.name)
        names.append(file.name)
    (job.work / "README.md").write_text(card.continued(about), encoding="utf-8")
    return job.finish([*names, "README.md"], command=command(STAGE, config, job.out), moved=moved)


Passages = Mapping[str, Mapping[str, str]]  # language → id → text


def _texts(config: PretrainConfig) -> tuple[Passages, Passages, dict[str, Any]]:
    """Passages to train on, passages held out, and what text they are from. In a parallel text a passage that is held
    out in one language is so in all.
    """
    from .. import text

    found = text.load(config.text, config.languages)
    if found.name == "probe":  # a folder that `onggi text` made of it
        raise OnggiError(_NO_PROBE)
    languages = config.languages or Languages(found.languages)
    passages = {language: found.passages(language) for language in languages}
    held_out = {}
    for language, texts in passages.items():
        if len(texts) < 2:
            raise OnggiError(
                f"text: {len(texts)} passage in {tags.name(language)} is too little: one is held out; "
                "leave the language out or give more."
            )
        order = sorted(texts, key=lambda key: hashlib.sha256(key.encode()).digest())
        held_out[language] = {key: texts[key] for key in order[: max(1, len(order) // _ONE_IN)]}
    kept = {key for texts in held_out.values() for key in texts}
    training = {
        language: {key: content for key, content in texts.items() if key not in kept}
        for language, texts in passages.items()
    }
    return training, held_out, {"text": found.name, "licence": found.licence}


def _batches(config: PretrainConfig, tokens: Any, training: Passages) -> Any:
    from ..text.draw import draw
    from ..train.tokens import batches

    size = config.batch_tokens // config.length
    sequences = config.steps * size
    if sequences < len(training):
        raise OnggiError(
            f"steps: {sequences} sequences in all are too few for {len(training)} languages; "
            "raise --steps or --batch_tokens."
        )
    each = -(-sequences // len(training))
    drawn = draw(
        training,
        tokens.encode,
        tokens.prefix,
        each * config.length * len(training),
        seed=config.seed,
        length=config.length,
    )
    for language in drawn.short:
        say(f"The text in {tags.name(language)} is gone over more than once.")
    made = batches(drawn.runs, tokens.prefix, config.steps, size, config.seed)
    said = ", ".join(f"{tags.name(tag)} {count:,}" for tag, count in made.tokens.items())
    say(f"Tokens to train on: {said}.")
    return made


def _loss(engine: Any, held_out: Passages) -> dict[str, float]:
    """Language → nats a token on the passages held out, in fp32, up to `_HELD_OUT_TOKENS` of each."""
    import torch

    from ..head import score

    found = {}
    with progress("text held out", len(held_out)) as bar:
        for language, texts in held_out.items():
            chosen, count = [], 0
            for content in texts.values():
                chosen.append(content)
                count += len(engine.tokens.encode(content))
                if count >= _HELD_OUT_TOKENS:
                    break
            states, ids = zip(*engine.states(chosen), strict=True)
            nll = score(
                torch.cat(states).to(engine.device), engine.head, torch.cat(ids).to(engine.device)
            ).nll
            found[language] = round(float(nll.double().mean()), 4)
            bar.step(1, tags.name(language))
    return found


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)


def _write(source: Any, model: Any, stored: Mapping[str, Any], out: Path, on_grid: bool) -> dict[str, Any]:
    """Round the weights to bf16 and write them under the names of `source`; returns how far they moved."""
    import torch

    from ..models import checkpoint as checkpoints
    from ..train.movement import Movement

    tables = {id(m.weight) for m in (model.get_input_embeddings(), model.get_output_embeddings())}
    movement = Movement()
    tensors = {}
    for name in source.entries:
        if name not in stored:  # a table that the architecture computes and its file holds all the same
            tensors[name] = checkpoints.copied(source, name)
            continue
        parameter = stored[name]
        rounded = parameter.to(torch.bfloat16)
        parameter.copy_(rounded)
        kind = "embedding" if id(parameter) in tables else "linears" if parameter.ndim > 1 else "norms"
        movement.add(kind, source.tensor(name), rounded.cpu())
        tensors[name] = checkpoints.pending(rounded)
    checkpoints.write_shard(out / checkpoints.SINGLE, tensors)
    return movement.facts(on_grid)


def plan(config: PretrainConfig) -> Plan:
    """About the tokens, memory and disk, where the model is at hand."""
    from ..models import references

    tokens = config.steps * (config.batch_tokens // config.length) * config.length
    size = references.size(config.init)
    if size is None:
        return Plan(tokens=tokens)
    weights = size.bytes // 2  # stored in two bytes each
    # Weights, gradients and two moments in fp32; a chunk's logits and the head's other forms.
    memory = 600_000_000 + 16 * weights + 256 * size.vocabulary * 10 + 8 * size.vocabulary * size.hidden
    # Two checkpoints while one takes the other's place, and the result.
    return Plan(tokens, memory, (2 * 12 + 2) * weights)


STAGE = Stage("pretrain", PretrainConfig, pretrain, inputs, plan, {}, _REVISION)

"""`onggi reshape`: a model with fewer parts, more layers or a smaller vocabulary, by what each language needs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import languages as tags
from .. import ledger
from ..errors import OnggiError
from ..languages import Languages
from ..ledger import Artifact
from ..progress import progress, release_memory, say
from .base import Plan, Stage, command, no_probe, options

if TYPE_CHECKING:
    from ..text.draw import Passages

_REVISION = 1
_NO_PROBE = no_probe("choosing what is kept")
# One passage in so many is kept from choosing; of each language so many tokens of them are measured.
_ONE_IN, _HELD_OUT_TOKENS = 10, 512
_LENGTH = 256  # of a sequence that is measured


@dataclass(frozen=True)
class ReshapeConfig:
    """Make a model smaller or deeper, by what each of its parts does in each language.

    The changes combine. The result loads like any other model and begins a training: what is cut loses more
    or less, which is measured on text held out, before and after. Only a cut of the vocabulary serves as it is.
    """

    model: str
    """The model: a hub id, a folder, a .gguf file, or package:NAME (gemma3-270m, smollm2-135m)."""
    layers: int | None = None
    """Layers to keep: those that turn their input most, in the language in which they turn it most."""
    deepen: int | None = None
    """Layers to have, more than there are: two copies of the model, one upon the other, less what they
    overlap by (SOLAR). Not with --layers."""
    heads: int | None = None
    """Query heads to keep in each layer. Whole groups with their key-value head go where that comes out even,
    else as many of each group."""
    kv_heads: int | None = None
    """Key-value heads to keep in each layer, where they should not follow from the heads."""
    mlp: int | None = None
    """Columns of each MLP to keep."""
    width: int | None = None
    """Channels of the residual stream to keep: columns of every matrix. Costs the most of all."""
    keep_languages: Languages | None = None
    """Cut the vocabulary to what these languages need, as ko,en; the other languages lose."""
    coverage: float = 0.994
    """Share of the running words of each kept language that must be cut into the same tokens as before; 1
    keeps every token that its text and its list of words use."""
    words: Literal["wordfreq", "none"] = "wordfreq"
    """Lists of words with frequencies, which count as much as the text; languages that they lack go by the text
    alone."""
    choice: Literal["measured", "naive"] = "measured"
    """How layers, heads, columns and channels are chosen. naive: the first and last layers, the first of the
    others; needs no text, and is what to compare with."""
    text: str | None = None
    """Text to choose by and to measure on: a source as `onggi text` takes, or a folder it made. One passage in
    ten is held out and measured. Not the probe. --deepen and --choice naive can do without."""
    languages: Languages | None = None
    """Languages of the text, as en,ko; default: --keep_languages, else all that it has. What is kept is chosen
    by --keep_languages where they are named, else by all of these."""
    tokens: int = 8192
    """Tokens that layers, heads, columns and channels are chosen by, of all languages together, in equal
    shares."""
    seed: int = 0
    """Of the order in which text is drawn."""

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises OnggiError naming the option and the mend."""
        cut = [self.layers, self.heads, self.kv_heads, self.mlp, self.width]
        if self.keep_languages is None and all(number is None for number in [*cut, self.deepen]):
            raise OnggiError(
                "reshape: nothing to change; name --layers, --deepen, --heads, --mlp, --width or --keep-languages."
            )
        if self.deepen is not None and self.layers is not None:
            raise OnggiError("deepen: goes one way and --layers the other; name one of them.")
        if not 0 < self.coverage <= 1:
            raise OnggiError(f"coverage: {self.coverage} is not a share; 0.994 is usual, 1 keeps most.")
        if self.text == "probe":
            raise OnggiError(_NO_PROBE)
        if self.text is None and (
            self.keep_languages or (self.choice == "measured" and any(n is not None for n in cut))
        ):
            raise OnggiError(
                "text: what is kept is chosen by text (--text debian:libreoffice-help, or a file)"
                + (", or --choice naive without." if not self.keep_languages else ".")
            )
        lacking = [tag for tag in self.keep_languages or () if self.languages and tag not in self.languages]
        if lacking:
            raise OnggiError(f"languages: lack {', '.join(lacking)}, which --keep_languages names.")
        if self.tokens < 1:
            raise OnggiError(f"tokens: {self.tokens} is not a number of tokens.")

    @property
    def read(self) -> Languages | None:
        """The languages that are read of the text; None: all that it has."""
        return self.languages or self.keep_languages


def inputs(config: ReshapeConfig) -> dict[str, Any]:
    """Fingerprints of model and text."""
    from .. import text
    from ..models import references

    found: dict[str, Any] = {"model": references.fingerprint(config.model)}
    if config.text:
        found["text"] = text.fingerprint(config.text, config.read)
    return found


def reshape(config: ReshapeConfig, out: Path) -> Artifact:
    """Write a reshaped checkpoint to `out`; see `ReshapeConfig`.

    Raises OnggiError for a model or text that is not sound, and for a shape that the model cannot have.

    >>> from pathlib import Path
    >>> from onggi.stages import ReshapeConfig, reshape
    >>> made = reshape(ReshapeConfig("model", layers=2, mlp=192, text="calibration", tokens=768), Path("small"))
    >>> made.record["shape"]["after"]["layers"], made.record["shape"]["after"]["mlp"]
    (2, 192)
    >>> from transformers import AutoModelForCausalLM
    >>> loaded = AutoModelForCausalLM.from_pretrained("small")
    """
    job = ledger.begin(out, "reshape", options(config), inputs(config), _REVISION)
    if job.done:
        return job.done
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    with job:
        return _reshape(config, job)


def _reshape(config: ReshapeConfig, job: ledger.Job) -> Artifact:
    from ..models import checkpoint as checkpoints
    from ..models import references
    from ..models.reshape import shape
    from ..models.reshape import vocabulary as vocabularies
    from ..report import card

    folder = references.resolve(config.model)
    old = shape.load(folder)
    source = checkpoints.Checkpoint(folder)
    _parts(config, old, None)  # before the work
    texts = _texts(config)
    # Chosen once: a run that goes on takes what the killed one chose.
    noted = job.partial / "chosen.json"
    if not noted.is_file():
        chosen = _choose(config, folder, old, texts)
        ledger.write_json(noted, asdict(chosen))
    choice = shape.Choice(**ledger.read_json(noted))
    new = shape.configured(old, choice)
    facts = _facts(source, old, new, choice)
    names = [checkpoints.SINGLE, "config.json", "kept.json", references.ABOUT]
    checkpoints.write_shard(job.work / checkpoints.SINGLE, shape.tensors(source, old, choice))
    released = _config(source.config, new, choice)
    ledger.write_json(job.work / "config.json", released)
    ledger.write_json(job.work / "kept.json", {key: v for key, v in asdict(choice).items() if v})

    cut: dict[str, Any] = {}
    for file in checkpoints.companions(folder):
        if choice.vocabulary is None:
            shutil.copyfile(file, job.work / file.name)
            names.append(file.name)
        elif file.name == "generation_config.json":
            ids = {token: index for index, token in enumerate(choice.vocabulary)}
            ledger.write_json(job.work / file.name, vocabularies.renumbered(ledger.read_json(file), ids))
            names.append(file.name)
        elif not file.name.startswith(("tokenizer", "vocab", "added_tokens")) and file.name != "merges.txt":
            shutil.copyfile(file, job.work / file.name)
            names.append(file.name)
    if choice.vocabulary is not None:
        vocabulary = vocabularies.Vocabulary(folder)
        names += vocabularies.write(vocabulary, choice.vocabulary, job.work)
        cut = _retokenised(config, vocabulary, texts, job.work)
        names.append("retokenised.jsonl")
        del vocabulary
        release_memory()
    facts["loss"] = _losses(folder, job, texts) if texts else None
    base = references.about(folder)
    about = {
        **{key: base[key] for key in ("licence", "terms", "base_model") if base.get(key)},
        "base": {
            "name": references.parse(config.model).name,
            "source": config.model,
            "grid": base.get("grid"),
        },
        "made_by": "onggi reshape",
        # Cut or copied, the weights that are left are the base's.
        "grid": base.get("grid"),
        "reshaped": {
            "changes": _changes(config),
            "choice": config.choice,
            "text": texts.name if texts else None,
            "licence": texts.licence if texts else None,
            "languages": list(texts.by) if texts else None,
            "keep_languages": list(config.keep_languages) if config.keep_languages else None,
            **facts,
            "vocabulary": cut or None,
        },
    }
    ledger.write_json(job.work / references.ABOUT, about)
    (job.work / "README.md").write_text(card.reshaped(about), encoding="utf-8")
    return job.finish(
        [*names, "README.md"], command=command(STAGE, config, job.out), **facts, vocabulary=cut or None
    )


def _parts(config: ReshapeConfig, old: Any, measures: Any) -> Any:
    """The layers, heads, columns and channels that are kept, a `shape.Choice`; by place where there are no
    measures. Raises OnggiError for a shape that the model cannot have.
    """
    from ..models.reshape import select, shape

    have = shape.of(old)
    heads, kv_heads = select.checked(
        select.Wanted(config.layers, config.heads, config.kv_heads, config.mlp, config.width), have
    )
    layers: list[int] | None = None
    if config.deepen is not None:
        layers = shape.deeper(have.layers, config.deepen)
    elif config.layers is not None:
        layers = select.layers(measures, have.layers, config.layers)
    queries, keys = None, None
    if (heads, kv_heads) != (have.heads, have.kv_heads):
        queries, keys = select.heads(measures, have, heads, kv_heads)
    columns = None if config.mlp is None else select.columns(measures, have, config.mlp)
    width = None if config.width is None else select.width(measures, have.width, config.width)
    gains = shape.gains(old, width, select.squares(measures)) if width and measures else {}
    choice = shape.Choice(layers, queries, keys, columns, width, gains=gains)
    shape.configured(old, choice)  # refuses what transformers would
    return choice


@dataclass(frozen=True)
class _Texts:
    """name, licence: of the source. by: language → passages that parts are chosen by. held_out: language →
    passages that are measured, of every language that is read.
    """

    name: str
    licence: str | None
    by: Passages
    held_out: Passages


def _texts(config: ReshapeConfig) -> _Texts | None:
    """None where no text is given."""
    from .. import text
    from ..text.draw import hold_out

    if config.text is None:
        return None
    found = text.load(config.text, config.read)
    if found.name == "probe":  # a folder that `onggi text` made of it
        raise OnggiError(_NO_PROBE)
    passages = {language: found.passages(language) for language in config.read or found.languages}
    kept = config.keep_languages or Languages(list(passages))
    rest, held_out = hold_out(passages, _ONE_IN)
    by = {language: rest[language] for language in kept}
    return _Texts(found.name, found.licence, by, held_out)


def _choose(config: ReshapeConfig, folder: Path, old: Any, texts: _Texts | None) -> Any:
    """What is kept, a `shape.Choice`."""
    cuts = (config.layers, config.heads, config.kv_heads, config.mlp, config.width)
    measures = None
    if texts and config.choice == "measured" and any(number is not None for number in cuts):
        measures = _measure(config, folder, texts)
    choice = _parts(config, old, measures)
    return replace(choice, vocabulary=_vocabulary(config, folder, texts)) if config.keep_languages else choice


def _measure(config: ReshapeConfig, folder: Path, texts: _Texts) -> Any:
    """Language → what the model's parts do in it."""
    from ..engines.transformers import default_device, no_bars
    from ..models.reshape import importance
    from ..text.draw import draw
    from ..text.tokens import Tokens

    tokens = Tokens(folder)
    drawn = draw(texts.by, tokens.encode, tokens.prefix, config.tokens, seed=config.seed, length=_LENGTH)
    said = ", ".join(f"{tags.name(tag)} {count:,}" for tag, count in drawn.counts.items())
    say(f"Tokens to choose by: {said} (from {texts.name}).")
    del tokens
    release_memory()
    with progress("what each part does", sum(drawn.counts.values())) as bar, no_bars():
        found = importance.measure(
            folder, drawn.runs, default_device(), lambda count, language: bar.step(count, tags.name(language))
        )
    release_memory()
    return found


def _vocabulary(config: ReshapeConfig, folder: Path, texts: _Texts | None) -> list[int]:
    """Ids of the tokens to keep."""
    from ..models import checkpoint as checkpoints
    from ..models.reshape import vocabulary as vocabularies

    assert texts
    found = vocabularies.Vocabulary(folder)
    rows = int(checkpoints.read_config(folder)["vocab_size"])
    if max(found.pieces) >= rows:
        raise OnggiError(
            f"{folder}: the tokenizer knows token {max(found.pieces)}, but the model has only {rows} rows; "
            "they are of different models."
        )
    lists = vocabularies.lists(texts.by) if config.words == "wordfreq" else {}
    if config.words == "wordfreq" and (lacking := [tags.name(tag) for tag in texts.by if tag not in lists]):
        say(f"wordfreq has no words in {', '.join(lacking)}: chosen by the text alone.")
    named = set(vocabularies.named(checkpoints.read_config(folder)))
    if (folder / "generation_config.json").is_file():
        named |= set(vocabularies.named(ledger.read_json(folder / "generation_config.json")))
    template = "".join(file.read_text(encoding="utf-8") for file in sorted(folder.glob("*.jinja")))
    kept = vocabularies.choose(
        found,
        {language: list(passages.values()) for language, passages in texts.by.items()},
        lists,
        config.coverage,
        named,
        template,
    )
    say(f"Tokens kept: {len(kept):,} of {len(found.pieces):,}.")
    return kept


def _config(written: Mapping[str, Any], new: Any, choice: Any) -> dict[str, Any]:
    """The config.json of the result: the source's, with what has changed."""
    from ..models.reshape import vocabulary as vocabularies

    made = new.to_dict()
    changed = {
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "hidden_size",
        "vocab_size",
    }
    changed |= {key for key, value in made.items() if isinstance(value, list) and key in written}
    changed |= {"layer_types"} & made.keys()
    config = {**written, **{key: made[key] for key in changed if key in made}}
    if choice.layers is not None:
        for pattern in ("_sliding_window_pattern", "sliding_window_pattern"):
            config.pop(pattern, None)
    if choice.vocabulary is not None:
        config = vocabularies.renumbered(
            config, {token: index for index, token in enumerate(choice.vocabulary)}
        )
    return config


def _facts(source: Any, old: Any, new: Any, choice: Any) -> dict[str, Any]:
    """Shape, parameters and bytes before and after."""
    from ..models.reshape import shape

    made = shape.tensors(source, old, choice)
    return {
        "shape": {"before": vars(shape.of(old)), "after": vars(shape.of(new))},
        "parameters": {"before": shape.parameters(old), "after": shape.parameters(new)},
        "bytes": {"before": source.bytes, "after": sum(tensor.bytes for tensor in made.values())},
        "layers": choice.layers,
    }


def _retokenised(config: ReshapeConfig, vocabulary: Any, texts: _Texts | None, out: Path) -> dict[str, Any]:
    """Write the words that are cut otherwise than before to `out`/retokenised.jsonl; returns how many, and what
    the other languages' text costs now.
    """
    import json

    import tokenizers

    from .. import text
    from ..models.reshape import vocabulary as vocabularies

    assert texts
    after = tokenizers.Tokenizer.from_file(str(out / "tokenizer.json"))
    lists = vocabularies.lists(texts.by) if config.words == "wordfreq" else {}
    same: dict[str, dict[str, float]] = {}
    with ledger.writing(out / "retokenised.jsonl") as aside, aside.open("w", encoding="utf-8") as file:
        for language in texts.by:
            listed = lists.get(language, {})
            sources: dict[str, Mapping[str, float]] = {
                "text held out": dict(vocabularies.running(texts.held_out[language].values())),
                "wordfreq": dict(zip(vocabularies.spelt(listed, language), listed.values(), strict=True)),
            }
            same[language] = {}
            for name, words in sources.items():
                if not words:
                    continue
                found = vocabularies.retokenised(vocabulary.tokenizer, after, words)
                same[language][name] = 1 - sum(one["frequency"] for one in found) / sum(words.values())
                for one in found:
                    line = {"language": language, "from": name, **one}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
    growth = {}
    probe = text.load("probe")
    for language in probe.languages:
        passages = list(probe.passages(language).values())
        was, now = (
            sum(map(len, vocabularies.encode(tokenizer, passages)))
            for tokenizer in (vocabulary.tokenizer, after)
        )
        growth[language] = now / was
    return {"coverage": config.coverage, "same": same, "tokens_on_probe": growth}


def _losses(folder: Path, job: ledger.Job, texts: _Texts) -> dict[str, dict[str, float]]:
    """Nats a passage before and after, by language, on the same passages."""
    noted = job.partial / "before.json"
    if not noted.is_file():
        ledger.write_json(noted, _measured(folder, texts, None))
    before = ledger.read_json(noted)
    after = _measured(job.work, texts, before["passages"])
    return {"before": before["nats"], "after": after["nats"]}


def _measured(folder: Path, texts: _Texts, counts: Mapping[str, int] | None) -> dict[str, Any]:
    """Language → mean nats of a passage held out, in fp32. counts: how many passages of each; without, as many
    as have `_HELD_OUT_TOKENS` tokens, one at least, and their numbers are returned too.
    """
    import torch

    from ..engines.transformers import Engine
    from ..head import score

    engine = Engine(folder)
    nats, numbers = {}, {}
    with progress(f"text held out, {folder.name}", len(texts.held_out)) as bar:
        for language, passages in texts.held_out.items():
            chosen: list[str] = []
            spent = 0
            for content in passages.values():
                if counts and len(chosen) == counts[language]:
                    break
                chosen.append(content)
                spent += len(engine.tokens.encode(content))
                if not counts and spent >= _HELD_OUT_TOKENS:
                    break
            states, ids = zip(*engine.states(chosen), strict=True)
            nll = score(torch.cat(states), engine.head, torch.cat(ids)).nll
            nats[language] = round(float(nll.double().sum()) / len(chosen), 4)
            numbers[language] = len(chosen)
            bar.step(1, tags.name(language))
    del engine
    release_memory()
    return {"nats": nats, "passages": numbers}


def _changes(config: ReshapeConfig) -> dict[str, Any]:
    """The options that change the model, as they were named."""
    names = ("layers", "deepen", "heads", "kv_heads", "mlp", "width", "keep_languages")
    return {key: value for key, value in options(config).items() if key in names and value is not None}


def show(artifact: Artifact) -> None:
    """Print what a finished model is, and what each language lost."""
    from rich.console import Console
    from rich.table import Table

    record, console = artifact.record, Console(highlight=False)
    for line in _sizes(record):
        console.print(line, markup=False, soft_wrap=True)
    loss, cut = record["loss"] or {"before": {}, "after": {}}, record["vocabulary"]
    growth = cut["tokens_on_probe"] if cut else {}
    table = Table()
    table.add_column("language")
    for column in ("nats a passage", "after", *(("text as before", "list", "probe's tokens") if cut else ())):
        table.add_column(column, justify="right")
    for language in dict.fromkeys([*loss["before"], *growth]):
        same = cut["same"].get(language, {}) if cut else {}
        cells = [f"{side[language]:.1f}" if language in side else "" for side in loss.values()]
        if cut:
            cells += [f"{same[name]:.2%}" if name in same else "" for name in ("text held out", "wordfreq")]
            cells.append(f"× {growth[language]:.2f}" if language in growth else "")
        table.add_row(tags.name(language), *cells)
    if table.row_count:
        console.print(table)
    console.print(f"{artifact.path}", markup=False, soft_wrap=True)


def _sizes(facts: Mapping[str, Any]) -> list[str]:
    """Parameters, bytes and what of the shape has changed, a line each."""
    before, after = facts["shape"]["before"], facts["shape"]["after"]
    lines = [
        f"parameters: {facts['parameters']['before']:,} → {facts['parameters']['after']:,} "
        f"({facts['parameters']['after'] / facts['parameters']['before']:.1%})",
        f"bytes: {facts['bytes']['before']:,} → {facts['bytes']['after']:,} "
        f"({facts['bytes']['after'] / facts['bytes']['before']:.1%})",
    ]
    lines += [f"{name}: {before[name]:,} → {after[name]:,}" for name in before if before[name] != after[name]]
    return lines


def dry_run(config: ReshapeConfig) -> str:
    """What the model will be: parameters, bytes and shape. The vocabulary is chosen for real, since only that
    tells its size; nothing is written.
    """
    from ..models import checkpoint as checkpoints
    from ..models import references
    from ..models.reshape import shape

    folder = references.resolve(config.model)
    old = shape.load(folder)
    # By place: which parts are kept does not change how large the rest is.
    texts = _texts(config) if config.keep_languages else None
    choice = _choose(replace(config, choice="naive"), folder, old, texts)
    facts = _facts(checkpoints.Checkpoint(folder), old, shape.configured(old, choice), choice)
    return "\n".join(_sizes(facts))


def plan(config: ReshapeConfig) -> Plan:
    """About the tokens, memory and disk, where the model is at hand; no cut of the vocabulary is foreseen."""
    from ..models import references

    cuts = [config.layers, config.heads, config.kv_heads, config.mlp, config.width]
    tokens = config.tokens if config.choice == "measured" and any(cuts) else 0
    size = references.size(config.model)
    if size is None:
        return Plan(tokens=tokens)
    layers = config.layers or config.deepen or size.layers
    disk = size.bytes + (layers - size.layers) * size.layer_bytes
    # A model in fp32 where its parts or its loss are measured, one tensor at a time where not.
    memory = 700_000_000 + (2 * max(size.bytes, disk) if config.text else 2 * size.vocabulary * size.hidden)
    return Plan(tokens, memory, disk)


STAGE = Stage("reshape", ReshapeConfig, reshape, inputs, plan, {"model": None}, _REVISION, show, dry_run)

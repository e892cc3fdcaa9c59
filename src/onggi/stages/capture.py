"""`onggi capture`: what a teacher holds likely at every token of a text, kept on disk to teach from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .. import languages as tags
from .. import ledger
from ..distill.names import HELD_OUT, INDEX
from ..errors import OnggiError
from ..languages import Languages
from ..ledger import Artifact
from ..progress import progress, say
from .base import Plan, Stage, command, options, precision
from .pretrain import PretrainConfig
from .pretrain_text import LENGTH, NO_PROBE, Material, packed_folder
from .pretrain_text import material as material_of
from .training import sequences_at_once

_REVISION = 1
_TOKENS = 262_144


@dataclass(frozen=True)
class CaptureConfig:
    """Store a teacher's distributions over a text, so that `onggi distill FOLDER --into STUDENT` needs no teacher.

    Of each position the likeliest tokens are kept, as many as --bytes hold, and what all the others come to. How much
    of the teacher's mass no entry has is said for each language. A killed run goes on after its last shard.
    """

    teacher: str
    """The teacher: a hub id, a folder, a .gguf file, or package:NAME."""
    text: str
    """Text to capture on: a folder that `onggi pack` made with the teacher's tokenizer; or a source as `onggi text`
    takes, of which each language gets an equal share and one passage in fifty is held out. Not the probe."""
    bytes: int = 300
    """Bytes of a position: an entry takes four with a vocabulary of up to 65,536 and five with a larger one, the tail
    two."""
    tail: Literal["bucket", "draws"] = "bucket"
    """What stands for the tokens that are no entry. bucket: their mass together, which is right for every loss as far
    as it goes. draws: half of the entries are drawn from them, so that the loss kl is right on average, and noisier."""
    tokens: int | None = None
    """Tokens of a plain source, of all languages together; default 262144. Packed text is captured whole."""
    length: int | None = None
    """Tokens of one sequence of a plain source; default 256."""
    languages: Languages | None = None
    """Languages of the text, as en,ko; default: all that it has."""
    validation: str | None = None
    """Text to measure teacher and students on. Default: what is held out of a plain source; of packed text nothing."""
    validation_passages: int = 24
    """Passages of each language that are measured, of --validation."""
    temperature: float = 1.0
    """What the teacher's logits are divided by before they are stored."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the matrix products. auto: bf16 where the processor multiplies in it, else fp32."""
    shard: int = 16_000_000
    """Bytes of one shard, about."""
    seed: int = 0
    """Of the order in which text is drawn, and of --tail draws."""

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises OnggiError naming the option and the mend."""
        if self.text == "probe":
            raise OnggiError(NO_PROBE)
        if self.bytes < 12:
            raise OnggiError(f"bytes: {self.bytes} hold no two entries and a tail; 300 are usual.")
        if not self.temperature > 0:
            raise OnggiError(f"temperature: {self.temperature} is not above 0; 1 leaves logits as they are.")
        if self.shard < 1:
            raise OnggiError(f"shard: {self.shard} is not a number of bytes.")
        if self.tokens is not None and packed_folder(self.text):
            raise OnggiError("tokens: packed text is captured whole; leave --tokens out.")
        self.training  # noqa: B018 (raises for what no text can have)

    @property
    def training(self) -> PretrainConfig:
        """A training on the same text, one sequence a step: it knows what text that is."""
        length = self.length or LENGTH
        whole = packed_folder(self.text) is not None
        return PretrainConfig(
            text=self.text,
            init=self.teacher,
            validation=self.validation,
            languages=self.languages,
            tokens=None if whole else self.tokens or _TOKENS,
            batch_tokens=None if whole else length,
            length=self.length,
            validation_passages=self.validation_passages,
            seed=self.seed,
        )


def inputs(config: CaptureConfig) -> dict[str, Any]:
    """Fingerprints of teacher and text."""
    from .. import text
    from ..models import references

    found = {
        "teacher": references.fingerprint(config.teacher),
        "text": text.fingerprint(config.text, config.languages),
    }
    if config.validation:
        found["validation"] = text.fingerprint(config.validation, config.languages)
    return found


def capture(config: CaptureConfig, out: Path) -> Artifact:
    """Write the text and what the teacher says of it to `out`; see `CaptureConfig` and `distill.store`.

    Raises OnggiError for a teacher or text that is not sound.

    >>> from pathlib import Path
    >>> from onggi.languages import Languages
    >>> from onggi.stages import CaptureConfig, capture
    >>> made = capture(
    ...     CaptureConfig("model", "starter", 60, tokens=384, length=32, languages=Languages("ko,el,km")),
    ...     Path("stored"),
    ... )
    >>> made.record["entries"], sorted(made.record["lost"])
    (14, ['el', 'km', 'ko'])
    """
    job = ledger.begin(out, "capture", options(config), inputs(config), _REVISION)
    if job.done:
        return job.done
    with job:
        return _capture(config, job)


def _capture(config: CaptureConfig, job: ledger.Job) -> Artifact:
    import numpy as np

    from ..distill import store
    from ..engines.transformers import Engine
    from ..models import references
    from ..text import packing
    from ..text.vocabulary import fingerprint

    folder = references.resolve(config.teacher)
    engine = Engine(folder)
    dtype = precision(job, config.precision, engine.device)
    material = material_of(config.training, engine, folder)
    held_out = _measured(config, job, engine, material)
    # Without padding that no token has: a student of the family may have less of it.
    vocabulary = min(engine.head.vocabulary, max(engine.tokens.tokenizer.get_vocab().values()) + 1)
    kept = min(store.entries_in(config.bytes, vocabulary), vocabulary - 1)
    draws = kept // 2 if config.tail == "draws" else 0
    packed = getattr(material.source, "packed", None)
    count = len(packed) if packed else len(material.source.ids)
    each = max(config.shard // (material.length * config.bytes), 1)
    languages = list(material.source.languages)
    token_type = np.uint16 if vocabulary <= 1 << 16 else np.uint32
    shards: list[dict[str, Any]] = []
    names: list[str] = []
    with progress(f"capture {job.out.name}", count) as bar:
        for start in range(0, count, each):
            number, stop = start // each, min(start + each, count)
            noted = job.partial / f"shard-{number:05d}.json"
            if noted.is_file():
                bar.skip(stop - start)
            else:
                text = _text(material, start, stop, token_type)
                octets, chances, missed = _teacher(
                    config, engine, vocabulary, material, text, start, kept - draws, draws, dtype, number, bar
                )
                arrays = {"tokens": text.tokens, "parts": text.parts, "entries": octets, "chances": chances}
                files = {f"{kind}_file": f"shard-{number:05d}.{kind}.npy" for kind in arrays}
                for name, array in zip(files.values(), arrays.values(), strict=True):
                    with ledger.writing(job.work / name) as aside, aside.open("wb") as file:
                        np.save(file, array, allow_pickle=False)
                ledger.write_json(
                    noted,
                    {
                        **files,
                        **packing.facts(text, languages),
                        "lost": dict(zip(languages, missed, strict=True)),
                    },
                )
                job.tick()
            shards.append(ledger.read_json(noted))
            names += [shards[-1][f"{kind}_file"] for kind in ("tokens", "parts", "entries", "chances")]
    total = packing.totals(shards, material.length)
    lost = _lost(shards, languages)
    about = references.about(folder)
    marks = packing.marks(folder, engine.tokens)
    shared = {
        "length": material.length,
        "languages": languages,
        "text": material.facts["text"],
        "licence": material.facts["licence"],
        **{key: total[key] for key in ("sequences", "tokens", "fill")},
        "by_language": total["languages"],
        "shards": shards,
    }
    ledger.write_json(
        job.work / packing.INDEX,
        {
            "dtype": np.dtype(token_type).name,
            "tokenizer": {
                "source": config.teacher,
                "fingerprint": fingerprint(engine.tokens.tokenizer),
                "vocabulary": vocabulary,
                "start": marks.start,
                "end": marks.end,
                "pad": marks.pad,
            },
            **shared,
        },
    )
    ledger.write_json(
        job.work / INDEX,
        {
            "teacher": {
                "source": config.teacher,
                **{key: about[key] for key in ("licence", "terms") if about.get(key)},
            },
            "entries": kept,
            "draws": draws,
            "temperature": config.temperature,
            "lost": lost,
            "held_out": held_out,
            **shared,
        },
    )
    if held_out:
        with ledger.writing(job.work / HELD_OUT) as aside, aside.open("w", encoding="utf-8") as file:
            for language, texts in material.held_out.items():
                for number, content in enumerate(texts, 1):
                    row = {"_id": f"{language}-{number}", "text": content, "lang": language}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
        names.append(HELD_OUT)
    return job.finish(
        [*names, packing.INDEX, INDEX],
        command=command(STAGE, config, job.out),
        text=material.facts["text"],
        licence=material.facts["licence"],
        entries=kept,
        draws=draws,
        sequences=total["sequences"],
        tokens=total["tokens"],
        languages=total["languages"],
        lost=lost,
        bits_per_byte=held_out["bits_per_byte"] if held_out else {},
    )


def _measured(
    config: CaptureConfig, job: ledger.Job, engine: Any, material: Material
) -> dict[str, Any] | None:
    """The teacher on the text held out, and what text that is; None where there is none."""
    from ..train.validation import Validation

    if not material.held_out:
        return None
    kept = job.partial / "held_out.json"
    if not kept.is_file():
        validation = Validation(engine.tokens, material.held_out, min(engine.window or 2048, 2048))
        ledger.write_json(
            kept,
            {
                "bytes": validation.bytes,
                "tokens": validation.counts,
                "bits_per_byte": validation(engine.model),
            },
        )
    found: dict[str, Any] = ledger.read_json(kept)
    words = ", ".join(f"{language} {value:.3f}" for language, value in found["bits_per_byte"].items())
    say(f"The teacher, bits per byte on text held out: {words}")
    return found


def _text(material: Material, start: int, stop: int, dtype: Any) -> Any:
    """Sequences `start` to `stop` as a shard of packed text."""
    import numpy as np

    from ..text import packing

    source = material.source
    if packed := getattr(source, "packed", None):
        own = [packed.parts(number).copy() for number in range(start, stop)]
        for number, of_sequence in enumerate(own):
            of_sequence["sequence"] = number
        return packing.Shard(packed.batch(start, stop - start).ids.astype(dtype), np.concatenate(own))
    ids = source.ids[start:stop, 0].numpy().astype(dtype)
    filled = 1 + (source.weights[start:stop, 0] > 0).sum(-1).numpy()  # nothing predicts the start token
    parts = np.zeros(stop - start, packing.PART)
    for number, (size, language) in enumerate(zip(filled, source.numbers[start:stop, 0], strict=True)):
        parts[number] = (number, 0, size, int(language), start + number, 0)
    return packing.Shard(ids, parts)


def _teacher(
    config: CaptureConfig,
    engine: Any,
    vocabulary: int,
    material: Material,
    text: Any,
    start: int,
    top: int,
    draws: int,
    dtype: Any,
    number: int,
    bar: Any,
) -> tuple[Any, Any, list[tuple[float, int]]]:
    """Entries and chances of a shard; and of each language the mass that no entry has, summed over the tokens
    that something predicts, and their number. Raises OnggiError where the teacher's states are no numbers.
    """
    import numpy as np
    import torch

    from ..distill import store
    from ..distill.signals import Resident
    from ..head import Dense, entries

    source, length = material.source, material.length
    resident = Resident(engine, dtype)
    wide, head = store.width(vocabulary), engine.head.part(vocabulary)
    few = sequences_at_once(None, length, engine.device)
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
    octets: list[Any] = []
    chances: list[Any] = []
    lost = [(0.0, 0) for _ in source.languages]
    packed = getattr(source, "packed", None)
    for at in range(0, len(text.tokens), few):
        stop = min(at + few, len(text.tokens))
        if packed:
            own = packed.batch(start + at, stop - at)
            batch = {"ids": own.ids, "positions": own.positions}
            predicted, languages = own.predicted, own.languages
        else:
            batch = {"ids": text.tokens[at:stop].astype(np.int64)}
            place = np.arange(length)
            sizes = text.parts["stop"][at:stop]
            predicted = (place > 0) & (place < sizes[:, None])
            languages = np.broadcast_to(text.parts["language"][at:stop, None], predicted.shape)
        # One more token at the end: what comes after the last is kept too, so that arrays are as long as the text.
        widened = {
            name: torch.from_numpy(np.concatenate([array, array[:, -1:]], 1)).to(engine.device)
            for name, array in batch.items()
        }
        signal = entries(
            Dense(resident.of(widened).hidden, head),
            top,
            draws,
            temperature=config.temperature,
            generator=generator,
            dtype=dtype,
        )
        for kept, made in zip((octets, chances), store.encoded(signal, wide), strict=True):
            kept.append(made.reshape(stop - at, length, *made.shape[1:]))
        tail = signal.log_tail.exp().cpu().numpy().reshape(stop - at, length)
        # What stands at a place says what comes after it.
        asked = np.concatenate([predicted[:, 1:], np.zeros_like(predicted[:, :1])], 1)
        for language in range(len(lost)):
            mine = asked & (languages == language)
            mass, count = lost[language]
            lost[language] = (mass + float(tail[mine].sum()), count + int(mine.sum()))
        bar.step(stop - at, f"shard {number + 1}")
    return np.concatenate(octets), np.concatenate(chances), lost


def _lost(shards: list[dict[str, Any]], languages: list[str]) -> dict[str, float]:
    """Language → the mean mass that no entry has."""
    found = {}
    for language in languages:
        pairs = [shard["lost"][language] for shard in shards]
        if count := sum(number for _, number in pairs):
            found[language] = round(sum(mass for mass, _ in pairs) / count, 6)
    return found


def show(artifact: Artifact) -> None:
    """Print what is stored, by language."""
    from rich.console import Console
    from rich.table import Table

    record = artifact.record
    table = Table()
    table.add_column("language", no_wrap=True)
    for column in ("tokens", "mass of no entry", "teacher's bits per byte"):
        table.add_column(column, justify="right")
    for tag, facts in record["languages"].items():
        bits = record["bits_per_byte"].get(tag)
        table.add_row(
            f"{tags.name(tag)} ({tag})",
            f"{facts['tokens']:,}",
            f"{record['lost'][tag]:.2%}" if tag in record["lost"] else "",
            f"{bits:.3f}" if bits is not None else "",
        )
    console = Console(highlight=False)
    console.print(table)
    size = sum(entry["bytes"] for entry in record["outputs"].values())
    drawn = f", {record['draws']} of them drawn from the tail" if record["draws"] else ""
    console.print(
        f"{record['tokens']:,} tokens, {record['entries']} entries each{drawn}, {size / 1e6:,.1f} MB. "
        f"Teach from it: onggi distill {artifact.path} --into STUDENT --out OUT"
    )


def plan(config: CaptureConfig) -> Plan:
    """About the tokens, the teacher's memory and the disk."""
    from . import pretrain_plan

    size = pretrain_plan.size_of(config.training)
    tokens = size.tokens if size else None
    of = pretrain_plan.shape_of(config.teacher)
    memory = 600_000_000 + 4 * of.parameters + 16 * config.shard if of else None
    return Plan(tokens, memory, tokens * (config.bytes + 4) if tokens else None)


STAGE = Stage("capture", CaptureConfig, capture, inputs, plan, {"teacher": None}, _REVISION, show)

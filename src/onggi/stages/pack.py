"""`onggi pack`: a text as tokens, documents fitted into sequences of one length, ready to train on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import languages as tags
from .. import ledger
from ..errors import OnggiError
from ..languages import Languages
from ..ledger import Artifact
from ..progress import progress, say
from .base import Plan, Stage, command, options

_REVISION = 1
# Sequences of a shard that is filled less than this are worth a word.
_WELL_FILLED = 0.99
_BYTES_PER_TOKEN = 3.0  # about; of UTF-8, for a plan


@dataclass(frozen=True)
class PackConfig:
    """Tokenise a text and pack its documents whole into sequences of one length.

    A passage is a document. One that is longer than a sequence is cut into parts; nothing is lost and
    nothing is there twice. The result knows its tokenizer, and training with another is refused.
    """

    text: str
    """Text to pack: a source as `onggi text` takes, or a folder it made. Not the probe, which is for
    measuring."""
    tokenizer: str
    """Whose tokenizer: a folder that `onggi tokenizer` made, or a model by any of its names."""
    length: int = 1024
    """Tokens of one sequence, start and end tokens included."""
    languages: Languages | None = None
    """Languages to pack, as en,ko,km; default: all that the text has."""
    shard: int = 16_000_000
    """Bytes of text in one shard, about. A killed run goes on after its last whole shard."""
    seed: int = 0
    """Of the order of documents and sequences."""

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises OnggiError naming the option and the mend."""
        if self.text == "probe":
            raise OnggiError("text: the probe is for measuring; use debian:libreoffice-help or your own.")
        if not 8 <= self.length <= 1 << 24:
            raise OnggiError(f"length: {self.length} is not a length of sequences; 1024 is usual.")
        if self.shard < 1:
            raise OnggiError(f"shard: {self.shard} is not a number of bytes.")


def _folder(source: str) -> Path:
    """The folder of a tokenizer: one that has it, with a model or without, or a model's by name."""
    from ..models import references

    folder = Path(source).expanduser()
    return folder if (folder / "tokenizer.json").is_file() else references.resolve(source)


def inputs(config: PackConfig) -> dict[str, Any]:
    """Fingerprints of text and tokenizer; of a model nothing but its tokenizer matters."""
    from .. import text
    from ..models import references

    folder = Path(config.tokenizer).expanduser()
    own = [folder / name for name in ("tokenizer.json", "tokenizer_config.json")]
    tokenizer = (
        ledger.digest([ledger.sha256(file) for file in own if file.is_file()])
        if own[0].is_file()
        else references.fingerprint(config.tokenizer)
    )
    return {"text": text.fingerprint(config.text, config.languages), "tokenizer": tokenizer}


def pack(config: PackConfig, out: Path) -> Artifact:
    """Write shards and their index to `out`; see `PackConfig` and `text.packing`.

    Raises OnggiError for a text or tokenizer that is not sound.

    >>> from pathlib import Path
    >>> from onggi.languages import Languages
    >>> from onggi.stages import PackConfig, pack
    >>> made = pack(PackConfig("starter", "model", 128, Languages("ko,el,km")), Path("packed"))
    >>> made.record["languages"]["km"]["documents"]
    13
    >>> from onggi.text.packing import Packed
    >>> Packed(Path("packed")).batch(0, 2).ids.shape
    (2, 128)
    """
    job = ledger.begin(out, "pack", options(config), inputs(config), _REVISION)
    if job.done:
        return job.done
    with job:
        return _pack(config, job)


def _pack(config: PackConfig, job: ledger.Job) -> Artifact:
    import numpy as np

    from .. import text
    from ..text import packing, vocabulary
    from ..text.tokens import Tokens

    folder = _folder(config.tokenizer)
    tokens = Tokens(folder)
    marks = packing.marks(folder, tokens)
    size = max(tokens.tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    dtype = np.uint16 if size <= 1 << 16 else np.uint32
    found = text.load(config.text, config.languages)
    if found.name == "probe":  # a folder that `onggi text` made of it
        raise OnggiError("text: it is the probe, which is for measuring and never for training.")
    languages = list(config.languages or found.languages)
    documents = [
        (number, passage)
        for number, language in enumerate(languages)
        for passage in found.passages(language).values()
    ]
    if not documents:
        raise OnggiError(f"text: {config.text} has no passage in {', '.join(languages)}.")
    shards = packing.shards([len(text.encode()) for _, text in documents], config.shard, config.seed)
    entries: list[dict[str, Any]] = []
    names: list[str] = []
    with progress(f"pack {job.out.name}", len(documents)) as bar:
        for number, rows in enumerate(shards):
            files = [f"shard-{number:05d}.{kind}.npy" for kind in ("tokens", "parts")]
            kept = job.partial / f"shard-{number:05d}.json"
            if kept.is_file():
                bar.skip(len(rows))
            else:
                made = list(packing.encode(tokens.tokenizer, [documents[row][1] for row in rows]))
                shard = packing.pack(
                    ((row, documents[row][0], ids) for row, ids in zip(rows, made, strict=True)),
                    config.length,
                    marks,
                    dtype,
                    config.seed + number,
                )
                for name, array in zip(files, (shard.tokens, shard.parts), strict=True):
                    with ledger.writing(job.work / name) as aside, aside.open("wb") as file:
                        np.save(file, array, allow_pickle=False)
                entry = packing.facts(shard, languages)
                _add_up(job.out, len(made), sum(map(len, made)), entry, marks)
                ledger.write_json(kept, {"tokens_file": files[0], "parts_file": files[1], **entry})
                job.tick()
                bar.step(len(rows), f"shard {number + 1} of {len(shards)}")
            entries.append(ledger.read_json(kept))
            names += files
    total = packing.totals(entries, config.length)
    if total["fill"] < _WELL_FILLED:
        say(
            f"The sequences are filled to {total['fill']:.1%}: there is too little text, or too few short "
            "documents to fill up what long ones leave. A larger --length or --shard would help."
        )
    index = {
        "length": config.length,
        "dtype": np.dtype(dtype).name,
        "tokenizer": {
            "source": config.tokenizer,
            "fingerprint": vocabulary.fingerprint(tokens.tokenizer),
            "vocabulary": size,
            "start": marks.start,
            "end": marks.end,
            "pad": marks.pad,
        },
        "text": found.name,
        "licence": found.licence,
        "languages": languages,
        **{key: total[key] for key in ("sequences", "tokens", "fill")},
        "by_language": total["languages"],
        "shards": entries,
    }
    ledger.write_json(job.work / packing.INDEX, index)
    return job.finish(
        [*names, packing.INDEX],
        command=command(STAGE, config, job.out),
        text=found.name,
        licence=found.licence,
        length=config.length,
        sequences=total["sequences"],
        tokens=total["tokens"],
        fill=total["fill"],
        languages=total["languages"],
    )


def _add_up(out: Path, documents: int, text_tokens: int, entry: dict[str, Any], marks: Any) -> None:
    """What went into a shard is in it: documents, and their tokens with a start for each part and an end
    for each document.
    """
    counts = entry["languages"].values()
    held, parts = (sum(facts[key] for facts in counts) for key in ("documents", "parts"))
    wanted = text_tokens + parts + (documents if marks.end is not None else 0)
    if (held, entry["tokens"]) != (documents, wanted):
        raise OnggiError(
            f"{out}: {held} documents and {entry['tokens']} tokens came out of {documents} and {wanted}."
        )


def show(artifact: Artifact) -> None:
    """Print what is in it, by language."""
    from rich.console import Console
    from rich.table import Table

    record = artifact.record
    table = Table()
    table.add_column("language", no_wrap=True)
    for column in ("documents", "parts", "tokens", "fill"):
        table.add_column(column, justify="right")
    for tag, facts in record["languages"].items():
        counts = (f"{facts[key]:,}" for key in ("documents", "parts", "tokens"))
        table.add_row(f"{tags.name(tag)} ({tag})", *counts, f"{facts['fill']:.2%}")
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"{record['sequences']:,} sequences of {record['length']:,}, {record['tokens']:,} tokens, "
        f"filled to {record['fill']:.2%}."
    )


def plan(config: PackConfig) -> Plan:
    """About what is written, where the text is at hand."""
    path = Path(config.text) / "text.parquet"
    if not path.is_file():
        return Plan()
    import pyarrow.parquet as pq

    metadata = pq.ParquetFile(path).metadata
    size = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    tokens = int(size / _BYTES_PER_TOKEN)
    return Plan(tokens=tokens, memory=300_000_000 + 3 * size + 20 * config.shard, disk=4 * tokens)


STAGE = Stage("pack", PackConfig, pack, inputs, plan, {"text": None}, _REVISION, show)

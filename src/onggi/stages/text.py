"""`onggi text`: text from a source, cleaned of what is not text, as one table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import ledger
from ..errors import UnavailableError
from ..languages import Languages
from ..ledger import Artifact
from ..progress import say
from .base import Plan, Stage, command, options

_REVISION = 1
_DEB = 3_500_000  # bytes of one language's help package


@dataclass(frozen=True)
class TextConfig:
    """Fetch or read text and keep it as one table, DIR/text.parquet.

    Parallel text stays parallel: a row is one passage, a column a language (_id, en, ko, km).
    """

    source: str
    """Where from: a .jsonl or .parquet file, a folder made by this command, debian:libreoffice-help
    (documentation in 33 languages, parallel by paragraph, fetched with apt), probe or starter
    (shipped)."""
    languages: Languages
    """Which languages to keep, as en,ko,km; each must be in the source."""
    fallback: str | None = None
    """Another source for where the first cannot be had (no apt, no network): its reason is said."""


def inputs(config: TextConfig) -> dict[str, Any]:
    """Fingerprints of the sources."""
    from .. import text

    found: dict[str, Any] = {"source": text.fingerprint(config.source, config.languages)}
    if config.fallback:
        found["fallback"] = text.fingerprint(config.fallback, config.languages)
    return found


def text(config: TextConfig, out: Path) -> Artifact:
    """Write `out`/text.parquet; see `TextConfig`. Raises OnggiError for a source that is not sound.

    >>> from pathlib import Path
    >>> from onggi.languages import Languages
    >>> from onggi.stages import TextConfig, text
    >>> made = text(TextConfig("starter", Languages("en,ko,km")), Path("calibration"))
    >>> made.record["passages"]
    {'en': 102, 'ko': 14, 'km': 13}
    >>> made.path / "text.parquet"
    PosixPath('calibration/text.parquet')
    """
    from .. import text as sources

    job = ledger.begin(out, "text", options(config), inputs(config), _REVISION)
    if job.done:
        if reason := job.done.record.get("unavailable"):
            say(f"{out} holds {config.fallback}, because: {reason} To try {config.source} again, delete it.")
        return job.done
    import pyarrow.parquet as pq

    with job:
        lacking = None
        try:
            found = sources.load(config.source, config.languages)
        except UnavailableError as error:
            if config.fallback is None:
                raise
            lacking = str(error)
            say(f"{error}\nUsing {config.fallback} instead.")
            found = sources.load(config.fallback, config.languages)
        counts = {language: len(found.passages(language)) for language in config.languages}
        with ledger.writing(job.work / "text.parquet") as aside:
            pq.write_table(found.table, aside, compression="zstd")
        return job.finish(
            ["text.parquet"],
            command=command(STAGE, config, out),
            text=found.name,
            unavailable=lacking,
            licence=found.licence,
            parallel=found.parallel,
            passages=counts,
        )


def plan(config: TextConfig) -> Plan:
    """About what is fetched and written."""
    fetched = config.source.startswith("debian:")
    each = len(config.languages) * _DEB
    return Plan(memory=700 << 20, disk=3 * each if fetched else each)


STAGE = Stage("text", TextConfig, text, inputs, plan, {"source": None}, _REVISION)

"""`onggi text`: text from a source as one table, or from many as clean rows to train on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import fanout, ledger
from ..errors import OnggiError, UnavailableError
from ..languages import Languages
from ..ledger import Artifact
from ..progress import say
from .base import Plan, Stage, command, options

if TYPE_CHECKING:
    from ..text.corpus import Cleaning
    from ..text.corpus.duplicates import Exam

_REVISION = 1
_DEB = 3_500_000  # bytes of one language's help package
_ROWS_ONLY = ("config", "field", "limit", "licence", "bad", "workers", "on")
FUNNEL, FUNNEL_TEXT, BAD = "funnel.json", "funnel.md", "bad.jsonl"


@dataclass(frozen=True)
class TextConfig:
    """Fetch or read text and keep it as one table; with --rows clean it and mix it into rows to train on.

    Without --rows, DIR/text.parquet: parallel text stays parallel, a row is one passage, a column a language
    (_id, en, ko, km). With --rows, DIR/rows-*.parquet (text, lang, licence, source) out of any number of
    sources, and DIR/funnel.md: what each filter dropped, in each language. A killed run goes on from the last
    piece it finished.
    """

    source: list[str]
    """Where from: a .jsonl or .parquet file, a folder made by this command, documentation that apt fetches
    (debian:libreoffice-help in 33 languages, debian:gnome-user-docs in 35, debian:installation-guide in 19,
    all parallel; debian:manpages in 26, not parallel and without Korean), probe or starter (shipped). With --rows several, and also .txt and .md files, any of these with .gz, folders of them (a
    folder named ko holds Korean), a hub's data set as OWNER/NAME or OWNER/NAME:CONFIGURATION (streamed);
    ko=SOURCE says the language of what does not say its own."""
    languages: Languages
    """Which languages to keep, as en,ko,km; without --rows each must be in the source."""
    fallback: str | None = None
    """Another source for where the first cannot be had (no apt, no network): its reason is said."""
    rows: bool = False
    """Clean, deduplicate and mix into rows."""
    config: str | None = None
    """With --rows: a YAML file that changes how text is cleaned and mixed; docs/cleaning.md has its keys."""
    field: str = "text"
    """With --rows: the field of a record that holds its text."""
    limit: int | None = None
    """With --rows: read at most so many records of each source."""
    licence: str | None = None
    """With --rows: the licence of sources that do not say theirs; default: the rows say `unknown`."""
    bad: Literal["stop", "skip"] = "stop"
    """With --rows: what is not well formed (broken UTF-8, no text, a language nobody knows, a line of
    gigabytes) stops the run, or is left out, counted and listed in DIR/bad.jsonl."""
    workers: int | None = None
    """With --rows: processes at once; the result is the same for any number. Default: one a core."""
    on: Literal["ray"] | None = None
    """With --rows: where the pieces of the text are worked on: `ray`, the cluster at RAY_ADDRESS, whose machines
    must see the text, --out and the cache in the same places, else one of this machine's cores (pip install
    'onggi[ray]'); the result is the same. Default: processes of this machine."""

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises OnggiError naming the option and the mend."""
        if isinstance(self.source, str):
            object.__setattr__(self, "source", [self.source])
        if not self.source:
            raise OnggiError("source: name at least one.")
        if self.rows:
            if self.limit is not None and self.limit < 1:
                raise OnggiError(f"limit: {self.limit} is not a number of records.")
            if self.workers is not None and self.workers < 1:
                raise OnggiError(f"workers: {self.workers} is not a number of processes.")
            if self.workers is not None and self.on is not None:
                raise OnggiError("workers: are this machine's; a cluster has its own, so leave it out.")
            fanout.check(self.on)
            return
        if len(self.source) > 1:
            raise OnggiError("source: several sources are mixed into rows; add --rows, or name one.")
        for name in _ROWS_ONLY:
            if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                raise OnggiError(f"{name}: is of --rows; add that, or leave it out.")


def inputs(config: TextConfig) -> dict[str, Any]:
    """Fingerprints of the sources; with --rows also of what they are cleaned by and held against."""
    from .. import text

    if not config.rows:
        found: dict[str, Any] = {"source": text.fingerprint(config.source[0], config.languages)}
        if config.fallback:
            found["fallback"] = text.fingerprint(config.fallback, config.languages)
        return found
    from ..text.corpus import duplicates

    cleaning = _cleaning(config)
    return {
        "source": [[word, _fingerprint(word, config)] for word in config.source],
        "config": asdict(cleaning),
        "against": ledger.digest([asdict(exam) for exam in _exams(cleaning, config.languages)]),
        "morphemes": "ko" in config.languages and duplicates.morphemes(cleaning),
        **dict.fromkeys(("workers", "on")),  # any number gives the same, anywhere
    }


def _fingerprint(word: str, config: TextConfig) -> str:
    from ..text.corpus import rows

    try:
        return rows.fingerprint(rows.parse(word).name, config.languages)
    except UnavailableError:
        if config.fallback is None:
            raise
        return f"unavailable, {rows.fingerprint(config.fallback, config.languages)}"


def _cleaning(config: TextConfig) -> Cleaning:
    from ..text.corpus.config import load

    return load(Path(config.config) if config.config else None, config.languages)


def _exams(cleaning: Cleaning, languages: Languages) -> list[Exam]:
    """The evaluation sets that text is held against, in `languages`."""
    from .. import text
    from ..evaluate.tasks import TASKS, Choice
    from ..text.corpus.duplicates import Exam

    exams = []
    for name in cleaning.against:
        if name != "tasks":
            found = text.load(name)
            shared = [tag for tag in languages if tag in found.languages]
            exams.append(Exam(name, {tag: list(found.passages(tag).values()) for tag in shared}))
            continue
        for task in TASKS.values():
            if task.parallel:  # made of the probe, or of a text that can be named
                continue
            asked = {
                tag: [
                    item.context + item.choices[item.answer]
                    for item in task.items([tag])[tag]
                    if isinstance(item, Choice)
                ]
                for tag in languages
                if tag in task.languages()
            }
            exams.append(Exam(task.name, asked))
    return exams


def text(config: TextConfig, out: Path) -> Artifact:
    """Write `out`/text.parquet, or with `rows` its rows; see `TextConfig`. Raises OnggiError for a source
    that is not sound.

    >>> from pathlib import Path
    >>> from onggi.languages import Languages
    >>> from onggi.stages import TextConfig, text
    >>> made = text(TextConfig(["starter"], Languages("en,ko,km")), Path("calibration"))
    >>> made.record["passages"]
    {'en': 102, 'ko': 14, 'km': 13}
    >>> made.path / "text.parquet"
    PosixPath('calibration/text.parquet')
    """
    job = ledger.begin(out, "text", options(config), inputs(config), _REVISION)
    if job.done:
        if reason := job.done.record.get("unavailable"):
            say(f"{out} holds {config.fallback}, because: {reason} To try again, delete it.")
        return job.done
    with job:
        return _rows(config, job) if config.rows else _table(config, job)


def _table(config: TextConfig, job: ledger.Job) -> Artifact:
    import pyarrow.parquet as pq

    from .. import text as sources

    lacking = None
    try:
        found = sources.load(config.source[0], config.languages)
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
        command=command(STAGE, config, job.out),
        text=found.name,
        unavailable=lacking,
        licence=found.licence,
        parallel=found.parallel,
        passages=counts,
    )


def _rows(config: TextConfig, job: ledger.Job) -> Artifact:
    import json

    from ..text.corpus import Work, build, duplicates, funnel

    cleaning = _cleaning(config)
    named, lacking = _available(config)
    work = Work(
        f"{job.out.resolve()} {job.fingerprint}",
        job.partial,
        job.work,
        tuple(config.languages),
        cleaning,
        config.field,
        config.bad == "stop",
        "ko" in config.languages and duplicates.morphemes(cleaning),
    )
    try:
        made = build(
            work,
            named,
            _exams(cleaning, config.languages),
            config.limit,
            config.licence,
            config.workers,
            config.on,
            job.tick,
        )
    finally:
        fanout.stop()
    found = funnel.funnel(made.facts, config.languages)
    if not made.shards:
        for line in funnel.notes(found):
            say(line)
        raise OnggiError(f"{', '.join(named)}: no row is left in {', '.join(config.languages)}.")
    ledger.write_json(job.work / FUNNEL, found)
    with ledger.writing(job.work / FUNNEL_TEXT) as aside:
        aside.write_text(funnel.markdown(found), encoding="utf-8")
    outputs = [*made.shards, FUNNEL, FUNNEL_TEXT]
    if made.bad:
        with ledger.writing(job.work / BAD) as aside, aside.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in made.bad)
        outputs.append(BAD)
    return job.finish(
        outputs,
        command=command(STAGE, config, job.out),
        text=", ".join(named),
        unavailable=lacking,
        licence=", ".join(made.licences),
        parallel=False,
        passages={tag: one["out"]["rows"] for tag, one in found["languages"].items()},
        cleaning=asdict(cleaning),
    )


def _available(config: TextConfig) -> tuple[list[str], str | None]:
    """The sources, the fallback in place of those that cannot be had, and the reason."""
    from ..text.corpus import rows

    named, lacking = [], None
    for word in config.source:
        name = rows.parse(word).name
        try:
            rows.prepare(name, config.languages)
            named.append(word)
        except UnavailableError as error:
            if config.fallback is None:
                raise
            lacking = str(error)
            say(f"{error}\nUsing {config.fallback} instead.")
            named.append(config.fallback)
    return list(dict.fromkeys(named)), lacking


def show(artifact: Artifact) -> None:
    """The funnel as a table, where there is one."""
    from ..text.corpus import funnel

    if (artifact.path / FUNNEL).is_file():
        funnel.show(ledger.read_json(artifact.path / FUNNEL))
    shards = [name for name in sorted(artifact.record["outputs"]) if name.endswith(".parquet")]
    say(f"{artifact.path}: {', '.join(shards[:4])}{' …' if len(shards) > 4 else ''}")


def plan(config: TextConfig) -> Plan:
    """About what is fetched and written."""
    import os

    sizes = [_size(word, len(config.languages)) for word in config.source]
    if not config.rows:
        return Plan(memory=700 << 20, disk=sizes[0])
    workers = config.workers or len(os.sched_getaffinity(0))
    disk = None if None in sizes else 3 * sum(size or 0 for size in sizes)
    return Plan(memory=(400 + 500 * workers) << 20, disk=disk)


def _size(word: str, languages: int) -> int | None:
    """Bytes of a source, None where it is a hub's."""
    from ..text.corpus import rows

    name = rows.parse(word).name
    if name.startswith("debian:"):
        return 3 * languages * _DEB
    path = Path(name)
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if path.is_file():
        return path.stat().st_size
    return None if "/" in name else languages * _DEB


STAGE = Stage("text", TextConfig, text, inputs, plan, {"source": "+"}, _REVISION, show)

"""From sources to rows: four passes over pieces, each piece a job of its own, with a look at all between them.

    read    a piece → its rows, normalised, masked, measured
            … limits of each language from the measures of all its rows; lines that are boilerplate
    sift    → the rows within the limits, with their hashes
            … duplicates among all rows; how much of each language the mix wants
    draw    → the rows that are written, dealt out to the shards by their hash
    gather  a shard → its rows in the order of their hashes, so that every shard is a sample of the whole

A job is a function of a number and of what lies in the folder, and leaves a marker when its files are whole:
jobs can run in any order, in any process, on any machine that sees the folder, and a killed run goes on after
the last marker. The same input gives the same bytes with any number of workers.
"""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import multiprocessing.connection
import os
import platform
import signal
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ... import fanout, ledger
from ...errors import OnggiError
from ...progress import progress
from . import cleaning, duplicates, measures, mix, rows, scale
from .config import Cleaning
from .duplicates import Contamination, Exam
from .measures import Limit
from .mix import Portion
from .scale import Scale
from .shingles import mixed, simplify

SHARD = 256 << 20  # bytes of text in one file of rows, about
_SMALL = 4 << 20  # bytes of input for which starting processes takes longer than the work
_MEMORY = 500 << 20  # bytes that a job takes
_BATCH = 512
_SAMPLES = 5
_SHOWN = 240  # characters of a sample
_LINES = 3  # a document of fewer has no boilerplate
_MEASURED = 2_000_000  # rows that limits are taken from, about
_LEAST, _MOST_LINES, _LINE = 10, 5000, 300  # boilerplate: documents; lines kept of a piece; characters
_ROWS = pa.schema([(name, pa.string()) for name in ("text", "lang", "licence", "source")])
_READ = pa.schema(
    [*_ROWS, ("place", pa.string()), ("raw", pa.int64()), *((name, pa.float32()) for name in measures.NAMES)]
)
_SIFTED = pa.schema([*_ROWS, ("place", pa.string()), ("raw", pa.int64()), ("size", pa.int64())])
_DRAWN = pa.schema([*_ROWS, ("key", pa.uint64())])


@dataclass(frozen=True, eq=False)
class Work:
    """What every job knows. name: the same for the same work on the same folder. folder: of the units; out: of
    the finished shards. kiwi: Korean in morphemes.
    """

    name: str
    folder: Path
    out: Path
    languages: tuple[str, ...]
    config: Cleaning
    field: str
    stop: bool
    kiwi: bool

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Work) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def path(self, phase: str, number: int, suffix: str) -> Path:
        """A file of one job."""
        return self.folder / phase / f"{number:05}{suffix}"


class Built(NamedTuple):
    """shards: names of the files in `Work.out`. facts: what the funnel is made from. bad: records that are no
    rows. licences: of the rows written.
    """

    shards: list[str]
    facts: dict[str, Any]
    bad: list[dict[str, str]]
    licences: list[str]


def build(
    work: Work,
    named: Sequence[str],
    exams: Sequence[Exam],
    limit: int | None,
    licence: str | None,
    workers: int | None,
    on: fanout.On | None,
    tick: Callable[[], None],
) -> Built:
    """Rows of all sources `named`, written to `work.out`. workers: processes here, None for one a core. on: see
    `fanout.each`. tick: called after every job.
    """
    _once(work, "plan", lambda: _cut(work, named, limit, licence))
    _once(work, "exams", lambda: [asdict(exam) for exam in exams])
    plan = _plan(work)
    pieces = plan.pieces
    if work.stop and plan.lost:
        raise _stopped(rows.Bad(**plan.lost[0][1]))
    crew = min(workers or len(os.sched_getaffinity(0)), len(pieces))
    if on is not None or (workers is None and _weight(pieces) < _SMALL):
        crew = 1
    with ExitStack() as stack:
        pool = None
        if crew > 1:
            spawn = multiprocessing.get_context("spawn")
            told, alarm = spawn.Pipe(duplex=False)
            pool = ProcessPoolExecutor(crew, spawn, _follow_parent, (told,))
            stack.callback(pool.shutdown, cancel_futures=True)
            stack.callback(alarm.close)  # before: a piece in work when the run is stopped is not waited for
        run = functools.partial(_each, work, pool, on, tick)
        read = run(read_piece, "read", len(pieces), "reading")
        _once(work, "limits", lambda: _limits(work, read))
        sift = run(sift_piece, "sift", len(pieces), "sifting")
        mixed_up = _once(work, "mix", lambda: _mix(work, sift))
        draw = run(draw_piece, "draw", len(pieces), "drawing")
        gather = run(gather_shard, "gather", mixed_up["shards"], "writing")
    bad = [one for _, one in plan.lost]
    for number in range(len(pieces)):
        bad += [
            json.loads(line)
            for line in work.path("read", number, ".bad").read_text("utf-8").split("\n")
            if line
        ]
    facts = {
        "pieces": [piece.source for piece in pieces],
        "lost": [source for source, _ in plan.lost],
        "read": read,
        "sift": sift,
        "draw": draw,
        **_once(work, "limits", dict),
        "portions": mixed_up["portions"],
        "scales": {tag: one.record() for tag, one in plan.scales.items()},
        "items": len(_index(work).items),
        "short": _index(work).short,
    }
    licences = sorted({licence for made in gather for licence in made["licences"]})
    return Built(
        [f"rows-{k:05}.parquet" for k, made in enumerate(gather) if made["rows"]], facts, bad, licences
    )


# ── jobs ───────────────────────────────────────────────────────────────────────────────────────


def _each(
    work: Work,
    pool: ProcessPoolExecutor | None,
    on: fanout.On | None,
    tick: Callable[[], None],
    job: Callable[[Work, int], None],
    phase: str,
    count: int,
    label: str,
) -> list[dict[str, Any]]:
    """Do what is not done of a phase's jobs; what each has noted."""
    (work.folder / phase).mkdir(exist_ok=True)
    todo = [number for number in range(count) if not work.path(phase, number, ".json").is_file()]
    with progress(label, count) as bar:
        bar.skip(count - len(todo))
        if pool is None:
            calls = [functools.partial(_call, job, work, phase, number, Path.cwd()) for number in todo]
            done: Iterator[Any] = fanout.each(calls, on, _MEMORY)
        else:
            done = _pooled(pool, job, work, todo)
        for _ in done:
            tick()
            bar.step()
    return [ledger.read_json(work.path(phase, number, ".json")) for number in range(count)]


def _call(
    job: Callable[[Work, int], None], work: Work, phase: str, number: int, here: Path
) -> Iterator[None]:
    """A job as `fanout` has them, which yield what they find; a job leaves it in the folder. here: what relative
    paths are relative to, on whatever machine. Raises OnggiError where that machine does not see the folder.
    """
    if not (here / work.folder).is_dir():
        raise OnggiError(
            f"{here / work.folder}: is not on {platform.node()}, a machine of the cluster; name an --out that all of "
            "them share, and sources too."
        )
    try:
        with contextlib.chdir(here):
            job(work, number)
    except (OnggiError, OSError):
        # A call of a run that was stopped may have gone on over there, and have done the piece in the meantime.
        if not (here / work.path(phase, number, ".json")).is_file():
            raise
    yield


def _pooled(
    pool: ProcessPoolExecutor, job: Callable[[Work, int], None], work: Work, todo: Sequence[int]
) -> Iterator[None]:
    try:
        for future in as_completed([pool.submit(job, work, number) for number in todo]):
            yield future.result()
    except BrokenProcessPool as error:
        raise OnggiError(
            "A process that cleans text was killed (by the system, for its memory?). The same command "
            "goes on from here; --workers 1 needs the least memory."
        ) from error


def _follow_parent(told: Any) -> None:
    """A worker ends when the process that started it does, however that ends, or closes its end of `told`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's matter
    parent = multiprocessing.parent_process()
    assert parent

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel, told])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _once(work: Work, name: str, make: Callable[[], Any]) -> Any:
    path = work.folder / f"{name}.json"
    if not path.is_file():
        ledger.write_json(path, make())
    return ledger.read_json(path)


class _Plan(NamedTuple):
    pieces: list[rows.Piece]
    lost: list[tuple[str, dict[str, str]]]  # source, bad file
    scales: dict[str, Scale]


def _cut(work: Work, named: Sequence[str], limit: int | None, licence: str | None) -> dict[str, Any]:
    """The pieces of all sources, as they are when the work begins."""
    found: list[rows.Piece] = []
    lost: list[tuple[str, dict[str, str]]] = []
    own: dict[str, Scale] = {}
    for word in named:
        source = rows.parse(word)
        made, bad = rows.pieces(source, work.languages, limit, licence)
        found += made
        lost += [(source.name, asdict(one)) for one in bad]
        if rows.kind(source.name) == "known":
            asked = ["en", *(tag for tag in work.languages if tag != "en")]
            own = {**scale.measured(rows.known(source.name, asked)), **own}
    scales = scale.scales(work.languages, own)
    return {
        "pieces": [asdict(piece) for piece in found],
        "lost": lost,
        "scales": {tag: asdict(one) for tag, one in scales.items()},
    }


@functools.lru_cache(maxsize=1)
def _plan(work: Work) -> _Plan:
    plan = ledger.read_json(work.folder / "plan.json")
    return _Plan(
        [rows.Piece(**{**piece, "files": tuple(piece["files"])}) for piece in plan["pieces"]],
        plan["lost"],
        {tag: Scale(**one) for tag, one in plan["scales"].items()},
    )


def _weight(pieces: Sequence[rows.Piece]) -> int:
    """Bytes of input, as far as files tell."""
    total = 0
    for piece in pieces:
        if piece.kind == "jsonl" and piece.stop is not None:
            total += piece.stop - piece.start
        elif piece.kind in ("jsonl", "parquet", "plain"):
            total += sum(Path(file).stat().st_size for file in piece.files)
        elif piece.source.startswith("debian:") or piece.kind == "hub":
            total += _SMALL
    return total


@functools.lru_cache(maxsize=1)
def _rules(work: Work) -> tuple[dict[str, dict[str, Limit]], dict[str, frozenset[str]]]:
    found = ledger.read_json(work.folder / "limits.json")
    limits = {tag: {name: Limit(**one) for name, one in own.items()} for tag, own in found["limits"].items()}
    return limits, {tag: frozenset(lines) for tag, lines in found["boilerplate"].items()}


@functools.lru_cache(maxsize=1)
def _index(work: Work) -> Contamination:
    exams = [Exam(**exam) for exam in ledger.read_json(work.folder / "exams.json")]
    return Contamination(exams, work.config, _plan(work).scales)


class _Samples:
    """A few rows of each language and reason: those whose text's hash is least, whatever the order."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, list[list[Any]]]] = defaultdict(lambda: defaultdict(list))

    def add(self, lang: str, reason: str, text: str, place: str, why: str = "") -> None:
        """Consider one."""
        own = self.found[lang][reason]
        rank = int.from_bytes(duplicates.exact(text[:_SHOWN])[:4])
        if len(own) < _SAMPLES or rank < own[-1][0]:
            own.append([rank, text[:_SHOWN], place, why])
            own.sort(key=lambda one: one[0])
            del own[_SAMPLES:]


def _counter() -> defaultdict[str, dict[str, list[int]]]:
    return defaultdict(dict)


def _count(
    table: dict[str, dict[str, list[int]]], lang: str, reason: str, size: int, number: int = 1
) -> None:
    one = table[lang].setdefault(reason, [0, 0])
    one[0] += number
    one[1] += size


def _stopped(bad: rows.Bad) -> OnggiError:
    return OnggiError(f"{bad.place}: {bad.reason}. --bad skip leaves it out, and says so.")


def read_piece(work: Work, number: int) -> None:
    """read/NUMBER: the rows of a piece in the languages asked for, clean and measured."""
    piece, scales = _plan(work).pieces[number], _plan(work).scales
    records = bad = 0
    entered: dict[str, list[int]] = {}
    other: Counter[str] = Counter()
    dropped, samples = _counter(), _Samples()
    masks: dict[str, Counter[str]] = defaultdict(Counter)
    lines: dict[str, Counter[str]] = defaultdict(Counter)
    documents: Counter[str] = Counter()
    with (
        ledger.writing(work.path("read", number, ".parquet")) as aside,
        ledger.writing(work.path("read", number, ".bad")) as bad_aside,
        bad_aside.open("w", encoding="utf-8") as bad_file,
        _Writer(aside, _READ) as out,
    ):
        for found in rows.read(piece, work.languages, work.field, work.config.longest):
            records += 1
            for row in found:
                if isinstance(row, rows.Bad):
                    if work.stop:
                        raise _stopped(row)
                    bad += 1
                    bad_file.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
                    continue
                if row.lang is not None and row.lang not in work.languages:
                    other[row.lang] += 1
                    continue
                marks: Counter[str] = Counter()
                text = _cleaned(row.text, work.config, marks)
                lang, sure = measures.tell(text, row.lang, work.languages)
                if lang not in work.languages:
                    other[lang or "none"] += 1
                    continue
                raw = len(row.text.encode())
                entry = entered.setdefault(lang, [0, 0])
                entry[0] += 1
                entry[1] += raw
                masks[lang].update(marks)
                if not text:
                    _count(dropped, lang, "empty", raw)
                    samples.add(lang, "empty", row.text, row.place)
                    continue
                own = [line.strip() for line in text.split("\n")]
                if work.config.boilerplate and len(own) >= _LINES:
                    documents[lang] += 1
                    lines[lang].update({line for line in own if line and len(line) <= _LINE})
                out.add(
                    {
                        "text": text,
                        "lang": lang,
                        "licence": row.licence,
                        "source": row.source,
                        "place": row.place,
                        "raw": raw,
                        **measures.measure(text, lang, sure, scales[lang]),
                    }
                )
    ledger.write_json(
        work.path("read", number, ".json"),
        {
            "records": records,
            "bad": bad,
            "other": dict(other),
            "in": entered,
            "dropped": dropped,
            "samples": samples.found,
            "masked": masks,
            "documents": dict(documents),
            "lines": {tag: dict(count.most_common(_MOST_LINES)) for tag, count in lines.items()},
        },
    )


def _cleaned(text: str, config: Cleaning, marks: Counter[str]) -> str:
    if config.markup:
        text = cleaning.without_markup(text)
    text = cleaning.normalised(text)
    return cleaning.masked(text, config.mask, marks) if config.mask else text


def _limits(work: Work, read: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The limits of each language, and the lines that are boilerplate in it."""
    parts: dict[str, list[pa.Table]] = defaultdict(list)
    stride = 1 + sum(rows for noted in read for rows, _ in noted["in"].values()) // _MEASURED
    for number in range(len(read)):
        table = pq.read_table(work.path("read", number, ".parquet"), columns=["lang", *measures.NAMES])
        langs = np.array(table["lang"].to_pylist(), dtype=object)
        for lang in dict.fromkeys(langs):
            own = np.flatnonzero(langs == lang)[::stride]
            parts[lang].append(table.take(pa.array(own)).drop_columns(["lang"]))
    values = {}
    for lang in (tag for tag in work.languages if tag in parts):
        whole = pa.concat_tables(parts[lang])
        values[lang] = {name: whole[name].to_numpy() for name in measures.NAMES}
    limits = measures.limits(values, work.config, _plan(work).scales)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    documents: Counter[str] = Counter()
    for noted in read:
        documents.update(noted["documents"])
        for lang, lines in noted["lines"].items():
            counts[lang].update(lines)
    return {
        "limits": {lang: {name: asdict(one) for name, one in own.items()} for lang, own in limits.items()},
        "boilerplate": {
            lang: [
                line
                for line, n in own.most_common()
                if n >= max(_LEAST, work.config.boilerplate * documents[lang])
            ]
            for lang, own in counts.items()
        },
    }


def sift_piece(work: Work, number: int) -> None:
    """sift/NUMBER: the rows that pass, with the hashes that tell duplicates."""
    limits, boilerplate = _rules(work)
    scales, exams = _plan(work).scales, _index(work)
    dropped, samples = _counter(), _Samples()
    items: Counter[str] = Counter()
    contaminated: dict[str, list[int]] = {}
    trimmed: dict[str, list[int]] = {}
    hashes: list[np.ndarray] = []
    source = work.path("read", number, ".parquet")
    with ledger.writing(work.path("sift", number, ".parquet")) as aside, _Writer(aside, _SIFTED) as out:
        for row in _rows_of(source):
            text, lang, raw, place = row["text"], row["lang"], row["raw"], row["place"]
            found: Mapping[str, float] = row
            if boilerplate.get(lang) and (shorter := _without(text, boilerplate[lang])) != text:
                one = trimmed.setdefault(lang, [0, 0])
                one[0] += 1
                one[1] += len(text.encode()) - len(shorter.encode())
                if not shorter:
                    _count(dropped, lang, "boilerplate", raw)
                    samples.add(lang, "boilerplate", text, place)
                    continue
                text = shorter
                found = measures.measure(text, lang, row["language"], scales[lang])
            if reason := measures.fails(found, limits[lang]):
                _count(dropped, lang, reason, raw)
                why = f"{found[reason]:.3g}, limit {limits[lang][reason].value:.3g}"
                samples.add(lang, reason, text, place, why)
                continue
            simple = simplify(text)
            if hit := exams.find(simple, lang):
                items.update(hit)
                one = contaminated.setdefault(lang, [0, 0])
                one[0] += 1
                one[1] += raw
                samples.add(lang, "contaminated", text, place, ", ".join(hit[:3]))
                if work.config.contaminated == "drop":
                    _count(dropped, lang, "contaminated", raw)
                    continue
            own = np.zeros(2 + work.config.buckets, np.uint64)
            own[:2] = np.frombuffer(duplicates.exact(simple), np.uint64)
            if work.config.near:
                shingles = duplicates.shingles(text, simple, lang, work.config, scales[lang], work.kiwi)
                own[2:] = duplicates.signature(shingles, work.config)
            hashes.append(own)
            out.add(
                {
                    **{name: row[name] for name in _SIFTED.names if name in row},
                    "text": text,
                    "size": len(text.encode()),
                }
            )
    with ledger.writing(work.path("sift", number, ".npy")) as aside, aside.open("wb") as file:
        np.save(file, np.array(hashes, np.uint64).reshape(-1, 2 + work.config.buckets))
    ledger.write_json(
        work.path("sift", number, ".json"),
        {
            "dropped": dropped,
            "samples": samples.found,
            "contaminated": contaminated,
            "items": dict(items),
            "trimmed": trimmed,
        },
    )
    source.unlink()


def _without(text: str, lines: frozenset[str]) -> str:
    whole = text.split("\n")
    kept = [line for line in whole if line.strip() not in lines]
    return text if len(kept) == len(whole) or len(whole) < _LINES else "\n".join(kept).strip()


def _mix(work: Work, sift: Sequence[Any]) -> dict[str, Any]:
    """What becomes of each row (fate/NUMBER.npy), the portion of each language, and the number of shards."""
    arrays = [np.load(work.path("sift", number, ".npy"), mmap_mode="r") for number in range(len(sift))]
    groups = (
        np.concatenate([array[:, 2 + group] for array in arrays]) for group in range(work.config.buckets)
    )
    whole = np.concatenate([array[:, :2] for array in arrays])
    fate = duplicates.duplicates(whole, groups, work.config.near, work.config.exact)
    (work.folder / "fate").mkdir(exist_ok=True)
    sizes: Counter[str] = Counter()
    start = 0
    for number, array in enumerate(arrays):
        own = fate[start : start + len(array)]
        start += len(array)
        with ledger.writing(work.path("fate", number, ".npy")) as aside, aside.open("wb") as file:
            np.save(file, own)
        table = pq.read_table(work.path("sift", number, ".parquet"), columns=["lang", "size"])
        for lang, size in zip(
            *(table.filter(pa.array(own == duplicates.KEEP))[name].to_pylist() for name in ("lang", "size")),
            strict=True,
        ):
            sizes[lang] += size
    portions = mix.portions({tag: sizes[tag] for tag in work.languages}, _plan(work).scales, work.config)
    written = sum(sizes[tag] * portion.epochs for tag, portion in portions.items())
    return {
        "portions": {tag: asdict(portion) for tag, portion in portions.items()},
        "shards": max(1, -(-int(written) // SHARD)),
    }


def draw_piece(work: Work, number: int) -> None:
    """draw/NUMBER-SHARD: the rows of a piece that are written, as often as they are, by shard."""
    plan = ledger.read_json(work.folder / "mix.json")
    portions = {tag: Portion(**one) for tag, one in plan["portions"].items()}
    fate = np.load(work.path("fate", number, ".npy"))
    keys = np.load(work.path("sift", number, ".npy"))[:, 0]
    drawn = mixed(keys + np.uint64(work.config.seed))
    dropped, samples = _counter(), _Samples()
    kept: dict[str, list[int]] = {}
    made: dict[str, list[int]] = {}
    with ExitStack() as stack:
        outs: dict[int, _Writer] = {}
        for place, row in enumerate(_rows_of(work.path("sift", number, ".parquet"))):
            lang, raw = row["lang"], row["raw"]
            if fate[place]:
                reason = "exact" if fate[place] == duplicates.EXACT else "near"
                _count(dropped, lang, reason, raw)
                samples.add(lang, reason, row["text"], row["place"])
                continue
            entry = kept.setdefault(lang, [0, 0, 0])
            for column, value in enumerate((1, raw, row["size"])):
                entry[column] += value
            times = int(mix.copies(np.array([drawn[place] / 2.0**64]), portions[lang].epochs)[0])
            if not times:
                _count(dropped, lang, "left out", raw)
                samples.add(lang, "left out", row["text"], row["place"])
                continue
            samples.add(lang, "kept", row["text"], row["place"])
            entry = made.setdefault(lang, [0, 0])
            entry[0] += times
            entry[1] += times * row["size"]
            copies = mixed(drawn[place] + np.arange(1, times + 1, dtype=np.uint64))
            for key in copies:
                shard = int(key) % plan["shards"]
                if shard not in outs:
                    aside = stack.enter_context(
                        ledger.writing(work.path("draw", number, f"-{shard:05}.parquet"))
                    )
                    outs[shard] = stack.enter_context(_Writer(aside, _DRAWN))
                outs[shard].add({**{name: row[name] for name in _ROWS.names}, "key": int(key)})
    ledger.write_json(
        work.path("draw", number, ".json"),
        {"dropped": dropped, "samples": samples.found, "kept": kept, "out": made},
    )


def gather_shard(work: Work, number: int) -> None:
    """rows-NUMBER.parquet in `work.out`: what every piece has for a shard, in the order of the keys."""
    parts = sorted((work.folder / "draw").glob(f"*-{number:05}.parquet"))
    rows_made, licences = 0, []
    if parts:
        whole = pa.concat_tables([pq.read_table(part) for part in parts])
        order = np.argsort(whole["key"].to_numpy(), kind="stable")
        with ledger.writing(work.out / f"rows-{number:05}.parquet") as aside:
            pq.write_table(
                whole.select(_ROWS.names).take(pa.array(order)),
                aside,
                compression="zstd",
                row_group_size=8192,
            )
        rows_made, licences = len(order), sorted(set(whole["licence"].unique().to_pylist()))
    ledger.write_json(work.path("gather", number, ".json"), {"rows": rows_made, "licences": licences})


class _Writer:
    """Rows into a parquet file, a batch at a time."""

    def __init__(self, path: Path, schema: pa.Schema):
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._schema = schema
        self._rows: list[dict[str, Any]] = []
        self._size = 0

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            self._writer.close()

    def add(self, row: dict[str, Any]) -> None:
        """Write one, later."""
        self._rows.append(row)
        self._size += len(row["text"])
        if len(self._rows) >= _BATCH or self._size > 8 << 20:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows, self._size = [], 0


def _rows_of(path: Path) -> Iterator[dict[str, Any]]:
    file = pq.ParquetFile(path)
    for batch in file.iter_batches(batch_size=_BATCH):
        columns = [batch.column(name).to_pylist() for name in batch.schema.names]
        for values in zip(*columns, strict=True):
            yield dict(zip(batch.schema.names, values, strict=True))

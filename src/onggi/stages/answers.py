"""`onggi answers`: a teacher answers prompts in every language, and what is worth learning of it becomes data."""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import languages as tags
from .. import ledger
from ..errors import OnggiError
from ..languages import Languages
from ..ledger import Artifact
from ..progress import say
from .base import Names, Plan, Stage, command, options

if TYPE_CHECKING:  # jsonargparse runs this block for --help: nothing here may import torch
    from ..engines.spending import Options
    from ..evaluate.answering import Row
    from ..evaluate.pieces import Piece
    from ..text.corpus.duplicates import Contamination
    from ..text.prompts import Prompt

_REVISION = 1
_SERVER = ("concurrency", "requests_per_minute", "timeout", "input_price", "output_price", "budget")
_UNSEEN = ("concurrency", "requests_per_minute", "timeout", "budget", "failures")
SEED = "seed"
ANSWERS, LEFT_OUT, PAIRS, PROMPTS = "answers.jsonl", "left_out.jsonl", "pairs.jsonl", "prompts.jsonl"


@dataclass(frozen=True)
class AnswersConfig:
    """Let a teacher answer prompts, and keep of its answers what is worth learning, as data for a fine-tuning.

    Writes DIR/answers.jsonl (rows of messages with their language and where they come from), DIR/left_out.jsonl with a
    reason for each, with --samples DIR/pairs.jsonl (preferences) and with --grow DIR/prompts.jsonl. Every answer is
    kept as it comes: a killed run asks only for what is missing.
    """

    teacher: str
    """The teacher, [NAME=]MODEL: a model by any of its names, or behind a server, http://HOST:PORT/v1#NAME."""
    prompts: str
    """Prompts: a JSONL file, {"_id", "prompt", "messages" or "turns", "lang"}; or `seed`, the requests of the seed set
    that ships, in six languages. The sets `everyday` and `questions` are for measuring: a model that has learnt
    their answers cannot be measured on them."""
    languages: Languages | None = None
    """Languages of the prompts, as en,ko; default: all that there are."""
    terms: str | None = None
    """What the teacher's terms say of training on what it writes, a name or an address; it stands in every row.
    Default: those of the model's own files."""
    grow: int = 0
    """New prompts to ask the teacher for, of each language: half of them of other kinds than those that there are,
    half harder forms of one; each as another persona would ask about another topic."""
    samples: int = 1
    """Answers to each prompt. The best is kept (the judge's score, then agreement with the others)."""
    max_tokens: int = 512
    """Longest answer, in tokens; one that is cut is left out."""
    temperature: float | None = None
    """Of the teacher. Default: 0 for one answer to a prompt, 0.8 for several."""
    top_p: float = 0.95
    """Draw among the likeliest tokens that together have this probability."""
    judge: str | None = None
    """A model, [NAME=]MODEL, that grades every answer from 1 to 10; a strong one."""
    score: float = 6.0
    """Least grade of an answer that is kept, where there is a judge."""
    agreement: float | None = None
    """Least likeness of an answer to the others to its prompt, 0 to 1, with --samples; default: no least."""
    refusals: Literal["leave_out", "keep"] = "leave_out"
    """What becomes of short answers that begin as refusals do in their language."""
    against: Names | None = None
    """Texts and sets of prompts that are evaluated on: an answer or prompt with a piece of them is left out.
    Default: probe,everyday,questions."""
    gap: float = 2.0
    """By how much the judge's grades of a pair must differ at least; what is in the wrong language, broken or a
    refusal is the worse one without grades."""
    limit: int | None = None
    """At most so many prompts of each language; default: all."""
    concurrency: int = 8
    """Of models behind servers: requests in flight at a time."""
    requests_per_minute: float | None = None
    """Of models behind servers: most requests a minute; default: no limit of ours."""
    timeout: float = 300.0
    """Of models behind servers: seconds that a request may take."""
    fresh: bool = False
    """Of models behind servers: ask again what an earlier run has kept the answer to, by address and name."""
    failures: Literal["stop", "leave_out"] = "stop"
    """What becomes of requests that failed for good, all retries over: end the run, which goes on from there, or
    leave those answers out."""
    input_price: float | None = None
    """Of models behind servers: price of a million input tokens, in any currency."""
    output_price: float | None = None
    """Of models behind servers: price of a million output tokens."""
    budget: float | None = None
    """Of models behind servers: a model that may cost more is refused before a part (prompts, answers, judge) is
    sent that may bring it over."""
    seed: int = 0
    """Of what is drawn: answers, personas and topics."""

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises OnggiError naming the option and the mend."""
        for name in ("samples", "max_tokens", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OnggiError(f"{name}: {value} is not a number of {name.split('_')[-1]}.")
        if self.grow < 0:
            raise OnggiError(f"grow: {self.grow} is not a number of prompts.")
        if self.temperature is not None and self.temperature < 0:
            raise OnggiError(f"temperature: {self.temperature} is below 0.")
        if self.samples > 1 and self.temperature == 0:
            raise OnggiError(
                "samples: at --temperature 0 all answers to a prompt are one; 0.8 is usual for several."
            )
        if self.agreement is not None and not (0 <= self.agreement <= 1 and self.samples > 1):
            raise OnggiError(
                "agreement: is a likeness between 0 and 1 of several answers (--samples 4, say)."
            )
        _ = self.server

    @property
    def server(self) -> Options:
        """How models behind servers are treated."""
        from ..engines.spending import Options

        return Options(**{name: getattr(self, name) for name in _SERVER}, cache=not self.fresh)

    @property
    def exams(self) -> tuple[str, ...]:
        """What is evaluated on."""
        return self.against or ("probe", "everyday", "questions")

    @property
    def drawn_at(self) -> float:
        """The temperature."""
        return (0.8 if self.samples > 1 else 0.0) if self.temperature is None else self.temperature


def inputs(config: AnswersConfig) -> dict[str, Any]:
    """Fingerprints of teacher, judge, prompts and of what is evaluated on."""
    from ..engines import opening
    from ..evaluate import judge
    from ..models import references
    from ..text import prompts

    found: dict[str, Any] = {}
    for name in ("teacher", "judge"):
        if given := getattr(config, name):
            source = references.parse(given).source
            found[name] = [given, references.fingerprint(source)]
            if references.is_gguf(source):
                found[f"{name} engine"] = opening.versions(source)
    if config.judge:
        found["judging"] = judge.fingerprint()
    found["prompts"] = (
        ledger.digest([asdict(prompt) for prompt in _prompts(config)])
        if config.prompts == SEED
        else ledger.sha256(prompts.file(config.prompts))
    )
    found["against"] = {name: _fingerprint(name) for name in config.exams}
    return found | dict.fromkeys(_UNSEEN)


def _fingerprint(name: str) -> str:
    from .. import text
    from ..text import prompts

    return ledger.sha256(prompts.file(name)) if name in prompts.SHIPPED else text.fingerprint(name, None)


def _prompts(config: AnswersConfig) -> list[Prompt]:
    """The prompts that are named."""
    from ..distill import prompting
    from ..text import prompts

    if config.prompts == SEED:
        return prompting.seeds(config.languages)
    return prompts.load(config.prompts, config.languages)


def answers(config: AnswersConfig, out: Path) -> Artifact:
    """Write the teacher's answers to `out`; see `AnswersConfig`.

    Raises OnggiError for prompts that are not sound and a teacher that does not answer.

    >>> from pathlib import Path
    >>> from onggi.stages import AnswersConfig, answers
    >>> row = '{"_id": "ko-1", "lang": "ko", "prompt": "옹기는 무엇으로 만듭니까?"}'
    >>> _ = Path("asked.jsonl").write_text(row, encoding="utf-8")
    >>> made = answers(AnswersConfig("model", "asked.jsonl", max_tokens=4), Path("answered"))
    >>> made.record["languages"]["ko"]["asked"]
    1
    """
    job = ledger.begin(out, "answers", options(config), inputs(config), _REVISION)
    if job.done:
        return job.done
    from transformers.utils import logging as transformers_logging

    from ..engines import opening

    transformers_logging.disable_progress_bar()
    with job:
        try:
            return _answers(config, job)
        finally:
            opening.close()


class _Asking:
    """The models that are asked. estimates: what servers may cost so far. served: what they have answered."""

    def __init__(self, config: AnswersConfig, job: ledger.Job):
        self.config, self.job = config, job
        self.estimates: dict[str, Any] = {}
        self.served: dict[str, list[Row]] = {}

    def complete(self, label: str, todo: Sequence[Piece]) -> list[dict[str, Row]]:
        """Every row of every piece, in the order of its keys. Raises OnggiError where requests failed for good and
        that is to end the run.
        """
        from ..evaluate import pieces
        from ..models import references

        found = pieces.complete(self.job, label, todo, self.config.server, self.estimates)
        for piece, rows in zip(todo, found, strict=True):
            # What a judge settles by itself, or has no answer for, was not asked.
            own = [row for row in rows.values() if row.get("finish") and row.get("status") != "missing"]
            failed = [row for row in own if row["finish"] == "error"]
            if failed and self.config.failures == "stop":
                raise OnggiError(
                    f"{piece.source}: {len(failed)} of {len(own)} requests ({piece.label}) failed, the last: "
                    f"{failed[-1]['error']}. What was answered is kept: run again to ask for the rest, or with "
                    "--failures leave_out to go on without."
                )
            if references.served(piece.source):
                self.served.setdefault(piece.source, []).extend(own)
        return found


def _answers(config: AnswersConfig, job: ledger.Job) -> Artifact:
    from ..distill import answers as sifting
    from ..evaluate import cost
    from ..models import references
    from ..text import prompts as asked

    teacher = references.parse(config.teacher)
    about = _about(config, teacher.source)
    prompts: dict[str, list[Prompt]] = {}
    for prompt in _prompts(config):
        prompts.setdefault(prompt.lang, []).append(prompt)
    prompts = {lang: asked.spread(own)[: config.limit] for lang, own in prompts.items()}
    if config.prompts in asked.SHIPPED:
        say(
            f"{config.prompts}: is for measuring; a model that learns these answers cannot be measured on it."
        )
    asking = _Asking(config, job)
    new = _grow(config, asking, prompts, teacher) if config.grow else {}
    candidates = _candidates(
        config, asking, {lang: [*own, *new.get(lang, [])] for lang, own in prompts.items()}
    )
    rules = sifting.Rules(
        judged=config.judge is not None,
        score=config.score,
        agreement=config.agreement,
        refusals=config.refusals == "leave_out",
    )
    sifting.sift(candidates, rules, _index(config, list(prompts)))
    names = _write(config, job, teacher.name, about, candidates)
    if config.grow:
        with (job.work / PROMPTS).open("w", encoding="utf-8") as file:
            for prompt in (prompt for own in new.values() for prompt in own):
                row = {"_id": prompt.id, "lang": prompt.lang, "prompt": prompt.turns[0]}
                file.write(json.dumps(row | {"category": prompt.category}, ensure_ascii=False) + "\n")
        names.append(PROMPTS)
    counts = sifting.counted(candidates)
    if not any(own["kept"] for own in counts.values()):
        reasons = {key for own in counts.values() for key in own} - {"asked", "kept"}
        say(f"Nothing is left of {len(candidates)} answers: {', '.join(sorted(reasons))} ({LEFT_OUT}).")
    return job.finish(
        names,
        command=command(STAGE, config, job.out),
        teacher={"name": teacher.name, "source": teacher.source, **about},
        languages=counts,
        grown={lang: len(own) for lang, own in new.items()},
        sampling={"temperature": config.drawn_at, "top_p": config.top_p, "max_tokens": config.max_tokens},
        spending={source: cost.of_server(rows, config.server) for source, rows in asking.served.items()},
    )


def _about(config: AnswersConfig, source: str) -> dict[str, Any]:
    """The teacher's licence and terms; a word of warning where they are not known."""
    from ..engines.server import is_local
    from ..models import references

    at = references.served(source)
    about = {} if at else references.about(references.resolve(source))
    found = {key: about[key] for key in ("licence", "terms") if about.get(key)}
    if config.terms:
        found["terms"] = config.terms
    if at and not config.terms and not is_local(at.url):
        say(
            f"{source}: the terms of many closed models forbid training another model on what they write; --terms "
            "notes in every row what this one's say. An open teacher spares the question."
        )
    return found


def _piece(
    config: AnswersConfig, name: str, source: str, prompts: Sequence[Prompt], sampling: Any, file: Path
) -> Piece:
    from ..evaluate.pieces import Piece

    keys = [key for prompt in prompts for key in prompt.keys]
    return Piece(name, source, "generate", keys, functools.partial(_ask, list(prompts), sampling), file)


def _ask(prompts: Sequence[Prompt], sampling: Any, engine: Any, kept: Mapping[str, Row]) -> Iterator[Row]:
    from ..evaluate import answering

    yield from answering.answer(engine, prompts, sampling, kept)


def _grow(
    config: AnswersConfig, asking: _Asking, prompts: Mapping[str, Sequence[Prompt]], teacher: Any
) -> dict[str, list[Prompt]]:
    """Language → prompts that the teacher made of those that there are."""
    from ..distill import prompting
    from ..engines.protocol import Sampling

    sampling = Sampling(config.max_tokens, 0.8, config.top_p, config.seed)
    wanted = {lang: prompting.asking(own, lang, config.grow, config.seed) for lang, own in prompts.items()}
    todo = [
        _piece(
            config,
            f"prompts {lang}",
            teacher.source,
            own,
            sampling,
            asking.job.partial / f"grown-{lang}.jsonl",
        )
        for lang, own in wanted.items()
    ]
    rows = asking.complete("prompts", todo)
    found = {
        lang: prompting.grown(prompts[lang], own, got)
        for (lang, own), got in zip(wanted.items(), rows, strict=True)
    }
    for lang, own in found.items():
        say(f"New prompts in {tags.name(lang)}: {len(own)} of {config.grow} asked for are new and sound.")
    return found


def _candidates(config: AnswersConfig, asking: _Asking, prompts: Mapping[str, Sequence[Prompt]]) -> list[Any]:
    """Every answer to every prompt, with the judge's grade where there is a judge."""
    from ..distill.answers import Candidate
    from ..engines.protocol import Sampling
    from ..models import references

    teacher = references.parse(config.teacher)
    places = [(lang, sample) for lang in prompts for sample in range(config.samples)]
    todo = [
        _piece(
            config,
            f"{teacher.name} {lang}" + (f" {sample + 1}" if config.samples > 1 else ""),
            teacher.source,
            prompts[lang],
            Sampling(config.max_tokens, config.drawn_at, config.top_p, config.seed * 1000 + sample),
            asking.job.partial / f"answers-{lang}-{sample}.jsonl",
        )
        for lang, sample in places
    ]
    rows = dict(zip(places, asking.complete("answers", todo), strict=True))
    grades = _grades(config, asking, prompts, rows) if config.judge else {}
    found = []
    for lang, own in prompts.items():
        for prompt in own:
            for sample in range(config.samples):
                scores = [grades.get((lang, sample, key)) for key in prompt.keys]
                known = [score for score in scores if score is not None]
                found.append(
                    Candidate(
                        prompt,
                        sample,
                        [rows[lang, sample][key] for key in prompt.keys],
                        sum(known) / len(known) if known and len(known) == len(scores) else None,
                    )
                )
    return found


def _grades(
    config: AnswersConfig,
    asking: _Asking,
    prompts: Mapping[str, Sequence[Prompt]],
    rows: Mapping[tuple[str, int], Mapping[str, Row]],
) -> dict[tuple[str, int, str], float]:
    """(language, sample, key of the turn) → the judge's grade."""
    from ..evaluate.pieces import Piece
    from ..models import references

    assert config.judge is not None
    by, teacher = references.parse(config.judge), references.parse(config.teacher)
    todo = [
        Piece(
            f"{by.name} on {lang} {sample + 1}",
            by.source,
            "generate",
            [key for prompt in prompts[lang] for key in prompt.keys],
            functools.partial(_grade, prompts[lang], own, teacher.name, by.name),
            asking.job.partial / f"grades-{lang}-{sample}.jsonl",
        )
        for (lang, sample), own in rows.items()
    ]
    found = asking.complete("judge", todo)
    return {
        (lang, sample, key): row["score"]
        for (lang, sample), graded in zip(rows, found, strict=True)
        for key, row in graded.items()
        if row["score"] is not None
    }


def _grade(
    prompts: Sequence[Prompt],
    answered: Mapping[str, Row],
    model: str,
    by: str,
    engine: Any,
    kept: Mapping[str, Row],
) -> Iterator[Row]:
    from ..evaluate import judge

    yield from judge.grade(engine, prompts, answered, model, judge=by, kept=kept)


def _index(config: AnswersConfig, languages: Sequence[str]) -> Contamination:
    """What finds pieces of the texts that are evaluated on."""
    from .. import text
    from ..text import prompts
    from ..text.corpus import Cleaning
    from ..text.corpus.duplicates import Contamination, Exam
    from ..text.corpus.scale import scales

    exams = []
    for name in config.exams:
        if name == config.prompts:  # every row would be
            continue
        texts: dict[str, list[str]] = {}
        if name in prompts.SHIPPED:
            for prompt in prompts.load(name):
                said = [*prompt.turns, *(reference for reference in prompt.references if reference)]
                texts.setdefault(prompt.lang, []).extend(said)
        else:
            found = text.load(name)
            texts = {lang: list(found.passages(lang).values()) for lang in found.languages}
        exams.append(Exam(name, texts))
    return Contamination(exams, Cleaning(), scales(languages, {}))


def _write(
    config: AnswersConfig, job: ledger.Job, name: str, about: Mapping[str, Any], candidates: Sequence[Any]
) -> list[str]:
    """Write what is kept, what is left out, and with several samples the pairs; returns the files."""
    from ..distill import answers as sifting

    def row(candidate: Any) -> dict[str, Any]:
        prompt = candidate.prompt
        found = {
            "_id": prompt.id if config.samples == 1 else f"{prompt.id}#{candidate.sample + 1}",
            "messages": candidate.messages,
            "lang": prompt.lang,
            "model": name,
            **{key: about[key] for key in ("terms", "licence") if key in about},
            "source": f"onggi answers: {config.prompts}",
        }
        extra = {"category": prompt.category, "score": candidate.score, "agreement": candidate.agreement}
        return found | {key: value for key, value in extra.items() if value is not None}

    with (
        (job.work / ANSWERS).open("w", encoding="utf-8") as kept,
        (job.work / LEFT_OUT).open("w", encoding="utf-8") as left,
    ):
        for candidate in candidates:
            line = row(candidate)
            if candidate.reason:
                line |= {"reason": candidate.reason, "evidence": candidate.evidence}
            file = left if candidate.reason else kept
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    names = [ANSWERS, LEFT_OUT]
    if config.samples > 1:
        with (job.work / PAIRS).open("w", encoding="utf-8") as file:
            for pair in sifting.pairs(candidates, config.gap):
                *chat, chosen = pair.chosen.messages
                line = {
                    "_id": pair.chosen.prompt.id,
                    "prompt": chat if len(chat) > 1 else chat[0]["content"],
                    "chosen": chosen["content"],
                    "rejected": pair.rejected.messages[-1]["content"],
                    "lang": pair.chosen.prompt.lang,
                    "why": pair.why,
                    "model": name,
                    **{key: about[key] for key in ("terms", "licence") if key in about},
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        names.append(PAIRS)
    return names


def show(artifact: Artifact) -> None:
    """Print what was kept and why the rest was not, by language."""
    from rich.console import Console
    from rich.table import Table

    from ..distill.answers import REASONS

    record = artifact.record
    reasons = [reason for reason in REASONS if any(reason in own for own in record["languages"].values())]
    table = Table()
    table.add_column("language", no_wrap=True)
    for column in ("asked", "kept", *reasons):
        table.add_column(column, justify="right")
    for tag, own in record["languages"].items():
        values = (f"{own.get(key, 0):,}" for key in ("asked", "kept", *reasons))
        table.add_row(f"{tags.name(tag)} ({tag})", *values)
    console = Console(highlight=False)
    console.print(table)
    kept = sum(own["kept"] for own in record["languages"].values())
    console.print(f"{kept:,} rows to learn from: {artifact.path / ANSWERS}")


def plan(config: AnswersConfig) -> Plan:
    """At most so many tokens are written."""
    every = _prompts(config)
    count = sum(len(prompt.turns) for prompt in every) + 2 * config.grow * len({p.lang for p in every})
    return Plan(tokens=count * config.samples * config.max_tokens)


def dry_run(config: AnswersConfig) -> str:
    """What will be asked, and of a server what it may cost."""
    from ..engines import server
    from ..engines.protocol import Sampling
    from ..models import references

    source = references.parse(config.teacher).source
    own = _prompts(config)
    counts: dict[str, int] = {}
    for prompt in own:
        counts[prompt.lang] = counts.get(prompt.lang, 0) + 1
    lines = [
        "Prompts: "
        + ", ".join(
            f"{tags.name(lang)} {min(count, config.limit or count):,}" for lang, count in counts.items()
        )
        + (f"; {config.grow} more are asked for in each" if config.grow else "")
        + f"; {config.samples} answer{'s' if config.samples > 1 else ''} to each, at most {config.max_tokens} tokens."
    ]
    if references.served(source):
        engine = server.Engine(source, config.server)
        chats = [prompt.chat([]) for prompt in own]
        each = [
            engine.estimate(chats, Sampling(config.max_tokens, config.drawn_at, config.top_p, seed))
            for seed in range(config.seed * 1000, config.seed * 1000 + config.samples)
        ]
        whole = functools.reduce(operator.add, each)
        lines.append(f"{source}, first turns of the prompts that there are: {whole}")
    return "\n".join(lines)


STAGE = Stage("answers", AnswersConfig, answers, inputs, plan, {"teacher": None}, _REVISION, show, dry_run)

"""`onggi rate plan`: a blind study of answers side by side, for people to rate."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import languages, ledger
from ..errors import OnggiError
from ..languages import Languages
from ..ledger import Artifact
from ..phrases import available
from ..progress import say
from .base import Plan, Stage, command, options

if TYPE_CHECKING:  # jsonargparse runs this block for --help: nothing here may import torch
    from ..models.references import Reference
    from ..rate.answers import Answered
    from ..rate.design import Item
    from ..text.prompts import Prompt

_REVISION = 1


@dataclass(frozen=True)
class RateConfig:
    """Ask people which of two answers is better, blind: plan a study, invite raters, serve its page, count.

    `onggi rate plan` makes the answers, the same prompts and greedy decoding for all, or takes existing ones, and
    builds the study DIR: pairs in random order, sides in balance for every rater, several raters for each pair,
    some pairs that check attention. It says what such a study can show. Which answer is whose is in DIR/key.json,
    which nothing reads before the study is closed.
    """

    models: list[str]
    """Models to compare, each [NAME=]MODEL; or NAME=answers.jsonl or NAME=DIR of `onggi evaluate --prompts`,
    whose answers are taken as they are. The first is the reference. No rater sees a NAME."""
    prompts: str | None = None
    """Prompts to answer: a JSONL file, or a set that ships, `everyday` or `questions`. Needed where a model is to
    answer; with existing answers alone, their own."""
    languages: Languages | None = None
    """Languages to ask about, as ko,ja,en; default: all that the prompts have."""
    limit: int | None = None
    """At most so many prompts of each language; default: all."""
    max_tokens: int = 256
    """Longest answer, in tokens."""
    against: Literal["all", "reference"] = "all"
    """Which pairs: every two models, or each with the reference alone, which takes fewer ratings where there are
    three or more."""
    raters: int = 6
    """Raters of each language."""
    overlap: int = 2
    """How many of them see each pair. With 1 nothing is known of how far they agree."""
    attention: int | None = None
    """Pairs for each rater whose right choice is known (the same answer twice; an answer beside itself with its
    characters shuffled); default: one in twelve, two at least."""
    ask_name: bool = False
    """Ask raters for their names; otherwise no more is known of them than an invitation's number."""
    seed: int = 0
    """Another seed, another order."""

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises OnggiError naming the option and the mend."""
        if len(self.models) < 2:
            raise OnggiError("models: a study compares two or more; name another model.")
        if self.limit is not None and self.limit < 1:
            raise OnggiError(f"limit: {self.limit} is not a number of prompts.")
        if self.max_tokens < 1:
            raise OnggiError(f"max_tokens: {self.max_tokens} is not a number of tokens.")
        if not 1 <= self.raters <= 1000:
            raise OnggiError(f"raters: {self.raters} is not a number of raters from 1 to 1000.")
        if not 1 <= self.overlap <= self.raters:
            raise OnggiError(f"overlap: {self.overlap} of {self.raters} raters cannot see each pair.")
        if self.attention is not None and not 0 <= self.attention <= 100:
            raise OnggiError(f"attention: {self.attention} is not a number of pairs from 0 to 100.")


def _file(source: str) -> Path | None:
    """The file of existing answers that `source` names; None where it is a model."""
    path = Path(source)
    if path.suffix == ".jsonl":
        return path
    made = ledger.artifact(path) if path.is_dir() else None
    if made and made.record.get("verb") == "evaluate":
        if not (path / "answers.jsonl").is_file():
            raise OnggiError(f"{source}: has no answers; evaluate with --prompts, or name the model itself.")
        return path / "answers.jsonl"
    return None


def _line(config: RateConfig) -> list[tuple[Reference, Path | None]]:
    """The models of the line, each with its file of answers where it has one."""
    from ..models import references

    line = [(reference, _file(reference.source)) for reference in references.parse_all(config.models)]
    if config.prompts is None and (asked := [r.name for r, file in line if file is None]):
        raise OnggiError(f"prompts: {asked[0]} is to answer some; name them, as --prompts everyday.")
    return line


def inputs(config: RateConfig) -> dict[str, Any]:
    """Fingerprints of the models or of their answers, and of the prompts."""
    from ..engines import opening
    from ..models import references
    from ..text import prompts

    models: dict[str, Any] = {}
    for reference, file in _line(config):
        if file is None:
            models[reference.name] = references.fingerprint(reference.source)
            if references.is_gguf(reference.source):
                models[reference.name] = [models[reference.name], opening.versions(reference.source)]
        elif file.is_file():
            models[reference.name] = ledger.sha256(file)
        else:
            raise OnggiError(f"{file}: there is no such file.")
    asked = ledger.sha256(prompts.file(config.prompts)) if config.prompts else None
    return {"models": [list(item) for item in models.items()], "prompts": asked}


def rate(config: RateConfig, out: Path) -> Artifact:
    """Plan a study in `out`; see `RateConfig`.

    Raises OnggiError for fewer than two models, answers that were not asked for in the same words, a model that
    is not sound, a folder whose study has raters.

    >>> from pathlib import Path
    >>> from onggi.languages import Languages
    >>> from onggi.stages import RateConfig, rate
    >>> config = RateConfig(["model", "w4"], "everyday", Languages("ko,en,ar"), limit=2, max_tokens=8, raters=2)
    >>> made = rate(config, Path("study"))
    >>> sorted(made.record["outputs"])
    ['answers.jsonl', 'key.json', 'pairs.jsonl', 'schedule.json', 'study.json']
    """
    from ..rate import study as studies

    job = ledger.begin(out, "rate", options(config), inputs(config), _REVISION)
    if job.done:
        return job.done
    studies.check_fresh(out)
    with job:
        return _plan(config, job)


def _plan(config: RateConfig, job: ledger.Job) -> Artifact:
    from ..rate import answers, design, outlook

    line = _line(config)
    by_model = {r.name: answers.read(file, r.name) for r, file in line if file is not None}
    asked = _prompts(config)
    made = _made(job, [r for r, file in line if file is None], asked, config.max_tokens)
    by_model = {reference.name: [*(by_model | made)[reference.name]] for reference, _ in line}
    if asked:  # in their order, whoever answered
        order = {prompt.id: i for i, prompt in enumerate(asked)}
        by_model = {
            name: sorted((each for each in own if each.id in order), key=lambda each: order[each.id])
            for name, own in by_model.items()
        }
    items, lost = answers.together(by_model, config.languages, config.limit)
    if lost:
        say(f"{lost} prompts were not answered by all models, and are left out.")
    _tell_names(items)
    models = list(by_model)
    built = design.build(
        items,
        models,
        against=config.against,
        raters=config.raters,
        overlap=config.overlap,
        attention=config.attention,
        seed=config.seed,
        study=job.fingerprint,
    )
    terms = {name: next((each.terms for each in own if each.terms), None) for name, own in by_model.items()}
    _write(config, job, items, built, {r.name: {"source": r.source, "terms": terms[r.name]} for r, _ in line})
    pairs = {
        lang: sum(about["kind"] == "pair" and pair["lang"] == lang for pair, about in _known(built))
        for lang in items
    }
    each = {lang: max(map(len, lists)) for lang, lists in built.schedule.items()}
    checks = {
        lang: sum(built.key[entry["pair"]]["kind"] != "pair" for entry in lists[0])
        for lang, lists in built.schedule.items()
    }
    met = {lang: _met(own, models) for lang, own in items.items()}
    found = outlook.outlook(met, pairs, config.raters, each, checks)
    names = {page: {tag: languages.name(tag, page) for tag in items} for page in available("rate")}
    about = {"study": job.fingerprint[:16], "ask_name": config.ask_name, "languages": found, "names": names}
    ledger.write_json(job.work / "study.json", about)
    outputs = ["answers.jsonl", "key.json", "pairs.jsonl", "schedule.json", "study.json"]
    return job.finish(outputs, command=command(PLAN, config, job.out))


def _known(built: Any) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    return ((pair, built.key[pair["pair"]]) for pair in built.pairs)


def _met(items: Sequence[Item], models: Sequence[str]) -> int:
    """Prompts on which the model that has the fewest answers of its own differs from the reference."""
    return min(sum(item.answers[models[0]] != item.answers[name] for item in items) for name in models[1:])


def _prompts(config: RateConfig) -> list[Prompt]:
    """The prompts to be answered, as `onggi evaluate --limit` would take them."""
    from ..text import prompts

    if config.prompts is None:
        return []
    found: dict[str, list[Prompt]] = {}
    for prompt in prompts.load(config.prompts, config.languages):
        found.setdefault(prompt.lang, []).append(prompt)
    return [prompt for own in found.values() for prompt in prompts.spread(own)[: config.limit]]


def _made(
    job: ledger.Job, line: Sequence[Reference], asked: Sequence[Prompt], max_tokens: int
) -> dict[str, list[Answered]]:
    """The answers of models that are to give them; what a run that was stopped has is taken up."""
    if not line:
        return {}
    from transformers.utils import logging as transformers_logging

    from ..engines import opening
    from ..engines.protocol import Sampling
    from ..evaluate import answering, pieces
    from ..models import references
    from ..rate import answers

    transformers_logging.disable_progress_bar()

    def ask(engine: Any, kept: Mapping[str, pieces.Row]) -> Iterator[pieces.Row]:
        yield from answering.answer(engine, asked, Sampling(max_tokens=max_tokens), kept)

    keys = [key for prompt in asked for key in prompt.keys]
    todo = [
        pieces.Piece(r.name, r.source, "generate", keys, ask, job.partial / f"answers-{i}.jsonl")
        for i, r in enumerate(line)
    ]
    try:
        rows = pieces.complete(job, "answers", todo)
    finally:
        opening.close()
    found = {}
    for reference, own in zip(line, rows, strict=True):
        failed = [row for row in own.values() if row["finish"] == "error"]
        if failed:
            raise OnggiError(
                f"{reference.source}: {len(failed)} of {len(own)} requests failed, the last: {failed[-1]['error']}. "
                "What was answered is kept: run again to ask for the rest."
            )
        folder = None if references.served(reference.source) else references.resolve(reference.source)
        terms = references.about(folder).get("terms") if folder else None
        found[reference.name] = [
            answers.of_prompt(prompt, [own[key]["output"] for key in prompt.keys], terms) for prompt in asked
        ]
    return found


def _tell_names(items: Mapping[str, Sequence[Item]]) -> None:
    """Say where an answer holds its model's name: no page can hide that."""
    for model in next(iter(next(iter(items.values())))).answers:
        told = [
            item.id
            for own in items.values()
            for item in own
            if any(model.casefold() in text.casefold() for text in item.answers[model])
        ]
        if len(model) > 2 and told:
            say(f"{model}: {len(told)} of its answers hold its name, as {told[0]}; raters will read it.")


def _write(
    config: RateConfig,
    job: ledger.Job,
    items: Mapping[str, Sequence[Item]],
    built: Any,
    models: Mapping[str, Mapping[str, Any]],
) -> None:
    key = {
        "reference": next(iter(models)),
        "models": models,
        "pairs": built.key,
        "identical": built.identical,
    }
    ledger.write_json(job.work / "key.json", key)
    ledger.write_json(job.work / "schedule.json", built.schedule)
    answered = (
        {
            "_id": item.id,
            "lang": item.lang,
            "messages": _messages(item, model, turn),
            "model": model,
            "answer": answer,
            "terms": models[model]["terms"],
            **({"turn": turn} if len(item.turns) > 1 else {}),
        }
        for item in itertools.chain.from_iterable(items.values())
        for model in models
        for turn, answer in enumerate(item.answers[model], 1)
    )
    for name, rows in (("pairs.jsonl", iter(built.pairs)), ("answers.jsonl", answered)):
        with (job.work / name).open("w", encoding="utf-8") as out:
            # ASCII: an answer may hold half of a character.
            out.writelines(json.dumps(row) + "\n" for row in rows)


def _messages(item: Item, model: str, turn: int) -> list[Mapping[str, str]]:
    said = list(item.before)
    for question, answer in zip(item.turns[: turn - 1], item.answers[model], strict=False):
        said += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [*said, {"role": "user", "content": item.turns[turn - 1]}]


def show(artifact: Artifact) -> None:
    """Print what a finished study asks of people and can show, and what comes next."""
    from rich.console import Console

    from ..rate import outlook

    about = ledger.read_json(artifact.path / "study.json")
    console = Console(highlight=False)
    for sentence in outlook.sentences(about["languages"]):
        console.print(sentence, markup=False, soft_wrap=True)
    lang = next(iter(about["languages"]))
    console.print(
        f"\nNext: onggi rate invite {artifact.path} --language {lang}; onggi rate serve {artifact.path}",
        markup=False,
        soft_wrap=True,
    )


def dry_run(config: RateConfig) -> str:
    """What the study would ask of people and could show, if no two models answered the same."""
    from ..rate import outlook

    return "\n".join(outlook.sentences(looked_at(config)))


def looked_at(config: RateConfig) -> dict[str, Any]:
    """The same as data, by language."""
    from ..rate import answers, outlook
    from ..rate.design import checks_of

    line = _line(config)
    if config.prompts:
        counts: dict[str, int] = {}
        for prompt in _prompts(config):
            counts[prompt.lang] = counts.get(prompt.lang, 0) + 1
    else:
        by_model = {r.name: answers.read(file, r.name) for r, file in line if file is not None}
        items, _ = answers.together(by_model, config.languages, config.limit)
        counts = {lang: len(own) for lang, own in items.items()}
    others = len(line) - 1
    couples = others if config.against == "reference" else others * (others + 1) // 2
    pairs = {lang: couples * n for lang, n in counts.items()}
    bare = {lang: -(-n * config.overlap // config.raters) for lang, n in pairs.items()}
    checks = {lang: checks_of(n, config.attention) for lang, n in bare.items()}
    each = {lang: bare[lang] + checks[lang] for lang in bare}
    return outlook.outlook(counts, pairs, config.raters, each, checks)


def plan(config: RateConfig) -> Plan:
    """About the tokens and memory of the answers that are to be made."""
    from ..models import references

    todo = [r for r, file in _line(config) if file is None]
    tokens = len(todo) * config.max_tokens * sum(len(prompt.turns) for prompt in _prompts(config))
    sizes = [references.size(r.source) for r in todo]
    known = [size.bytes for size in sizes if size]
    return Plan(tokens, 500_000_000 + 2 * max(known, default=0) if known or not todo else None, 1 << 20)


STAGE = Stage(
    "rate",
    RateConfig,
    rate,
    inputs,
    plan,
    {"models": "+"},
    _REVISION,
    show,
    dry_run,
    looked_at,
)
# On the command line it is one of the verbs of `onggi rate`; in a recipe it is `rate` itself.
PLAN = replace(STAGE, verb="rate plan")

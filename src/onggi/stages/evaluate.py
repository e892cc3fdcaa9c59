"""`onggi evaluate`: reference and variants on the same passages, in every language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import fanout, ledger
from ..errors import OnggiError
from ..languages import Languages
from ..ledger import Artifact
from ..progress import say
from .base import Names, Plan, Stage, command, options

if TYPE_CHECKING:  # jsonargparse runs this block for --help: nothing here may import torch
    from ..engines.spending import Options
    from ..evaluate.evaluation import Evaluation
    from ..models.references import Reference
    from ..text import Text
    from ..text.prompts import Prompt

_REVISION = 5
# Options of servers, as the engine names them; and the options that change how a run goes and not what comes of it.
_SERVER = ("concurrency", "requests_per_minute", "timeout", "input_price", "output_price", "budget")
_UNSEEN = ("concurrency", "requests_per_minute", "timeout", "budget", "failures", "on")


@dataclass(frozen=True)
class EvaluateConfig:
    """Score models in every language: on a text, on tasks, on answers to prompts, each against a reference.

    Writes DIR/scores.json (every measure with its interval and verdict) and DIR/items.parquet (one
    row per model, language, item and measure); with --prompts DIR/answers.jsonl too, with --tasks the
    results in lm-eval's own files, DIR/results_MODEL.json and DIR/samples_MODEL_TASK.jsonl. Scores are
    computed in fp32. A model behind a server (http://HOST:PORT/v1#NAME) answers prompts and tasks of ours; a
    text is not scored by it.
    """

    models: list[str]
    """Models to score, each MODEL or NAME=MODEL; NAME is its key in the results."""
    reference: str | None = None
    """What they are measured against: a NAME from the line, or a MODEL; default: the first of the line."""
    text: str | None = None
    """Text to score: a source as `onggi text` takes. Default: the shipped probe, everyday passages
    with the same content in 12 languages over 10 scripts; with --tasks or --prompts, none."""
    tasks: Names | None = None
    """Tasks to ask, as capitals,number_words. The switch --list-tasks prints them. Those made from parallel
    text take --text, else the probe. Also any task of lm-eval by name, as kobest_copa, or by its YAML
    file, and the groups korean and multilingual (pip install 'onggi[tasks]')."""
    shots: int | None = None
    """Solved items before each item of a task; of ours at most 5. Default: none, for a task of lm-eval
    as many as it asks for."""
    prompts: str | None = None
    """Prompts to answer: a JSONL file, {"_id", "prompt", "messages" or "turns", "lang", "answer"?}, or a set
    that ships, `everyday` or `questions`: was the answer in the language asked for, do other scripts leak into
    it, does it loop, is it right."""
    max_tokens: int = 256
    """Longest answer to a prompt, in tokens."""
    judge: str | None = None
    """A model, [NAME=]MODEL, whose opinion of the answers to --prompts is asked; a strong one."""
    judging: Literal["grade", "compare", "both"] = "grade"
    """What the judge is asked: a grade from 1 to 10 for each answer, or which of two models' answers is
    better, in both orders, for every pair of models (ratings by Bradley and Terry), or both."""
    cost: bool = False
    """Measure disk, memory and tokens a second of every model that is here, one by one: a quarter of a minute
    or so each, on cores that do nothing else."""
    choices: Literal["auto", "scored", "written"] = "auto"
    """How a model picks a choice of a task: the likeliest continuation, or the letter that it writes. Default:
    scored; written where a model of the line is behind a server, which tells no likelihoods."""
    concurrency: int = 8
    """Of models behind servers: requests in flight at a time."""
    requests_per_minute: float | None = None
    """Of models behind servers: most requests a minute; default: no limit of ours."""
    timeout: float = 300.0
    """Of models behind servers: seconds that a request may take."""
    fresh: bool = False
    """Of models behind servers: ask again what an earlier run has kept the answer to, by address and name; for
    where another model stands there now."""
    failures: Literal["stop", "leave_out"] = "stop"
    """What becomes of requests that failed for good, all retries over: end the run, which goes on from there, or
    leave those items and answers out, for all models alike."""
    input_price: float | None = None
    """Of models behind servers: price of a million input tokens, in any currency."""
    output_price: float | None = None
    """Of models behind servers: price of a million output tokens."""
    budget: float | None = None
    """Of models behind servers: a model that may cost more is refused before a part (tasks, prompts, judge) is
    sent that may bring it over."""
    languages: Languages | None = None
    """Languages to score, as en,ko,km; default: all that the text has, for tasks those of the probe."""
    limit: int | None = None
    """At most so many passages, items of a task, and prompts, per language; default: all."""
    on: Literal["ray"] | None = None
    """Where models × tasks × languages are worked on, many at the same time: `ray`, the cluster at RAY_ADDRESS,
    else one of this machine's cores (pip install 'onggi[ray]'). Default: here, one after another."""
    margin: float = 0.01
    """A relative change of nll_per_passage smaller than this does not matter, nor one of a task's accuracy
    by so much (0.01 is one point): the verdict is then `equivalent within 1%`."""

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises OnggiError naming the option and the mend."""
        if not self.models:
            raise OnggiError("models: name at least one.")
        if not 0 < self.margin < 1:
            raise OnggiError(f"margin: {self.margin} is not a share between 0 and 1 (0.01 is 1%).")
        if self.limit is not None and self.limit < 1:
            raise OnggiError(f"limit: {self.limit} is not a number of passages.")
        if self.shots is not None and self.shots < 0:
            raise OnggiError(f"shots: {self.shots} is not a number of solved items.")
        if self.max_tokens < 1:
            raise OnggiError(f"max_tokens: {self.max_tokens} is not a number of tokens.")
        if self.judge and not self.prompts:
            raise OnggiError(
                "judge: has nothing to judge; name what is to be answered, as --prompts questions."
            )
        fanout.check(self.on)
        _ = self.server

    @property
    def server(self) -> Options:
        """How models behind servers are treated."""
        from ..engines.spending import Options

        return Options(**{name: getattr(self, name) for name in _SERVER}, cache=not self.fresh)

    @property
    def scored_text(self) -> str | None:
        """The text whose passages are scored, None where only tasks or prompts are asked."""
        return self.text or (None if self.tasks or self.prompts else "probe")


def _references(config: EvaluateConfig) -> tuple[list[Reference], str]:
    """The models of the line, the reference first, and its name."""
    from ..models import references

    line = references.parse_all(config.models)
    if config.reference is None:
        return line, line[0].name
    for reference in line:
        if reference.name == config.reference:
            return [reference, *(r for r in line if r is not reference)], reference.name
    given = references.parse(config.reference)
    # The same model under another name on the line is still one model.
    for reference in line:
        if reference.source == given.source:
            return [reference, *(r for r in line if r is not reference)], reference.name
    line = [given, *line]
    names = [r.name for r in line]
    if names.count(given.name) > 1:
        raise OnggiError(
            f"reference: {given.name!r} is also the name of another model on the line; "
            f"name one apart, as in --reference base={given.source}."
        )
    return line, given.name


def inputs(config: EvaluateConfig) -> dict[str, Any]:
    """Fingerprints of the text and of each model by its name."""
    from .. import text
    from ..engines import opening
    from ..evaluate.parts import tasks
    from ..models import references
    from ..text import prompts

    line, name = _references(config)
    found: dict[str, Any] = {
        "models": {r.name: references.fingerprint(r.source) for r in line},
        "reference": name,
        "text": text.fingerprint(config.text or "probe", None if config.tasks else config.languages),
        "prompts": ledger.sha256(prompts.file(config.prompts)) if config.prompts else None,
    }
    # What is kept of an unfinished run goes by a model's place on the line.
    found |= {"order": [r.name for r in line], "scored": config.scored_text}
    asked = list(line)
    if config.judge:
        from ..evaluate import judge

        by = references.parse(config.judge)
        found["judge"] = [by.name, references.fingerprint(by.source), judge.fingerprint()]
        asked.append(by)
    found["engines"] = {r.source: opening.versions(r.source) for r in asked if references.is_gguf(r.source)}
    found |= dict.fromkeys(_UNSEEN)
    if theirs := tasks.split(config.tasks or ())[1]:
        tasks.known(theirs)
        found["lm-eval"] = tasks.harness().fingerprint(theirs)
    return found


def evaluate(config: EvaluateConfig, out: Path) -> Artifact:
    """Score the models and write `out`; see `EvaluateConfig`.

    Raises OnggiError for two models of one name, a text or model that is not sound, a margin that
    is not a share.

    >>> import json
    >>> from pathlib import Path
    >>> from onggi.languages import Languages
    >>> from onggi.stages import EvaluateConfig, evaluate
    >>> config = EvaluateConfig(["w4"], "model", languages=Languages("en,ko,km"), limit=4)
    >>> made = evaluate(config, Path("scores"))
    >>> scores = json.loads((made.path / "scores.json").read_text(encoding="utf-8"))
    >>> khmer = scores["models"]["w4"]["languages"]["km"]
    >>> 0 <= khmer["kl"]["low"] <= khmer["kl"]["value"] <= khmer["kl"]["high"]
    True
    >>> scores["models"]["w4"]["worst"]["kl"] in ("en", "ko", "km")
    True
    """
    job = ledger.begin(out, "evaluate", options(config), inputs(config), _REVISION)
    if job.done:
        return job.done
    from transformers.utils import logging as transformers_logging

    from ..engines import opening

    transformers_logging.disable_progress_bar()
    with job:
        try:
            return _evaluate(config, job)
        finally:
            opening.close()
            fanout.stop()


def _evaluate(config: EvaluateConfig, job: ledger.Job) -> Artifact:
    from .. import text
    from ..evaluate import judge as judging
    from ..evaluate import results
    from ..evaluate.evaluation import Evaluation
    from ..evaluate.parts import answers, costs, judge, passages, tasks
    from ..models import references

    line, reference = _references(config)
    ours, theirs = tasks.split(config.tasks or ())
    served = [r.name for r in line if references.served(r.source)]
    scored = config.scored_text
    if reference in served and (scored or theirs):
        raise OnggiError(
            f"reference: {reference} is behind a server, which gives no log-likelihoods of a given text; "
            "name a model that is here as --reference, or ask tasks of ours and --prompts only."
        )
    if served and (scored or theirs):
        say(f"{', '.join(served)}: behind a server, so not scored on texts and tasks of lm-eval.")
    form: tasks.Form = "written" if config.choices == "written" or served else "scored"
    if served and config.choices == "scored":
        raise OnggiError(
            f"choices: {served[0]} is behind a server, which does not tell how likely a choice is; "
            "leave --choices out, and every model writes its choice."
        )
    results.check([r.name for r in line])
    if config.judge and config.judging != "grade":
        judging.check([r.name for r in line])
    # What is asked is all known before a model is loaded. Translation needs its English, whichever
    # languages are scored.
    shots = config.shots or 0
    whole = text.load(config.text or "probe") if ours else None
    asked = tasks.items(ours, whole, config.languages, shots, config.limit) if whole else {}
    harnessed = []
    if theirs:
        harnessed = tasks.harness().prepare(theirs, config.languages, config.shots, config.limit)
    prompts = _prompts(config)
    # English, should it not be asked for: others' tokens are set against it.
    found = text.load(scored, None if scored == "probe" else config.languages) if scored else None

    evaluation = Evaluation(job, line, reference, config.margin, config.server, config.failures, config.on)
    if found:
        passages.add(evaluation, found, config.languages, config.limit)
    sheets: results.Sheets = {model.name: ([], {}) for model in evaluation.models}
    if asked:
        tasks.add(evaluation, asked, shots, config.text or "probe", form, config.max_tokens, sheets)
    if harnessed:
        from ..evaluate.parts import harness

        harness.add(evaluation, harnessed, config.limit, sheets)
    for model in evaluation.models if config.tasks else ():
        made, samples = sheets[model.name]
        evaluation.outputs += results.write(job.work, model.name, model.source, made, samples, config.limit)
    if prompts:
        answered = answers.add(evaluation, prompts, config.prompts or "", config.max_tokens)
        grades: dict[tuple[str, str, str], float] = {}
        if config.judge:
            by = references.parse(config.judge)
            grades = judge.add(evaluation, by, prompts, answered, config.judging)
        answers.write(evaluation, prompts, answered, grades)
    costs.add_servers(evaluation)
    _costs(config, evaluation, found or whole or text.load("probe"))
    return job.finish(
        evaluation.write(),
        command=command(STAGE, config, job.out),
        before=_commands([config.text or "probe", *(r.source for r in line)]),
    )


def _costs(config: EvaluateConfig, evaluation: Evaluation, found: Text) -> None:
    """What tokenizers make of the scored text, else of the shipped probe, and what the machine needs."""
    from ..evaluate.parts import costs

    languages = evaluation.languages(found)
    if languages is None:
        say(f"{found.name} is in none of the languages that were measured, so no tokens are counted on it.")
    else:
        wanted = list(dict.fromkeys((*languages, "en") if "en" in found.languages else languages))
        passages = {
            tag: list(own.values()) for tag, own in found.common(Languages(wanted), config.limit).items()
        }
        costs.add_tokenizers(evaluation, passages, languages, found.name, found.parallel)
    if config.cost:
        costs.add_machine(
            evaluation, [p for own in found.common(found.languages, 4).values() for p in own.values()]
        )


def _prompts(config: EvaluateConfig) -> dict[str, list[Prompt]]:
    """Language → prompts."""
    from ..text import prompts

    found: dict[str, list[Prompt]] = {}
    if config.prompts:
        for prompt in prompts.load(config.prompts, config.languages):
            found.setdefault(prompt.lang, []).append(prompt)
    return {language: prompts.spread(own)[: config.limit] for language, own in found.items()}


def _commands(sources: Sequence[str]) -> list[str]:
    """The commands that made what `sources` name, as far as onggi made it; what comes first, first."""
    found: dict[str, None] = {}
    for source in sources:
        made = ledger.artifact(Path(source)) if Path(source).is_dir() else None
        if made and "command" in made.record:
            given = (made.record["options"].get(key) for key in ("text", "model", "init"))
            before = _commands([source for source in given if isinstance(source, str)])
            found |= dict.fromkeys([*before, made.record["command"]])
    return list(found)


def list_tasks() -> str:
    """The tasks that there are, one a line, with their metric and languages."""
    from ..evaluate.tasks import TASKS

    lines = []
    for name, task in TASKS.items():
        where = "those of the text" if task.parallel else f"{len(task.languages())} languages"
        lines.append(f"{name:16} {task.metric:16} {where:18} {task.about}")
    return "\n".join(lines)


def plan(config: EvaluateConfig) -> Plan:
    """About the tokens and memory, where text and reference are at hand."""
    from .. import text
    from ..models import references

    line, _ = _references(config)
    size = references.size(line[0].source)
    if config.scored_text is None or config.scored_text.startswith("debian:"):
        return Plan()
    found = text.load(config.scored_text, config.languages)
    passages = found.common(config.languages or Languages(found.languages), config.limit)
    characters = sum(len(content) for texts in passages.values() for content in texts.values())
    tokens = characters // 3  # between English's four characters a token and Chinese's one and a half
    if size is None:
        return Plan(tokens=tokens * len(line))
    # fp32 weights of one model, another head to compare with, the states of one language.
    memory = 500_000_000 + 2 * size.bytes + 4 * size.hidden * size.vocabulary
    return Plan(tokens * len(line), memory, tokens * len(line) * size.hidden * 4)


STAGE = Stage("evaluate", EvaluateConfig, evaluate, inputs, plan, {"models": "+"}, _REVISION)

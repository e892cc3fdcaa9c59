"""What `onggi finetune` trains on: dialogues that were checked, the model and template that take them, text to go over."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import languages as tags
from .. import ledger
from ..errors import OnggiError
from ..languages import Languages
from ..progress import say
from .answers import ANSWERS, PAIRS
from .base import no_probe

if TYPE_CHECKING:
    from ..text.chat import Standard, Taught, Template
    from ..text.dialogues import Dialogue
    from ..text.tokens import Tokens
    from .finetune import FinetuneConfig

CLDR = "cldr"
NO_PROBE = no_probe("training").replace("--text", "--replay-text")
# Places of a sequence where nothing is said: as few as hold every dialogue, from the first to the last of these.
SHORT, LONG = 512, 2048
# One passage of the replay text in so many is kept to measure forgetting on.
_ONE_IN = 8


@dataclass(frozen=True)
class Data:
    """Dialogues to train on and those held out; what was said of the rest, and where it all is from."""

    train: list[Dialogue]
    held_out: list[Dialogue]
    faults: list[Any]
    licence: str | None

    @property
    def languages(self) -> tuple[str, ...]:
        """In their order."""
        return tuple(dict.fromkeys(dialogue.lang for dialogue in self.train))


def fingerprint(source: str, objective: str) -> str:
    """Of one source of --data."""
    from ..evaluate.tasks import dialogues as facts
    from ..text import dialogues

    if source.split(":")[0] == CLDR:
        return facts.fingerprint()
    return dialogues.fingerprint(_rows_of(source, objective))


def _rows_of(source: str, objective: str) -> str:
    """Where the rows of a source are: in a folder of `onggi answers` its answers, or its pairs for preferences."""
    folder = Path(source)
    made = ledger.artifact(folder) if folder.is_dir() else None
    if made is None or made.record["verb"] != "answers":
        return source
    file = folder / (ANSWERS if objective == "sft" else PAIRS)
    if not file.is_file():
        raise OnggiError(
            f"data: {source}: has no pairs, which --objective {objective} learns from; `onggi answers --samples 4` makes some."
        )
    return str(file)


def _rows(config: FinetuneConfig) -> Iterator[tuple[str, Mapping[str, Any]]]:
    from ..evaluate.tasks import dialogues as facts
    from ..text import dialogues

    for source in config.data:
        name, _, count = source.partition(":")
        if name == CLDR:
            if count and not count.isdecimal():
                raise OnggiError(f"data: {source}: is cldr, or cldr:ROWS as in cldr:60.")
            yield from facts.rows(config.languages, int(count or facts.ROWS), config.seed)
        else:
            yield from dialogues.records(_rows_of(source, config.objective))


def read(config: FinetuneConfig) -> Data:
    """The dialogues of --data, checked and shared out. Raises OnggiError where none is sound, with --strict where one is
    not.
    """
    from ..text import dialogues

    rows = list(_rows(config))
    leaks = dialogues.Leaks(*_exams(config))
    found = dialogues.read(rows, config.languages, leaks)
    wanted = config.objective != "sft"
    kept, faults = [], list(found.faults)
    for dialogue in found.dialogues:
        if wanted and not dialogue.is_preference:
            faults.append(
                dialogues.Fault(
                    dialogue.place,
                    "shape",
                    f"has no chosen and rejected, which --objective {config.objective} learns from",
                )
            )
        elif dialogue.is_preference and not wanted:  # what was chosen is an answer
            kept.append(
                replace(dialogue, messages=(*dialogue.messages, *dialogue.chosen), chosen=(), rejected=())
            )
        else:
            kept.append(dialogue)
    if faults:
        said = dialogues.said_of(faults, len(rows))
        if config.strict or not kept:
            raise OnggiError(f"data: {said}" + ("" if kept else "\nNothing is left to train on."))
        say(said)
    lacking = [tag for tag in config.languages or () if tag not in {dialogue.lang for dialogue in kept}]
    if not kept or lacking:
        has = ", ".join(dict.fromkeys(d.lang for d in found.dialogues)) or "none"
        raise OnggiError(
            f"data: {', '.join(config.data)}: no dialogues in {', '.join(lacking or config.languages or ())}; languages that "
            f"there are: {has}."
        )
    train, held_out = dialogues.hold_out(kept, config.held_out)
    return Data(train, held_out, faults, found.licence)


def _exams(config: FinetuneConfig) -> tuple[dict[str, dict[str, list[str]]], Sequence[str]]:
    """The evaluation sets that dialogues are held against, and their languages."""
    from .. import text
    from ..text import prompts

    probe = text.load("probe")
    exams = {"probe": {tag: list(probe.passages(tag).values()) for tag in probe.languages}}
    for name in prompts.SHIPPED:
        own: dict[str, list[str]] = {}
        for prompt in prompts.load(name):
            own.setdefault(prompt.lang, []).extend([*prompt.turns, *(r for r in prompt.references if r)])
        exams[name] = own
    languages = dict.fromkeys([*probe.languages, *(config.languages or ())])
    return exams, tuple(languages)


# ── the model and its template ─────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Start:
    """The model to begin with. folder: to load. template: what dialogues are rendered with. standard: the one that it
    was given, where it had none. trained: ids of the tokens of it that the model has not learnt. new: those of them that
    its vocabulary lacked.
    """

    folder: Path
    tokens: Tokens
    template: Template
    standard: Standard | None
    trained: tuple[int, ...]
    new: tuple[int, ...] = ()


def start(model: Path) -> Start:
    """The model in `model` with its template, or with the standard one for it, which `written` then saves."""
    from ..text import chat
    from ..text.tokens import Tokens

    tokens = Tokens(model)
    if own := chat.template(model, tokens):
        return Start(model, tokens, own, None, ())
    standard = chat.standard(tokens)
    new = [token for token in standard.tokens if tokens.tokenizer.token_to_id(token) is None]
    if new:
        from tokenizers import AddedToken

        tokens.tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in new])
    ids: dict[str, int] = {token: tokens.tokenizer.token_to_id(token) or 0 for token in standard.tokens}
    added = tuple(ids[token] for token in new)
    made = chat.given(standard, model, tokens)
    return Start(model, tokens, made, standard, tuple(ids.values()), added)


def written(made: Start, folder: Path) -> Start:
    """The same, with its template in the files: a copy in `folder` where it was given one. Weights are linked where they
    stay as they are, and have new rows where the vocabulary had no tokens for turns.
    """
    from ..models import checkpoint as checkpoints
    from ..models import references, widening
    from ..text import chat

    if made.standard is None:
        return made
    model = made.folder
    if not (folder / "complete").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        source = checkpoints.Checkpoint(model)
        config = {key: value for key, value in source.config.items() if key != "torch_dtype"}
        for file in checkpoints.companions(model):
            shutil.copyfile(file, folder / file.name)
        if made.new:
            # They begin as the token that stands before a document.
            begin = [[made.tokens.prefix]] * len(made.new)
            rows = widening.widen(source, begin, made.new[0], folder / checkpoints.SINGLE)
            config = widening.with_vocabulary(config, rows)
            made.tokens.tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
        else:
            for file in sorted({entry.file for entry in source.entries.values()}):
                (folder / file.name).symlink_to(file.resolve())
            if (model / checkpoints.INDEX).is_file():
                shutil.copyfile(model / checkpoints.INDEX, folder / checkpoints.INDEX)
        (folder / chat.FILE).write_text(made.standard.source, encoding="utf-8")
        _end_turns(folder, made, config)
        for name in (references.ABOUT, "README.md"):
            if (model / name).is_file():
                shutil.copyfile(model / name, folder / name)
        with ledger.writing(folder / "complete") as aside:
            aside.write_text("")
    return replace(made, folder=folder)


def ends(made: Start) -> frozenset[int]:
    """Ids of the tokens at which generation stops: by the configs, and those that end a turn."""
    from ..models.checkpoint import read_config
    from ..text.chat import TURN_ENDS

    place = made.folder / "generation_config.json"
    found: set[int] = set()
    for config in (read_config(made.folder), ledger.read_json(place) if place.is_file() else {}):
        for part in (config, config.get("text_config") or {}):
            given = part.get("eos_token_id")
            found.update(given if isinstance(given, list) else [] if given is None else [given])
    known = (made.tokens.tokenizer.token_to_id(token) for token in TURN_ENDS)
    return frozenset(found | {token for token in known if token is not None})


def _end_turns(folder: Path, made: Start, config: dict[str, Any]) -> None:
    """Write the configs with the template's end of a turn among the tokens that end an answer, for all that generate with them."""
    place = folder / "generation_config.json"
    generation = ledger.read_json(place) if place.is_file() else {}
    given = generation.get("eos_token_id", config.get("eos_token_id"))
    old = given if isinstance(given, list) else [] if given is None else [given]
    generation["eos_token_id"] = list(dict.fromkeys([*old, made.trained[1]]))
    ledger.write_json(place, generation)
    ledger.write_json(folder / "config.json", config)


def taught(
    dialogues: Sequence[Dialogue], made: Start, ends: Any, turns: Any
) -> Iterator[tuple[Dialogue, Taught]]:
    """Each dialogue with its tokens. Raises OnggiError, naming the row, where the template does not take it."""
    for dialogue in dialogues:
        try:
            yield dialogue, made.template.teach(dialogue.messages, ends, turns, dialogue.tools)
        except OnggiError as error:
            raise OnggiError(f"{dialogue.place}: {error}") from error


def length(wanted: int | None, sizes: Sequence[int], window: int | None) -> int:
    """Places of a sequence: what is wanted, else as many as hold the longest dialogue within bounds."""
    if wanted:
        if window and wanted > window:
            raise OnggiError(f"length: {wanted} exceeds the window of the model, {window}.")
        return wanted
    longest = max(sizes, default=SHORT)
    found = min(max(SHORT, -(-longest // 64) * 64), LONG)
    return min(found, window) if window else found


def fitting(found: Sequence[tuple[Dialogue, Taught]], length: int) -> dict[str, list[Taught]]:
    """Language → what is taught, without the dialogues that are longer than a sequence, which are named."""
    kept: dict[str, list[Taught]] = {}
    long: dict[str, list[Dialogue]] = {}
    for dialogue, made in found:
        if len(made.ids) > length:
            long.setdefault(dialogue.lang, []).append(dialogue)
        else:
            kept.setdefault(dialogue.lang, []).append(made)
    for language, own in long.items():
        say(
            f"Left out in {tags.name(language)}: {len(own)} dialogues longer than {length} tokens "
            f"({', '.join(d.place for d in own[:3])}{' …' if len(own) > 3 else ''}); --length takes longer ones."
        )
        if language not in kept:
            raise OnggiError(
                f"length: every dialogue in {tags.name(language)} is longer than {length} tokens."
            )
    return kept


# ── text to go over ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Replay:
    """Text to go over and to measure what is forgotten on; language → texts, of each."""

    over: dict[str, list[str]]
    kept: dict[str, list[str]]
    licence: str | None


def replay(config: FinetuneConfig) -> Replay:
    """The replay text. Raises OnggiError where it lacks a language."""
    from .. import text
    from ..text.draw import hold_out

    found = text.load(config.replay_text)
    if found.name == "probe":
        raise OnggiError(NO_PROBE)
    lacking = [language for language in config.limits if language not in found.languages]
    if lacking:
        raise OnggiError(
            f"guard: {config.replay_text} has no text in {', '.join(lacking)} to measure on; it has "
            f"{', '.join(found.languages)} (--replay-text names another)."
        )
    wanted = Languages(config.replay_languages or found.languages)
    missing = [language for language in wanted if language not in found.languages]
    if missing:
        raise OnggiError(f"replay_languages: {config.replay_text} has no text in {', '.join(missing)}.")
    measured = dict.fromkeys([*wanted, *config.limits])
    over, kept = hold_out({tag: found.passages(tag) for tag in measured}, _ONE_IN)
    return Replay(
        {tag: list(own.values()) for tag, own in over.items() if tag in wanted},
        {tag: list(own.values()) for tag, own in kept.items()},
        found.licence,
    )


# ── the preview ────────────────────────────────────────────────────────────────────────────────


def pieces(tokens: Tokens, ids: Sequence[int], learnt: Sequence[bool]) -> Iterator[tuple[str, bool]]:
    """Each token as text, with whether it carries loss; of a character that takes several tokens the text comes with the
    last.
    """
    from ..text.tokens import Stream

    special = {i for i, token in tokens.tokenizer.get_added_tokens_decoder().items() if token.special}
    stream = Stream(tokens)
    for token, counts in zip(ids, learnt, strict=True):
        if token in special:
            yield str(tokens.tokenizer.id_to_token(token)), counts
            stream = Stream(tokens)
        elif piece := stream.push(token):
            yield piece, counts


def preview(config: FinetuneConfig, count: int = 3) -> None:
    """Print the first dialogues of each language with the tokens that carry loss in colour; trains nothing."""
    from rich.console import Console
    from rich.text import Text

    from ..models import references

    data = read(config)
    console = Console(highlight=False)
    made = start(references.resolve(config.model))
    shown: dict[str, int] = {}
    total = learnt = 0
    for dialogue, own in taught(data.train, made, ends(made), config.turns):
        total, learnt = total + len(own.ids), learnt + sum(own.learnt)
        shown[dialogue.lang] = shown.get(dialogue.lang, 0) + 1
        if shown[dialogue.lang] > count:
            continue
        found = list(pieces(made.tokens, own.ids, own.learnt))
        line = Text(f"\n{dialogue.place}, {tags.name(dialogue.lang)}\n", style="bold")
        for i, (piece, counts) in enumerate(found):
            line.append(
                piece, style=("black on green", "black on bright_green")[i % 2] if counts else "not bold dim"
            )
        console.print(line)
        # In words too, for who sees no colour.
        said = json.dumps("".join(piece for piece, counts in found if counts), ensure_ascii=False)
        console.print(f"loss on {sum(own.learnt)} of {len(own.ids)} tokens: {said}", markup=False)
    console.print(
        f"\n{len(data.train)} dialogues to train on, {len(data.held_out)} held out; {total:,} tokens, {learnt:,} of "
        "them carry loss."
    )
    if made.standard:
        console.print(f"The model has no chat template; it is given {made.standard.name}'s.")

"""The calibration text of `onggi quantize`: read or written by the model, drawn, and held out where minimax asks."""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import languages as tags
from .. import ledger
from ..errors import OnggiError
from ..languages import Languages
from ..progress import progress, release_memory, say
from .base import no_probe

if TYPE_CHECKING:
    from ..quantize.balance import Calibration
    from .quantize import QuantizeConfig

NO_PROBE = no_probe("calibration")
# Of the passages one in so many is held out for minimax, and tokens of each language are drawn from these.
# With a budget alone fewer: hundreds of trials each pass all of them.
HELD_OUT, WATCHED, PARTS_WATCHED = 8, 512, 192
# The same where just the tuning of --effort best measures on them; tokens of a sequence that it tunes on.
TUNED, TUNED_LENGTH = 128, 256
# With minimax a language may get so many times its equal share of the tokens; beyond that each weighs more.
_SPARE = 4
# What the model wrote, kept or not and why, among the files of the artifact.
WRITTEN = "calibration.jsonl"


@dataclass(frozen=True)
class Drawn:
    """drawn: for calibration; held_out: of the same text, where damage is measured; about: what they are from;
    files: to go with the artifact. tuning: the same text as drawn, in shorter sequences, on which scales
    are tuned. shared: shares of the languages → the calibration in which they have these; for minimax.
    """

    drawn: Calibration | None
    held_out: Calibration | None
    about: dict[str, Any]
    files: tuple[str, ...] = ()
    tuning: Calibration | None = None
    shared: Callable[[Mapping[str, float]], Calibration] | None = None

    def noted(self, balance: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """What is kept of it in onggi.json; balance: of minimax, whose shares say how much there is of each language."""
        if self.drawn is None:
            return None
        of = balance or {"tokens": self.drawn.counts, "short": self.drawn.short}
        return {**self.about, "tokens": of["tokens"], "short": of["short"]}


NONE = Drawn(None, None, {})
# Options that say how to calibrate: nothing looks at them where rounding takes no text.
_CALIBRATION = ("text", "self_share", "languages", "tokens", "share", "damping", "precision", "seed")


def say_unused(config: QuantizeConfig) -> None:
    """Say which options of calibration were given to what rounds without it."""
    defaults = {field.name: field.default for field in fields(config)}
    given = [f"--{name}" for name in _CALIBRATION if getattr(config, name) != defaults[name]]
    if given:
        said, mend = f"rtn rounds {config.scheme}", " To calibrate, use --method gptq."
        if config.scheme in ("nf4", "int8"):
            said, mend = f"bitsandbytes rounds {config.scheme}", ""
        elif config.format.startswith("gguf"):
            said = f"{config.format} is made"
            mend = mend if config.method == "rtn" else ""
        say(f"{', '.join(given)}: not used, since {said} without any text.{mend}")


def divided(config: QuantizeConfig) -> tuple[Languages | None, list[str]]:
    """The languages asked for that are read, and those of them that the model writes alone, because the text has none."""
    from .. import text

    if not config.languages or not config.written or config.text == "self":
        return config.languages, []
    there = text.available(config.text)
    own = [language for language in config.languages if language in there]
    if not own:  # the text's own error says what there is
        return config.languages, []
    return Languages(own), [language for language in config.languages if language not in there]


def calibration(config: QuantizeConfig, folder: Path, job: ledger.Job) -> Drawn:
    """Tokenizer, text and writing model do not outlive this: for a small model with a large vocabulary they
    are most of the memory. Raises OnggiError for text that does not serve.
    """
    from .. import text
    from ..quantize import balance
    from ..text import draw
    from ..text.tokens import Tokens

    of_text, alone = divided(config)
    try:
        found = text.load("starts" if config.text == "self" else config.text, of_text)
    except OnggiError as error:
        if config.text != type(config).text:
            raise
        raise OnggiError(
            f"text: {error} It is the default: name text of your own (--text), or have the model write it (--text self)."
        ) from error
    if found.name == "probe":  # a folder that `onggi text` made of it
        raise OnggiError(NO_PROBE)
    languages = config.languages or Languages(found.languages)
    if config.text == "self":
        alone = list(languages)
    minimax = config.fairness == "minimax"
    if minimax and len(languages) < 2:
        raise OnggiError("fairness: minimax weighs languages against each other; give it two or more.")
    if config.damage == "kl_per_passage" and not (found.parallel and not alone):
        raise OnggiError(
            f"damage: kl_per_passage compares the same text in each language, and {config.text} is not parallel; "
            "use --damage kl or relative."
        )
    tokens = Tokens(folder)
    written: Any = _written(config, folder, job, languages, tokens, alone) if config.written else {}
    passages: Any = {
        language: written.pop(language) if language in alone else found.passages(language)
        for language in languages
        if language not in alone or language in written
    }
    if minimax and len(passages) < 2:
        raise OnggiError(
            "fairness: minimax weighs languages against each other; the model wrote in no other than "
            f"{tags.name(next(iter(passages)))}."
        )
    held_out = tuning = None
    if config.holds_out:
        passages, apart = _hold_out(passages, alone, _own(config, len(languages), alone=True)[1])
        held_out = balance.draw(
            apart,
            tokens.encode,
            tokens.prefix,
            _watched(config) * len(apart),
            balanced=True,
            share="content" if config.damage == "kl_per_passage" else "tokens",
            seed=config.seed,
        )

    def draw_for(length: int, spare: int = 1) -> Calibration:
        return balance.draw(
            passages,
            tokens.encode,
            tokens.prefix,
            config.calibration_tokens,
            balanced=config.fairness != "none",
            share=config.share,
            seed=config.seed,
            length=length,
            beside=written,
            beside_share=config.written if written else 0.0,
            spare=spare,
        )

    # What the model wrote is just enough, and `content` is the same passages in each: there weights alone follow
    # the shares.
    if minimax and config.share == "tokens" and not config.written:
        pool = draw_for(draw.LENGTH, _SPARE)
        shared: Any = functools.partial(pool.portion, tokens=config.calibration_tokens)
        drawn = shared(dict.fromkeys(pool.names, 1.0))
    else:
        drawn = draw_for(draw.LENGTH)
        shared = drawn.weighted
    if config.tunes:
        tuning = draw_for(TUNED_LENGTH)
    said = ", ".join(f"{tags.name(tag)} {count:,}" for tag, count in drawn.counts.items())
    name = "the model itself" if config.text == "self" else found.name
    name += f", {config.written:.0%} written by the model" if written else ""
    if config.text != "self" and (there := [tags.name(tag) for tag in alone if tag in passages]):
        name += f", all of {', '.join(there)} written by the model"
    say(f"Calibration tokens: {said} (from {name}).")
    if config.written and drawn.short:
        got = sum(drawn.counts.values())
        say(
            f"These are {got:,} of the {config.calibration_tokens:,} tokens asked for: the model wrote too little that serves. "
            "Text in the languages that lack it (--text) would make up for it."
        )
    about = {"text": name, "licence": None if config.text == "self" else found.licence}
    return Drawn(drawn, held_out, about, (WRITTEN,) if config.written else (), tuning, shared)


def _watched(config: QuantizeConfig) -> int:
    """Tokens of each language that are held out."""
    if config.fairness == "minimax":
        return WATCHED
    return PARTS_WATCHED if config.mixes else TUNED


def _hold_out(passages: Any, alone: Sequence[str], one_in: int) -> tuple[Any, Any]:
    """As `draw.hold_out`, one passage in `HELD_OUT`; of what the model alone wrote one in `one_in`."""
    from ..text import draw

    read = {tag: own for tag, own in passages.items() if tag not in alone}
    written = {tag: own for tag, own in passages.items() if tag in alone}
    (rest, apart), (rest_written, apart_written) = (
        draw.hold_out(read, HELD_OUT),
        draw.hold_out(written, one_in),
    )
    rest, apart = {**rest, **rest_written}, {**apart, **apart_written}
    return {tag: rest[tag] for tag in passages}, {tag: apart[tag] for tag in passages}


def _own(config: QuantizeConfig, languages: int, *, alone: bool) -> tuple[int, int]:
    """Tokens that the model writes in one of so many languages, and which of its passages are held out, one in so
    many; 0 for none. alone: whether the language has no other text. It writes little, so what is held out is a
    larger part of it.
    """
    each = int(config.calibration_tokens * (1.0 if alone else config.written)) // languages + 1
    if not (alone and config.holds_out):
        return each, 0
    each += each // HELD_OUT + _watched(config)
    return each, max(2, min(HELD_OUT, each // _watched(config)))


def _check_memory(folder: Path) -> None:
    """Raises OnggiError for a model that cannot write here: to write, it is whole in memory, in 32 bits."""
    from ..engines.transformers import default_device, memory_of
    from ..models.checkpoint import Checkpoint

    wanted = 4 * sum(math.prod(entry.shape) for entry in Checkpoint(folder).entries.values())
    there = memory_of(default_device())
    if wanted > there:
        raise OnggiError(
            f"text: to write its own calibration text the model is whole in memory, {wanted / 2**30:.0f} GiB, and there are "
            f"{there / 2**30:.0f}; give it text (--text) and leave --self_share out: then a layer at a time is."
        )


def _written(
    config: QuantizeConfig,
    folder: Path,
    job: ledger.Job,
    languages: Languages,
    tokens: Any,
    alone: Sequence[str],
) -> dict[str, dict[str, str]]:
    """language → id → text that the model wrote; without the languages that it does not write in."""
    from .. import text
    from ..engines.transformers import Engine
    from ..quantize import selfwritten

    ships = text.load("starts", None)
    lacking = [tag for tag in languages if tag not in ships.languages]
    if lacking:
        raise OnggiError(
            f"text: there are no starts in {', '.join(map(tags.name, lacking))} for the model to go on from; "
            f"there are in {', '.join(ships.languages)}. Name the languages (--languages), or give text and leave "
            "--self_share out."
        )
    _check_memory(folder)
    starts = {language: list(ships.passages(language).values()) for language in languages}
    own = {tag: _own(config, len(languages), alone=tag in alone) for tag in languages}
    wanted = {tag: each for tag, (each, _) in own.items()}
    # While it is at work in the partial folder, so that a killed run goes on; a file of the artifact at the end.
    file = job.partial / WRITTEN
    with progress(f"quantize {job.out.name}: the model writes", sum(wanted.values())) as bar:
        found = selfwritten.write(
            Engine(folder),
            starts,
            wanted,
            lambda written: len(tokens.encode(written)),
            file,
            config.seed,
            lambda count: bar.step(count, "its own text"),
        )
    release_memory()
    shutil.copyfile(file, job.work / WRITTEN)
    # Where some is held out there must be a rest.
    none = [tag for tag, texts in found.items() if len(texts) < (2 if own[tag][1] else 1)]
    if none:
        names = ", ".join(map(tags.name, none))
        say(f"The model does not stay in {names} when it writes: nothing of its own to calibrate them on.")
    found = {tag: texts for tag, texts in found.items() if tag not in none}
    if not found:
        raise OnggiError("text: the model wrote nothing that serves; give it text (--text).")
    return found

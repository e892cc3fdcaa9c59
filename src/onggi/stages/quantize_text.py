"""The calibration text of `onggi quantize`: read or written by the model, drawn, and held out where minimax asks."""

from __future__ import annotations

import shutil
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
TUNED, TUNED_LENGTH = 256, 256
# What the model wrote, kept or not and why, among the files of the artifact.
WRITTEN = "calibration.jsonl"


@dataclass(frozen=True)
class Drawn:
    """drawn: for calibration; held_out: of the same text, where damage is measured; about: what they are from;
    files: to go with the artifact. tuning: drawn anew from what is not held out, where scales are tuned.
    """

    drawn: Calibration | None
    held_out: Calibration | None
    about: dict[str, Any]
    files: tuple[str, ...] = ()
    tuning: Calibration | None = None


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


def calibration(config: QuantizeConfig, folder: Path, job: ledger.Job) -> Drawn:
    """Tokenizer, text and writing model do not outlive this: for a small model with a large vocabulary they
    are most of the memory. Raises OnggiError for text that does not serve.
    """
    from .. import text
    from ..quantize import balance
    from ..text import draw
    from ..text.tokens import Tokens

    assert config.text
    found = text.load("starts" if config.text == "self" else config.text, config.languages)
    if found.name == "probe":  # a folder that `onggi text` made of it
        raise OnggiError(NO_PROBE)
    languages = config.languages or Languages(found.languages)
    minimax = config.fairness == "minimax"
    if minimax and len(languages) < 2:
        raise OnggiError("fairness: minimax weighs languages against each other; give it two or more.")
    if config.damage == "kl_per_passage" and not (found.parallel and config.text != "self"):
        raise OnggiError(
            f"damage: kl_per_passage compares the same text in each language, and {config.text} is not parallel; "
            "use --damage kl or relative."
        )
    tokens = Tokens(folder)
    passages: Any = {language: found.passages(language) for language in languages}
    written: Any = _written(config, folder, job, languages, tokens) if config.written else {}
    if config.text == "self":
        passages, written = written, {}
        if minimax and len(passages) < 2:
            raise OnggiError(
                "fairness: minimax weighs languages against each other; the model wrote in one alone."
            )
    held_out = tuning = None
    if config.holds_out:
        passages, apart = draw.hold_out(
            passages, _own(config, len(languages))[1] if config.text == "self" else HELD_OUT
        )
        held_out = balance.draw(
            apart,
            tokens.encode,
            tokens.prefix,
            _watched(config) * len(apart),
            balanced=True,
            share="content" if config.damage == "kl_per_passage" else "tokens",
            seed=config.seed,
        )

    def draw_for(seed: int, length: int) -> Calibration:
        return balance.draw(
            passages,
            tokens.encode,
            tokens.prefix,
            config.calibration_tokens,
            balanced=config.fairness != "none",
            share=config.share,
            seed=seed,
            length=length,
            beside=written,
            beside_share=config.written if written else 0.0,
        )

    drawn = draw_for(config.seed, draw.LENGTH)
    if config.tunes:
        tuning = draw_for(config.seed + 1, TUNED_LENGTH)
    said = ", ".join(f"{tags.name(tag)} {count:,}" for tag, count in drawn.counts.items())
    name = "the model itself" if config.text == "self" else found.name
    name += f", {config.written:.0%} written by the model" if written else ""
    say(f"Calibration tokens: {said} (from {name}).")
    if config.written and drawn.short:
        got = sum(drawn.counts.values())
        say(
            f"These are {got:,} of the {config.calibration_tokens:,} tokens asked for: the model wrote too little that serves. "
            "Text in the languages that lack it (--text) would make up for it."
        )
    about = {"text": name, "licence": None if config.text == "self" else found.licence}
    return Drawn(drawn, held_out, about, (WRITTEN,) if config.written else (), tuning)


def _watched(config: QuantizeConfig) -> int:
    """Tokens of each language that are held out."""
    if config.fairness == "minimax":
        return WATCHED
    return PARTS_WATCHED if config.mixes else TUNED


def _own(config: QuantizeConfig, languages: int) -> tuple[int, int]:
    """Tokens that the model writes in each language, and which of its passages are held out, one in so many; 0 for
    none. It writes little, so it is a larger part of it than of a text that is there.
    """
    each = int(config.calibration_tokens * config.written) // languages + 1
    if config.text != "self" or not config.holds_out:
        return each, 0
    each += each // HELD_OUT + _watched(config)
    return each, max(2, min(HELD_OUT, each // _watched(config)))


def _written(
    config: QuantizeConfig, folder: Path, job: ledger.Job, languages: Languages, tokens: Any
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
    starts = {language: list(ships.passages(language).values()) for language in languages}
    each, one_in = _own(config, len(languages))
    # While it is at work in the partial folder, so that a killed run goes on; a file of the artifact at the end.
    file = job.partial / WRITTEN
    with progress(f"quantize {job.out.name}: the model writes", each * len(languages)) as bar:
        found = selfwritten.write(
            Engine(folder),
            starts,
            each,
            lambda written: len(tokens.encode(written)),
            file,
            config.seed,
            lambda count: bar.step(count, "its own text"),
        )
    release_memory()
    shutil.copyfile(file, job.work / WRITTEN)
    # Where some is held out there must be a rest.
    none = [language for language, own in found.items() if len(own) < (2 if one_in else 1)]
    if none:
        names = ", ".join(map(tags.name, none))
        say(f"The model does not stay in {names} when it writes: nothing of its own to calibrate them on.")
    found = {language: own for language, own in found.items() if language not in none}
    if not found:
        raise OnggiError("text: the model wrote nothing that serves; give it text (--text).")
    return found

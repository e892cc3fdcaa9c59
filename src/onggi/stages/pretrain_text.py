"""What `onggi pretrain` trains and measures on: packed text in its order, or a source in equal shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import languages as tags
from ..errors import OnggiError
from ..languages import Languages
from ..progress import say
from .base import no_probe

if TYPE_CHECKING:
    from ..text.draw import Passages
    from .pretrain import PretrainConfig

NO_PROBE = no_probe("training")
# Where nothing is said: tokens of a step, of plain text and packed; steps and length, of plain text.
BATCH, PACKED_BATCH = 1024, 8192
STEPS, LENGTH = 240, 256
# One passage in so many is kept from training; of each language so many tokens of them are measured.
_ONE_IN, _HELD_OUT_TOKENS = 50, 512


def packed_folder(text: str) -> Path | None:
    """The folder of packed text that `text` is; None where it is a source."""
    from ..text.packing import INDEX

    folder = Path(text)
    return folder if (folder / INDEX).is_file() else None


@dataclass(frozen=True)
class Material:
    """What is trained on. source: see `train.tokens`. tokens: language → tokens of the first so many steps from
    a step on. once: steps that read it once. held_out: language → passages to measure.
    """

    source: Any
    tokens: Callable[[int, int], dict[str, int]]
    length: int
    once: int
    held_out: Mapping[str, Sequence[str]]
    facts: dict[str, Any]


def material(config: PretrainConfig, engine: Any, start: Path) -> Material:
    """Of the text that `config` names, for the model in `start` that `engine` has loaded."""
    folder = packed_folder(config.text)
    return (
        _plain_material(config, engine) if folder is None else _packed_material(config, engine, start, folder)
    )


def _packed_material(config: PretrainConfig, engine: Any, start: Path, folder: Path) -> Material:
    from ..text.packing import Packed
    from ..train.tokens import PackedBatches

    packed = Packed(folder)
    packed.check(start)
    if config.length not in (None, packed.length):
        raise OnggiError(
            f"length: {folder} is packed into sequences of {packed.length}; pack it again for others."
        )
    _fits(config, engine, packed.length)
    tokens = config.batch_tokens or max(PACKED_BATCH, packed.length)
    if tokens < packed.length:
        raise OnggiError(f"batch_tokens: {tokens} are less than one sequence of {packed.length}.")
    batches = PackedBatches(packed, tokens // packed.length, config.seed)
    facts = {"text": packed.index["text"], "licence": packed.index["licence"]}
    held_out = _validation(config, packed.languages)
    if held_out:
        facts["validation"] = config.validation
    return Material(batches, batches.tokens, packed.length, -(-len(packed) // batches.size), held_out, facts)


def _validation(config: PretrainConfig, trained: Sequence[str]) -> dict[str, list[str]]:
    """Language → passages of the validation text, in the languages that are asked for, else in those that are
    trained on.
    """
    from .. import text

    if config.validation is None:
        return {}
    found = text.load(config.validation, config.languages or (trained if ":" in config.validation else None))
    languages = config.languages or [language for language in trained if language in found.languages]
    if not languages:
        raise OnggiError(
            f"validation: {config.validation} has none of {', '.join(trained)}; it has {', '.join(found.languages)}."
        )
    lacking = [language for language in trained if language not in languages]
    if lacking and not config.languages:
        say(f"Not measured, for {config.validation} lacks them: {', '.join(map(tags.name, lacking))}.")
    passages = found.common(languages, config.validation_passages)
    return {language: list(texts.values()) for language, texts in passages.items()}


def _fits(config: PretrainConfig, engine: Any, length: int) -> None:
    if engine.window and length > engine.window:
        raise OnggiError(f"length: {length} exceeds the window of {config.init}, {engine.window}.")


def _plain_material(config: PretrainConfig, engine: Any) -> Material:
    from ..text.draw import draw
    from ..train.tokens import Batches, Unending, batches

    length = config.length or LENGTH
    _fits(config, engine, length)
    batch = config.batch_tokens or max(BATCH, length)
    if batch < length:
        raise OnggiError(f"batch_tokens: {batch} are less than one sequence of {length} (--length).")
    size = batch // length
    # For --minutes these are the first of as many as it will be.
    steps = config.steps or (-(-config.tokens // (size * length)) if config.tokens else STEPS)
    training, held_out, source_text = _texts(config)
    sequences = steps * size
    if sequences < len(training):
        raise OnggiError(
            f"steps: {sequences} sequences in all are too few for {len(training)} languages; "
            "raise --steps or --batch_tokens."
        )

    known: set[str] = set()  # with --minutes text is drawn again and again, each time more of it

    def drawn(steps: int) -> Batches:
        each = -(-steps * size // len(training))
        found = draw(
            training,
            engine.tokens.encode,
            engine.tokens.prefix,
            each * length * len(training),
            seed=config.seed,
            length=length,
        )
        for language in found.short:
            if language not in known:
                say(f"The text in {tags.name(language)} is gone over more than once.")
        known.update(found.short)
        return batches(found.runs, engine.tokens.prefix, steps, size, config.seed)

    own = _validation(config, list(training)) or {
        language: _few(engine.tokens, texts) for language, texts in held_out.items()
    }
    if config.minutes is not None:
        endless = Unending(drawn, steps)
        return Material(endless, endless.tokens, endless.length, steps, own, source_text)
    made = drawn(steps)
    said = ", ".join(f"{tags.name(tag)} {count:,}" for tag, count in made.tokens.items())
    say(f"Tokens to train on: {said}.")
    return Material(made, lambda first, stop: made.tokens, made.ids.shape[-1], steps, own, source_text)


def _few(tokens: Any, texts: Mapping[str, str]) -> list[str]:
    """The first passages, up to `_HELD_OUT_TOKENS`."""
    chosen: list[str] = []
    count = 0
    for content in texts.values():
        chosen.append(content)
        count += len(tokens.encode(content))
        if count >= _HELD_OUT_TOKENS:
            break
    return chosen


def _texts(config: PretrainConfig) -> tuple[Passages, Passages, dict[str, Any]]:
    """Passages to train on, passages held out, and what text they are from."""
    from .. import text
    from ..text.draw import hold_out

    found = text.load(config.text, config.languages)
    if found.name == "probe":  # a folder that `onggi text` made of it
        raise OnggiError(NO_PROBE)
    languages = config.languages or Languages(found.languages)
    passages = {language: found.passages(language) for language in languages}
    training, held_out = hold_out(passages, _ONE_IN)
    return training, held_out, {"text": found.name, "licence": found.licence}

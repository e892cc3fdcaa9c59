"""`onggi tokenizer`: a vocabulary for the languages of a text, or new tokens in a model that has one."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .. import languages as tags
from .. import ledger
from ..errors import OnggiError
from ..languages import Languages
from ..ledger import Artifact
from ..progress import progress, release_memory, say
from .base import Plan, Stage, command, options

_REVISION = 1
PARITY = "parity.json"
# Passages of each language whose loss is measured before and after new tokens came in.
_LOSS_PASSAGES = 12
# Passages of a language that the measured text lacks; they are its own, and nothing compares with them.
_OWN_PASSAGES = 200

Passages = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class TokenizerConfig:
    """Train a tokenizer in which no language pays much more than another, or add tokens to a model's.

    The text is drawn by content; a language that needs more than --parity times English's tokens for the
    same passages gets a larger share of it and the vocabulary is trained anew. With --extend the result
    is a whole model: its tokenizer with new tokens for a language, its old ids as they were.
    """

    text: str
    """Text to train on: a source as `onggi text` takes, or a folder it made. Not the probe, which is for
    measuring."""
    vocabulary: int = 16000
    """Tokens of the vocabulary, special tokens and bytes included; with --extend, tokens to add."""
    languages: Languages | None = None
    """Languages to train on, as en,ko,km; default: all that the text has. With --extend, --for says it."""
    kind: Literal["bpe", "unigram"] = "bpe"
    """bpe: on bytes. unigram: on letters, with bytes to fall back on; in llama.cpp, which has no such
    fallback, what is not in its vocabulary is lost."""
    pre: Literal["qwen35", "qwen2", "llama-bpe", "gpt-2"] = "qwen35"
    """How bpe cuts text before merging, by llama.cpp's name for it. qwen35 keeps combining marks with
    their letters, without which Khmer or Hindi come to more tokens; digits stand alone."""
    parity: float = 1.5
    """Tokens that the same passages may take in any language, for one in English (in the cheapest
    language, where English is not among them)."""
    rounds: int = 6
    """Trainings, at most, to come under --parity."""
    measure: str = "probe"
    """Parallel text that is measured on: a source as above."""
    sample: int = 10_000_000
    """Bytes of text that are trained on, of all languages together."""
    extend: str | None = None
    """The model to add tokens to: a hub id, a folder, a .gguf file, or package:NAME."""
    for_: Languages | None = None
    """With --extend: languages to add tokens for, as ko."""
    seed: int = 0
    """Of the order in which text is drawn."""

    def __post_init__(self) -> None:
        """Refuse what cannot work. Raises OnggiError naming the option and the mend."""
        if self.text == "probe":
            raise OnggiError("text: the probe is for measuring; use debian:libreoffice-help or your own.")
        if self.vocabulary < 1:
            raise OnggiError(f"vocabulary: {self.vocabulary} is not a number of tokens.")
        if self.parity < 1:
            raise OnggiError(f"parity: {self.parity} is below 1, which is English itself; 1.5 is usual.")
        if self.rounds < 1:
            raise OnggiError(f"rounds: {self.rounds} is not a number of trainings.")
        if self.sample < 1:
            raise OnggiError(f"sample: {self.sample} is not a number of bytes.")
        if self.kind == "unigram" and self.pre != "qwen35":
            raise OnggiError("pre: is for bpe; unigram cuts at spaces.")
        if self.extend is None and self.for_ is not None:
            raise OnggiError("for: goes with --extend MODEL; --languages names what to train on.")
        if self.extend is not None and self.for_ is None:
            raise OnggiError("for: name the language to add tokens for, as in --extend MODEL --for ko.")
        if self.extend is not None and self.languages is not None:
            raise OnggiError("languages: --for names the languages with --extend.")
        if self.extend is not None and (self.kind, self.pre) != ("bpe", "qwen35"):
            raise OnggiError("kind, pre: with --extend they are the model's own.")


def inputs(config: TokenizerConfig) -> dict[str, Any]:
    """Fingerprints of text and model."""
    from .. import text
    from ..models import references

    wanted = config.for_ or config.languages
    found: dict[str, Any] = {
        "text": text.fingerprint(config.text, wanted),
        "measure": text.fingerprint(config.measure, wanted),
    }
    if config.extend:
        found["extend"] = references.fingerprint(config.extend)
    return found


def tokenizer(config: TokenizerConfig, out: Path) -> Artifact:
    """Write a tokenizer, or a model with more tokens, to `out`; see `TokenizerConfig`.

    Raises OnggiError for a text or model that is not sound, and for a vocabulary too small.

    >>> from pathlib import Path
    >>> from onggi.languages import Languages
    >>> from onggi.stages import TokenizerConfig, tokenizer
    >>> made = tokenizer(TokenizerConfig("starter", 3000, Languages("en,ko,km"), parity=1.6), Path("words"))
    >>> made.record["reference"], made.record["met"]
    ('en', True)
    """
    job = ledger.begin(out, "tokenizer", options(config), inputs(config), _REVISION)
    if job.done:
        return job.done
    with job:
        return _extended(config, job) if config.extend else _trained(config, job)


def _text(config: TokenizerConfig) -> tuple[str, str | None, Passages]:
    """Name, licence and passages to train on."""
    from .. import text

    found = text.load(config.text, config.for_ or config.languages)
    if found.name == "probe":  # a folder that `onggi text` made of it
        raise OnggiError("text: it is the probe, which is for measuring and never for training.")
    wanted = config.for_ or config.languages or found.languages
    return found.name, found.licence, {language: found.passages(language) for language in wanted}


def _measured(config: TokenizerConfig, languages: tuple[str, ...] | None) -> Passages:
    """Passages to measure on, the same in each of `languages` that the text has (None: all of them)."""
    from .. import text

    found = text.load(config.measure, languages if config.measure.startswith("debian:") else None)
    if not found.parallel:
        raise OnggiError(
            f"measure: {config.measure} is not parallel, and no parity can be told; name a parallel text."
        )
    there = [tag for tag in (languages or found.languages) if tag in found.languages]
    return found.common(there) if there else {}


def _trained(config: TokenizerConfig, job: ledger.Job) -> Artifact:
    from tokenizers import Tokenizer

    from ..text import vocabulary

    name, licence, passages = _text(config)
    languages = tuple(passages)
    measured = _measured(config, languages)
    lacking = [tag for tag in languages if tag not in measured]
    if lacking:
        said = ", ".join(map(tags.name, lacking))
        say(f"{config.measure} has no text in {said}: the parity there is not known and not watched.")
    if name == config.measure:
        say(f"{name} is both trained and measured on, which flatters; --measure another parallel text.")
    base = "en" if "en" in measured else None
    texts = passages
    if config.kind == "unigram":
        texts = {tag: vocabulary.without_rare(rows) for tag, rows in passages.items()}
    shares = vocabulary.by_content(measured, languages)
    rounds: list[dict[str, Any]] = []
    facts: dict[str, Any]
    with progress(f"tokenizer {job.out.name}", config.rounds) as bar:
        for number in range(config.rounds):
            kept = job.partial / f"round-{number}"
            if not kept.with_suffix(".json").is_file():
                drawn = vocabulary.drawn(texts, shares, config.sample, config.seed)
                made = vocabulary.train(drawn, config.vocabulary, config.kind, config.pre)
                costs, reference = vocabulary.parity(made, measured, base) if measured else ({}, languages[0])
                with ledger.writing(kept.with_suffix(".tokenizer")) as aside:
                    made.save(str(aside), pretty=False)
                whole = sum(shares.values())
                facts = {
                    "shares": {tag: share / whole for tag, share in shares.items()},
                    "reference": reference,
                    "languages": costs,
                }
                ledger.write_json(kept.with_suffix(".json"), facts)
                job.tick()
            rounds.append(ledger.read_json(kept.with_suffix(".json")))
            tag, worst = _worst(rounds[-1]["languages"])
            bar.step(1, f"round {number + 1}: " + (f"{tags.name(tag)} {worst:.2f}" if tag else "trained"))
            if worst <= config.parity:
                break
            parities = {tag: facts["parity"] for tag, facts in rounds[-1]["languages"].items()}
            shares = vocabulary.raised(rounds[-1]["shares"], parities, config.parity)
    best = min(range(len(rounds)), key=lambda number: _worst(rounds[number]["languages"])[1])
    chosen = Tokenizer.from_file(str(job.partial / f"round-{best}.tokenizer"))
    facts = rounds[best]
    table: dict[str, dict[str, Any]] = facts["languages"] | {
        tag: _own(chosen, passages[tag]) for tag in lacking
    }
    for tag in languages:
        size = sum(len(text.encode()) for text in passages[tag].values())
        share = facts["shares"][tag]
        table[tag] |= {"share": round(share, 4), "epochs": round(share * config.sample / size, 2)}
    tag, worst = _worst(facts["languages"])
    met = worst <= config.parity
    if not met:
        say(
            f"A parity of {config.parity:g} was not reached in {len(rounds)} rounds: {tags.name(tag)} takes "
            f"{worst:.2f} times the tokens of {tags.name(facts['reference'])}. A larger --vocabulary, more or "
            "more varied text in it, or a higher --parity would do."
        )
    for tag, entry in table.items():
        if entry["epochs"] > 2:
            say(f"The text in {tags.name(tag)} was gone over {entry['epochs']:.1f} times.")
    report = {
        "kind": config.kind,
        "gguf": {"model": "gpt2", "pre": config.pre} if config.kind == "bpe" else {"model": "t5"},
        "vocabulary": chosen.get_vocab_size(),
        "reference": facts["reference"],
        "bound": config.parity,
        "met": met,
        "measured": config.measure,
        "text": name,
        "licence": licence,
        "rounds": [
            {
                "worst": _worst(entry["languages"])[0],
                "parity": _worst(entry["languages"])[1],
                "tokens_per_passage": {
                    tag: costs["tokens_per_passage"] for tag, costs in entry["languages"].items()
                },
                "shares": {tag: round(share, 4) for tag, share in entry["shares"].items()},
            }
            for entry in rounds
        ],
        "chosen": best + 1,
        "languages": {tag: table[tag] for tag in languages},
    }
    names = vocabulary.save(chosen, job.work)
    ledger.write_json(job.work / PARITY, report)
    return job.finish(
        [*names, PARITY],
        command=command(STAGE, config, job.out),
        tokenizer=vocabulary.fingerprint(chosen),
        **{key: report[key] for key in ("gguf", "reference", "met", "text", "licence", "languages")},
    )


def _worst(costs: Mapping[str, Mapping[str, Any]]) -> tuple[str, float]:
    """The dearest language and its parity; none, and 0, where nothing is measured."""
    tag = max(costs, key=lambda tag: costs[tag]["parity"], default="")
    return (tag, costs[tag]["parity"]) if tag else ("", 0.0)


def _own(made: Any, texts: Mapping[str, str]) -> dict[str, Any]:
    """What a language costs on text of its own, where there is none to compare with."""
    from ..text import vocabulary

    return {**vocabulary.costs(made, dict(list(texts.items())[:_OWN_PASSAGES])), "parity": None}


def _extended(config: TokenizerConfig, job: ledger.Job) -> Artifact:
    from ..models import checkpoint as checkpoints
    from ..models import references, widening
    from ..report import card
    from ..text import extension, vocabulary
    from ..text.tokens import Tokens

    assert config.extend and config.for_
    folder = references.resolve(config.extend)
    source = checkpoints.Checkpoint(folder)
    old = Tokens(folder).tokenizer
    name, licence, passages = _text(config)
    size = min(config.sample, sum(len(t.encode()) for rows in passages.values() for t in rows.values()))
    try:
        made = extension.extend(
            old,
            {
                tag: list(vocabulary.drawn({tag: rows}, {tag: 1.0}, size // len(passages), config.seed))
                for tag, rows in passages.items()
            },
            config.vocabulary,
        )
    except OnggiError as error:
        raise OnggiError(f"{config.extend}: {error}") from error
    if len(made.made_of) < config.vocabulary:
        say(f"The text gives {len(made.made_of):,} new tokens of the {config.vocabulary:,} asked for.")

    measured = _measured(config, None if not config.measure.startswith("debian:") else config.for_)
    base = "en" if "en" in measured else None
    before, _ = vocabulary.parity(old, measured, base) if measured else ({}, "")
    after, reference = vocabulary.parity(made.tokenizer, measured, base) if measured else ({}, "")
    table = {
        tag: {
            **after[tag],
            "before": {key: before[tag][key] for key in ("tokens_per_passage", "parity", "byte_fallback")},
            "changed": round(extension.changed(old, made.tokenizer, measured[tag].values()), 4),
        }
        for tag in measured
    }
    rows = widening.widen(source, made.made_of, made.first, job.work / checkpoints.SINGLE)
    ledger.write_json(job.work / "config.json", widening.with_vocabulary(source.config, rows))
    names = [checkpoints.SINGLE, "config.json", references.ABOUT, PARITY, "README.md"]
    for file in checkpoints.companions(folder):
        if file.name == "tokenizer.json" or not file.name.startswith(("tokenizer.", "vocab", "merges")):
            shutil.copyfile(file, job.work / file.name)
            names.append(file.name)
    with ledger.writing(job.work / "tokenizer.json") as aside:
        made.tokenizer.save(str(aside), pretty=False)
    names = [*dict.fromkeys([*names, "tokenizer.json"])]
    facts = {
        "added": len(made.made_of),
        "first": made.first,
        "languages": list(config.for_),
        "text": name,
        "licence": licence,
    }
    about = references.about(folder)
    about = about | {
        "base": {"name": references.parse(config.extend).name, "source": config.extend},
        "made_by": "onggi tokenizer",
        "extended": facts,
    }
    ledger.write_json(job.work / references.ABOUT, about)
    (job.work / "README.md").write_text(card.extended(about), encoding="utf-8")
    losses = _losses(job, folder, config.for_, measured)
    for tag, loss in losses.items():
        table[tag]["nll_per_passage"] = loss
    report = {
        "vocabulary": made.tokenizer.get_vocab_size(),
        **facts,
        "reference": reference,
        "measured": config.measure,
        "languages": table,
    }
    ledger.write_json(job.work / PARITY, report)
    return job.finish(
        names,
        command=command(STAGE, config, job.out),
        tokenizer=vocabulary.fingerprint(made.tokenizer),
        **{key: report[key] for key in ("added", "first", "reference", "text", "licence", "languages")},
    )


def _losses(
    job: ledger.Job, folder: Path, languages: tuple[str, ...], measured: Passages
) -> dict[str, dict[str, float]]:
    """Language → nats a passage of the old model (`before`) and the new one (`after`): of the languages that
    got tokens, and of English. Passages are the same content, so that the two can be compared.
    """
    import torch

    from ..engines.transformers import Engine
    from ..head import score

    wanted = [tag for tag in dict.fromkeys([*languages, "en"]) if tag in measured]
    found: dict[str, dict[str, float]] = {tag: {} for tag in wanted}
    with progress("loss before and after", 2 * len(wanted)) as bar:
        for when, place in (("before", folder), ("after", job.work)):
            engine = Engine(place)
            for tag in wanted:
                texts = list(measured[tag].values())[:_LOSS_PASSAGES]
                states, ids = zip(*engine.states(texts), strict=True)
                nll = score(torch.cat(states), engine.head, torch.cat(ids)).nll
                found[tag][when] = round(float(nll.double().sum()) / len(texts), 2)
                bar.step(1, f"{when}, {tags.name(tag)}")
            del engine
            release_memory()
    return found


def show(artifact: Artifact) -> None:
    """Print what each language pays, as a table: tokens of a passage, bytes of a token, tokens that are less
    than a character, and its share of the text; of a model that got tokens, what is cut otherwise now.
    """
    from rich.console import Console
    from rich.table import Table

    record = artifact.record
    extended = "added" in record
    table = Table()
    table.add_column("language", no_wrap=True)
    for column in ("tokens", "parity", "bytes", "fallback", "share"):
        table.add_column(column, justify="right")
    if extended:
        table.columns[-1].header = "changed"
    costs = record["languages"]
    for tag in sorted(costs, key=lambda tag: -(costs[tag]["parity"] or 0.0)):
        facts = costs[tag]
        earlier = facts.get("before", {})
        table.add_row(
            f"{tags.name(tag)} ({tag})",
            _change(earlier.get("tokens_per_passage"), facts["tokens_per_passage"], ".1f"),
            "?" if facts["parity"] is None else _change(earlier.get("parity"), facts["parity"], ".2f"),
            f"{facts['bytes_per_token']:.2f}",
            f"{facts['byte_fallback']:.1%}",
            f"{facts['changed' if extended else 'share']:.1%}",
        )
    console = Console(highlight=False)
    console.print(table)
    if extended:
        for tag, facts in costs.items():
            if loss := facts.get("nll_per_passage"):
                console.print(
                    f"{tags.name(tag)}: {loss['before']:.1f} → {loss['after']:.1f} nats a passage, untrained."
                )
        console.print(f"{record['added']:,} tokens added from id {record['first']:,} on.")
    elif costs and any(facts["parity"] for facts in costs.values()):
        worst = max(costs, key=lambda tag: costs[tag]["parity"] or 0.0)
        console.print(
            f"Worst: {tags.name(worst)}, {costs[worst]['parity']:.2f} times the tokens of "
            f"{tags.name(record['reference'])}; the bound of {record['options']['parity']:g} is "
            f"{'kept' if record['met'] else 'not kept'}."
        )


def _change(before: float | None, now: float, form: str) -> str:
    return f"{now:{form}}" if before is None or before == now else f"{before:{form}} → {now:{form}}"


def plan(config: TokenizerConfig) -> Plan:
    """About the memory and disk, where the model is at hand."""
    from ..models import references

    if config.extend is None:
        # The words of the sample and their counts, several times the text's own size.
        return Plan(memory=400_000_000 + 12 * config.sample, disk=100 * config.vocabulary)
    size = references.size(config.extend)
    if size is None:
        return Plan()
    row = 2 * size.hidden
    return Plan(memory=600_000_000 + 2 * size.bytes, disk=size.bytes + 2 * row * config.vocabulary)


STAGE = Stage("tokenizer", TokenizerConfig, tokenizer, inputs, plan, {"text": None}, _REVISION, show)

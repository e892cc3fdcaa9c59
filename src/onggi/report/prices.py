"""What a report says of the price of a model: its size against what that costs a language, the tokens that a
language pays before the model even starts, and what running it takes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..phrases import Phrases
from . import choice, figures
from .blocks import Block, Figure, Heading, Paragraph, Table, plain
from .wording import Scores, by_damage, megabytes, titled, value, variants

_TOKENS = ("tokens_per_passage", "parity", "bytes_per_token", "byte_fallback")


def size(scores: Scores, say: Phrases) -> list[Block]:
    """Weights on disk against the language that pays most."""
    names, reference = variants(scores), scores["reference"]
    whole = choice.size(scores, reference)
    rows = []
    for name, model in scores["models"].items():
        found = say("size.reference") if name == reference else "–"
        tag = model["worst"].get("kl")
        if tag and name in names:
            found = f"{value(scores, name, tag)} ({say.name(tag)})"
        own = choice.size(scores, name)
        # A model behind a server has no size that we know.
        words = megabytes(own) if own else "–"
        if own and choice.unpacked(scores, name):
            words = say("size.unpacked", size=words)
        share = f"{own / whole:.0%}" if whole and own else "–"
        rows.append([plain(name), words, share, found])
    header = [say("size.model"), say("size.weights"), say("size.share"), say("size.worst")]
    drawing: list[Block] = []
    if names:
        drawing = [Figure([figures.size(scores, say)], say("size.caption"))]
    return [Heading(say("size.title")), *drawing, Table(header, rows)]


def tokens(scores: Scores, say: Phrases) -> list[Block]:
    """How well the reference knows each language, and what every tokenizer makes of it."""
    reference = scores["models"][scores["reference"]]["languages"]
    rows, known = [], []
    for tag in by_damage(scores):
        entry = reference.get(tag, {})
        if "nll_per_passage" in entry:
            parity = f"{entry['parity']['value']:.2f}" if "parity" in entry else ("1" if tag == "en" else "–")
            nats, bits = entry["nll_per_passage"]["value"], entry["bits_per_byte"]["value"]
            rows.append([titled(tag, say), parity, f"{nats:.0f}", f"{bits:.2f}"])
            known.append(tag)
    header = [say("damage.language"), say("tokens.against"), say("tokens.nats"), say("tokens.bits")]
    blocks: list[Block] = []
    if rows:
        blocks = [Paragraph(say("tokens.about")), Table(header, rows, languages=known)]
    blocks += _tokenizers(scores, say)
    return [Heading(say("tokens.title")), *blocks] if blocks else []


def _tokenizers(scores: Scores, say: Phrases) -> list[Block]:
    """One row a language and tokenizer; models whose counts are all alike share one."""
    alike: dict[tuple[Any, ...], list[str]] = {}
    for name, model in scores["models"].items():
        counts = {
            (tag, key): own[key]["value"]
            for tag, own in model["languages"].items()
            for key in _TOKENS
            if key in own
        }
        if any(key != "parity" for _, key in counts):
            alike.setdefault(tuple(sorted(counts.items())), []).append(name)
    rows, tags = [], []
    for tag in choice.languages(scores):
        for names in alike.values():
            own = scores["models"][names[0]]["languages"].get(tag, {})
            if any(key in own for key in _TOKENS if key != "parity"):
                cells = [_tokens(own, key, tag) for key in _TOKENS]
                rows.append([titled(tag, say), ", ".join(map(plain, names)), *cells])
                tags.append(tag)
    if not rows:
        return []
    header = [say("damage.language"), say("tokens.tokenizer"), *(say(f"tokens.{key}") for key in _TOKENS)]
    return [Paragraph(say("tokens.tokenizers")), Table(header, rows, languages=tags)]


def _tokens(own: Mapping[str, Any], key: str, tag: str) -> str:
    if key == "parity" and key not in own and tag == "en":
        return "1"
    entry = own.get(key)
    if not entry:
        return "–"
    forms = {"tokens_per_passage": "{:.1f}", "byte_fallback": "{:.1%}"}
    form = forms.get(key, "{:.2f}").format
    if entry.get("low") is None:
        return form(entry["value"])
    return f"{form(entry['value'])} [{form(entry['low'])}, {form(entry['high'])}]"


def cost(scores: Scores, say: Phrases) -> list[Block]:
    """What running each model took: here, and behind a server."""
    found = {name: model["cost"] for name, model in scores["models"].items() if model.get("cost")}
    here = {name: own for name, own in found.items() if "latency_seconds" not in own}
    served = {name: own for name, own in found.items() if name not in here}
    blocks: list[Block] = []
    if here:
        shapes = {(own.get("prompt_tokens"), own.get("new_tokens")) for own in here.values()}
        prompt, new = next(iter(shapes))
        about = say("cost.here", prompt=prompt, new=new) if len(shapes) == 1 else say("cost.here_mixed")
        keys = ("engine", "precision", "device", "threads", "disk", "memory", "load", "prefill", "decode")
        header = [say("size.model"), *(say(f"cost.{key}") for key in keys)]
        rows = [[plain(name), *_here(own)] for name, own in here.items()]
        busy = [own["contention"] for own in here.values() if (own.get("contention") or 0) > 0.05]
        note = say("cost.busy", share=f"{max(busy):.0%}") if busy else ""
        blocks += [Paragraph(about), Table(header, rows, note=note)]
    if served:
        counts = ("requests", "latency", "p95", "speed", "prompt_tokens", "tokens", "money")
        header = [say("size.model"), *(say(f"cost.{key}") for key in counts)]
        rows = [[plain(name), *_served(own)] for name, own in served.items()]
        blocks += [Paragraph(say("cost.served")), Table(header, rows)]
    return [Heading(say("cost.title")), *blocks] if blocks else []


def _here(own: Mapping[str, Any]) -> list[str]:
    names = [plain(str(own[key])) if own.get(key) else "–" for key in ("engine", "precision", "device")]
    return [
        *names,
        str(own.get("threads") or "–"),
        _or(own.get("disk_bytes"), megabytes),
        _or(own.get("peak_memory_bytes"), megabytes),
        _or(own.get("load_seconds"), "{:.1f} s".format),
        *(_speed(own.get(f"{phase}_tokens_per_second")) for phase in ("prefill", "decode")),
    ]


def _served(own: Mapping[str, Any]) -> list[str]:
    latency = own.get("latency_seconds") or {}
    return [
        _or(own.get("requests"), "{:,}".format),
        _or(latency.get("median"), "{:.2f} s".format),
        _or(latency.get("p95"), "{:.2f} s".format),
        _or(own.get("tokens_per_second"), "{:.1f}".format),
        _or(own.get("prompt_tokens"), "{:,}".format),
        _or(own.get("tokens"), "{:,}".format),
        _or(own.get("money"), "{:.4g}".format),
    ]


def _speed(entry: Mapping[str, Any] | None) -> str:
    if not entry:
        return "–"
    form = f"{{:,.{0 if entry['value'] >= 100 else 1}f}}".format
    if entry.get("low") is None or entry.get("n") == 1:
        return form(entry["value"])
    return f"{form(entry['value'])} [{form(entry['low'])}, {form(entry['high'])}]"


def _or(value: Any, form: Any) -> str:
    return "–" if value is None else str(form(value))

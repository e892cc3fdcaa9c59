"""The model card of a derived checkpoint: what was done, with what text, in which languages.

Its metadata block is the hub's (`base_model`, `language`, `license`), so that a model uploaded as
it stands is found and its licence passes on.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from .. import languages as tags


def quantized(about: Mapping[str, Any]) -> str:
    """The card, Markdown with its metadata block, of a checkpoint that `onggi quantize` made."""
    base, calibration = about["base"], about.get("calibration")
    lines = [
        *_metadata(about, "quantized", calibration, [_library(about), about["scheme"]]),
        f"# {base['name']} {about['scheme']}",
        "",
        f"{base['name']} ({base['source']}), "
        + ("" if about["format"] == "gguf" else "the linear weights of its decoder layers ")
        + "quantised by onggi.",
        "",
        f"- scheme: {about['scheme']} ({_scheme(about['scheme'], about)}); "
        + (
            "embedding and output head too, norms as in the base"
            if about["format"] == "gguf"
            else "embedding and output head the same, norms as in the base"
            if about.get("embedding")
            else "embedding, norms and output head are as in the base"
        ),
        f"- method: {_METHODS[about['method']]}",
    ]
    if calibration:
        counts = ", ".join(f"{tags.name(tag)} {count:,}" for tag, count in calibration["tokens"].items())
        lines += [
            f"- calibration text: {calibration['text']}"
            + (f" ({calibration['licence']})" if calibration.get("licence") else ""),
            f"- calibration tokens: {counts}; {_FAIRNESS[about['fairness']]}",
        ]
        if calibration.get("short"):
            lines.append(f"- the text ran short (tokens lacking): {calibration['short']}")
        if about.get("balance"):
            lines += _balance(about["balance"])
    if about.get("healed"):
        lines += _healed(about["healed"])
    if base.get("grid"):
        lines.append(f"- the base had a grid of its own: {grid(base['grid'])}")
    lines += _errors(about.get("layers") or (), tuned=bool(about.get("healed")))
    if about.get("bits"):
        lines += [
            "",
            "![What each layer costs each language, and the bits that its parts got](sensitivity.svg)",
        ]
    if about.get("terms"):
        lines += ["", about["terms"]]
    lines += [
        "",
        "What it costs in each language: `onggi evaluate FOLDER --reference "
        f"{base['source']} --languages … --out SCORES`.",
        f"Serve it: `{about['serve']}`{_beside(about)}." if about.get("serve", True) else _NOT_SERVED,
        "",
    ]
    return "\n".join(lines)


def _beside(about: Mapping[str, Any]) -> str:
    """What has to be there for it to be served."""
    return f" after {about['serve_with']}" if about.get("serve_with") else ""


def _errors(layers: Sequence[Mapping[str, Any]], *, tuned: bool) -> list[str]:
    """What quantising did to the outputs of the matrices, in each language; nothing where that was not told. tuned: whether
    the weights are others since.
    """
    names = dict.fromkeys(name for layer in layers for name in layer.get("languages") or ())
    if not names:
        return []
    lines = [
        "- relative error of the matrices' outputs on the calibration text"
        + (", before they were tuned" if tuned else "")
        + " (each is in `onggi.json`):",
        "",
        "| | median | largest | where |",
        "|---|---|---|---|",
    ]
    for name in names:
        own = [
            (layer["languages"][name], layer["name"])
            for layer in layers
            if name in (layer.get("languages") or ())
        ]
        most, where = max(own)
        middle = statistics.median(error for error, _ in own)
        lines.append(f"| {tags.name(name)} | {middle:.4f} | {most:.4f} | {where} |")
    return lines


def _balance(balance: Mapping[str, Any]) -> list[str]:
    """The shares that were found, and what they did to each language of the text held out."""
    rounds = balance["rounds"]
    first, best = rounds[0], rounds[balance["best"]]
    return [
        f"- the languages' shares, of {len(rounds)} rounds the one whose worst language lost least "
        f"({_DAMAGE[balance['damage']]}, on calibration text held out):",
        "",
        "| | share | damage, equal shares | damage |",
        "|---|---|---|---|",
        *(
            f"| {tags.name(tag)} | {share:.2f} | {first['damage'][tag]:.4f} | {best['damage'][tag]:.4f} |"
            for tag, share in best["shares"].items()
        ),
    ]


def _healed(healed: Mapping[str, Any]) -> list[str]:
    """How scales were tuned end to end, and what that did to each language of the text held out."""
    counts = ", ".join(f"{tags.name(tag)} {count:,}" for tag, count in healed["tokens"].items())
    parts = "; ".join(
        f"{_TUNED[name]}, {part['steps']} steps, kept as after {part['kept']}"
        for name, part in healed["parts"].items()
    )
    damage = healed["damage"]
    return [
        f"- tuned end to end by {healed['loss']} from {healed['teacher']}: {parts} (where the worst language of text held "
        f"out lost least); text: {healed['text']}, tokens: {counts}",
        f"- what that did to text held out ({_DAMAGE[healed['measure']]}):",
        "",
        "| | before | after |",
        "|---|---|---|",
        *(
            f"| {tags.name(tag)} | {value:.4f} | {damage['after'][tag]:.4f} |"
            for tag, value in damage["before"].items()
        ),
        "",
    ]


_TUNED = {"scales": "scales and the weights of norms", "rounding": "codes too"}
_DAMAGE = {
    "kl": "KL, nats a token",
    "kl_per_passage": "KL, nats for the same text",
    "relative": "KL, nats for each nat of the text",
}
_NOT_SERVED = "It loads in transformers; it is not made for vLLM."


def _library(about: Mapping[str, Any]) -> str:
    """What reads the checkpoint's layout, as the hub tags it."""
    layout = about.get("format", "")
    return layout if layout in ("gptq", "bitsandbytes", "gguf") else "compressed-tensors"


def _price(bits: Mapping[str, Any]) -> str:
    """What held-out text said beforehand of what was chosen, and of what the other objective would have."""
    own = bits["price"][bits["objective"]]
    name = "mean" if bits["objective"] == "worst" else "worst"
    other = bits["price"][name]
    return (
        f"as measured beforehand ({_DAMAGE[bits.get('damage', 'kl')]}) worst {own['worst']:.4f}, mean {own['mean']:.4f}; by the "
        f"{name} it would be {other['worst']:.4f} and {other['mean']:.4f}"
    )


def _scheme(name: str, about: Mapping[str, Any]) -> str:
    """A scheme's name in words."""
    if types := about.get("types"):
        words = ""
        if bits := about.get("bits"):
            worst = "the worst language" if bits["objective"] == "worst" else "the mean"
            words = f"{bits['bits_per_weight']:.3f} bits a weight, chosen for the least damage of {worst} ({_price(bits)}); "
        words += "tensors by type: " + ", ".join(f"{count} × {kind}" for kind, count in types.items())
        if fallen := about.get("fallback"):
            told = ", ".join(f"{change} ({count})" for change, count in fallen.items())
            words += f"; of rows that are not whole blocks of 256: {told}"
        return words
    if bits := about.get("bits"):
        parts = ", ".join(f"{count} × {choice}" for choice, count in bits["modules"].items() if count)
        return (
            f"{bits['bits_per_weight']:.3f} bits a weight: of the layers' parts {parts}, chosen for the least damage "
            f"of {'the worst language' if bits['objective'] == 'worst' else 'the mean'} ({_price(bits)})"
        )
    if name == "nf4":
        return "bitsandbytes' NF4, blocks of 64 with a scale in fp32"
    if name == "int8":
        return "bitsandbytes' LLM.int8(): a scale for each row, activations in 8 bits but for outliers"
    if name == "fp8":
        return "floats of 8 bits (E4M3), a scale in bf16 for each row; activations the same, a scale for each token"
    kind = "integers with zero points" if name.endswith("asym") else "integers"
    scales = "fp16" if about.get("format") == "gptq" else "bf16"
    words = f"{'' if 'zero' in kind else 'symmetric '}{name[1]}-bit {kind}, scales in {scales}"
    if "a8" in name:
        words += "; activations in 8-bit integers, a scale for each token"
    if name.endswith("smooth"):
        words += "; outliers moved into the weights first (SmoothQuant, arXiv 2211.10438)"
    return words


def continued(about: Mapping[str, Any]) -> str:
    """The card of a model that `onggi pretrain` trained further."""
    base, facts = about["base"], about["continued"]
    counts = ", ".join(f"{tags.name(tag)} {count:,}" for tag, count in facts["tokens"].items())
    lines = [
        *_metadata(about, "finetune", facts, []),
        f"# {base['name']}, trained further",
        "",
        f"{base['name']} ({base['source']}), all of its weights trained on by onggi in full precision.",
        "",
        *_training(facts),
        f"- tokens: {counts}",
        *_learnt(facts),
        f"- its own grid: {own_grid(about)}",
        "- stored in bf16, the type it is served in: eight bits of each weight and a scale of its own, "
        "no grid that neighbours share",
        *(f"- {kind}: {_moved(moved)}" for kind, moved in facts["moved"].items() if moved["moved"]),
    ]
    if about.get("terms"):
        lines += ["", about["terms"]]
    return "\n".join([*lines, ""])


def distilled(about: Mapping[str, Any]) -> str:
    """The card of a model that `onggi distill` taught."""
    base, facts, lesson = about["base"], about["continued"], about["distilled"]
    counts = ", ".join(f"{tags.name(tag)} {count:,}" for tag, count in facts["tokens"].items())
    lines = [
        *_metadata(about, "finetune", facts, ["distillation"]),
        f"# {base['name']}, taught by {lesson['teacher']}",
        "",
        f"{base['name']} ({base['source']}), taught by {lesson['teacher']} with onggi: at every token it learnt what "
        "its teacher holds likely.",
        "",
        *_training(facts),
        f"- loss: {lesson['loss']}, temperature {lesson['temperature']:g}, {lesson['cross_entropy']:.0%} of it the text's "
        f"own next token; languages {lesson['fairness']}",
        f"- tokens: {counts}",
    ]
    if lesson["closed"]:
        lines += [
            "",
            f"| | bits per byte before | after | {lesson['teacher']} | of its lead closed |",
            "| --- | ---: | ---: | ---: | ---: |",
        ]
        bits = lesson["bits_per_byte"]
        for tag, share in lesson["closed"].items():
            values = " | ".join(f"{bits[side][tag]:.3f}" for side in ("before", "after", "teacher"))
            lines.append(f"| {tags.name(tag)} | {values} | {'' if share is None else f'{share:.0%}'} |")
    if lesson.get("teacher_licence"):
        lines += ["", f"The teacher's licence: {lesson['teacher_licence']}."]
    for terms in dict.fromkeys([about.get("terms"), lesson.get("teacher_terms")]):
        lines += ["", terms] if terms else []
    return "\n".join([*lines, ""])


def tuned(about: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The card of a model that `onggi finetune` made; found: its `tuning.json`."""
    base, facts = about["base"], about["tuned"]
    counts = ", ".join(f"{tags.name(tag)} {count:,}" for tag, count in facts["dialogues"].items())
    trained, total = facts["parameters"]["trained"], facts["parameters"]["all"]
    lines = [
        *_metadata(about, "finetune", {"tokens": facts["dialogues"]}, ["conversational"]),
        f"# {base['name']}, tuned on dialogues",
        "",
        f"{base['name']} ({base['source']}), taught to answer by onggi.",
        "",
        f"- method: {facts['method']}, {facts['objective']}; {trained:,} of {total:,} weights trained, merged into bf16"
        + ("; the adapter alone is in `adapter/`" if facts["method"] != "full" else ""),
        f"- {facts['steps']} steps of {facts['batch_tokens']} places, learning rate {facts['learning_rate']:g} at its peak, "
        f"products in {facts['precision']}"
        + (
            f"; kept is step {kept}"
            if (kept := facts.get("kept_step", facts["steps"])) != facts["steps"]
            else ""
        ),
        f"- dialogues: {counts}; data: {', '.join(facts['data'])}"
        + (f" ({facts['licence']})" if facts.get("licence") else ""),
        f"- chat template: {facts['template']}",
        f"- its own grid: {own_grid(about)}",
        "",
        "| | held-out answers, nats a token | the probe, nats for a passage | answers in the language |",
        "|---|---|---|---|",
    ]
    for tag in dict.fromkeys([*found["answers"], *found["probe"]]):
        answers, probe, right = (found[key].get(tag) for key in ("answers", "probe", "right"))
        cells = [
            f"{answers['before']:.3f} → {answers['after']:.3f}" if answers else "",
            f"{probe['before']:.1f} → {probe['after']:.1f}" if probe else "",
            f"{right['before']['right']:.0%} → {right['after']['right']:.0%}" if right else "",
        ]
        lines.append(f"| {tags.name(tag)} | {' | '.join(cells)} |")
    if about.get("terms"):
        lines += ["", about["terms"]]
    return "\n".join([*lines, ""])


def _training(facts: Mapping[str, Any]) -> list[str]:
    optimizer = {"muon": "Muon"}.get(facts.get("optimizer", ""), "AdamW")
    return [
        f"- {facts['steps']} steps of {facts['batch_tokens']} tokens in sequences of {facts['length']}; {optimizer} on "
        f"fp32 weights, learning rate {facts['learning_rate']:g} at its peak, products in {facts['precision']}",
        f"- text: {facts['text']}" + (f" ({facts['licence']})" if facts.get("licence") else ""),
    ]


def _learnt(facts: Mapping[str, Any]) -> list[str]:
    if not facts["held_out"]:
        return []
    before, after = (sum(side.values()) / len(side) for side in facts["held_out"].values())
    on = facts.get("validation") or "text of the same kind held out"
    return [f"- loss on {on}, mean of the languages: {before:.3f} → {after:.3f} nats a token"]


def pretrained(about: Mapping[str, Any]) -> str:
    """The card of a model that `onggi pretrain` trained from a random start."""
    facts = about["pretrained"]
    counts = ", ".join(f"{tags.name(tag)} {count:,}" for tag, count in facts["tokens"].items())
    meta = {
        "library_name": "transformers",
        **({"license": about["licence"]} if about.get("licence") else {}),
        "language": list(facts["tokens"]),
        "tags": ["onggi"],
    }
    lines = [
        "---",
        yaml.safe_dump(meta, sort_keys=False, allow_unicode=True).strip(),
        "---",
        "",
        f"# {about['name']}",
        "",
        f"A language model of {facts['parameters']:,} parameters, trained from a random start by onggi.",
        "",
        *_training(facts),
        f"- tokens: {counts}",
    ]
    for language, value in (facts.get("bits_per_byte") or {}).items():
        lines.append(f"- {tags.name(language)}: {value:.3f} bits per byte on {facts['validation']}")
    return "\n".join([*lines, ""])


def extended(about: Mapping[str, Any]) -> str:
    """The card of a model that `onggi tokenizer` gave new tokens."""
    base, facts = about["base"], about["extended"]
    names = ", ".join(map(tags.name, facts["languages"]))
    lines = [
        *_metadata(about, "finetune", {"tokens": facts["languages"]}, []),
        f"# {base['name']} with more tokens for {names}",
        "",
        f"{base['name']} ({base['source']}) and {facts['added']:,} tokens more, from id {facts['first']:,} on; "
        "old ids and weights are as they were.",
        "",
        "- a new token's row in embedding and head is the mean of the old ones it stands for: the model has yet "
        "to be trained with them",
        f"- text they were learnt from: {facts['text']}"
        + (f" ({facts['licence']})" if facts.get("licence") else ""),
    ]
    if about.get("terms"):
        lines += ["", about["terms"]]
    return "\n".join([*lines, ""])


def reshaped(about: Mapping[str, Any]) -> str:
    """The card of a model that `onggi reshape` made."""
    base, facts = about["base"], about["reshaped"]
    shape, cut, loss = facts["shape"], facts["vocabulary"], facts["loss"]
    languages = facts["keep_languages"] or facts["languages"]
    lines = [
        *_metadata(about, "finetune", {"tokens": languages} if languages else None, []),
        f"# {base['name']}, reshaped",
        "",
        f"{base['name']} ({base['source']}), its parts cut or copied by onggi and not trained since.",
        "",
        *(
            f"- {name}: {shape['before'][name]:,} → {shape['after'][name]:,}"
            for name in shape["before"]
            if shape["before"][name] != shape["after"][name]
        ),
        f"- parameters: {facts['parameters']['before']:,} → {facts['parameters']['after']:,}",
    ]
    if facts["layers"]:
        lines.append(f"- layers of the base, in order: {', '.join(map(str, facts['layers']))}")
    if facts["text"]:
        lines.append(
            f"- text it was chosen by: {facts['text']}"
            + (f" ({facts['licence']})" if facts.get("licence") else "")
            + f", in {', '.join(tags.name(tag) for tag in facts['languages'])}"
        )
    if cut:
        for tag, shares in cut["same"].items():
            said = ", ".join(f"{share:.2%} of {name}" for name, share in shares.items())
            lines.append(
                f"- words in {tags.name(tag)} that are cut as before: {said} (the others: retokenised.jsonl)"
            )
        worse = {tag: growth for tag, growth in cut["tokens_on_probe"].items() if tag not in cut["same"]}
        if worse:
            said = ", ".join(f"{tags.name(tag)} × {growth:.2f}" for tag, growth in worse.items())
            lines.append(f"- tokens that the probe's text takes now: {said}; those languages are lost")
    if loss:
        lines += [
            "",
            "Nats for a passage held out, before and after:",
            "",
            "| | before | after |",
            "|---|---|---|",
        ]
        lines += [
            f"| {tags.name(tag)} | {value:.1f} | {loss['after'][tag]:.1f} |"
            for tag, value in loss["before"].items()
        ]
    if about.get("terms"):
        lines += ["", about["terms"]]
    lines += [
        "",
        "What it costs in each language: `onggi evaluate FOLDER --reference "
        f"{base['source']} --languages … --out SCORES`.",
    ]
    return "\n".join([*lines, ""])


def _metadata(
    about: Mapping[str, Any], relation: str, learnt: Mapping[str, Any] | None, marks: list[str]
) -> list[str]:
    """The lines of the hub's block; learnt: what the weights were made with, by its `tokens` of each language."""
    file = relation == "quantized" and about.get("format") == "gguf"
    meta: dict[str, Any] = {"library_name": "gguf" if file else "transformers"}
    if about.get("licence"):
        meta["license"] = about["licence"]
    meta["base_model"] = about.get("base_model") or about["base"]["source"]
    meta["base_model_relation"] = relation
    if learnt:
        meta["language"] = list(learnt["tokens"])
    meta["tags"] = ["onggi", *marks]
    return ["---", yaml.safe_dump(meta, sort_keys=False, allow_unicode=True).strip(), "---", ""]


def _moved(facts: Mapping[str, Any]) -> str:
    text = f"moved by {facts['moved']:.2%} of their size (RMS)"
    if "off_grid" in facts:
        text += f", {facts['off_grid']:.0%} as far from the base's grid as by chance"
    if "distinct" in facts:
        (was, now), (error, new) = facts["distinct"], facts["rounding"]
        text += (
            f"; different values among 32 neighbours {was:.1f} → {now:.1f}; error of rounding to 8 bits "
            f"{error:.2%} → {new:.2%}"
        )
    return text


_METHODS = {
    "rtn": "round to nearest, the clip of each group searched",
    "gptq": "error feedback (GPTQ, arXiv 2210.17323), static groups, activation order",
    "awq": "scales of the input columns searched by output error over languages (AWQ, arXiv 2306.00978), then "
    "rounding, the clip of each group searched",
    "bitsandbytes": "the library's own rounding",
}
_FAIRNESS = {
    "balanced": "each language has the same share in the second moments",
    "minimax": "each language's share in the second moments follows its damage",
    "none": "all text in one pot",
}


def grid(facts: Mapping[str, Any] | None) -> str:
    """The grid that a reference came on, in words; `facts` as the GGUF conversion notes them."""
    if not facts:
        return "none known (stored in floating point)"
    linears = ", ".join(f"{kind} ({count})" for kind, count in facts.get("linears", {}).items())
    words = f"GGUF; linear weights on {linears}"
    return f"{words}, embedding on {facts['embedding']}" if facts.get("embedding") else words


def own_grid(about: Mapping[str, Any]) -> str:
    """As `grid`, of a model by all that is known of it: one that was trained on has left its base's."""
    facts = about.get("continued")
    if tuned := about.get("tuned"):
        came = f", which came on {grid(about['base']['grid'])}" if about["base"].get("grid") else ""
        moved = tuned["moved"].get("linears", {}).get("moved")
        far = f" by {moved:.2%} of their size" if moved else ""
        return f"tuned from {about['base']['source']}{came}; its linear weights moved{far}"
    if not facts:
        return grid(about.get("grid"))
    base = about["base"]
    text = f"off-grid (continued in full precision from {base['source']} for {facts['steps']} steps"
    if not base.get("grid"):
        return f"{text})"
    left = ", ".join(
        f"{kind} {moved['off_grid']:.0%}" for kind, moved in facts["moved"].items() if "off_grid" in moved
    )
    return f"{text}, which came on {grid(base['grid'])}; as far from that grid now as by chance: {left})"

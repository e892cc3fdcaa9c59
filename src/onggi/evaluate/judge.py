"""Another model's opinion of answers: a grade from 1 to 10, or which of two is better.

A judge reads text that the judged model wrote, so the judged model speaks to the judge. What is done
about it here, in the order in which it matters:

- **The answer is data between fences.** A fence is a hash of the item itself, so no answer can hold
  its own, and the same item always makes the same prompt: a cached or resumed run agrees with a whole
  one. What was asked of the judge is said again after the data.
- **An answer cannot speak the template's language.** Marks such as `<|im_start|>` or `<end_of_turn>`
  would become control tokens and end the user's turn; they are broken by a space, as is anything that
  reads as a verdict, and characters that hide text from people (tags, bidi overrides) are taken out.
- **Only the last line counts, and only in one form.** A judge that was cut off, that refuses, or that
  ends in anything else has given no verdict. Such verdicts are counted and reported beside the mean,
  with what the mean would be at the worst and the best; they are never dropped and never guessed.

An answer in the wrong language scores 0, as does an empty one, without asking: no judge's taste enters.
The template is in English for every language and names the language asked for. A rubric translated
twelve times is twelve rubrics, and then differences between languages are partly the translators';
judges also keep to a form best in English. `template` takes another.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import jinja2
import jinja2.meta
import jinja2.sandbox
import regex

from .. import languages, ledger, statistics
from ..engines.protocol import Answer, Generates, Sampling
from ..errors import OnggiError, one_line
from ..text import identify
from ..text.prompts import Prompt
from . import tallies
from .answering import Row

SAMPLING = Sampling(max_tokens=1024)

# item → row
Rows = Mapping[str, Row]

# Raised when a prompt or the reading of a verdict changes in what it can give.
_REVISION = 1

# Bytes of letters in UTF-8 that say what language they are: by their script (24 Latin letters, 8 Hangul
# syllables), and among the languages of one script, where a list of names in English can pass for Latin;
# there the identifier must also be this sure. Of the probe's passages no verdict turns on it.
_LEAST_BYTES, _LEAST_IN_SCRIPT, _SURE = 24, 100, 0.5

_GRADE = regex.compile(r"\[\[(10|[1-9])\]\]")
_CHOICE = regex.compile(r"\[\[(A|B|TIE)\]\]")
_VERDICT = regex.compile(r"\[(?=\[\s*\w+\s*\]\])")
# What chat templates use as marks: <|im_end|>, <end_of_turn>, <bos>, <｜User｜>, [INST], <<SYS>> …
_CONTROL = regex.compile(
    r"<(?=[|｜]|/?(?:bos|eos|pad|unk|s|think)>|/?[a-z]+(?:_[a-z0-9]+)+>|unused\d+>|<SYS>|</SYS>)"
    r"|\[(?=/?[A-Z_]{4,}\])"
)
# Controls other than line ends and tabs, bidi overrides and isolates, tags; not the joiners that scripts need.
_HIDDEN = regex.compile(r"[\p{Cc}--[\n\t]]|[\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]", regex.V1)
# Between backticks, and lines of ASCII that are indented, begin as a statement does or end in a semicolon.
_CODE = regex.compile(
    r"```(?s:.*?)(?:```|\Z)|`[^`\n]*`|^(?: {4}|\t)[ -~\t]*$|^[ -~]*;[ ]*$"
    r"|^(?:(?:def|class|for|while|if|elif|return|import|from) |[\w.]+(?:[(\[]| ?=))[ -~]*$",
    regex.M,
)


# --- the prompt -----------------------------------------------------------------------------------


class Template:
    """A prompt for the judge: a Jinja template's text, the sha256 that names it, and `prompt`.

    kind: "single" or "pair", which are shipped; path: one of your own in place of it. Raises OnggiError
    where it cannot be read or is not a template.
    """

    def __init__(self, kind: Literal["single", "pair"], path: Path | None = None):
        self.name = f"{kind}.jinja" if path is None else str(path)
        try:
            if path is None:
                file = resources.files("onggi.evaluate") / "data" / "judge" / self.name
                self.text = file.read_text(encoding="utf-8")
            else:
                self.text = path.read_text(encoding="utf-8")
            environment = jinja2.sandbox.SandboxedEnvironment(
                undefined=jinja2.StrictUndefined, trim_blocks=True
            )
            self._template = environment.from_string(self.text)
        except (OSError, UnicodeDecodeError, jinja2.TemplateError) as error:
            raise OnggiError(f"{self.name}: is no template for the judge ({one_line(error)}).") from error
        if "fence" not in jinja2.meta.find_undeclared_variables(environment.parse(self.text)):
            raise OnggiError(
                f"{self.name}: has no {{{{ fence }}}}; without it an answer can speak to the judge."
            )
        self.sha256 = hashlib.sha256(self.text.encode()).hexdigest()

    def prompt(self, texts: Iterable[str | None], **values: Any) -> list[dict[str, str]]:
        """The chat to send: one user message, since not every chat template has a system's turn.

        texts: all that goes between fences, which the fence must not be in.
        """
        fence = _fence([text for text in texts if text])
        try:
            return [{"role": "user", "content": self._template.render(fence=fence, **values)}]
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise OnggiError(f"{self.name}: cannot be filled in ({one_line(error)}).") from error


def _fence(texts: Sequence[str]) -> str:
    """Eight hex digits that are in none of `texts`, the same for the same texts.

    As good as random to whoever wrote an answer: it would have to hold the hash of itself.
    """
    seed = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    while any(seed[:8] in text.casefold() for text in texts):
        seed = hashlib.sha256(seed.encode()).hexdigest()
    return seed[:8]


def harmless(text: str) -> str:
    """`text` so that a judge can read it and neither a chat template nor the reader of verdicts is misled.

    A space breaks what looks like a control token (`< |im_end|>`) or a verdict (`[ [10]]`); hidden
    characters are taken out.
    """
    text = _HIDDEN.sub("", text)
    return _VERDICT.sub("[ ", _CONTROL.sub(lambda mark: mark[0] + " ", text))


# --- grades ---------------------------------------------------------------------------------------


def grade(
    engine: Generates,
    prompts: Sequence[Prompt],
    answers: Rows,
    model: str,
    *,
    judge: str,
    sampling: Sampling = SAMPLING,
    template: Template | None = None,
    kept: Rows | None = None,
) -> Iterator[Row]:
    """A grade for each turn of each prompt, as they come. answers: item → `answering.answer`'s row.

    Rows are as `pieces.complete` keeps them, in one file a model: `item, _id, turn, lang, category, model,
    judge, status, score, identified, verdict, finish, tokens, seconds, error`. `score` is 1 to 10 where
    `status` is "judged", 0 for "empty" and "wrong_language" (not asked), and None for "unparsable" (the judge
    said something that is no grade), "failed" (the judge's engine did) and "missing" (there is no answer to
    grade). Code, and prose too short to tell, is in no wrong language.

    kept: item → row, of the file as `answering.read` finds it: without what failed or was missing. What is there
    is skipped; an unparsable verdict is, since asked again the judge would say the same.
    """
    template = template or Template("single")
    asked: list[tuple[dict[str, Any], list[dict[str, str]]]] = []
    for prompt in prompts:
        for turn, key in enumerate(prompt.keys, 1):
            if key in (kept or {}):
                continue
            row = _about(prompt, turn) | {"model": model, "judge": judge}
            status, row["identified"] = _before_asking(_text(answers, key), prompt.lang)
            if status is None:
                asked.append((row, _single(template, prompt, turn, answers)))
            else:
                yield row | {"score": None if status == "missing" else 0} | _unasked(status)
    for row, answer, found in _verdicts(engine, asked, sampling, _GRADE):
        yield row | _said(answer, found) | {"score": None if found is None else int(found)}


def _about(prompt: Prompt, turn: int) -> dict[str, Any]:
    return {
        "item": prompt.keys[turn - 1],
        "_id": prompt.id,
        "turn": turn,
        "lang": prompt.lang,
        "category": prompt.category,
    }


def _text(answers: Rows, key: str) -> str | None:
    row = answers.get(key)
    return None if row is None or row["finish"] == "error" else row["output"]


def _conversation(prompt: Prompt, turn: int, answers: Rows) -> list[tuple[str, str]]:
    """(what was said to the model, its answer) up to a turn, harmless."""
    said = [_text(answers, key) or "" for key in prompt.keys[:turn]]
    found, heard = [], []
    for message in [*prompt.chat(said[:-1]), {"role": "assistant", "content": said[-1]}]:
        if message["role"] != "assistant":
            heard.append(message["content"])
        else:
            found.append((harmless("\n\n".join(heard)), harmless(message["content"])))
            heard = []
    return found


def _reference(prompt: Prompt, turn: int) -> str | None:
    reference = prompt.references[turn - 1]
    return harmless(reference) if reference else None


def _single(template: Template, prompt: Prompt, turn: int, answers: Rows) -> list[dict[str, str]]:
    conversation = _conversation(prompt, turn, answers)
    reference = _reference(prompt, turn)
    return template.prompt(
        [*(text for pair in conversation for text in pair), reference],
        conversation=[{"question": question, "answer": answer} for question, answer in conversation],
        reference=reference,
        language=languages.name(prompt.lang),
    )


def _before_asking(text: str | None, wanted: str) -> tuple[str | None, str | None]:
    """What is settled without a judge, and the language found: (status or None, tag or None)."""
    if text is None:
        return "missing", None
    if not harmless(text).strip():
        return "empty", None
    prose = _CODE.sub(" ", text)
    said = len("".join(filter(str.isalpha, prose)).encode())
    if said < _LEAST_BYTES:
        return None, None
    guess = identify.identify(prose, expected=wanted)
    found = guess.language
    if found is None or identify.alike(found, wanted):
        return None, found
    unsure = said < _LEAST_IN_SCRIPT or guess.confidence < _SURE or not identify.known(wanted)
    if unsure and languages.script(found) == languages.script(wanted):
        return None, found
    return "wrong_language", found


def _verdicts(
    engine: Generates,
    asked: Sequence[tuple[dict[str, Any], list[dict[str, str]]]],
    sampling: Sampling,
    form: regex.Pattern[str],
) -> Iterator[tuple[dict[str, Any], Answer, str | None]]:
    if asked:
        for index, answer in engine.generate([prompt for _, prompt in asked], sampling):
            yield asked[index][0], answer, _verdict(answer, form)


def _verdict(answer: Answer, form: regex.Pattern[str]) -> str | None:
    """What the last line says; None where it says nothing else than a verdict or the end is not there."""
    lines = answer.text.strip().splitlines()
    found = form.fullmatch(lines[-1].strip()) if lines and answer.finish == "stop" else None
    return found[1] if found else None


def _said(answer: Answer, found: str | None) -> dict[str, Any]:
    failed = answer.finish == "error"
    return {
        "status": "failed" if failed else "unparsable" if found is None else "judged",
        "verdict": None if failed else answer.text,
        "finish": answer.finish,
        "tokens": answer.tokens,
        "prompt_tokens": answer.prompt_tokens,
        "seconds": round(answer.seconds, 3),
        "error": answer.error,
    }


def _unasked(status: str) -> dict[str, Any]:
    missing = status == "missing"
    return {
        "status": status,
        "verdict": None,
        "finish": "error" if missing else None,
        "tokens": 0,
        "prompt_tokens": 0,
        "seconds": 0.0,
        "error": "there is no answer" if missing else None,
    }


def tally_grades(rows: Iterable[Row], reference: str, margin: float) -> dict[str, dict[str, dict[str, Any]]]:
    """model → language → the entry `judge/score` of `scores.json`: `value`, `low`, `high`, `n`, `categories`
    (the same of each), `turns` (the mean of each), `counts` of each status, and `if_lowest`, `if_highest`: the
    mean had each unparsable verdict been a 1, or a 10.

    The mean is over turns; intervals draw prompts, and n counts those with a score. Where nothing has one the
    value is None. A model's entry has its verdict against the reference on the turns that have a score in
    both: the paired sign-flip test over prompts, Holm over languages. margin: the share of the scale's 10
    points that does not matter.
    """
    cells: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        cells[row["model"]][row["lang"]].append(row)
    found = {
        model: {lang: _grades(own) for lang, own in by_language.items()}
        for model, by_language in cells.items()
    }
    before = {row["item"]: row["score"] for own in cells[reference].values() for row in own}
    for model, by_language in found.items():
        if model == reference:
            continue
        losses = {lang: _losses(before, cells[model][lang]) for lang in by_language}
        losses = {lang: own for lang, own in losses.items() if own}
        margins = dict.fromkeys(losses, 10 * margin)
        for lang, verdict in tallies.paired(losses, margins, f"{10 * margin:g} points", 1).items():
            by_language[lang] |= verdict
    return found


def _grades(rows: Sequence[Row]) -> dict[str, Any]:
    counts = Counter(row["status"] for row in rows)
    scored = [row for row in rows if row["score"] is not None]
    total, unknown = sum(row["score"] for row in scored), counts["unparsable"]
    number = len(scored) + unknown
    turns = {
        turn: [r["score"] for r in scored if r["turn"] == turn] for turn in sorted({r["turn"] for r in rows})
    }
    return {
        **_mean(rows),
        "categories": {
            category: _mean([row for row in rows if row["category"] == category])
            for category in dict.fromkeys(row["category"] for row in rows)
            if category is not None
        },
        "turns": {str(turn): sum(scores) / len(scores) if scores else None for turn, scores in turns.items()},
        "counts": dict(counts),
        "if_lowest": (total + unknown) / number if number else None,
        "if_highest": (total + 10 * unknown) / number if number else None,
    }


def _mean(rows: Iterable[Row]) -> dict[str, Any]:
    scored = [row for row in rows if row["score"] is not None]
    found = tallies.mean_of_turns([(row["_id"], row["score"]) for row in scored], (0, 10))
    return found | {"tokens": tallies.tokens(scored)}


def _losses(before: Mapping[str, int | None], after: Iterable[Row]) -> list[float]:
    """What each prompt lost, a mean over its turns that have a score before and after."""
    lost: dict[str, list[int]] = defaultdict(list)
    for row in after:
        score = before.get(row["item"])
        if score is not None and row["score"] is not None:
            lost[row["_id"]].append(score - row["score"])
    return [sum(own) / len(own) for own in lost.values()]


# --- pairs ----------------------------------------------------------------------------------------


def compare(
    engine: Generates,
    prompts: Sequence[Prompt],
    first: tuple[str, Rows],
    second: tuple[str, Rows],
    *,
    judge: str,
    sampling: Sampling = SAMPLING,
    template: Template | None = None,
    kept: Rows | None = None,
) -> Iterator[Row]:
    """Each turn of each prompt judged twice, with `first` shown as A and with `second` shown as A.

    `first` and `second` are a model's name and its answers. A row for each order, as `pieces.complete`
    keeps them in one file a pair: `item, _id, turn, lang, category, a, b, judge, status, winner, verdict, longer,
    finish, tokens, seconds, error`, where `a` is the model shown first, `winner` the name of a model, "tie",
    or None where there is no verdict, and `longer` the model whose answer has more characters.
    An answer that is empty or in the wrong language loses to one that is not, without asking ("settled").
    kept: as in `grade`.
    """
    check([first[0], second[0]])
    template = template or Template("pair")
    asked: list[tuple[dict[str, Any], list[dict[str, str]]]] = []
    orders = ((first, second), (second, first))
    for prompt in prompts:
        for (turn, key), ((a, of_a), (b, of_b)) in itertools.product(enumerate(prompt.keys, 1), orders):
            row = _about(prompt, turn) | {"item": order(key, a), "a": a, "b": b, "judge": judge}
            if row["item"] in (kept or {}):
                continue
            texts = _text(of_a, key), _text(of_b, key)
            faults = [_before_asking(text, prompt.lang)[0] for text in texts]
            if faults == [None, None]:
                sizes = [len(text or "") for text in texts]
                row["longer"] = None if sizes[0] == sizes[1] else a if sizes[0] > sizes[1] else b
                asked.append((row, _pair(template, prompt, turn, of_a, of_b)))
            else:
                missing = "missing" in faults
                winner = None if missing else "tie" if all(faults) else b if faults[0] else a
                yield row | {"longer": None, "winner": winner} | _unasked("missing" if missing else "settled")
    for row, answer, found in _verdicts(engine, asked, sampling, _CHOICE):
        winners = {"A": row["a"], "B": row["b"], "TIE": "tie", None: None}
        yield row | _said(answer, found) | {"winner": winners[found]}


def check(models: Sequence[str]) -> None:
    """Raises OnggiError for models that cannot be compared with each other."""
    if len(set(models)) < 2 or "tie" in models:
        raise OnggiError(f"judging: {' and '.join(models)}: comparing needs two names, none of them 'tie'.")


def order(key: str, first: str) -> str:
    """The `item` of a turn's verdict with the model `first` shown first."""
    return f"{key}, {first} first"


def _pair(template: Template, prompt: Prompt, turn: int, of_a: Rows, of_b: Rows) -> list[dict[str, str]]:
    a, b = _conversation(prompt, turn, of_a), _conversation(prompt, turn, of_b)
    questions = [question for question, _ in a]
    first, second = [answer for _, answer in a], [answer for _, answer in b]
    reference = _reference(prompt, turn)
    # Sorted, so that both orders of a pair get the same fence and differ in nothing but the order.
    return template.prompt(
        [*questions, *sorted([*first, *second]), reference],
        questions=questions,
        first=first,
        second=second,
        reference=reference,
        language=languages.name(prompt.lang),
    )


def outcomes(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """One row for each turn and pair of models from the rows of its two orders: `_id, turn, lang, category`,
    `models` (two names in order), `winner` (a name, "tie", or None where an order has no verdict),
    `verdicts` (what the judge said with each of the two models shown first; None unless it did in both).

    Orders that disagree make a tie: what changes with the place of an answer is not about the answer.
    """
    both: dict[tuple[Any, ...], dict[str, Row]] = defaultdict(dict)
    for row in rows:
        both[(*sorted((row["a"], row["b"])), row["lang"], row["_id"], row["turn"])][row["a"]] = row
    found = []
    for (one, other, lang, key, turn), orders in both.items():
        order = [orders[name] for name in (one, other) if name in orders]
        said = [row["winner"] for row in order]
        whole = len(said) == 2 and None not in said
        found.append(
            {
                "_id": key,
                "turn": turn,
                "lang": lang,
                "category": order[0]["category"],
                "models": [one, other],
                "winner": None if not whole else said[0] if said[0] == said[1] else "tie",
                "verdicts": said if whole and all(row["status"] == "judged" for row in order) else None,
            }
        )
    return found


def tally_pairs(rows: Iterable[Row], reference: str | None = None) -> dict[str, dict[str, Any]]:
    """Language → what `compare`'s rows of any number of pairs say, and what is known of the judge there.

    `ratings`: model → `value`, `low`, `high`, `n` (see `ratings`; None where the decided comparisons do not
    join the models). `pairs`: for each pair of models `wins` of each, `ties`, `open` (no verdict in an order).
    `orders`: `agreement` and `kappa` between the two orders' verdicts, over `n` comparisons that the judge
    decided in both. `first_place`: the share of decided verdicts (no ties) that went to the answer shown first;
    a judge without position bias has 0.5. `longer`: the share that went to the longer answer. `counts` of
    each status. Shares are None where there is nothing to count.
    """
    by_language: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_language[row["lang"]].append(row)
    return {lang: _pairs(own, reference) for lang, own in by_language.items()}


def _pairs(rows: Sequence[Row], reference: str | None) -> dict[str, Any]:
    decided = [row for row in rows if row["status"] == "judged" and row["winner"] != "tie"]
    lengths = [row for row in decided if row["longer"] is not None]
    found = outcomes(rows)
    # Which of the two is "one" is by the alphabet; the labels must be alike for all pairs.
    labels = [
        [
            "tie" if name == "tie" else "one" if name == each["models"][0] else "other"
            for name in each["verdicts"]
        ]
        for each in found
        if each["verdicts"]
    ]
    agreement = statistics.agreement(*zip(*labels, strict=True)) if labels else None
    pairs: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for each in found:
        pairs[tuple(each["models"])][each["winner"] or "open"] += 1
    try:
        rated = {name: asdict(rating) for name, rating in ratings(rows, reference).items()}
    except OnggiError:
        rated = None
    return {
        "ratings": rated,
        "pairs": [
            {
                "models": [one, other],
                "wins": {one: counts[one], other: counts[other]},
                "ties": counts["tie"],
                "open": counts["open"],
            }
            for (one, other), counts in pairs.items()
        ],
        "orders": None
        if agreement is None
        else {
            "agreement": agreement.share,
            "kappa": None if math.isnan(agreement.kappa) else agreement.kappa,
            "n": agreement.n,
        },
        "first_place": _share([row["winner"] == row["a"] for row in decided]),
        "longer": _share([row["winner"] == row["longer"] for row in lengths]),
        "counts": dict(Counter(row["status"] for row in rows)),
    }


def _share(hits: Sequence[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None


def ratings(rows: Iterable[Row], reference: str | None = None) -> dict[str, statistics.Interval]:
    """Bradley–Terry ratings from `compare`'s rows of any number of pairs; see `statistics.bradley_terry`.

    The two orders of a comparison are one game, and the turns of a prompt one item. Comparisons
    without a verdict in both orders are left out; `tally_pairs` counts them.
    """
    games, items = [], []
    for each in outcomes(rows):
        if each["winner"] is not None:
            one, other = each["models"]
            games.append((one, other, {one: 1.0, other: 0.0, "tie": 0.5}[each["winner"]]))
            items.append(each["_id"])
    return statistics.bradley_terry(games, items, reference=reference)


def fingerprint() -> list[Any]:
    """What verdicts depend on beside the judge and the answers."""
    return [_REVISION, asdict(SAMPLING), Template("single").sha256, Template("pair").sha256]


def record(
    judge: str, sampling: Sampling, prompts: Sequence[Prompt], template: Template, scorer: str
) -> dict[str, Any]:
    """What a judge's number depends on, for the result's record: change any and it is another measure."""
    return {
        "judge": judge,
        "scorer": scorer,
        "revision": _REVISION,
        "shots": 0,
        "sampling": asdict(sampling),
        "template": {"name": template.name, "sha256": template.sha256, "text": template.text},
        "questions": {"n": len(prompts), "sha256": ledger.digest([asdict(prompt) for prompt in prompts])},
    }

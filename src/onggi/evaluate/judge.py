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
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
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
from .questions import Answers, Question, Row

SAMPLING = Sampling(max_tokens=1024)

Identify = Callable[[str], str | None]

# Raised when a prompt or the reading of a verdict changes in what it can give.
_REVISION = 1

# Bytes of letters in UTF-8 that say what language they are: by their script (24 Latin letters, 8 Hangul
# syllables), and among the languages of one script, where a list of names in English can pass for Welsh.
_LEAST_BYTES, _LEAST_IN_SCRIPT = 24, 100

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
    questions: Sequence[Question],
    answers: Answers,
    model: str,
    language_of: Identify,
    *,
    judge: str,
    sampling: Sampling = SAMPLING,
    template: Template | None = None,
    done: Collection[tuple[str, str, int]] = (),
) -> Iterator[Row]:
    """A grade for each turn of each question that `model` answered, as they come.

    language_of: text → canonical tag, or None where it cannot tell; one that takes the language it should
    expect errs less, so give each language's questions with its own. Rows are ready for JSONL: `_id,
    turn, lang, category, model, judge, status, score, identified, verdict, tokens, seconds`.
    `score` is 1 to 10 where `status` is "judged", 0 for "empty" and "wrong_language" (not asked), and
    None for "unparsable" (the judge said something that is no grade), "failed" (the judge's engine did)
    and "missing" (there is no answer to grade). Code, and prose too short to tell, is in no wrong
    language.

    done: (model, question, turn) already graded, as `graded` finds them; they are skipped.
    """
    template = template or Template("single")
    asked: list[tuple[Row, list[dict[str, str]]]] = []
    for q in questions:
        for key in q.keys:
            if (model, *key) in done:
                continue
            row: Row = {
                "_id": q.id,
                "turn": key[1],
                "lang": q.lang,
                "category": q.category,
                "model": model,
                "judge": judge,
            }
            status, identified = _before_asking(answers.get(key), q.lang, language_of)
            row["identified"] = identified
            if status is None:
                asked.append((row, _single(template, q, key[1], answers)))
            else:
                score = None if status == "missing" else 0
                yield row | {"status": status, "score": score, "verdict": None, "tokens": 0, "seconds": 0.0}
    for row, answer, found in _verdicts(engine, asked, sampling, _GRADE):
        yield row | _said(answer, found) | {"score": None if found is None else int(found)}


def graded(rows: Iterable[Row]) -> set[tuple[str, str, int]]:
    """What `grade` need not do again: (model, question, turn) of all but failures and missing answers."""
    return {
        (row["model"], row["_id"], row["turn"]) for row in rows if row["status"] not in ("failed", "missing")
    }


def _single(template: Template, q: Question, turn: int, answers: Answers) -> list[dict[str, str]]:
    conversation = [
        {"question": harmless(q.turns[t - 1]), "answer": harmless(answers.get((q.id, t), ""))}
        for t in range(1, turn + 1)
    ]
    reference = q.references[turn - 1]
    reference = harmless(reference) if reference else None
    texts = [text for each in conversation for text in each.values()]
    return template.prompt(
        [*texts, reference],
        conversation=conversation,
        reference=reference,
        language=languages.name(q.lang),
    )


def _before_asking(text: str | None, wanted: str, language_of: Identify) -> tuple[str | None, str | None]:
    """What is settled without a judge, and the language found: (status or None, tag or None)."""
    if text is None:
        return "missing", None
    if not harmless(text).strip():
        return "empty", None
    prose = _CODE.sub(" ", text)
    said = len("".join(filter(str.isalpha, prose)).encode())
    if said < _LEAST_BYTES:
        return None, None
    found = language_of(prose)
    if found is None or _same(found, wanted):
        return None, found
    if said < _LEAST_IN_SCRIPT and languages.script(languages.canonical(found)) == languages.script(wanted):
        return None, found
    return "wrong_language", found


def _same(found: str, wanted: str) -> bool:
    """The same language in the same script; regions are not told apart."""
    found = languages.canonical(found)
    return found.split("-")[0] == wanted.split("-")[0] and languages.script(found) == languages.script(wanted)


def _verdicts(
    engine: Generates,
    asked: Sequence[tuple[Row, list[dict[str, str]]]],
    sampling: Sampling,
    form: regex.Pattern[str],
) -> Iterator[tuple[Row, Answer, str | None]]:
    if asked:
        for index, answer in engine.generate([prompt for _, prompt in asked], sampling):
            yield asked[index][0], answer, _verdict(answer, form)


def _verdict(answer: Answer, form: regex.Pattern[str]) -> str | None:
    """What the last line says; None where it says nothing else than a verdict or the end is not there."""
    lines = answer.text.strip().splitlines()
    found = form.fullmatch(lines[-1].strip()) if lines and answer.finish == "stop" else None
    return found[1] if found else None


def _said(answer: Answer, found: str | None) -> Row:
    failed = answer.finish == "error"
    return {
        "status": "failed" if failed else "unparsable" if found is None else "judged",
        "verdict": answer.error if failed else answer.text,
        "finish": answer.finish,
        "tokens": answer.tokens,
        "seconds": answer.seconds,
    }


def summarise_grades(rows: Iterable[Row], seed: int = 0) -> dict[str, dict[str, Any]]:
    """model → language → `score` (value, low, high, n) over all, `categories` → score, `turns` → mean,
    `counts` of each status, and `if_lowest`, `if_highest`: the mean if each unparsable verdict had
    been a 1, or a 10.

    The mean is over turns; intervals draw questions, since the turns of one share their fate. n is
    questions with a score. Where nothing has a score, the value is None.
    """
    by_cell: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        by_cell[row["model"], row["lang"]].append(row)
    summary: dict[str, dict[str, Any]] = defaultdict(dict)
    for (model, lang), cell in by_cell.items():
        counts = Counter(row["status"] for row in cell)
        scores = [row["score"] for row in cell if row["score"] is not None]
        open_, known = counts["unparsable"], len(scores)
        turns: dict[int, list[int]] = {turn: [] for turn in sorted({row["turn"] for row in cell})}
        for row in cell:
            if row["score"] is not None:
                turns[row["turn"]].append(row["score"])
        summary[model][lang] = {
            "score": _mean(cell, seed),
            "categories": {
                category: _mean([row for row in cell if row["category"] == category], seed)
                for category in dict.fromkeys(row["category"] for row in cell)
            },
            "turns": {str(turn): sum(s) / len(s) if s else None for turn, s in turns.items()},
            "counts": dict(counts),
            "if_lowest": (sum(scores) + open_) / (known + open_) if known + open_ else None,
            "if_highest": (sum(scores) + 10 * open_) / (known + open_) if known + open_ else None,
        }
    return dict(summary)


def _mean(rows: Sequence[Row], seed: int) -> Row:
    by_question: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if row["score"] is not None:
            by_question[row["_id"]].append(row["score"])
    if not by_question:
        return {"value": None, "low": None, "high": None, "n": 0}
    sums, turns = [sum(s) for s in by_question.values()], [len(s) for s in by_question.values()]
    found = statistics.interval(sums, turns, bounds=(0, 10), seed=seed)
    return {
        "value": found.value,
        "low": None if math.isnan(found.low) else found.low,
        "high": None if math.isnan(found.high) else found.high,
        "n": found.n,
    }


# --- pairs ----------------------------------------------------------------------------------------


def compare(
    engine: Generates,
    questions: Sequence[Question],
    first: tuple[str, Answers],
    second: tuple[str, Answers],
    language_of: Identify,
    *,
    judge: str,
    sampling: Sampling = SAMPLING,
    template: Template | None = None,
    done: Collection[tuple[str, str, str, int]] = (),
) -> Iterator[Row]:
    """Each turn of each question judged twice, with `first` shown as A and with `second` shown as A.

    `first` and `second` are a model's name and its answers. A row for each order, ready for JSONL:
    `_id, turn, lang, category, a, b, judge, status, winner, verdict, longer, tokens, seconds`, where `a` is the
    model shown first, `winner` the name of a model, "tie", or None where there is no verdict, and
    `longer` the model whose answer has more characters.
    An answer that is empty or in the wrong language loses to one that is not, without asking ("settled").
    done: (a, b, question, turn) already compared, as `compared` finds them; they are skipped.
    """
    if first[0] == second[0] or "tie" in (first[0], second[0]):
        raise OnggiError(f"{first[0]} and {second[0]}: two models need two names, neither of them 'tie'.")
    template = template or Template("pair")
    asked: list[tuple[Row, list[dict[str, str]]]] = []
    for q in questions:
        for key in q.keys:
            for (a, of_a), (b, of_b) in ((first, second), (second, first)):
                if (a, b, *key) in done:
                    continue
                row: Row = {
                    "_id": q.id,
                    "turn": key[1],
                    "lang": q.lang,
                    "category": q.category,
                    "a": a,
                    "b": b,
                    "judge": judge,
                }
                texts = of_a.get(key), of_b.get(key)
                faults = [_before_asking(text, q.lang, language_of)[0] for text in texts]
                if faults == [None, None]:
                    sizes = [len(text or "") for text in texts]
                    row["longer"] = None if sizes[0] == sizes[1] else a if sizes[0] > sizes[1] else b
                    asked.append((row, _pair(template, q, key[1], of_a, of_b)))
                    continue
                missing = "missing" in faults
                winner = None if missing else "tie" if all(faults) else b if faults[0] else a
                yield row | {
                    "longer": None,
                    "status": "missing" if missing else "settled",
                    "winner": winner,
                    "verdict": None,
                    "tokens": 0,
                    "seconds": 0.0,
                }
    for row, answer, found in _verdicts(engine, asked, sampling, _CHOICE):
        winners = {"A": row["a"], "B": row["b"], "TIE": "tie", None: None}
        yield row | _said(answer, found) | {"winner": winners[found]}


def compared(rows: Iterable[Row]) -> set[tuple[str, str, str, int]]:
    """What `compare` need not do again: (a, b, question, turn) of all but failures and missing answers."""
    return {
        (row["a"], row["b"], row["_id"], row["turn"])
        for row in rows
        if row["status"] not in ("failed", "missing")
    }


def _pair(template: Template, q: Question, turn: int, of_a: Answers, of_b: Answers) -> list[dict[str, str]]:
    turns = range(1, turn + 1)
    texts = [harmless(q.turns[t - 1]) for t in turns]
    first = [harmless(of_a.get((q.id, t), "")) for t in turns]
    second = [harmless(of_b.get((q.id, t), "")) for t in turns]
    reference = q.references[turn - 1]
    reference = harmless(reference) if reference else None
    # Sorted, so that both orders of a pair get the same fence and differ in nothing but the order.
    return template.prompt(
        [*texts, *sorted([*first, *second]), reference],
        questions=texts,
        first=first,
        second=second,
        reference=reference,
        language=languages.name(q.lang),
    )


def outcomes(rows: Iterable[Row]) -> list[Row]:
    """One row for each question, turn and pair of models from the rows of its two orders: `_id, turn, lang,
    category, models` (two names in order), `winner` (a name, "tie", or None where an order has no verdict),
    `agreed` (whether both orders said the same; None unless the judge gave a verdict in both).

    Orders that disagree make a tie: what changes with the place of an answer is not about the answer.
    """
    both: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        names = tuple(sorted((row["a"], row["b"])))
        both[(*names, row["lang"], row["_id"], row["turn"])].append(row)
    found = []
    for (one, other, lang, key, turn), orders in both.items():
        said = [row["winner"] for row in orders]
        whole = len(orders) == 2 and None not in said
        found.append(
            {
                "_id": key,
                "turn": turn,
                "lang": lang,
                "category": orders[0]["category"],
                "models": [one, other],
                "winner": None if not whole else said[0] if said[0] == said[1] else "tie",
                "agreed": said[0] == said[1]
                if whole and all(row["status"] == "judged" for row in orders)
                else None,
            }
        )
    return found


def summarise_pairs(rows: Sequence[Row]) -> Row:
    """The `pairs` and what is known of the judge.

    `pairs`: for each language and pair of models, `wins` of each, `ties`, `open` (no verdict in an order).
    `orders`: `agreement` and `kappa` between the two orders' verdicts, over `n` comparisons that the judge
    decided in both. `first_place`: the share of decided verdicts (no ties) that went to the answer shown first;
    a judge without position bias has 0.5. `longer`: the share that went to the longer answer. `counts` of
    each status. Shares are None where there is nothing to count.
    """
    decided = [row for row in rows if row["status"] == "judged" and row["winner"] != "tie"]
    lengths = [row for row in decided if row["longer"] is not None]
    found = outcomes(rows)
    judged: dict[tuple[Any, ...], dict[str, str]] = defaultdict(dict)
    for row in rows:
        if row["status"] == "judged":
            judged[(*sorted((row["a"], row["b"])), row["_id"], row["turn"])][row["a"]] = row["winner"]
    # Which of the two names is "one" is by the alphabet; the labels must be alike for all pairs.
    label = {
        key: [
            "tie" if winner == "tie" else "one" if winner == key[0] else "other"
            for _, winner in sorted(orders.items())
        ]
        for key, orders in judged.items()
        if len(orders) == 2
    }
    agreement = statistics.agreement(*zip(*label.values(), strict=True)) if label else None
    pairs: dict[tuple[str, str, str], Counter[str]] = defaultdict(Counter)
    for each in found:
        one, other = each["models"]
        pairs[each["lang"], one, other][each["winner"] or "open"] += 1
    return {
        "pairs": [
            {
                "lang": lang,
                "models": [one, other],
                "wins": {one: counts[one], other: counts[other]},
                "ties": counts["tie"],
                "open": counts["open"],
            }
            for (lang, one, other), counts in pairs.items()
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

    The two orders of a comparison are one game, and the turns of a question one item. Comparisons
    without a verdict in both orders are left out; `summarise_pairs` counts them. Where languages
    are mixed, a question of each is an item of its own.
    """
    games, items = [], []
    for each in outcomes(rows):
        if each["winner"] is not None:
            one, other = each["models"]
            games.append((one, other, {one: 1.0, other: 0.0, "tie": 0.5}[each["winner"]]))
            items.append((each["lang"], each["_id"]))
    return statistics.bradley_terry(games, items, reference=reference)


def record(
    judge: str, sampling: Sampling, questions: Sequence[Question], template: Template, scorer: str
) -> Row:
    """What a judge's number depends on, for the result's record: change any and it is another measure."""
    return {
        "judge": judge,
        "scorer": scorer,
        "revision": _REVISION,
        "shots": 0,
        "sampling": asdict(sampling),
        "template": {"name": template.name, "sha256": template.sha256, "text": template.text},
        "questions": {
            "n": len(questions),
            "sha256": ledger.digest([asdict(question) for question in questions]),
        },
    }

"""Pairs out and ratings in, as JSON lines and as Label Studio's JSON, for teams that rate elsewhere.

What goes out is as blind as the page: assignments, texts and sides. What comes in is added as ratings of raters
named by whoever rated (`completed_by` in Label Studio, `rater` in JSON lines), once, however often it is read.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import ledger
from ..errors import OnggiError
from ..text import jsonl
from .store import Event, Rater, Store
from .study import CHOICES, REASONS, Study

LABELS = """<View>
  <Header value="$prompt"/>
  <View style="display: flex; gap: 1rem; white-space: pre-wrap">
    <View style="flex: 1"><Text name="left" value="$left"/></View>
    <View style="flex: 1"><Text name="right" value="$right"/></View>
  </View>
  <Choices name="choice" toName="left" choice="single" required="true">
{choices}
  </Choices>
  <Choices name="left_reasons" toName="left" choice="multiple">
{reasons}
  </Choices>
  <Choices name="right_reasons" toName="right" choice="multiple">
{reasons}
  </Choices>
</View>
"""


def label_config() -> str:
    """The labelling interface for Label Studio, in its XML."""
    lines = {
        name: "\n".join(f'    <Choice value="{value}"/>' for value in values)
        for name, values in (("choices", CHOICES), ("reasons", REASONS))
    }
    return LABELS.format(**lines)


def assignments(study: Study, languages: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Every place of every rater's list, blind: `assignment`, `lang`, `list`, `prompt`, `left`, `right`.

    The same pair is there once for each list that it is in; one person should not work on two of them.
    """
    for lang in languages:
        for slot, mine in enumerate(study.schedule[lang], 1):
            for shown in mine:
                pair = study.pairs[shown.pair]
                sides = [_answer(pair, "first"), _answer(pair, "second")]
                left, right = reversed(sides) if shown.swapped else sides
                prompt = "\n\n".join([*(m["content"] for m in pair["before"]), pair["turns"][0]])
                row = {"assignment": shown.id, "lang": lang, "list": slot}
                yield row | {"prompt": prompt, "left": left, "right": right}


def _answer(pair: Mapping[str, Any], which: str) -> str:
    """An answer in one text: of several turns each with its question before it, but for the first."""
    parts = [pair[which][0]]
    for question, answer in zip(pair["turns"][1:], pair[which][1:], strict=True):
        parts += [f"» {question}", answer]
    return "\n\n".join(parts)


def write(path: Path, rows: Sequence[Mapping[str, Any]], label_studio: bool) -> None:
    """Write `rows` as JSON lines; or as tasks for Label Studio, with the labelling interface beside them."""
    if label_studio:
        ledger.write_json(path, [{"data": dict(row)} for row in rows])
        with ledger.writing(path.with_suffix(".xml")) as aside:
            aside.write_text(label_config(), encoding="utf-8")
        return
    with ledger.writing(path) as aside, aside.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)  # ASCII: an answer may hold half a character


# ── ratings made elsewhere ─────────────────────────────────────────────────────────────────────


def ratings(study: Study, path: Path) -> list[Event]:
    """The ratings in a file of JSON lines or of Label Studio's JSON. The rater of each is who made it there.

    Raises OnggiError with the place of what is wrong: an assignment that is none of this study's, a choice or
    reason that is none.
    """
    found = _label_studio(path) if path.suffix == ".json" else _rows(path)
    events = []
    for place, row in found:
        assignment, choice, rater = row.get("assignment"), row.get("choice"), row.get("rater")
        if not isinstance(assignment, str) or assignment not in study.places:
            raise OnggiError(f"{place}: assignment {assignment!r} is not of this study.")
        if choice not in CHOICES:
            raise OnggiError(f"{place}: choice is {choice!r}, not one of {', '.join(CHOICES)}.")
        if not isinstance(rater, str | int) or not str(rater).strip():
            raise OnggiError(f"{place}: rater says who rated; it is {rater!r}.")
        left, right = (_reasons(place, row, f"{side}_reasons") for side in ("left", "right"))
        seconds = row.get("seconds")
        seconds = float(seconds) if isinstance(seconds, int | float) else None
        events.append(Event(str(rater), assignment, f"import {assignment}", choice, left, right, seconds))
    return events


def _reasons(place: str, row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    given = row.get(name) or []
    if not isinstance(given, list) or not all(reason in REASONS for reason in given):
        raise OnggiError(f"{place}: {name} is {given!r}, not a list of {', '.join(REASONS)}.")
    return tuple(reason for reason in REASONS if reason in given)


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for line, row in jsonl.read(path, str(path)):
        yield f"{path}, line {line}", row


def _label_studio(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each annotation of Label Studio's JSON export that was not skipped."""
    tasks = ledger.read_json(path)
    if not isinstance(tasks, list):
        raise OnggiError(f"{path}: is no export of Label Studio's: its JSON is a list of tasks.")
    for number, task in enumerate(tasks, 1):
        place = f"{path}, task {number}"
        data = task.get("data") if isinstance(task, dict) else None
        annotations = task.get("annotations", []) if isinstance(data, dict) else None
        if not isinstance(data, dict) or not isinstance(annotations, list):
            raise OnggiError(f"{place}: has no data and annotations.")
        for annotation in annotations:
            if not isinstance(annotation, dict) or annotation.get("was_cancelled"):
                continue
            marked: dict[str, list[Any]] = {}
            for result in annotation.get("result") or ():
                if isinstance(result, dict) and result.get("type") == "choices":
                    value = result.get("value")
                    if isinstance(value, dict):
                        marked[str(result.get("from_name"))] = list(value.get("choices") or ())
            if not marked:  # submitted without an answer
                continue
            by = annotation.get("completed_by")
            chosen = marked.get("choice") or [None]
            yield (
                place,
                {
                    "assignment": data.get("assignment"),
                    "choice": chosen[0] if len(chosen) == 1 else chosen,
                    "rater": by.get("email") or by.get("id") if isinstance(by, dict) else by,
                    "left_reasons": marked.get("left_reasons", []),
                    "right_reasons": marked.get("right_reasons", []),
                    "seconds": annotation.get("lead_time"),
                },
            )


def keep(study: Study, store: Store, events: Sequence[Event]) -> tuple[int, int, int]:
    """Add ratings made elsewhere: how many are new, were there before, and were left out because their rater had
    rated the same pair in another list. Raises OnggiError where the study is closed.
    """
    there = {rater.id for rater in store.raters()}
    said = store.all_said()
    rated = {
        (rater, study.shown(assignment).pair) for rater, own in said.items() for assignment in own.ratings
    }
    new, known, twice = [], 0, 0
    for event in events:
        lang = study.places[event.assignment].lang
        name = f"elsewhere {lang} {event.rater}"
        if name not in there:
            there.add(name)
            store.put(Rater(name, lang, None, "imported", 0, time.time(), 0, name=None))
        pair = study.shown(event.assignment).pair
        if name in said and event.key in said[name].keys:
            known += 1
        elif (name, pair) in rated:
            twice += 1
        else:
            rated.add((name, pair))
            new.append(replace(event, rater=name, at=time.time()))
    if store.add(new) is None:
        raise OnggiError(f"{study.path}: is closed; what was rated after that does not count.")
    return len(new), known, twice

"""The tasks of bench/evaluate.py, as YAML and data files that lm-eval reads: capitals, in four scripts.

    python bench/parts/choice_tasks.py --model FOLDER --items 25 --out DIR

Each question is asked with its four choices shown and answered by their letter (`letter`, one token),
and bare, answered by the name itself (`name`, four tokens on average over the languages). Each is there
with five fixed shots (`first_n`) and with two, with lm-eval's default of other shots for each question,
and without. The five solved items are never questions. DIR/about.json says how many tokens an answer
and the longest question with its shots have.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import yaml

from onggi.evaluate.tasks import TASKS, Choice
from onggi.text.tokens import Tokens

LANGUAGES = ("en", "ko", "el", "km")
SHOTS = 5
# What the tasks are called, and how their shots are drawn.
KINDS = {
    "fixed": {"num_fewshot": SHOTS, "fewshot_config": {"sampler": "first_n"}},
    "two": {"num_fewshot": 2, "fewshot_config": {"sampler": "first_n"}},
    "drawn": {"num_fewshot": SHOTS},
    "zero": {"num_fewshot": 0},
}


def shown(item: Choice) -> dict[str, object]:
    """The question with its choices, answered by a letter."""
    lines = [f"{letter}.{choice}" for letter, choice in zip("ABCD", item.choices, strict=True)]
    what, asked = item.context.splitlines()
    question = "\n".join([what, *lines, asked])
    return {"question": question, "choices": list("ABCD"), "answer": item.answer}


def bare(item: Choice) -> dict[str, object]:
    """The question alone, answered by a name."""
    return {
        "question": item.context,
        "choices": [choice.strip() for choice in item.choices],
        "answer": item.answer,
    }


def main() -> None:
    """Write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--items", required=True, type=int, help="of each language")
    parser.add_argument("--out", required=True, type=Path)
    given = parser.parse_args()
    tokens = Tokens(given.model)
    answer_tokens, longest = {}, {}
    found = TASKS["capitals"].items(LANGUAGES)
    given.out.mkdir(parents=True, exist_ok=True)
    for answers, form in (("letter", shown), ("name", bare)):
        lengths, questions = [], []
        for language in LANGUAGES:
            rows = [form(item) for item in found[language]]
            files = {}
            for part, own in (("shots", rows[-SHOTS:]), ("test", rows[: given.items])):
                file = given.out / f"{answers}_{language}.{part}.jsonl"
                file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in own))
                files[part] = str(file.resolve())
            if len(rows) < given.items + SHOTS:
                parser.error(f"--items: there are {len(rows) - SHOTS}")
            lengths += [
                len(tokens.encode(f" {choice}")) for row in rows[: given.items] for choice in row["choices"]
            ]
            questions.append(max(len(tokens.encode(row["question"])) for row in rows))
            for kind, shots in KINDS.items():
                name = f"{kind}_{answers}_{language}"
                config = {
                    "task": name,
                    "dataset_path": "json",
                    "dataset_kwargs": {"data_files": files},
                    "test_split": "test",
                    "fewshot_split": "shots",
                    "output_type": "multiple_choice",
                    "doc_to_text": "{{question}}",
                    "doc_to_choice": "choices",
                    "doc_to_target": "answer",
                    "metadata": {"lang": language, "version": 1},
                    **shots,
                }
                (given.out / f"{name}.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        answer_tokens[answers] = statistics.fmean(lengths)
        longest[answers] = max(questions) + max(lengths)
    about = {"languages": LANGUAGES, "answer_tokens": answer_tokens, "longest": longest}
    (given.out / "about.json").write_text(json.dumps(about))


if __name__ == "__main__":
    main()

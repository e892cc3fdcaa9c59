"""Write the tables of docs/tasks.md from the tasks as they are: `python workshop/tasks_table.py`."""

from __future__ import annotations

import re
from pathlib import Path

from onggi import languages, text
from onggi.evaluate.tasks import TASKS, Choice, floor

PAGE = Path(__file__).parents[1] / "docs" / "tasks.md"


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name, table in (("tasks", tasks()), ("languages", per_language())):
        start, end = f"<!-- {name}: made by workshop/tasks_table.py -->", f"<!-- /{name} -->"
        page = re.sub(
            f"{re.escape(start)}.*?{re.escape(end)}", f"{start}\n{table}\n{end}", page, flags=re.DOTALL
        )
    PAGE.write_text(page, encoding="utf-8")


def tasks() -> str:
    """Each task over the probe's languages, and over all that it has."""
    probe = text.load("probe").languages
    rows = [
        "| task | metric | languages | items in all 12 of the probe | in all its languages | chance | one answer always |"
    ]
    rows.append("|---|---|---|---|---|---|---|")
    for task in TASKS.values():
        every = task.languages()
        among = [tag for tag in every if tag in probe]
        items = task.items(among)[among[0]]
        line = [f"`{task.name}`", f"`{task.metric}`", str(len(every)), str(len(items))]
        if task.parallel:
            line[2], count = "those of the text", "the probe's"
        else:
            count = str(len(task.items(every)[every[0]]))
        line.append(count)
        choices = [item for item in items if isinstance(item, Choice)]
        if choices:
            ground = floor(choices)
            line += [f"{ground.chance:.1%}", f"{ground.majority:.1%}"]
        else:
            line += ["-", "-"]
        rows.append(f"| {' | '.join(line)} |")
    return "\n".join(rows)


def per_language() -> str:
    """Items of the shipped tasks, asked in one language alone."""
    shipped = [task for task in TASKS.values() if not task.parallel]
    rows = [
        "| language | " + " | ".join(f"`{task.name}`" for task in shipped) + " |",
        "|---" * (len(shipped) + 1) + "|",
    ]
    for tag in max((task.languages() for task in shipped), key=len):
        counts = [len(task.items((tag,))[tag]) if tag in task.languages() else "-" for task in shipped]
        rows.append(f"| {languages.name(tag)} ({tag}) | " + " | ".join(map(str, counts)) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()

"""Tasks whose items ship with onggi or are made from a parallel text: no hub, the same in every language.

    TASKS["capitals"].items(("en", "ko", "km"), shots=5, limit=100)   # language → items

An item has one id in all languages and asks the same thing in each, with the same distractors, so
that languages can be compared item by item. What a task asks and what it cannot show is told in
docs/tasks.md.
"""

from .facts import FACTS
from .items import Choice, Floor, Item, Open, Task, floor
from .passages import PASSAGES
from .translation import TRANSLATIONS, chrf, chrf_signature

TASKS: dict[str, Task] = {task.name: task for task in (*FACTS, *PASSAGES, *TRANSLATIONS)}

__all__ = ["TASKS", "Choice", "Floor", "Item", "Open", "Task", "chrf", "chrf_signature", "floor"]

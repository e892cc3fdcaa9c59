"""Passages of a second text to measure on, as JSONL: paragraphs of GNOME's help that stand in every language.

    python bench/parts/other_text.py --languages en,ko,fa --passages 40 --out FILE

Neither calibrated on (that is LibreOffice's help), nor chosen on (the efforts of `onggi quantize` were picked on
Debian's installation guide). Paragraphs of 80 to 600 characters in English, evenly spread over the pages.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from onggi import text
from onggi.languages import Languages

SOURCE = "debian:gnome-user-docs"
LEAST, MOST = 80, 600


def main() -> None:
    """Write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--languages", required=True)
    parser.add_argument("--passages", required=True, type=int)
    parser.add_argument("--out", required=True, type=Path)
    given = parser.parse_args()
    languages = Languages(given.languages)
    common = text.load(SOURCE, languages).common(languages)
    found = [key for key, passage in common["en"].items() if LEAST <= len(passage) <= MOST]
    if len(found) < given.passages:
        parser.error(f"--passages: {SOURCE} has {len(found)} in all of {given.languages}.")
    kept = [found[i * len(found) // given.passages] for i in range(given.passages)]
    rows = [{"_id": key, **{language: common[language][key] for language in languages}} for key in kept]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    given.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

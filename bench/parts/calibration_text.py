"""The tokens that `onggi quantize` draws for itself as a text file, for llama-imatrix.

    python bench/parts/calibration_text.py MODEL IDS OUT

llama-imatrix tokenises a file by itself and cuts it into chunks, so sequences may begin elsewhere; the text is the same.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from onggi.models import references
from onggi.text.tokens import Tokens


def main(model: str, ids: str, out: str) -> None:
    """Write it, the sequences one after the other, without their start tokens."""
    tokens = Tokens(references.resolve(model))
    rows = [json.loads(line)["input_ids"][1:] for line in Path(ids).read_text().splitlines()]
    Path(out).write_text("\n".join(tokens.tokenizer.decode(row) for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:4])

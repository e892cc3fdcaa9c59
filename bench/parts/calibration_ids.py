"""The token ids that `onggi quantize` draws for itself, as JSON lines for a peer.

Same function, same text, same seed, so that both tools are calibrated on the same tokens. Refuses
a draw with padding or fewer tokens than asked: the peer would see other sequences than onggi.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from onggi import text
from onggi.languages import Languages
from onggi.quantize import balance
from onggi.text.tokens import Tokens


def main() -> None:
    """Draw --tokens tokens of --text in --languages for the tokenizer of --model; write --out."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("--model", "--text", "--languages", "--fairness", "--out"):
        parser.add_argument(name, required=True)
    parser.add_argument("--tokens", required=True, type=int)
    given = parser.parse_args()
    languages = Languages(given.languages)
    found, tokens = text.load(given.text, languages), Tokens(Path(given.model))
    drawn = balance.draw(
        {language: found.passages(language) for language in languages},
        tokens.encode,
        tokens.prefix,
        given.tokens,
        balanced=given.fairness == "balanced",
        seed=0,
    )
    whole = bool((drawn.weights[:, 1:] > 0).all()) and not drawn.short
    if not whole or drawn.ids.numel() != given.tokens:
        raise SystemExit(f"the draw is {tuple(drawn.ids.shape)}, short of {drawn.short}: not comparable.")
    lines = [json.dumps({"input_ids": row}) for row in drawn.ids.tolist()]
    Path(given.out).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

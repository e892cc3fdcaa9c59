"""What options name, without the libraries that compute with it: `--help` and a recipe's plan need no more."""

from __future__ import annotations

from ..errors import OnggiError

# Files of a stored teacher.
INDEX, HELD_OUT = "capture.json", "held_out.jsonl"
# The loss for a teacher with another tokenizer (see `alignment`).
SPANS = "spans"


def loss(text: str) -> tuple[str, float]:
    """The kind and the amount that kl, reverse-kl, jsd:0.5, skew:0.1 (see `head.divergences`) or spans names.

    Raises OnggiError for what names none.
    """
    kind, mark, amount = text.partition(":")
    try:
        if kind in ("kl", "reverse-kl", SPANS) and not mark:
            return kind, 0.0
        if kind in ("jsd", "skew") and 0 < float(amount) < 1:
            return kind, float(amount)
    except ValueError:
        pass
    raise OnggiError(
        f"loss: {text!r} is none of kl, reverse-kl, jsd:B, skew:A and spans, with B and A between 0 and 1 as in jsd:0.5."
    )

"""How far what plain `from_pretrained` loads is from another model."""

from collections.abc import Iterable
from pathlib import Path

import torch

from onggi import text
from onggi.engines.transformers import Engine
from onggi.head import compare


def on_probe(reference: Path, model: Path, languages: Iterable[str], passages: int) -> dict[str, float]:
    """Language → mean KL from `reference`, nats a token, on so many passages of the probe."""
    engines, found = [Engine(reference), Engine(model)], {}
    for language in languages:
        texts = list(text.load("probe", [language]).passages(language).values())[:passages]
        both = [engine.states(texts) for engine in engines]
        states = [torch.cat([hidden for hidden, _ in own]) for own in both]
        targets = torch.cat([ids for _, ids in both[0]])
        kl = compare(states, [engine.head for engine in engines], targets)[1].kl
        assert kl is not None
        found[language] = float(kl.mean())
    return found

"""What each language loses in GGUF files, through llama.cpp's own evaluation of them.

    python bench/parts/gguf_scores.py --reference FOLDER --passages 20 --every 2 --key WORD --out DIR NAME=FILE …

KL(reference ‖ file) over the whole vocabulary at every second token of passages of the probe: the reference by
transformers in fp32, the file by llama.cpp as it runs for everyone, with activations of 8 bits and keys and values in
fp16. What that costs by itself is told by a file of 16 bits. DIR/NAME.json has (sum of nats, positions) of each
passage of each language; a file that is finished is not measured again, unless --key (of the reference and of what measures),
the passages or the file are others.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

from onggi import ledger, text
from onggi.engines.llamascores import Scorer
from onggi.engines.transformers import Engine

_AT_ONCE = 64  # positions whose logits of both sides are in memory, a megabyte each


def divergences(scorer: Scorer, engine: Engine, ids: list[int], states: Tensor, wanted: list[int]) -> float:
    """Σ KL over the positions `wanted` of `ids`, the start token first, nats. states: (positions, hidden) of the reference."""
    total, here, rows = 0.0, list[int](), list[Tensor]()

    def add() -> float:
        log_p = engine.head.logits(states[here]).log_softmax(-1)
        log_q = torch.stack(rows)[:, : log_p.shape[1]].log_softmax(-1)
        return float(torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="sum"))

    for position, logits in scorer.logits(ids, wanted):
        here.append(position)
        rows.append(torch.from_numpy(logits))
        if len(here) == _AT_ONCE or position == wanted[-1]:
            total += add()
            here.clear()
            rows.clear()
    return total


@torch.no_grad()
def main() -> None:
    """Measure each file that is not measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", required=True, type=Path)
    parser.add_argument("--passages", required=True, type=int, help="of the probe, in each language")
    parser.add_argument("--every", required=True, type=int, help="positions apart")
    parser.add_argument("--languages", help="default: all of the probe")
    parser.add_argument("--key", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("files", nargs="+")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    files = {name: Path(path) for name, _, path in (word.partition("=") for word in given.files)}
    same = [given.passages, given.every, given.languages, given.key]
    keys = {name: [ledger.sha256(path), *same] for name, path in files.items()}

    def done(name: str) -> bool:
        kept = given.out / f"{name}.json"
        return kept.is_file() and json.loads(kept.read_text())["key"] == keys[name]

    missing = [name for name in files if not done(name)]
    if not missing:
        return
    probe = text.load("probe")
    languages = given.languages.split(",") if given.languages else list(probe.languages)
    passages = probe.common(languages, given.passages)
    engine = Engine(given.reference)
    states = {tag: engine.states(list(own.values())) for tag, own in passages.items()}
    for name in missing:
        found: dict[str, dict[str, list[float]]] = {}
        with Scorer(files[name], engine.tokens, context=1024) as scorer:
            for tag, own in states.items():
                found[tag] = {}
                for item, (hidden, targets) in zip(passages[tag], own, strict=True):
                    ids = [engine.tokens.prefix, *targets.tolist()]
                    wanted = list(range(0, len(targets), given.every))
                    nats = divergences(scorer, engine, ids, hidden, wanted)
                    found[tag][item] = [nats, len(wanted)]
        (given.out / f"{name}.json").write_text(json.dumps({"key": keys[name], "languages": found}))
        worst = max(found, key=lambda tag: mean(found[tag]))
        print(f"bench: {name}: worst {worst} {mean(found[worst]):.4f}", file=sys.stderr, flush=True)


def mean(passages: dict[str, list[float]]) -> float:
    """Nats a token."""
    return sum(nats for nats, _ in passages.values()) / sum(count for _, count in passages.values())


if __name__ == "__main__":
    main()

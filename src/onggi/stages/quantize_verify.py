"""A GGUF file in llama.cpp itself, and read back, against the model: `onggi quantize --format gguf:… --verify`.

What a `.gguf` means is what llama.cpp does with it, so that is what is asked: does it cut text into the tokens that
the model was made for, and does it predict what the weights that were written predict? And are these, read back, the model's
own, as near as its types can be? llama.cpp rounds activations
to 8 bits while it computes, blocks of 32 or 256 at a time, and keeps attention's memory in fp16, so its distributions
are never quite ours: 0.02 nats in the mean for Gemma 3 270M in Q4_K_M (tests/models/test_gguf.py), which is what
`TOLERANCE` leaves room for. A norm stored without its 1, heads in another order or a scale of the wrong block cost
ten times as much and more.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OnggiError
from ..progress import progress, say

if TYPE_CHECKING:
    from ..engines.llamacpp import Engine as Llama
    from ..engines.transformers import Engine

# KL(llama.cpp ‖ ours) of a token, nats, that 8-bit activations may cost: in the mean over all languages, and in one
# language, of which there are few positions.
TOLERANCE, TOLERANCE_OF_ONE = 0.1, 0.3
# Of each passage: where predictions are compared, and how many tokens of them; the others are one event together.
_POSITIONS, _TOP = 8, 1000
_REPORT = "please report it with the model's name, and serve another --format meanwhile"
_LONGEST = 96  # tokens of a passage that are read
# How far what was read back may be from the model's, as a share of it. A matrix: 2 bits are off by a third, other rows by 1.4.
# A vector, which is not quantised.
_FAR, _FAR_OF_VECTORS = 0.7, 0.01
_SHOWN = ("en", "ko", "km")  # in which a few words are written, to see


def verify(
    path: Path,
    work: Path,
    passages: Mapping[str, Sequence[str]] | None = None,
    *,
    source: Path | None = None,
    tolerance: float = TOLERANCE,
) -> dict[str, Any]:
    """Run the file in llama.cpp and compare; what was found, for the record.

    path: the `.gguf`. source: the folder of the model it was made from, whose tokens and weights it has to have. work: a folder for the dequantised model, removed afterwards: it takes 2 bytes a weight of disk,
    and 4 of memory. passages: language → texts; default: two of each language of the probe. Positions are
    compared over llama.cpp's likeliest tokens and one event for the rest, which makes a difference at most smaller.

    Returns `kl` (language → mean over positions, nats), `mean`, `positions`, `tolerance`, and `written`: what
    llama.cpp goes on with in a few languages. Raises OnggiError where xllamacpp is not installed, llama.cpp cannot run
    the file, cuts a text otherwise, or predicts something else by more than `tolerance`; and where a matrix of the file is
    not the model's.
    """
    from .. import text
    from ..engines import llamacpp, server
    from ..engines.transformers import Engine
    from ..models import gguf

    if passages is None:
        probe = text.load("probe")
        passages = {tag: list(own.values()) for tag, own in probe.common(probe.languages, limit=2).items()}
    folder = work / "dequantised"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        # llama.cpp first: where it is not installed or refuses the file, nothing else is worth its time.
        # One place in its memory, so that what was read of a passage is kept.
        alone = server.Options(concurrency=1, timeout=600.0)
        with llamacpp.running(path, alone, context=1024, cache=False) as llama:
            gguf.convert(path, folder)
            if source:
                _check_source(path, folder, source, passages)
            ours = Engine(folder)
            kl: dict[str, float] = {}
            positions = 0
            with progress(f"verify {path.name} in llama.cpp", len(passages)) as bar:
                for language, texts in passages.items():
                    found = [_compared(llama, ours, one, language) for one in texts]
                    count = sum(number for _, number in found)
                    kl[language] = sum(nats * number for nats, number in found) / count
                    positions += count
                    bar.step(1, f"{language} {kl[language]:.4f}")
            del ours
            written = _written(llama, {tag: passages[tag][0] for tag in _SHOWN if tag in passages})
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    mean, worst = sum(kl.values()) / len(kl), max(kl, key=kl.__getitem__)
    if not (mean <= tolerance and kl[worst] <= tolerance * TOLERANCE_OF_ONE / TOLERANCE):
        raise OnggiError(
            f"{path}: llama.cpp predicts otherwise than the weights that were written: {mean:.3f} nats a token in the "
            f"mean, {kl[worst]:.3f} in {worst}, where its 8-bit activations explain {tolerance}. The file is not sound: {_REPORT}."
        )
    say(
        f"llama.cpp runs {path.name} and predicts as we do, within {mean:.4f} nats a token over {len(kl)} languages "
        f"(most in {worst}, {kl[worst]:.4f}); its activations have 8 bits."
    )
    return {"kl": kl, "mean": mean, "positions": positions, "tolerance": tolerance, "written": written}


def _check_source(path: Path, folder: Path, source: Path, passages: Mapping[str, Sequence[str]]) -> None:
    """Raises OnggiError where what was read back, in `folder`, is not the model in `source` but for its rounding."""
    from ..models.checkpoint import Checkpoint
    from ..text.tokens import Tokens

    back, own = Checkpoint(folder), Checkpoint(source)
    for name in sorted(back.entries.keys() & own.entries.keys()):
        theirs, ours = back.tensor(name).float(), own.tensor(name).float()
        rows = min(len(theirs), len(ours))  # a vocabulary may be filled up
        off = float((theirs[:rows] - ours[:rows]).norm() / ours[:rows].norm().clamp_min(1e-12))
        if not off <= (_FAR if ours.ndim > 1 else _FAR_OF_VECTORS):
            raise OnggiError(
                f"{path}: {name} is off by {off:.2f} of itself, more than rounding explains. The file is not sound: "
                f"{_REPORT}."
            )
    read, written = Tokens(source), Tokens(folder)
    for language, texts in passages.items():
        for passage in texts:
            if read.encode(passage) != written.encode(passage):
                raise OnggiError(
                    f"{path}: has another tokenizer than the model ({passage[:40]!r} … in {language} is cut otherwise): "
                    f"{_REPORT}."
                )


def _compared(llama: Llama, ours: Engine, passage: str, language: str) -> tuple[float, int]:
    """Mean KL(llama.cpp ‖ ours) at positions of a passage, and how many."""
    import torch

    from ..head import Sparse, divergence

    tokens, (states, targets) = ours.tokens, ours.states([passage])[0]
    ids = targets.tolist()
    theirs = llama.tokenize(passage)[tokens.starts :]
    if theirs != ids:
        same = next(
            (i for i, (a, b) in enumerate(zip(theirs, ids, strict=False)) if a != b),
            min(len(theirs), len(ids)),
        )
        raise OnggiError(
            f"{llama.path}: llama.cpp cuts {passage[:40]!r} … ({language}) into other tokens than the model's own "
            f"tokenizer, from the {same + 1}th on: {_REPORT}."
        )
    read = min(len(ids), _LONGEST)
    ends = sorted({read * (i + 1) // _POSITIONS for i in range(_POSITIONS)} - {0})
    top = min(_TOP, ours.head.vocabulary - 1)
    found = []
    for end in ends:  # the shortest first: llama.cpp goes on from what it has read
        likeliest = llama.likeliest([tokens.prefix, *ids[: end - 1]], top)
        log_p = torch.tensor([value for _, value in likeliest], dtype=torch.float64)
        rest = (1 - log_p.exp().sum()).clamp_min(1e-12).log()
        found.append((torch.tensor([i for i, _ in likeliest]), log_p.float(), rest.float()))
    entries, log_p, rest = (torch.stack(part).to(ours.device) for part in zip(*found, strict=True))
    signal = Sparse(entries, log_p, rest)
    at = torch.tensor(ends) - 1
    with torch.no_grad():
        nats = divergence(states[at].to(ours.device), ours.head, signal, targets[at].to(ours.device))
    return float(nats), len(ends)


def _written(llama: Llama, passages: Mapping[str, str]) -> dict[str, str]:
    """Language → a few words that llama.cpp goes on with after the first half of a passage."""
    from ..engines.protocol import Sampling

    prompts = [passage[: len(passage) // 2] for passage in passages.values()]
    answers = dict(llama.generate(prompts, Sampling(max_tokens=16)))
    failed = next((one.error for one in answers.values() if one.finish == "error"), None)
    if failed:
        raise OnggiError(f"{llama.path}: llama.cpp writes no text ({failed}).")
    return {tag: answers[i].text for i, tag in enumerate(passages)}

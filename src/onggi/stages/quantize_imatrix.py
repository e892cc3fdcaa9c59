"""`onggi quantize --format imatrix`: importance matrices for llama.cpp's own quantizer, a language each and balanced.

For those who keep llama-quantize: no weights are written, only what it weighs rounding errors by.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from .. import ledger
from ..errors import OnggiError
from ..ledger import Artifact
from ..progress import progress, say
from . import quantize_model

if TYPE_CHECKING:
    from .quantize import QuantizeConfig

FORMAT = "imatrix"
FILE, ABOUT = "imatrix.gguf", "imatrix.json"


def check(config: QuantizeConfig) -> None:
    """Raises OnggiError for options that say how weights are rounded, which nothing is here."""
    for option, plain in (
        ("scheme", "w4a16-g128"),
        ("method", "gptq"),
        ("embedding", None),
        ("budget", None),
        ("tune", "scales"),
        ("damping", 0.1),
    ):
        if getattr(config, option) != plain:
            raise OnggiError(
                f"{option}: nothing is rounded for --format imatrix; leave it out, llama-quantize has its own."
            )
    if config.tunes:
        raise OnggiError(
            "effort: best tunes what was rounded, and nothing is for --format imatrix; use fast or default."
        )
    if config.fairness == "minimax":
        raise OnggiError(
            "fairness: minimax moves shares by the damage of rounding, and nothing is rounded here."
        )


def quantize(config: QuantizeConfig, job: ledger.Job, line: str) -> Artifact:
    """Write DIR/imatrix.gguf, in which every language has the same say, and DIR/imatrix-LANGUAGE.gguf. line: the command
    that asked for them.

    With --fairness none there is one pot of text and so one file. Raises OnggiError for a model that GGUF cannot
    express or a mixture of experts.
    """
    from ..models import references
    from ..models.gguf import writing
    from ..quantize import importance
    from ..quantize.formats import imatrix

    folder = quantize_model.resolved(config)
    described = writing.describe(folder)
    model, text, decoder = quantize_model.opened(config, job, folder, described.source)
    drawn = text.drawn
    assert drawn
    with progress(f"imatrix {job.out.name}", len(decoder.layers)) as bar:
        found = importance.diagonals(
            described.source, decoder, drawn, job.partial, model.device, bar, job.tick
        )
    length = drawn.ids.shape[1]
    parts = {}
    for number, language in enumerate(drawn.names):
        tokens = drawn.counts.get(language) or sum(drawn.counts.values())
        entries = {
            described.names[tensor]: _entry(means[number : number + 1].numpy(), tokens)
            for tensor, means in found.items()
        }
        called = f"{text.about['text']} ({language})"
        parts[language] = imatrix.Imatrix(entries, (called,), -(-tokens // length), length)
    names = [FILE]
    imatrix.write(job.work / FILE, imatrix.merge(list(parts.values())))
    if len(parts) > 1:
        for language, own in parts.items():
            names.append(f"imatrix-{language}.gguf")
            imatrix.write(job.work / names[-1], own)
    about: dict[str, Any] = {
        "base": {"name": references.parse(config.model).name, "source": config.model},
        "made_by": "onggi quantize",
        "calibration": text.noted(),
        "precision": str(model.dtype).removeprefix("torch."),
        "matrices": len(found),
    }
    ledger.write_json(job.work / ABOUT, about)
    made = job.finish([*names, ABOUT, *text.files], command=line)
    say(
        f"Use it: llama-quantize --imatrix {shlex.quote(str(job.out / FILE))} model-BF16.gguf model.gguf Q4_K_M "
        f"(onggi quantize {shlex.quote(config.model)} --format gguf:BF16 writes the first)"
    )
    return made


def _entry(means: Any, tokens: int) -> Any:
    import numpy as np

    from ..quantize.formats import imatrix

    return imatrix.Entry((means * tokens).astype(np.float32), np.full(1, tokens, np.float32))

"""Head and loss of a distillation in one way, for bench/distill.py: seconds, bytes, loss and gradients, in a process of its own.

The heads' weights and their gradient are not counted. dense is what trl's GKD computes: both models' logits of all positions,
their log-softmax, `kl_div`. trl is the `ChunkedDivergenceFunction` of trl 1.16, by Triton where there is a GPU and by torch
where there is none.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn.functional import kl_div, log_softmax

ROWS = 4096  # of the head's gradient, evenly spaced, that are compared


def dense(states: Any, weight: Any, theirs: Any, their_weight: Any, kind: str) -> Any:
    """The mean divergence as trl's GKD has it: all logits at once."""
    student, teacher = log_softmax(states @ weight.T, -1), log_softmax(theirs @ their_weight.T, -1)
    if kind == "kl":
        found = kl_div(student, teacher, reduction="none", log_target=True)
    elif kind == "reverse-kl":
        found = kl_div(teacher, student, reduction="none", log_target=True)
    else:
        beta = float(kind.split(":")[1])
        mixture = torch.logsumexp(
            torch.stack([student + math.log(1 - beta), teacher + math.log(beta)]), dim=0
        )
        found = beta * kl_div(mixture, teacher, reduction="none", log_target=True)
        found = found + (1 - beta) * kl_div(mixture, student, reduction="none", log_target=True)
    return found.sum() / len(states)


def ours(states: Any, weight: Any, theirs: Any, their_weight: Any, kind: str) -> Any:
    """The same by `head.divergence`."""
    from onggi.distill import names
    from onggi.head import Dense, Divergence, Head, divergence

    targets = torch.zeros(len(states), dtype=torch.int64, device=states.device)
    return divergence(
        states,
        Head(weight),
        Dense(theirs, Head(their_weight)),
        targets,
        kind=Divergence(*names.loss(kind)),  # type: ignore[arg-type]
    )


def chunked(states: Any, weight: Any, theirs: Any, their_weight: Any, kind: str) -> Any:
    """The same by trl."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    beta = {"kl": 0.0, "reverse-kl": 1.0}.get(kind)
    beta = float(kind.split(":")[1]) if beta is None else beta
    found, _ = ChunkedDivergenceFunction.apply(states, weight, None, theirs, their_weight, None, beta)
    return found.mean()


WAYS = {"dense": dense, "onggi": ours, "trl": chunked}


def main() -> None:
    """Measure, print as JSON, write the gradients."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", choices=WAYS, required=True)
    parser.add_argument("--kind", required=True)
    for name in ("vocabulary", "positions", "hidden"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--out", required=True)
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def peak() -> int:
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

    if given.way == "trl":  # its libraries are no part of what is measured
        importlib.import_module("trl.kernels.chunked_divergence")
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(given.vocabulary, given.hidden, device=device) * 0.05)
    their_weight = torch.randn(given.vocabulary, given.hidden, device=device) * 0.05
    states = torch.randn(given.positions, given.hidden, device=device, requires_grad=True)
    theirs = states.detach() + 0.5 * torch.randn(given.positions, given.hidden, device=device)
    (states[:2] @ weight[:8].T).sum().backward()  # libraries are loaded and threads begun
    before = peak()
    for _ in range(2):  # the first finds no memory at hand
        states.grad = weight.grad = None
        began = time.perf_counter()
        found = WAYS[given.way](states, weight, theirs, their_weight, given.kind)
        found.backward()
        value = float(found.detach())  # on a GPU: wait until it is there
        seconds = time.perf_counter() - began
        del found
    assert states.grad is not None and weight.grad is not None
    # The gradient of `before` was the size of the weight too, so it is not among what was added; where it was let go
    # and made again nothing was added either.
    taken = peak() - before
    rows = torch.linspace(0, given.vocabulary - 1, ROWS).long()
    gradients = {
        "states": states.grad.cpu().contiguous(),
        "weight": weight.grad[rows.to(device)].cpu().contiguous(),
    }
    save_file(gradients, given.out)
    print(json.dumps({"seconds": seconds, "bytes": taken, "loss": value}))


if __name__ == "__main__":
    main()

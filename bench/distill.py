"""Distillation's head and loss beside a dense one and trl's; a stored teacher beside a resident one; treatments of the tail.

    python bench/distill.py head   [--vocabulary 262144] [--positions 1024] [--rounds 3]
    python bench/distill.py tail   [--teacher package:gemma3-270m] [--bytes 300]
    python bench/distill.py stored [--teacher package:gemma3-270m] [--steps 24]

**head**: the same hidden states, weights and tokens for all, fp32, forward and backward, each in a process of its
own; the heads' weights and their gradient are not counted. dense is what trl's GKD computes: both models' logits of
all positions, their log-softmax, `kl_div`. trl is the `ChunkedDivergenceFunction` of trl 1.16, by Triton where there is a
GPU and by torch where there is none (pip install trl==1.16.0).

**tail**: the gradient that a student with half of the teacher's layers gets of a stored teacher, against that of the
whole one, on text: one bucket for the tail, draws of it, and nothing for it (the entries made to add up to 1). `bias`
is that of the head's gradient over all positions together, where what is right on average averages out; `noise`
that of the states, position by position.

**stored**: a student is taught by the teacher beside it and by the stored one, on the same tokens, and by the text
alone; tokens a second, the arithmetic's ceiling 1 + 2T/6S, and bits per byte of each language after.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

KINDS = ("kl", "reverse-kl", "jsd:0.5")
LANGUAGES = "en,de,ko,ja,zh-Hans,el,km,ru"


def dense(states: Any, weight: Any, theirs: Any, their_weight: Any, kind: str) -> Any:
    """The mean divergence as trl's GKD has it: all logits at once."""
    import math

    import torch
    from torch.nn.functional import kl_div, log_softmax

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
    import torch

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


def one(way: str, kind: str, options: argparse.Namespace) -> None:
    """In a process of its own: seconds, bytes, loss and gradients of one way, as JSON and a file of tensors."""
    import torch
    from safetensors.torch import save_file

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def peak() -> int:
        if device.type == "cuda":
            return torch.cuda.max_memory_allocated()
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

    if way == "trl":  # its libraries are no part of what is measured
        importlib.import_module("trl.kernels.chunked_divergence")
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(options.vocabulary, options.hidden, device=device) * 0.05)
    their_weight = torch.randn(options.vocabulary, options.hidden, device=device) * 0.05
    states = torch.randn(options.positions, options.hidden, device=device, requires_grad=True)
    theirs = states.detach() + 0.5 * torch.randn(options.positions, options.hidden, device=device)
    (states[:2] @ weight[:8].T).sum().backward()  # libraries are loaded and threads begun
    before = peak()
    seconds, found = [], None
    for _ in range(options.rounds):
        states.grad = weight.grad = found = None
        began = time.perf_counter()
        found = WAYS[way](states, weight, theirs, their_weight, kind)
        found.backward()
        value = float(found.detach())  # on a GPU: wait until it is there
        seconds.append(time.perf_counter() - began)
    assert states.grad is not None and weight.grad is not None
    taken = peak() - before
    # The gradient of `before` was the size of the weight too, so it is not among what was added; where it was let go
    # and made again nothing was added either.
    rows = torch.linspace(0, options.vocabulary - 1, 4096).long()
    save_file(
        {"states": states.grad.cpu().contiguous(), "weight": weight.grad[rows.to(device)].cpu().contiguous()},
        options.out,
    )
    print(json.dumps({"seconds": min(seconds), "all": seconds, "bytes": taken, "loss": value}))


def head(options: argparse.Namespace) -> dict[str, Any]:
    """Every way and kind, and how far gradients are apart."""

    from safetensors.torch import load_file

    found: dict[str, Any] = {"vocabulary": options.vocabulary, "positions": options.positions}
    ways = ["dense", "onggi"]
    if importlib.util.find_spec("trl"):
        ways.append("trl")
    else:
        found["trl"] = "not measured: it is not installed"
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            rows: dict[str, Any] = {}
            for way in ways:
                place = Path(folder) / f"{way}.safetensors"
                command = [sys.executable, __file__, "one", "--way", way, "--kind", kind, "--out", str(place)]
                for name in ("vocabulary", "positions", "hidden", "rounds"):
                    command += [f"--{name}", str(getattr(options, name))]
                made = subprocess.run(command, capture_output=True, text=True, check=False)
                if made.returncode:
                    raise SystemExit(f"{way}, {kind}: {made.stderr[-2000:]}")
                rows[way] = {**json.loads(made.stdout), "tensors": load_file(place)}
                print(f"{kind}, {way}: {rows[way]['seconds']:.2f} s", file=sys.stderr)
            own = rows["onggi"].pop("tensors")
            for way in [way for way in ways if way != "onggi"]:
                theirs = rows[way].pop("tensors")
                rows[f"against {way}"] = {
                    "time": round(rows["onggi"]["seconds"] / rows[way]["seconds"], 3),
                    "memory": round(rows["onggi"]["bytes"] / rows[way]["bytes"], 3),
                    "loss": abs(rows["onggi"]["loss"] / rows[way]["loss"] - 1),
                    "gradients": max(
                        float((own[name] - theirs[name]).norm() / theirs[name].norm()) for name in own
                    ),
                }
            found[kind] = rows
    return found


def models(options: argparse.Namespace) -> tuple[str, Path]:
    """The teacher, and a student with half of its layers, made once in `options.work`."""
    from onggi.models import references
    from onggi.models.reshape import shape
    from onggi.stages import ReshapeConfig, reshape

    layers = shape.load(references.resolve(options.teacher)).num_hidden_layers
    out = options.work / "student"
    reshape(ReshapeConfig(options.teacher, layers=layers // 2, choice="naive"), out)
    return options.teacher, out


def tail(options: argparse.Namespace) -> dict[str, Any]:
    """Gradients of a stored teacher against the whole one's, by language."""
    import torch

    from onggi import text
    from onggi.distill import store
    from onggi.engines.transformers import Engine
    from onggi.head import Dense, Head, Sparse, divergence, entries
    from onggi.models import references

    teacher, student = models(options)
    engines = [Engine(references.resolve(teacher)), Engine(student)]
    count = store.entries_in(options.bytes, engines[0].head.vocabulary)
    found: dict[str, Any] = {"entries": count, "languages": {}}
    for language in options.languages.split(","):
        passages = list(text.load("probe", [language]).passages(language).values())[: options.passages]
        both = [engine.states(passages) for engine in engines]
        theirs, own = (torch.cat([hidden for hidden, _ in side]) for side in both)
        targets = torch.cat([ids for _, ids in both[0]])
        whole = Dense(theirs, engines[0].head)
        generator = torch.Generator().manual_seed(0)
        top = entries(whole, count)
        dropped = Sparse(
            top.ids,
            top.log_p - top.log_p.logsumexp(-1, keepdim=True),
            torch.full_like(top.log_tail, -60.0),
        )
        ways: dict[str, Any] = {
            "whole": whole,
            "bucket": top,
            "draws": entries(whole, count - count // 2, count // 2, generator=generator),
            "dropped": dropped,
        }
        gradients = {}
        for name, signal in ways.items():
            states = own.clone().requires_grad_()
            weight = engines[1].head.weight.detach().clone().requires_grad_()
            given = Head(weight, softcap=engines[1].head.softcap, scale=engines[1].head.scale)
            divergence(states, given, signal, targets).backward()
            gradients[name] = (states.grad, weight.grad)
        found["languages"][language] = {
            "lost": round(float(top.log_tail.exp().mean()), 4),
            **{
                name: {
                    measure: round(float((mine - theirs).norm() / theirs.norm()), 4)
                    for measure, mine, theirs in zip(
                        ("noise", "bias"), gradients[name], gradients["whole"], strict=True
                    )
                }
                for name in ("bucket", "draws", "dropped")
            },
        }
    return found


def stored(options: argparse.Namespace) -> dict[str, Any]:
    """Students of a resident and a stored teacher, and of the text alone."""
    from onggi.languages import Languages
    from onggi.stages import (
        CaptureConfig,
        DistillConfig,
        PretrainConfig,
        capture,
        distill,
        pretrain,
    )
    from onggi.stages.distill import _teacher_share

    teacher, student = models(options)
    size: dict[str, Any] = {
        "languages": Languages(options.languages),
        "length": 256,
    }
    step = {"steps": options.steps, "batch_tokens": 2048}
    source = "debian:libreoffice-help"
    kept = {
        tail: capture(
            CaptureConfig(teacher, source, options.bytes, tail, tokens=options.steps * 2048, **size),
            options.work / f"stored-{tail}",
        ).path
        for tail in ("bucket", "draws")
    }
    with_teacher = DistillConfig(teacher, str(student), source, **size, **step)
    runs = {
        "resident": distill(with_teacher, options.work / "resident"),
        **{
            f"stored, {tail}": distill(
                DistillConfig(str(place), str(student), **step), options.work / f"from-{tail}"
            )
            for tail, place in kept.items()
        },
        "text alone": pretrain(
            PretrainConfig(source, str(student), learning_rate=3e-4, **size, **step), options.work / "text"
        ),
    }
    speeds = {name: run.record["tokens_per_second"] for name, run in runs.items()}
    ceiling = _teacher_share(with_teacher)
    gained = speeds["stored, bucket"] / speeds["resident"]
    return {
        "tokens_per_second": speeds,
        "ceiling": round(ceiling, 3),
        "stored against resident": round(gained, 3),
        "share of the ceiling": round(gained / ceiling, 3),
        "bits_per_byte": {name: run.record["bits_per_byte"]["after"] for name, run in runs.items()},
        "closed": {name: run.record["closed"] for name, run in runs.items() if name != "text alone"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["head", "tail", "stored", "one"])
    parser.add_argument("--vocabulary", type=int, default=262_144)
    parser.add_argument("--positions", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--teacher", default="package:gemma3-270m")
    parser.add_argument("--languages", default=LANGUAGES)
    parser.add_argument("--bytes", type=int, default=300)
    parser.add_argument("--passages", type=int, default=4)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--work", type=Path, default=Path("build/bench-distill"))
    parser.add_argument("--way", choices=WAYS, help="Of a process of its own.")
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--out")
    options = parser.parse_args()
    if options.part == "one":
        one(options.way, options.kind, options)
        return
    print(json.dumps({"head": head, "tail": tail, "stored": stored}[options.part](options), indent=2))


if __name__ == "__main__":
    main()

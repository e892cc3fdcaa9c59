"""Training side by side: onggi's trainer, a plain PyTorch loop, and transformers' Trainer as it comes.

The model, its weights and AdamW are the same everywhere, and so is the text: LibreOffice's help in eight languages,
with a tokenizer of its own. The plain loop is the upper bound: it takes the same packed sequences, and makes all
logits at once. transformers' Trainer has what it does unless told otherwise: a document a row, padded to the longest
of its batch, its own loss; of its tokens those count that are not padding. Rounds alternate, so that a busy machine is
busy for all, and ratios are taken within a round. Then the memory of head and loss alone with a vocabulary of 262,144,
width 640 and 1,024 positions, fp32, each in a process of its own, the head's weights and their gradient not counted.

    python bench/pretrain.py [--size 8m] [--steps 6] [--rounds 5] [--quick] [--work build/bench/pretrain]

writes docs/benchmarks/pretrain.md and .json. --quick is a trial of the bench itself: a tiny model, one step; its page
says so and stays in the work folder. The text and its tokenizer are made once and kept there.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from parts import process, record
from torch import nn

LANGUAGES = "en,de,ko,ja,zh-Hans,el,km,ru"
LENGTH, SEQUENCES = 256, 8
RATE = 1e-3


def prepared(folder: Path, size: str) -> tuple[Path, Path]:
    """Packed text and a random model of `size`."""
    from onggi.languages import Languages
    from onggi.models import random
    from onggi.stages import PackConfig, TokenizerConfig, pack, tokenizer

    languages, source = Languages(LANGUAGES), "debian:libreoffice-help"
    tokenizer(TokenizerConfig(source, 8000, languages, sample=3_000_000), folder / "tokenizer")
    packed = pack(PackConfig(source, str(folder / "tokenizer"), LENGTH, languages), folder / "packed").path
    model = folder / f"model-{size}"
    random.initialise(random.configuration(size, 8000, bos=0, eos=1), 0, model)
    return packed, model


def load(folder: Path) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def plain(folder: Path, packed: Any, steps: int, precision: torch.dtype) -> float:
    """Tokens a second of a loop as one writes it."""
    model = load(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), fused=True)
    model.train()
    took = []
    for step in range(steps + 1):
        began = time.monotonic()
        batch = packed.batch(step * SEQUENCES, SEQUENCES)
        ids, positions = torch.from_numpy(batch.ids), torch.from_numpy(batch.positions)
        targets = torch.from_numpy(batch.ids).masked_fill(~torch.from_numpy(batch.predicted), -100)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        loss = nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100
        )
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        float(loss.detach())
        took.append(time.monotonic() - began)
    return SEQUENCES * LENGTH * steps / sum(took[1:])


def ours(folder: Path, packed: Any, steps: int, precision: torch.dtype) -> float:
    """Tokens a second of onggi's trainer, its notes of each step written as always."""
    from onggi.progress import Progress
    from onggi.train import attention
    from onggi.train.schedule import Schedule
    from onggi.train.tokens import PackedBatches, next_token
    from onggi.train.trainer import Options, Trainer

    marks: list[float] = []
    loss = next_token(precision)

    def timed(model: Any, batch: Any) -> Any:
        marks.append(time.monotonic())
        return loss(model, batch)

    with tempfile.TemporaryDirectory() as out:
        model = load(folder)
        attention.prepare(model, precision)
        Trainer(
            model,
            timed,
            PackedBatches(packed, SEQUENCES, 0),
            Schedule(steps + 2, RATE, 1),
            Options(at_once=SEQUENCES),
            Path(out),
            Progress("bench", steps + 2),
        ).fit()
    return SEQUENCES * LENGTH * steps / (marks[-1] - marks[1])


def library(folder: Path, packed: Any, steps: int, precision: torch.dtype) -> float:
    """Tokens a second that are not padding, of transformers' Trainer with its own loss and padding."""
    import transformers

    rows = []
    for number in range(len(packed)):
        ids = packed.batch(number).ids[0]
        rows += [ids[part["start"] : part["stop"]].tolist() for part in packed.parts(number)]
        if len(rows) >= 64 * (steps + 2):
            break
    # As many places a batch, about, as the others have tokens.
    size = max(SEQUENCES * LENGTH // max(len(row) for row in rows), 1)
    useful: list[int] = []
    marks: list[float] = []

    def collate(found: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        wide = max(len(row["input_ids"]) for row in found)
        ids = torch.ones(len(found), wide, dtype=torch.int64)
        mask = torch.zeros(len(found), wide, dtype=torch.int64)
        for i, row in enumerate(found):
            ids[i, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
            mask[i, : len(row["input_ids"])] = 1
        useful.append(int(mask.sum()))
        return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            marks.append(time.monotonic())

    with tempfile.TemporaryDirectory() as out:
        transformers.Trainer(
            load(folder),
            transformers.TrainingArguments(
                out,
                max_steps=4 * steps,
                per_device_train_batch_size=4 * size,
                learning_rate=RATE,
                use_cpu=True,
                bf16=precision == torch.bfloat16,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            ),
            collate,
            [{"input_ids": row, "labels": row} for row in rows],
            callbacks=[Clock()],
        ).train()
    # Batches are read one ahead.
    return sum(useful[1 : len(marks)]) / (marks[-1] - marks[0])


HEAD = """
import sys, torch
from pathlib import Path
from onggi.head import Head, cross_entropy
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
torch.manual_seed(0)
weight = torch.nn.Parameter(torch.randn(262144, 640) * 0.02)
weight.grad = torch.zeros_like(weight)
hidden = torch.randn(1024, 640, requires_grad=True)
targets = torch.randint(0, 262144, (1024,))
hidden[:2].sum().backward()
before = peak()
if sys.argv[1] == "naive":
    loss = torch.nn.functional.cross_entropy(hidden @ weight.T, targets)
else:
    loss = cross_entropy(hidden, Head(weight), targets)
loss.backward()
print(peak() - before - weight.numel() * 4)
"""


def speeds(given: argparse.Namespace) -> dict[str, Any]:
    """Useful tokens a second of each, by round."""
    from onggi.stages.base import multiplied_in
    from onggi.text.packing import Packed

    place, model = prepared(given.work, given.size)
    packed, precision = Packed(place), multiplied_in("auto", torch.device("cpu"))
    found: dict[str, list[float]] = {"onggi": [], "plain loop": [], "transformers.Trainer": []}
    for _ in range(given.rounds):
        for name, run in zip(found, (ours, plain, library), strict=True):
            found[name].append(round(run(model, packed, given.steps, precision), 1))
            print(f"bench: {name}: {found[name][-1]:,.0f} useful tokens/s", file=sys.stderr, flush=True)
    return {"precision": str(precision).removeprefix("torch."), "rounds": found}


def memory() -> dict[str, int]:
    """Bytes that head and loss take, by kind."""
    found = {}
    for kind in ("naive", "onggi"):
        made = subprocess.run([sys.executable, "-c", HEAD, kind], capture_output=True, text=True, check=True)
        found[kind] = int(made.stdout.split()[0])
    return found


def goals(rounds: dict[str, list[float]], bytes_of: dict[str, int]) -> list[dict[str, Any]]:
    """The goals of issue 6: what, goal, measured, met, and the spread."""
    found = []
    for name, least in (("plain loop", 0.95), ("transformers.Trainer", 1.5)):
        ratios = sorted(a / b for a, b in zip(rounds["onggi"], rounds[name], strict=True))
        middle = statistics.median(ratios)
        found.append(
            {
                "what": f"useful tokens a second, against {name}",
                "goal": f"≥ {least:.2f}×",
                "measured": f"{middle:.2f}× ({ratios[0]:.2f}–{ratios[-1]:.2f})",
                "met": middle >= least,
            }
        )
    ratio = bytes_of["onggi"] / bytes_of["naive"]
    found.append(
        {
            "what": "memory of head and loss, against PyTorch's",
            "goal": "≤ 0.10×",
            "measured": f"{ratio:.3f}× ({bytes_of['onggi'] / 1e6:,.0f} of {bytes_of['naive'] / 1e6:,.0f} MB)",
            "met": ratio <= 0.1,
        }
    )
    return found


def page(result: dict[str, Any]) -> str:
    """The measurements as Markdown."""
    machine = result["machine"]
    rows = [
        f"| {goal['what']} | {goal['goal']} | {goal['measured']} | {'met' if goal['met'] else '**missed**'} |"
        for goal in result["goals"]
    ]
    lines = [
        *record.head(
            result,
            "Training side by side",
            __doc__,
            f", {', '.join(machine['bf16']) or 'no bf16'}; load at the start {machine['load_before']:.2f}",
        ),
        f"- model: {result['size']}, vocabulary 8,000; steps of {SEQUENCES} sequences of {LENGTH}; products in "
        f"{result['precision']}; {result['steps']} steps a round, after one or two that do not count",
        "",
        "| what | goal | measured: median (least–most) | |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
        "| useful tokens a second | "
        + " | ".join(f"round {i + 1}" for i in range(len(result["rounds"]["onggi"])))
        + " |",
        "| --- |" + " ---: |" * len(result["rounds"]["onggi"]),
    ]
    for name, own in result["rounds"].items():
        lines.append(f"| {name} | " + " | ".join(f"{value:,.0f}" for value in own) + " |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="8m")
    parser.add_argument("--steps", type=int, default=6, help="of a round (default: 6)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a trial: size 4m, 1 step, 1 round")
    parser.add_argument("--work", type=Path, metavar="DIR", help="default: build/bench/pretrain, or …-quick")
    given = parser.parse_args()
    if given.quick:
        given.size, given.steps, given.rounds = "4m", 1, 1
    if given.steps < 1 or given.rounds < 1:
        parser.error("--steps, --rounds: at least 1")
    given.work = record.folder(given.work, "bench/pretrain", given.quick)
    machine = process.facts()
    bytes_of = memory()
    measured = speeds(given)
    result = {
        **record.begun("pretrain", machine, given.quick),
        "size": given.size,
        "steps": given.steps,
        **measured,
        "head_memory": bytes_of,
        "goals": goals(measured["rounds"], bytes_of),
    }
    for goal in result["goals"]:
        print(
            f"{goal['what']}: {goal['measured']}, goal {goal['goal']}, {'met' if goal['met'] else 'MISSED'}"
        )
    record.write("pretrain", result, {"md": page}, given.work if given.quick else record.DOCS)


if __name__ == "__main__":
    main()

"""Tuning side by side: `onggi finetune`'s trainer and `trl`'s SFTTrainer as it comes, and with packing on.

The same model, weights, dialogues, chat template, tokens of a step and AdamW; all weights are trained, in fp32 (bf16
products where the processor has them), the loss on the last answer alone; all compute the layers twice rather than keep what
the backward pass needs, as trl does unless told otherwise. trl pads each batch to its longest row unless packing is on; then it
packs by best fit too. What a token sees is checked for onggi by the loss of a packed sequence against that of its
dialogues alone; trl's is not checked here. Counted are useful tokens: no padding. Each
run is a process of its own, so that its peak memory is its own; rounds alternate, so that a busy machine is busy for all.

    python bench/finetune.py [--model package:gemma3-270m] [--data seed] [--steps 4] [--rounds 3]
Writes docs/benchmarks/finetune.md and .json.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from parts import process, record

ROOT = Path(__file__).parents[1]
KINDS = ("onggi", "trl", "trl, packing")
LENGTH, RATE = 512, 2e-5


def peak() -> int:
    """Bytes of this process at its peak."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def prepared(model: str, source: str, folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    """The model with its template, and the dialogues as messages with the language of each."""
    from onggi.models import references
    from onggi.stages import finetune_data as data
    from onggi.stages.base import Names
    from onggi.stages.finetune import FinetuneConfig

    config = FinetuneConfig(model, Names(source), held_out=0.02)
    start = data.written(data.start(references.resolve(model)), folder / "start")
    ends = data.ends(start)
    dialogues = [
        dialogue
        for dialogue, made in data.taught(data.read(config).train, start, ends, "last")
        if len(made.ids) <= LENGTH and not dialogue.tools
    ]
    return start.folder, [{"lang": d.lang, "messages": [dict(m) for m in d.messages]} for d in dialogues]


def ours(folder: Path, rows: list[dict[str, Any]], tokens: int, steps: int) -> dict[str, Any]:
    import torch

    from onggi.engines.transformers import Engine
    from onggi.progress import Progress
    from onggi.stages import finetune_data as data
    from onggi.stages.base import multiplied_in
    from onggi.text.packing import marks
    from onggi.train.dialogues import AnswerLoss, DialogueBatches, packed
    from onggi.train.schedule import Schedule
    from onggi.train.tokens import next_token
    from onggi.train.trainer import Options, Trainer

    start = data.start(folder)
    engine = Engine(folder)
    taught = [start.template.teach(row["messages"], engine.ends, "last") for row in rows]
    sequences = packed(taught, LENGTH)
    pad = marks(folder, start.tokens).pad
    size = max(tokens // LENGTH, 1)
    batches = DialogueBatches({"all": sequences}, {}, size, 0.0, pad, 0)
    loss = next_token(multiplied_in("auto", torch.device("cpu")))
    # Whether a token sees another document: the loss of one packed sequence against that of its dialogues alone.
    with torch.no_grad():
        one = DialogueBatches(
            {"all": packed(taught[:6], sum(len(t.ids) for t in taught[:6]))}, {}, 1, 0.0, pad, 0
        )
        together = float(next_token(torch.float32)(engine.model, one.rows(0, 0, 1)))
        alone = AnswerLoss({"all": taught[:6]})(engine.model)["all"]
    engine.model.requires_grad_(True)
    marks_of: list[float] = []

    def timed(model: Any, batch: Any) -> Any:
        marks_of.append(time.monotonic())
        return loss(model, batch)

    with tempfile.TemporaryDirectory() as out:
        lines = Trainer(
            engine.model,
            timed,
            batches,
            Schedule(steps + 2, RATE, 1),
            Options(at_once=max(2048 // LENGTH, 1), checkpointing=True),
            Path(out),
            Progress("bench", steps + 2),
        ).fit()
    values = [line["loss"] for line in lines if "loss" in line]
    passes = len(marks_of) // (steps + 2)
    counts = batches.tokens(1, steps + 1)
    useful = sum(own["tokens"] for own in counts.values())
    spent = marks_of[(steps + 1) * passes] - marks_of[passes]
    return {"tokens_per_second": useful / spent, "losses": values, "peak": peak(), "seen": together - alone}


def library(
    folder: Path, rows: list[dict[str, Any]], tokens: int, steps: int, packing: bool
) -> dict[str, Any]:
    import datasets
    import torch
    import transformers
    import trl

    from onggi.stages.base import multiplied_in

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    split = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows]
    mean = sum(
        len(tokenizer.apply_chat_template(row["messages"], return_dict=True)["input_ids"]) for row in rows
    ) / len(rows)
    # As many useful tokens a step as the others have, about, in passes of as many places.
    each = max(round(2048 / (LENGTH if packing else 2 * mean)), 1)
    pieces = max(round(tokens / (each * (LENGTH if packing else mean))), 1)
    useful: list[int] = []
    marks: list[float] = []
    seen: list[int] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            marks.append(time.monotonic())
            useful.append(sum(seen))
            seen.clear()

    class Counting(trl.SFTTrainer):
        def compute_loss(self, model: Any, inputs: Any, *more: Any, **options: Any) -> Any:
            ids, mask = inputs["input_ids"], inputs.get("attention_mask")
            seen.append(int(mask.sum()) if mask is not None else ids.numel())
            return super().compute_loss(model, inputs, *more, **options)

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as out:
        trainer = Counting(
            model,
            args=trl.SFTConfig(
                out,
                max_steps=steps + 1,
                per_device_train_batch_size=each,
                gradient_accumulation_steps=pieces,
                learning_rate=RATE,
                max_length=LENGTH,
                packing=packing,
                use_cpu=True,
                bf16=multiplied_in("auto", torch.device("cpu")) == torch.bfloat16,
                report_to="none",
                save_strategy="no",
                logging_steps=1,
                disable_tqdm=True,
            ),
            train_dataset=datasets.Dataset.from_list(split),
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "tokens_per_second": sum(useful[1:]) / (marks[-1] - marks[0]),
        "losses": losses,
        "peak": peak(),
        "checkpointing": bool(trainer.args.gradient_checkpointing),
    }


def one(kind: str, folder: Path, data: Path, tokens: int, steps: int) -> dict[str, Any]:
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    if kind == "onggi":
        return ours(folder, rows, tokens, steps)
    return library(folder, rows, tokens, steps, packing=kind != "trl")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="package:gemma3-270m")
    parser.add_argument("--data", default="seed")
    parser.add_argument("--tokens", type=int, default=4096, help="Of a step, about.")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, metavar="DIR")
    parser.add_argument("--quick", action="store_true", help="a trial: 1 step, 1 round")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.work = record.folder(options.work, "bench-finetune", options.quick)
    if options.one:
        found = one(
            options.one, options.work / "start", options.work / "rows.jsonl", options.tokens, options.steps
        )
        print(json.dumps(found))
        return
    if options.quick:
        options.steps = options.rounds = 1
    machine = process.facts()
    folder, rows = prepared(options.model, options.data, options.work)
    (options.work / "rows.jsonl").write_text(
        "\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8"
    )
    if folder != options.work / "start":
        (options.work / "start").unlink(missing_ok=True)
        (options.work / "start").symlink_to(folder)
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for _ in range(options.rounds):
        for kind, own in runs.items():
            command = [sys.executable, __file__, "--one", kind, "--work", str(options.work)]
            command += ["--tokens", str(options.tokens), "--steps", str(options.steps)]
            made = subprocess.run(command, capture_output=True, text=True)
            if made.returncode:
                sys.exit(f"{kind}: {made.stderr[-3000:]}")
            own.append(json.loads(made.stdout.splitlines()[-1]))
            print(
                f"{kind}: {own[-1]['tokens_per_second']:,.1f} useful tokens/s, {own[-1]['peak'] / 2**30:.2f} GiB",
                file=sys.stderr,
            )
    result = {
        **record.begun("finetune", machine, options.quick),
        **{key: getattr(options, key) for key in ("model", "data", "tokens", "steps")},
        "dialogues": len(rows),
        "runs": runs,
        "goals": goals(runs),
    }
    for goal in result["goals"]:
        print(
            f"{goal['what']}: {goal['measured']}, goal {goal['goal']}, {'met' if goal['met'] else 'MISSED'}"
        )
    record.write("finetune", result, {"md": page}, options.work if options.quick else record.DOCS)


def goals(runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The goals of issue 8: what, goal, measured, met."""
    found = []
    for kind, least in (("trl", 1.5), ("trl, packing", 1.1)):
        speeds, peaks = (
            sorted(a[key] / b[key] for a, b in zip(runs["onggi"], runs[kind], strict=True))
            for key in ("tokens_per_second", "peak")
        )
        for what, ratios, goal in (
            ("useful tokens a second", speeds, least),
            ("peak memory", peaks, 1.0),
        ):
            middle, faster = statistics.median(ratios), ratios is speeds
            found.append(
                {
                    "what": f"{what}, against {kind}",
                    "goal": f"{'≥' if faster else '≤'} {goal:.1f}×",
                    "measured": f"{middle:.2f}× ({ratios[0]:.2f}–{ratios[-1]:.2f})",
                    "met": middle >= goal if faster else middle <= goal,
                }
            )
    seen = max(abs(run["seen"]) for run in runs["onggi"])
    found.append(
        {
            "what": "loss of six packed dialogues, against that of each alone: no token sees another's",
            "goal": "≤ 1e-4 nats",
            "measured": f"{seen:.1e} nats",
            "met": seen <= 1e-4,
        }
    )
    return found


def page(result: dict[str, Any]) -> str:
    """The measurements as Markdown."""
    machine, runs = result["machine"], result["runs"]
    rows = [
        f"| {goal['what']} | {goal['goal']} | {goal['measured']} | {'met' if goal['met'] else '**missed**'} |"
        for goal in result["goals"]
    ]
    lines = [
        *record.head(
            result,
            "Tuning side by side",
            __doc__,
            f", {', '.join(machine['bf16']) or 'no bf16'}; load at the start {machine['load_before']:.2f}",
        ),
        f"- trl {importlib.metadata.version('trl')}; model: {result['model']}; {result['dialogues']} dialogues of "
        f"{result['data']}, about {result['tokens']:,} tokens a step; {result['steps']} steps a round, after one or two "
        "that do not count",
        "",
        "| what | goal | measured: median (least–most) | |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
        "| | useful tokens a second, by round | peak memory, GiB | loss by step, first round |",
        "| --- | --- | --- | --- |",
    ]
    for kind, own in runs.items():
        speeds = ", ".join(f"{run['tokens_per_second']:,.0f}" for run in own)
        losses = ", ".join(f"{loss:.2f}" for loss in own[0]["losses"])
        lines.append(f"| {kind} | {speeds} | {max(run['peak'] for run in own) / 2**30:.2f} | {losses} |")
    lines += [
        "",
        "Batches are drawn in another order, and trl means over rows where onggi means over tokens: losses are near, not "
        "equal.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()

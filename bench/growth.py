"""What quantising costs as the model grows: real layer shapes of an 8B model, 2, 4 and 8 layers of it.

Random weights, so it says nothing of quality: seconds and memory alone. The shapes are Llama 3 8B's (4096 wide, 14336
in the MLP, 32 heads, 8 of keys and values), the vocabulary is 256 bytes, calibration 2,048 tokens of LibreOffice's
help in four scripts. A layer is 436 MB in bf16, written a file each, so that making the model needs the memory of
one; the smaller models are links to the first layers of the largest. The whole is deleted afterwards.

    python bench/growth.py [--quick] [--work build/growth]

prints the table and writes WORK/growth.json. Layers already measured by the same code are not measured again. Needs 6 GB of disk.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parts import code, process, record

HERE = Path(__file__).resolve().parent
SOURCE, LANGUAGES = "debian:libreoffice-help", "en,ko,el,km"


@dataclass(frozen=True)
class Size:
    """Of the model: its layers, columns, columns of the MLP, heads, heads of keys and values; and of the calibration."""

    layers: tuple[int, ...] = (2, 4, 8)
    hidden: int = 4096
    mlp: int = 14336
    heads: int = 32
    groups: int = 8
    tokens: int = 2048


FULL, QUICK = Size(), Size((1, 2, 4), 256, 512, 8, 2, 512)


def measure(work: Path, size: Size) -> dict[str, Any]:
    """Seconds and peak memory of `onggi quantize` for each number of layers."""
    work.mkdir(parents=True, exist_ok=True)
    kept, model, logs = work / "growth.json", work / "model", work / "logs"
    own = code.digest(code.MAKES)
    key = hashlib.sha256((own + repr((size.hidden, size.mlp, size.tokens))).encode()).hexdigest()
    found = json.loads(kept.read_text()) if kept.is_file() else {}
    runs: dict[str, Any] = found["runs"] if found.get("key") == key else {}
    machine = process.facts()
    missing = [layers for layers in size.layers if str(layers) not in runs]
    text = work / "text"
    if missing:
        words = ["text", SOURCE, "--languages", LANGUAGES, "--out", str(text)]
        process.measure([sys.executable, "-m", "onggi", *words], logs / "text.log")
        words = [str(getattr(size, name)) for name in ("hidden", "mlp", "heads", "groups")]
        script = str(HERE / "parts" / "large_model.py")
        process.measure(
            [sys.executable, script, *words, ",".join(map(str, size.layers)), str(model)], logs / "model.log"
        )
    for layers in missing:
        out = work / "out"
        shutil.rmtree(out, ignore_errors=True)
        words = ["quantize", str(model / str(layers)), "--scheme", "w4a16-g128", "--text", str(text)]
        words += ["--languages", LANGUAGES, "--tokens", str(size.tokens), "--out", str(out)]
        cost = process.measure([sys.executable, "-m", "onggi", *words], logs / f"quantize-{layers}.log")
        seconds = json.loads((out / "stage.json").read_text())["wall_seconds"]
        runs[str(layers)] = {**vars(cost), "quantisation": seconds}
        kept.write_text(json.dumps({"key": key, "machine": machine, "runs": runs}, indent=1))
        print(
            f"bench: {layers} layers: {seconds:.1f} s, {cost.peak / 2**30:.2f} GiB",
            file=sys.stderr,
            flush=True,
        )
        shutil.rmtree(out)
    shutil.rmtree(model, ignore_errors=True)
    return {"key": key, "machine": machine, "size": vars(size), "runs": runs, **judged(runs, size.layers)}


def judged(runs: dict[str, Any], layers: tuple[int, ...]) -> dict[str, float]:
    """linear: seconds of a layer between the middle and the last size, over those between the first and the middle.
    flat: peak memory of the last size over that of the first. peak: the largest, bytes.
    """
    first, middle, last = layers
    seconds = {n: runs[str(n)]["quantisation"] for n in layers}
    early = (seconds[middle] - seconds[first]) / (middle - first)
    late = (seconds[last] - seconds[middle]) / (last - middle)
    peaks = [runs[str(n)]["peak"] for n in layers]
    return {"layer": late, "linear": late / early, "flat": peaks[-1] / peaks[0], "peak": max(peaks)}


def main() -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a trial of the bench itself, on a small model")
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="default: build/growth, or build/growth-quick"
    )
    given = parser.parse_args()
    work = record.folder(given.work, "growth", given.quick)
    try:
        found = measure(work.resolve(), QUICK if given.quick else FULL)
    except process.Failed as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    print("| layers | seconds | whole process, s | peak, GiB |\n| --- | --- | --- | --- |")
    for layers, run in found["runs"].items():
        print(f"| {layers} | {run['quantisation']:.1f} | {run['wall']:.1f} | {run['peak'] / 2**30:.2f} |")
    print(f"late layers : early layers {found['linear']:.2f}×, peak memory last : first {found['flat']:.2f}×")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

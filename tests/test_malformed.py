"""Inputs of many kinds that are not what they should be, through the command line: one line that
names the place and the fault, no traceback, and nothing lost: neither the input nor what was made before.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from onggi import ledger
from onggi.cli import main

ROW = {"_id": 1, "en": "It rains.", "ko": "비가 온다.", "km": "ភ្លៀងធ្លាក់។"}
TEXT = "text {bad} --languages en,ko,km --out {out}"
RTN = "quantize {bad} --method rtn --out {out}"
GPTQ = "quantize {bad} --text starter --languages en,ko,km --tokens 96 --out {out}"
EVALUATE = "evaluate w4={bad} --reference {tiny} --languages en,ko,km --limit 1 --out {out}"

Make = Callable[[Path, Path], Path]  # folder to work in, sound model → the malformed thing


def content(data: str | bytes, name: str = "bad.jsonl") -> Make:
    def make(folder: Path, tiny: Path) -> Path:
        path = folder / name
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    return make


def rows(*found: dict[str, Any]) -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in found)


def parquet(table: pa.Table, cut: int | None = None) -> Make:
    def make(folder: Path, tiny: Path) -> Path:
        pq.write_table(table, folder / "bad.parquet")
        (folder / "bad.parquet").write_bytes((folder / "bad.parquet").read_bytes()[:cut])
        return folder / "bad.parquet"

    return make


def model(change: Callable[[Path], Any]) -> Make:
    def make(folder: Path, tiny: Path) -> Path:
        shutil.copytree(tiny, folder / "bad")
        change(folder / "bad")
        return folder / "bad"

    return make


def config(**changes: Any) -> Make:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return model(change)


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Make:
    def edit(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors", {"format": "pt"})

    return model(edit)


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def outside(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "secret.safetensors")
    index = {"weight_map": {"lm_head.weight": "../secret.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 20) + b"{not a header at all" + bytes(100))


def write(name: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text)


def evaluation(text: str) -> Make:
    """A finished folder of `evaluate` whose scores.json was edited by hand."""

    def make(folder: Path, tiny: Path) -> Path:
        with ledger.begin(folder / "bad", "evaluate", {}, {}) as job:
            (job.work / "scores.json").write_text(text)
            job.finish(["scores.json"])
        return folder / "bad"

    return make


NAN = float("nan")
LAYER = "model.layers.1.mlp.down_proj.weight"
KINDS: dict[str, tuple[str, Make, str]] = {
    # text
    "empty": (TEXT, content(""), "is empty"),
    "another encoding": (
        TEXT,
        content(rows(ROW).encode("utf-16")),
        "is not UTF-8 (byte 0); convert it first",
    ),
    "half a line": (TEXT, content(rows(ROW) + '\n{"_id": 2, "ko": "비'), "line 2: is not JSON"),
    "half a character": (
        TEXT,
        content('{"_id": 1, "ko": "\\ud83c"}'),
        'line 1, field "ko": holds half a surrogate',
    ),
    "a number for text": (TEXT, content(rows(ROW, ROW | {"_id": 2, "km": 3})), 'line 2, field "km": is int'),
    "an id twice": (TEXT, content(rows(ROW, ROW)), "stands twice (lines 1 and 2)"),
    "a key twice": (
        TEXT,
        content('{"_id": 1, "ko": "비", "ko": "눈"}'),
        "line 1: is not JSON ('ko' stands twice)",
    ),
    "a language twice": (
        TEXT,
        content(rows(ROW | {"kor_Hang": "눈"})),
        "'ko' and 'kor_Hang' are the same language",
    ),
    "no language": (
        TEXT,
        content(rows({"text": "비", "lang": "ko"}, {"text": "눈"})),
        'line 2: has no "lang"',
    ),
    "a language that is none": (
        TEXT,
        content(rows({"text": "비", "lang": "Korean"})),
        'line 1, field "lang": ',
    ),
    "a language short": (
        TEXT,
        content(rows({"_id": 1, "en": "Rain", "ko": "비"})),
        "has no text in km; it has en, ko",
    ),
    "half a parquet": (
        TEXT,
        parquet(pa.Table.from_pylist([ROW | {"_id": "1"}]), cut=-8),
        "readable parquet file",
    ),
    "numbers in parquet": (TEXT, parquet(pa.table({"_id": ["1"], "ko": [3]})), 'line 1, field "ko": is int'),
    # models
    "weights cut short": (RTN, model(cut), "model.safetensors: is truncated; tensor"),
    "no header": (RTN, model(header), "model.safetensors: its safetensors header is damaged"),
    "weights not finite": (
        RTN,
        tensors(lambda found: found[LAYER][3].fill_(NAN)),
        f"tensor {LAYER} holds NaN or infinite values",
    ),
    "an embedding not finite": (
        EVALUATE,
        tensors(lambda found: found["model.embed_tokens.weight"][7].fill_(NAN)),
        "tensor model.embed_tokens.weight holds NaN or infinite values",
    ),
    "a tensor lacking": (RTN, tensors(lambda found: found.pop(LAYER)), f"holds no tensor named {LAYER}"),
    "an embedding lacking": (
        RTN,
        tensors(lambda found: found.pop("model.embed_tokens.weight")),
        "holds no tensor named model.embed_tokens.weight",
    ),
    "a tensor of another shape": (
        RTN,
        tensors(lambda found: found.update({LAYER: torch.ones(128, 128)})),
        f"tensor {LAYER} has shape (128, 128), its config.json asks for (128, 256)",
    ),
    "the same, evaluated": (
        EVALUATE,
        tensors(lambda found: found.update({LAYER: torch.ones(128, 128)})),
        "transformers cannot load this model",
    ),
    "a config of another size": (
        EVALUATE,
        config(num_hidden_layers=9),
        "holds no tensor named model.layers.3.",
    ),
    "a tensor lacking, evaluated": (EVALUATE, tensors(lambda found: found.pop(LAYER)), LAYER),
    "pickles": (RTN, model(pickled), "only pickled weights"),
    "a file outside": (RTN, model(outside), "which is no file of the folder"),
    "code": (RTN, config(auto_map={"AutoModelForCausalLM": "own.Model"}), "needs code of its own"),
    "no config": (RTN, model(lambda folder: (folder / "config.json").unlink()), "has no config.json"),
    "half a config": (
        RTN,
        model(write("config.json", '{"model_type": "llama"')),
        "config.json: is not valid JSON",
    ),
    "an unknown architecture": (RTN, config(model_type="none such"), "transformers cannot build this model"),
    "the same architecture, evaluated": (EVALUATE, config(model_type="none such"), "bad: "),
    "quantised already": (
        RTN,
        config(quantization_config={"format": "x"}),
        "is quantised already; name the model",
    ),
    "half a tokenizer": (GPTQ, model(write("tokenizer.json", "{")), "no tokenizer that loads"),
    "no GGUF": (RTN, content(b"GGUF" + bytes(60), "bad.gguf"), "bad.gguf"),
    # the rest
    "a recipe with a tab": ("run {bad}", content("stages:\n\ta: b", "bad.yaml"), "line 2: is not valid YAML"),
    "a recipe with a typo": (
        "run {bad}",
        content("stages: {a: {verb: text, source: probe, langages: en}}", "bad.yaml"),
        "stages.a.langages: text has no option 'langages'. Did you mean 'languages'?",
    ),
    "scores edited by hand": (
        "report {bad} --out {out}",
        evaluation('{"models": '),
        "scores.json: is not valid JSON",
    ),
}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_one_line_and_nothing_lost(
    kind: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, make, said = KINDS[kind]
    out = tmp_path / "out"
    assert main(["text", "probe", "--languages", "en", "--out", str(out)]) == 0
    (tmp_path / "in").mkdir()
    bad = make(tmp_path / "in", tiny)
    before, earlier = files(tmp_path / "in"), files(out)
    capsys.readouterr()

    words = command.format(bad=bad, out=out, tiny=tiny).split(" ")
    assert main(words) == 1
    error = capsys.readouterr().err.strip().splitlines()
    message = error[-1]
    assert message.startswith("onggi: ") and bad.name in message and said in message
    assert not [line for line in error if "Traceback" in line]
    assert files(tmp_path / "in") == before
    assert {path: data for path, data in files(out).items() if ".partial" not in path} == earlier
    assert ledger.artifact(out)

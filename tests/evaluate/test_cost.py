"""Models in processes of their own: the numbers that come back, and how a process that ends early is told."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

from onggi.engines.spending import Options
from onggi.errors import OnggiError
from onggi.evaluate import cost
from onggi.models import references

TEXTS = ["The bus is late.", "버스가 늦는다.", "รถเมล์มาช้า"]
ENTRIES = ("prefill_tokens_per_second", "decode_tokens_per_second")


def check(found: dict[str, object], rounds: int) -> None:
    """What holds for any model."""
    for name in ENTRIES:
        entry = found[name]
        assert isinstance(entry, dict) and entry["n"] == rounds
        assert 0 < entry["low"] <= entry["value"] <= entry["high"]
    peak, libraries, loaded = (
        found[key] for key in ("peak_memory_bytes", "library_memory_bytes", "load_seconds")
    )
    assert isinstance(peak, int) and isinstance(libraries, int) and isinstance(loaded, float)
    assert isinstance(found["running_memory_bytes"], int)
    assert 1 << 24 < libraries < found["running_memory_bytes"] <= peak and loaded > 0
    assert found["contention"] is None or 0 <= found["contention"] <= 1.01  # type: ignore[operator]


def test_a_folder_in_a_process_of_its_own(tiny_gemma: Path) -> None:
    ballast = bytearray(b"x") * (1 << 30)  # what this process holds is not the model's
    found = cost.measure(str(tiny_gemma), TEXTS, 3, prompt_tokens=64, new_tokens=8, threads=1)
    check(found, 3)
    assert found["peak_memory_bytes"] < len(ballast)
    assert found["disk_bytes"] == sum(file.stat().st_size for file in tiny_gemma.iterdir())
    assert (found["prompt_tokens"], found["new_tokens"], found["threads"]) == (64, 8, 1)
    assert (found["engine"], found["precision"]) == ("transformers", "fp32")
    assert found["weights"] == "cast"  # they are stored in bf16
    assert (found["peak_device_memory_bytes"] is None) == (found["device"] == "cpu")


def job(path: Path, prompt_tokens: int) -> cost._Job:
    """What a process of its own is given to do."""
    return cost._Job(
        str(path), "\n".join(TEXTS), prompt_tokens, 2, repeats=1, threads=torch.get_num_threads()
    )


def test_a_quantised_model_is_said_to_be_unpacked(tiny: Path, tmp_path: Path) -> None:
    from onggi.stages import QuantizeConfig, quantize

    made = quantize(QuantizeConfig(str(tiny), method="rtn"), tmp_path / "rtn")
    done: list[str] = []
    found = cost._run(job(made.path, 8), done.append)
    assert (found["weights"], found["precision"]) == ("unpacked", "fp32")
    assert done == ["loaded", "warm", "1 of 1"]


def test_what_is_wrong_is_said_in_one_line(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(OnggiError, match="window of 2048 has no room for 2048 tokens and 2 more"):
        cost._run(job(tiny, 2048), print)
    broken = tmp_path / "옹기"
    shutil.copytree(tiny, broken)
    (broken / "model.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(OnggiError, match=r"옹기/model\.safetensors: is not a safetensors file"):
        cost.measure(str(broken), TEXTS, 1)  # in the process, and said from here
    with pytest.raises(OnggiError, match="behind a server"):
        cost.measure("http://127.0.0.1:1/v1#ខ្មែរ", TEXTS)
    with pytest.raises(OnggiError, match="1 round, 1 prompt token and 2 new tokens"):
        cost.measure(str(tiny), TEXTS, 0)


def test_a_process_that_ends_early(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(python))
    for script, said in (
        ("echo first >&2; echo 'cannot allocate: ទំហំ' >&2; exit 3", "cannot allocate: ទំហំ"),
        ("exit 3", "exit code 3"),
        ("kill -KILL $$", "too little memory"),
        ("kill -ABRT $$", "SIGABRT"),
    ):
        python.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        python.chmod(0o755)
        with pytest.raises(OnggiError, match=f"measuring its cost ended early .*{said}"):
            cost.measure(str(tiny), TEXTS)


@pytest.mark.real
def test_a_gguf_in_llama_cpp() -> None:
    file = references.gguf("package:smollm2-135m")
    assert file is not None
    found = cost.measure(str(file), TEXTS, 2, prompt_tokens=48, new_tokens=4)
    check(found, 2)
    assert found["disk_bytes"] == file.stat().st_size
    assert (found["engine"], found["precision"], found["weights"]) == ("llama.cpp", "Q4_1", "as stored")
    # The file is in memory, and no PyTorch is.
    assert file.stat().st_size < found["peak_memory_bytes"] < 1 << 29
    with pytest.raises(OnggiError, match="window of 8192 has no room"):
        cost._run(job(file, 8192), print)


def test_a_model_behind_a_server_from_its_answers() -> None:
    rows = [
        {"seconds": float(second), "tokens": 10, "prompt_tokens": 100, "finish": "stop"}
        for second in range(1, 21)
    ]
    failed = {"seconds": 300.0, "tokens": 0, "prompt_tokens": 0, "finish": "error"}
    priced = Options(input_price=1.0, output_price=10.0)
    assert cost.of_server([failed, *reversed(rows)], priced) == {
        "requests": 20,
        "failed": 1,
        "latency_seconds": {"median": 10.5, "p95": 19.0},
        "prompt_tokens": 2000,
        "tokens": 200,
        "tokens_per_second": 200 / 210,
        "money": pytest.approx(0.004),
    }
    none = cost.of_server([failed], Options())
    assert none["latency_seconds"] == {"median": None, "p95": None}
    assert none["money"] is None and none["tokens_per_second"] is None and none["failed"] == 1

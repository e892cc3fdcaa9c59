"""A checkpoint is read as it stands, or refused by file and reason; what is written others can read."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from onggi.errors import OnggiError
from onggi.models import checkpoint
from onggi.models.checkpoint import INDEX, SINGLE, Checkpoint, pending


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The least there is to a model: a config and one file of two tensors."""
    folder = tmp_path / "모델"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file(
        {"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}, folder / SINGLE
    )
    return folder


def raw(folder: Path, header: Any, data: bytes = bytes(16)) -> None:
    """A file with this header, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / SINGLE).write_bytes(struct.pack("<Q", len(text)) + text + data)


def one(**changes: Any) -> dict[str, Any]:
    """A header with one tensor."""
    return {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes}


# ── what is read ───────────────────────────────────────────────────────────────────────────────


def test_tensors_as_they_stand(folder: Path) -> None:
    found = Checkpoint(folder)
    assert found.bytes == 24 + 8
    for name, tensor in load_file(folder / SINGLE).items():
        assert found.tensor(name).dtype == tensor.dtype
        assert torch.equal(found.tensor(name), tensor)
    assert found.rows("w", torch.tensor([1, 0, 1])).tolist() == [[3, 4, 5], [0, 1, 2], [3, 4, 5]]
    copy = BytesIO()
    found.copy("w", copy)
    assert copy.getvalue() == torch.arange(6.0).numpy().tobytes()
    with pytest.raises(OnggiError, match="holds no tensor named none"):
        found.tensor("none")


def test_a_real_model_through_its_index(tiny: Path, tmp_path: Path) -> None:
    whole = load_file(tiny / SINGLE)
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "config.json").write_bytes((tiny / "config.json").read_bytes())
    names = sorted(whole)
    shards = {}
    for i, part in enumerate((names[:10], names[10:])):
        file = folder / f"model-{i}.safetensors"
        checkpoint.write_shard(file, {n: checkpoint.copied(Checkpoint(tiny), n) for n in part})
        shards[file.name] = checkpoint.shard_sizes(file)
    checkpoint.write_index(folder, shards)
    found = Checkpoint(folder)
    assert found.bytes == Checkpoint(tiny).bytes
    assert all(torch.equal(found.tensor(name), whole[name]) for name in names)

    from transformers import AutoModelForCausalLM

    state = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).state_dict()
    assert all(torch.equal(state[name], whole[name]) for name in names)


DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]
DTYPES += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_shard_that_the_library_reads(folder: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tensors = {
        "가중치": torch.randint(0, 2, (3, 5)).to(dtype),
        "turned": torch.randint(0, 2, (4, 6)).to(dtype).T,  # not contiguous
        "scalar": torch.tensor(1).to(dtype),
        "none": torch.zeros(0, 3).to(dtype),
    }
    checkpoint.write_shard(folder / SINGLE, {name: pending(tensor) for name, tensor in tensors.items()})
    ours = Checkpoint(folder)
    with safe_open(folder / SINGLE, "pt") as theirs:
        assert set(theirs.keys()) == set(tensors) and theirs.metadata() == {"format": "pt"}
        for name, tensor in tensors.items():
            for found in (theirs.get_tensor(name), ours.tensor(name)):
                assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
                assert torch.equal(found.float(), tensor.float())
    assert checkpoint.shard_sizes(folder / SINGLE)["가중치"] == 15 * dtype.itemsize


def test_a_shard_is_written_whole_or_not(folder: Path) -> None:
    before = (folder / SINGLE).read_bytes()
    (folder / "nan").mkdir()
    (folder / "nan" / "config.json").write_text('{"model_type": "llama"}')
    save_file({"w": torch.tensor([1.0, float("nan")])}, folder / "nan" / SINGLE)
    bad = checkpoint.copied(Checkpoint(folder / "nan"), "w")
    with pytest.raises(OnggiError, match="tensor w holds NaN"):
        checkpoint.write_shard(folder / SINGLE, {"v": pending(torch.ones(2)), "w": bad})
    assert (folder / SINGLE).read_bytes() == before
    assert {path.name for path in folder.iterdir()} == {"config.json", SINGLE, "nan"}


def test_what_goes_with_a_model(tiny: Path, tmp_path: Path) -> None:
    for name in (
        "tokenizer.json",
        "chat_template.jinja",
        "LICENSE",
        "README.md",
        "pytorch_model.bin",
        "x.py",
    ):
        (tmp_path / name).touch()
    assert {path.name for path in checkpoint.companions(tmp_path)} == {
        *("tokenizer.json", "chat_template.jinja", "LICENSE")
    }


# ── what is refused ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_not_finite(folder: Path, value: float, dtype: torch.dtype) -> None:
    weight = torch.ones(3, 4, dtype=dtype)
    weight[1, 2] = value
    save_file({"model.w": weight}, folder / SINGLE)
    found = Checkpoint(folder)
    said = re.escape(f"{folder}: tensor model.w holds NaN or infinite values")
    with pytest.raises(OnggiError, match=said):
        found.tensor("model.w")
    with pytest.raises(OnggiError, match=said):
        found.rows("model.w", torch.tensor([1]))
    with pytest.raises(OnggiError, match=said):
        found.copy("model.w", BytesIO())
    assert torch.equal(found.rows("model.w", torch.tensor([0, 2])), torch.ones(2, 4, dtype=dtype))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "모델: is not a model folder (it has no config.json)"),
        (b"{", "config.json: is not valid JSON"),
        (b"\xff\xfe{}", "config.json: is not valid JSON"),
        (b"[]", 'config.json: has no "model_type"'),
        (b"{}", 'config.json: has no "model_type"'),
        (
            b'{"model_type": "x", "auto_map": {"AutoModel": "m.M"}}',
            "config.json: the model needs code of its own",
        ),
    ],
)
def test_configs(folder: Path, content: bytes | None, said: str) -> None:
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_bytes(content)
    with pytest.raises(OnggiError, match=re.escape(said)):
        Checkpoint(folder)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda f: f.write_bytes(b""), "is not a safetensors file (or is truncated)"),
        (lambda f: f.write_bytes(b"abc"), "is not a safetensors file (or is truncated)"),
        (lambda f: f.write_bytes(f.read_bytes()[:-1]), "is truncated; tensor "),
        (lambda f: f.write_bytes(f.read_bytes()[:50]), "is not a safetensors file (or is truncated)"),
        (
            lambda f: f.write_text("version https://git-lfs.github.com/spec/v1\noid"),
            "is not a safetensors file",
        ),
        (lambda f: f.write_bytes(b"\x80\x02" * 40), "is not a safetensors file"),
        (lambda f: raw(f.parent, b"{nope"), "its safetensors header is damaged"),
        (lambda f: raw(f.parent, b"\xff\xff"), "its safetensors header is damaged"),
        (lambda f: raw(f.parent, b"[" * 100_000), "its safetensors header is damaged"),
        (lambda f: raw(f.parent, []), "its safetensors header is damaged"),
        (lambda f: raw(f.parent, {"w": "x"}), "its safetensors header is damaged"),
        (lambda f: raw(f.parent, {"w": {"dtype": "F32", "shape": [4]}}), "its safetensors header is damaged"),
        (lambda f: raw(f.parent, one(data_offsets=[])), "its safetensors header is damaged"),
        (lambda f: raw(f.parent, one(data_offsets=[-16, 0])), "its safetensors header is damaged"),
        (lambda f: raw(f.parent, one(data_offsets=[0.0, 16.0])), "its safetensors header is damaged"),
        (lambda f: raw(f.parent, one(data_offsets=[16, 0])), "has -16 bytes, not what its shape needs"),
        (lambda f: raw(f.parent, one(shape=[-2, -2])), "its safetensors header is damaged"),
        (lambda f: raw(f.parent, one(shape=[5])), "tensor w has 16 bytes, not what its shape needs"),
        (lambda f: raw(f.parent, one(dtype="F64")), "tensor w has 16 bytes, not what its shape needs"),
        (lambda f: raw(f.parent, one(dtype="F4")), "onggi reads no F4"),
        (lambda f: raw(f.parent, one(), bytes(15)), "is truncated; tensor w should end at byte"),
    ],
)
def test_files(folder: Path, harm: Callable[[Path], Any], said: str) -> None:
    harm(folder / SINGLE)
    with pytest.raises(OnggiError, match=re.escape(said)) as error:
        Checkpoint(folder)
    assert str(error.value).startswith(f"{folder / SINGLE}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ([], 'has no "weight_map"'),
        ({}, 'has no "weight_map"'),
        ({"weight_map": ["w"]}, 'has no "weight_map"'),
        ({"weight_map": {"w": 3}}, "names 3, which is no file of the folder"),
        ({"weight_map": {"w": ["x"]}}, "names ['x'], which is no file of the folder"),
        ({"weight_map": {"w": "../secret.safetensors"}}, "names '../secret.safetensors', which is no file"),
        (
            {"weight_map": {"w": "{tmp}/secret.safetensors"}},
            "secret.safetensors', which is no file of the folder",
        ),
        ({"weight_map": {"w": "sub/../model.safetensors"}}, "which is no file of the folder"),
        ({"weight_map": {"w": SINGLE, "v": "model-2.safetensors"}}, "model-2.safetensors is missing"),
        ({"weight_map": {"w": SINGLE, "head": SINGLE}}, "the index names head, which no file holds"),
    ],
)
def test_indices(folder: Path, tmp_path: Path, index: Any, said: str) -> None:
    (folder / "sub").mkdir()
    save_file({"w": torch.ones(2)}, tmp_path / "secret.safetensors")
    (folder / INDEX).write_text(json.dumps(index).replace("{tmp}", str(tmp_path)))
    with pytest.raises(OnggiError, match=re.escape(said)) as error:
        Checkpoint(folder)
    assert str(error.value).startswith(str(folder))


def test_a_tensor_that_shrinks_while_it_is_read(folder: Path) -> None:
    found = Checkpoint(folder)
    (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:-20])
    with pytest.raises(OnggiError, match="ends too early"):
        [found.tensor(name) for name in found.entries]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickles_are_not_read(folder: Path, name: str) -> None:
    (folder / SINGLE).unlink()
    with pytest.raises(OnggiError, match=r"holds no model\.safetensors"):
        Checkpoint(folder)
    torch.save({"w": torch.ones(2)}, folder / name)
    with pytest.raises(OnggiError, match="only pickled weights"):
        Checkpoint(folder)

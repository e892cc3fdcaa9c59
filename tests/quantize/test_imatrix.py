"""llama.cpp's importance matrices: written, read, merged, and taken from a model language by language."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from forks import killed
from onggi.cli import main
from onggi.errors import OnggiError
from onggi.languages import Languages
from onggi.models.checkpoint import Checkpoint
from onggi.models.decoder import skeleton
from onggi.progress import progress
from onggi.quantize import balance, importance
from onggi.quantize.formats import imatrix
from onggi.quantize.formats.imatrix import Entry, Imatrix
from onggi.stages import QuantizeConfig, quantize
from onggi.text.tokens import Tokens

KO, AR = "blk.0.attn_q.weight", "blk.0.ffn_down.weight"


def of(mean: float, tokens: int, columns: int = 4, experts: int = 1) -> Entry:
    sums = np.full((experts, columns), mean * tokens, np.float32)
    return Entry(sums, np.full(experts, tokens, np.float32))


def test_llama_cpps_layout_and_back(tmp_path: Path) -> None:
    file = tmp_path / "한국어.gguf"
    entries = {
        KO: of(2.0, 512),
        AR: Entry(np.arange(6, dtype=np.float32).reshape(2, 3), np.array([7, 0], np.float32)),
    }
    imatrix.write(file, Imatrix(entries, ("옹기 (ko)", "خزف"), chunks=3, chunk=256))
    # As common/imatrix-loader.cpp asks for them.
    reader = gguf.GGUFReader(file)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["옹기 (ko)", "خزف"]
    assert [reader.fields[f"imatrix.chunk_{what}"].contents() for what in ("count", "size")] == [3, 256]
    assert set(tensors) == {f"{name}.{part}" for name in (KO, AR) for part in ("in_sum2", "counts")}
    assert all(tensor.tensor_type == gguf.GGMLQuantizationType.F32 for tensor in tensors.values())
    # ne[0] are columns, ne[1] matrices.
    assert list(tensors[f"{AR}.in_sum2"].shape) == [3, 2] and list(tensors[f"{AR}.counts"].shape) == [1, 2]
    back = imatrix.read(file)
    assert (back.datasets, back.chunks, back.chunk) == (("옹기 (ko)", "خزف"), 3, 256)
    for name, entry in entries.items():
        assert np.array_equal(back.entries[name].sums, entry.sums)
        assert np.array_equal(back.entries[name].counts, entry.counts)
    assert back.entries[AR].means.tolist() == [[0, 1 / 7, 2 / 7], [0, 0, 0]]


def test_the_older_layout_is_read(tmp_path: Path) -> None:
    file, name = tmp_path / "ภาษาไทย.dat", KO.encode()
    means, calls, text = [1.0, 2.0, 0.5], 4, "ភាសាខ្មែរ.txt".encode()
    body = struct.pack(f"<i{len(name)}sii3f", len(name), name, calls, 3, *(calls * mean for mean in means))
    file.write_bytes(struct.pack("<i", 1) + body + struct.pack(f"<ii{len(text)}s", calls, len(text), text))
    found = imatrix.read(file)
    assert found.entries[KO].means.tolist() == [means]
    assert (found.datasets, found.chunks) == ((text.decode(),), 4)


def test_every_language_has_its_share_however_much_text_it_had() -> None:
    little, much = (
        Imatrix({KO: of(4.0, 10)}, ("ko",), 1),
        Imatrix({KO: of(1.0, 990), AR: of(3.0, 990)}, ("ar",), 2),
    )
    merged = imatrix.merge([little, much])
    assert np.allclose(merged.entries[KO].means, 2.5) and merged.entries[KO].counts.tolist() == [1000]
    assert np.allclose(merged.entries[AR].means, 3.0)  # nothing but one knows of it
    assert (merged.datasets, merged.chunks) == (("ko", "ar"), 3)
    assert np.allclose(imatrix.merge([little, much], [3, 1]).entries[KO].means, 3.25)
    # An expert that one language never reached is what it is for the other.
    experts = [of(2.0, 8, experts=2), Entry(np.zeros((2, 4), np.float32), np.array([4, 0], np.float32))]
    means = imatrix.merge([Imatrix({KO: own}) for own in experts]).entries[KO].means
    assert np.allclose(means, [[1.0] * 4, [2.0] * 4])


def test_what_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(OnggiError, match="of two models"):
        imatrix.merge([Imatrix({KO: of(1, 1)}), Imatrix({KO: of(1, 1, columns=5)})])
    with pytest.raises(OnggiError, match="share above 0"):
        imatrix.merge([Imatrix({KO: of(1, 1)})], [0])
    with pytest.raises(OnggiError, match="says nothing"):
        imatrix.write(tmp_path / "x.gguf", Imatrix({}))
    with pytest.raises(OnggiError, match=r"blk\.0\.attn_q\.weight are not finite"):
        imatrix.write(tmp_path / "x.gguf", Imatrix({KO: of(np.nan, 1)}))
    assert not list(tmp_path.iterdir())
    file = tmp_path / "옹기.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((2, 2), np.float32))
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
    for content, said in (
        (file.read_bytes(), "no importance matrix"),
        (b"abc", "neither a GGUF nor"),
        (b"", "neither"),
    ):
        file.write_bytes(content)
        with pytest.raises(OnggiError, match=f"옹기.gguf: .*{said}"):
            imatrix.read(file)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text in Hangul, Latin and Arabic, as a file."""
    import json

    from onggi import text

    probe = text.load("probe").common(["ko", "en", "ar"], 6)
    file = tmp_path_factory.mktemp("text") / "rows.jsonl"
    lines = [
        json.dumps({"_id": f"{tag}{key}", "text": own, "lang": tag}, ensure_ascii=False)
        for tag, texts in probe.items()
        for key, own in texts.items()
    ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.mark.parametrize("room", [None, 1])
def test_diagonals_are_those_of_the_model_itself(
    tiny: Path, rows: Path, tmp_path: Path, room: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onggi import text
    from onggi.quantize import states

    tokens = Tokens(tiny)
    found = text.load(str(rows))
    languages = Languages("ko,en,ar")
    drawn = balance.draw(
        {tag: found.passages(tag) for tag in languages},
        tokens.encode,
        tokens.prefix,
        300,
        balanced=True,
        length=64,
    )
    if room:  # one sequence a batch
        whole = states.batches
        monkeypatch.setattr(
            "onggi.quantize.passes.batches", lambda n, length, widest, **_: whole(n, length, widest, 1)
        )
    source, ticks = Checkpoint(tiny), []
    with progress("imatrix", 3) as bar:
        got = importance.diagonals(
            source,
            skeleton(tiny, torch.float32),
            drawn,
            tmp_path,
            torch.device("cpu"),
            bar,
            lambda: ticks.append(bar.done),
        )
    assert ticks == [0, 1, 2] and bar.done == 3 and not list(tmp_path.glob("states-*"))

    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    seen: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            module.register_forward_pre_hook(lambda _m, x, name=name: seen.update({name: x[0].double()}))
    with torch.no_grad():
        model(drawn.ids)
    assert {f"{name}.weight" for name in seen} == set(got)
    for name, inputs in seen.items():
        for number in range(len(drawn.names)):
            mine = (drawn.owner == number).unsqueeze(1) * drawn.weights.double()
            naive = torch.einsum("st,stc->c", mine, inputs.square()) / mine.sum()
            assert torch.allclose(got[f"{name}.weight"][number], naive, rtol=1e-4), (name, number)
    # Languages differ, or there would be nothing to balance.
    down = got["model.layers.2.mlp.down_proj.weight"]
    assert not torch.allclose(down[0], down[1], rtol=0.05)


def test_killed_it_goes_on_after_the_last_finished_layer(
    tiny_gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"format": "imatrix", "text": "starter", "languages": "en,ko,km", "tokens": "3000"}
    asked = {**options, "languages": Languages("en,ko,km"), "tokens": 3000}
    read: list[str] = []
    fill = importance.fill
    monkeypatch.setattr(importance, "fill", lambda *given: (read.append("layer"), fill(*given)))
    whole, layers = quantize(QuantizeConfig(str(tiny_gemma), **asked), tmp_path / "whole"), len(read)
    out = tmp_path / "killed"
    words = [
        "quantize",
        str(tiny_gemma),
        *(word for key, value in options.items() for word in (f"--{key}", value)),
    ]
    words += ["--out", str(out)]

    def finished() -> int:
        return len(list((out / ".partial").glob("diagonals-*")))

    killed(*words, when=finished)
    kept = finished()
    assert 1 <= kept < layers and not (out / "stage.json").exists()
    read.clear()
    assert main(words) == 0 and len(read) == layers - kept
    for name, entry in whole.record["outputs"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == entry["sha256"], name
    assert not (out / ".partial").exists()


def test_onggi_quantize_writes_one_a_language_and_the_balanced(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    made = quantize(QuantizeConfig(str(tiny), format="imatrix", text=str(rows), tokens=192), tmp_path / "im")
    names = ["imatrix.gguf", "imatrix-ar.gguf", "imatrix-en.gguf", "imatrix-ko.gguf"]
    assert {*names, "imatrix.json"} == set(made.record["outputs"])
    balanced, *own = (imatrix.read(made.path / name) for name in names)
    assert len(balanced.entries) == 3 * 7 and balanced.entries.keys() == own[0].entries.keys()
    assert balanced.entries["blk.2.ffn_down.weight"].sums.shape == (1, 256)
    for name, entry in balanced.entries.items():
        assert np.allclose(entry.means, np.mean([one.entries[name].means for one in own], axis=0), rtol=1e-4)
    assert own[2].datasets == (f"{rows.name} (ko)",)
    with pytest.raises(OnggiError, match="scheme: nothing is rounded"):
        QuantizeConfig(str(tiny), format="imatrix", text=str(rows), scheme="w8a16")
    with pytest.raises(OnggiError, match="fairness: minimax"):
        QuantizeConfig(str(tiny), format="imatrix", text=str(rows), fairness="minimax")

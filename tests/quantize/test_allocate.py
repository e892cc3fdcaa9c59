"""Bits by damage: the programme against trying everything, the matrix against quantising for real."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from onggi import ledger, text
from onggi.engines.transformers import Engine
from onggi.errors import OnggiError
from onggi.languages import Languages
from onggi.models.checkpoint import Checkpoint
from onggi.models.decoder import skeleton
from onggi.progress import progress
from onggi.quantize import allocate, balance, fairness, passes, sensitivity, stream
from onggi.quantize.formats import compressed_tensors
from onggi.quantize.passes import Method
from onggi.quantize.schemes import SCHEMES
from onggi.quantize.sensitivity import Unit
from onggi.stages import QuantizeConfig, quantize
from onggi.stages.base import Names
from onggi.text.tokens import Tokens

NAMES = ("en", "ko", "km")
CHOICES = ("w2a16-g32", "w4a16-g32", "w8a16")
CPU = torch.device("cpu")


def units(count: int, seed: int) -> list[Unit]:
    draw = random.Random(seed)
    found = []
    for index in range(count):
        loss = {name: draw.expovariate(1) for name in NAMES}
        damage = {
            choice: {name: loss[name] / 8**step * draw.uniform(0.8, 1.2) for name in NAMES}
            for step, choice in enumerate(CHOICES)
        }
        weights = draw.choice((64, 128, 256))
        bits = {choice: size * weights for choice, size in zip(CHOICES, (2.5, 4.5, 8.0), strict=True)}
        found.append(Unit(index, [f"layer.{index}"], weights, damage, bits))
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("objective", ["worst", "mean"])
def test_nothing_is_better(seed: int, objective: Any) -> None:
    own = units(6, seed)
    budget = 4.2 * sum(unit.weights for unit in own)
    found = allocate.allocate(own, budget, objective)
    every = [allocate.of(own, each) for each in itertools.product(CHOICES, repeat=len(own))]
    best = min(getattr(one, objective) for one in every if one.bits <= budget)
    assert found.bits <= budget
    assert getattr(found, objective) == pytest.approx(best, rel=2e-3)


def test_a_language_that_counts_for_more_leads() -> None:
    own = units(8, 1)
    budget = 3.5 * sum(unit.weights for unit in own)
    plain = allocate.allocate(own, budget, "worst")
    leaning = allocate.allocate(own, budget, "worst", {"ko": 10.0})
    by_itself = allocate.of(own, leaning.choices).damage["ko"]
    assert by_itself <= plain.damage["ko"]


def test_too_small_a_budget_is_refused_with_the_least_there_is() -> None:
    own = units(3, 0)
    with pytest.raises(OnggiError, match=r"budget: 2\.000 bits a weight are too few.*take 2\.500"):
        allocate.allocate(own, 2.0 * sum(unit.weights for unit in own), "worst")


def drawn(model: Path, tokens: int, seed: int) -> balance.Calibration:
    found, own = text.load("starter", Languages("en,ko,km")), Tokens(model)
    passages = {tag: found.passages(tag) for tag in NAMES}
    return balance.draw(passages, own.encode, own.prefix, tokens, balanced=True, length=64, seed=seed)


def measured(model: Path, folder: Path, steps: list[int]) -> list[Unit]:
    source, decoder = Checkpoint(model), skeleton(model, torch.float32)
    units, nats = sensitivity.measure(
        source,
        decoder,
        [SCHEMES[name] for name in CHOICES],
        drawn(model, 600, 0),
        drawn(model, 300, 1),
        fairness.head(source, decoder, CPU),
        folder,
        folder / "units.jsonl",
        CPU,
        Method(),
        steps.append,
    )
    assert set(nats) == set(NAMES) and all(value > 0 for value in nats.values())
    return units


@pytest.mark.parametrize("kind", ["tiny", "tiny_gemma"])
def test_the_matrix_is_what_quantising_a_unit_does(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model = request.getfixturevalue(kind)
    found = measured(model, tmp_path, [])
    layers = 3 if kind == "tiny" else 4
    assert len(found) == 4 * layers and {len(unit.names) for unit in found} == {1, 2, 3}
    source = Checkpoint(model)
    assert sum(unit.weights for unit in found) == sum(
        entry.shape[0] * entry.shape[1] for name, entry in source.entries.items() if "proj" in name
    )
    for unit in found:
        two, four, eight = (unit.damage[choice] for choice in CHOICES)
        assert all(two[n] > four[n] > eight[n] for n in NAMES)
    # One unit quantised for real: in fp32, through a checkpoint that is loaded back.
    held = drawn(model, 300, 1)
    unit = next(unit for unit in found if unit.layer == 1 and len(unit.names) == 2)
    before = fairness.unquantized(source, skeleton(model, torch.float32), held, tmp_path, CPU)
    taken: list[torch.Tensor] = []
    with progress("one", layers) as bar:
        stream.quantize_layers(
            source, skeleton(model, torch.float32), dict.fromkeys(unit.names, SCHEMES["w2a16-g32"]),
            compressed_tensors.store, tmp_path, drawn(model, 600, 0).watching(held), bar, lambda: None, CPU,
            Method(), watch=taken.append,
        )  # fmt: skip
    real = fairness.damage(before, taken[0], Engine(model).head, held, "kl")
    for name in NAMES:
        assert unit.damage["w2a16-g32"][name] == pytest.approx(real[name], rel=0.1)


def test_a_measurement_that_is_stopped_goes_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measured(tiny, tmp_path, [])
    other = tmp_path / "other"
    other.mkdir()
    lines = (tmp_path / "units.jsonl").read_text().splitlines(keepends=True)
    (other / "units.jsonl").write_text("".join(lines[:6]) + lines[6][:40])
    # However many trials are held at a time.
    monkeypatch.setattr(sensitivity, "LIMIT", 3 * 300 * 128 * 4)
    assert measured(tiny, other, []) == whole


def test_the_matrix_is_the_same_however_the_text_is_cut_into_batches(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measured(tiny, tmp_path, [])
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.setattr(
        passes, "batches", lambda n, *_, **__: [slice(i, min(i + 2, n)) for i in range(0, n, 2)]
    )
    for unit, again in zip(whole, measured(tiny, other, []), strict=True):
        assert again.names == unit.names
        for choice, damage in unit.damage.items():
            assert again.damage[choice] == pytest.approx(damage, rel=0.05)


def config(model: Path, **options: Any) -> QuantizeConfig:
    given = {"text": "starter", "languages": Languages("en,ko,km"), "tokens": 600, "choices": Names(CHOICES)}
    return QuantizeConfig(str(model), **{**given, **options})


def test_a_budget_is_kept_and_the_matrix_measured_once(
    tiny_gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = quantize(config(tiny_gemma, budget="3.6"), tmp_path / "a").path
    about = ledger.read_json(made / "onggi.json")
    assert about["scheme"] == "mixed" and len({layer["scheme"] for layer in about["layers"]}) > 1
    checkpoint = Checkpoint(made)
    weights = sum(unit["weights"] for unit in ledger.read_json(made / "sensitivity.json")["units"])
    stored = sum(
        entry.bytes for name, entry in checkpoint.entries.items() if name.endswith(("_packed", "_scale"))
    )
    assert 3.2 < about["bits"]["bits_per_weight"] <= 3.6 and 8 * stored / weights <= 3.65
    drawing = (made / "sensitivity.svg").read_text(encoding="utf-8")
    assert all(word in drawing for word in ("Korean", "Khmer", "q, k, v", "gate, up", "layers 1 to 4"))
    assert "](sensitivity.svg)" in (made / "README.md").read_text(encoding="utf-8")
    price = about["bits"]["price"]
    assert (
        price["worst"]["worst"] <= price["mean"]["worst"] and price["mean"]["mean"] <= price["worst"]["mean"]
    )
    loaded = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
    assert torch.isfinite(loaded(torch.tensor([[0, 5, 9]])).logits).all()

    def refuse(*_: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(sensitivity, "measure", refuse)
    size = sum(file.stat().st_size for file in tiny_gemma.iterdir())
    small = quantize(
        config(tiny_gemma, budget=f"{0.62 * size / 1e6}MB", damage="relative"), tmp_path / "b"
    ).path
    files = [file for file in small.iterdir() if file.name != "stage.json"]
    assert sum(file.stat().st_size for file in files) <= 0.62 * size


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": "four"}, "budget: 'four' is neither bits"),
        ({"budget": "4", "method": "awq"}, "awq does not serve"),
        ({"budget": "4", "scheme": "nf4"}, "leave --scheme out"),
        ({"objective": "mean"}, "for --budget"),
        ({"budget": "4", "choices": Names("w4a16-g128,w8a8")}, "choices: w8a8 cannot be mixed"),
        ({"budget": "4", "choices": Names("w4a16-g128,w5a16")}, "no scheme 'w5a16'"),
        ({"budget": "4", "choices": Names("w8a16")}, "one is no choice"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OnggiError, match=words):
        config(Path("m"), **options)


def test_a_budget_below_what_is_not_quantised_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(OnggiError, match="less than what is not quantised"):
        quantize(config(tiny, budget="10KB"), tmp_path / "w")

"""Shares that follow damage: the search by itself, the damage against the engine's, a run that is stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from onggi import ledger, text
from onggi.engines.transformers import Engine
from onggi.errors import OnggiError
from onggi.head import compare
from onggi.languages import Languages
from onggi.models.checkpoint import Checkpoint
from onggi.models.decoder import skeleton
from onggi.quantize import balance, fairness
from onggi.quantize.passes import Method, Pass
from onggi.stages import QuantizeConfig, quantize, quantize_text
from onggi.text import draw
from onggi.text.tokens import Tokens

LANGUAGES = Languages("en,ko,km")
NAMES = tuple(LANGUAGES)


def config(model: Path, **options: object) -> QuantizeConfig:
    given = {
        "model": str(model),
        "text": "starter",
        "languages": LANGUAGES,
        "tokens": 900,
        "fairness": "minimax",
    }
    return QuantizeConfig(**{**given, **options})  # type: ignore[arg-type]


def drawn(model: Path, tokens: int = 900) -> balance.Calibration:
    found, own = text.load("starter", LANGUAGES), Tokens(model)
    passages = {tag: found.passages(tag) for tag in NAMES}
    return balance.draw(passages, own.encode, own.prefix, tokens, balanced=True, length=96)


def test_the_worst_language_gets_more_until_it_no_longer_gains() -> None:
    need = {"en": 0.2, "ko": 0.4, "km": 1.2}

    def attempt(_number: int, shares: Mapping[str, float]) -> dict[str, float]:
        return {name: need[name] / shares[name] ** 0.5 for name in NAMES}

    rounds, best = fairness.search(attempt, NAMES)
    assert rounds[0].shares == dict.fromkeys(NAMES, 1.0) and rounds[0].worst == "km"
    worst = [one.damage[one.worst] for one in rounds]
    assert worst[best] == min(worst) < 0.75 * worst[0]
    assert rounds[best].shares["km"] > 1 > rounds[best].shares["en"]
    assert sum(rounds[best].shares.values()) == pytest.approx(3)
    assert len(rounds) <= fairness.ROUNDS


def test_where_shares_change_nothing_equal_ones_stay() -> None:
    rounds, best = fairness.search(lambda *_: {"ko": 0.3, "ar": 0.5}, ("ko", "ar"))
    assert best == 0 and len(rounds) == 3


def test_shares_keep_within_bounds() -> None:
    shares = fairness.moved(dict.fromkeys("abc", 1.0), {"a": 1e-9, "b": 1.0, "c": 1e9}, 1.5)
    assert (
        min(shares.values()) >= 0.49
        and max(shares.values()) <= 8
        and sum(shares.values()) == pytest.approx(3, rel=1e-3)
    )


def test_shares_are_of_content_and_start_tokens_keep_theirs(tiny: Path) -> None:
    plain = drawn(tiny)
    moved = plain.weighted({"en": 0.5, "ko": 1.0, "km": 1.5})
    sums = [
        moved.weights[moved.owner == n][:, 1:].sum() / plain.weights[plain.owner == n][:, 1:].sum()
        for n in range(3)
    ]
    assert [float(s) for s in sums] == pytest.approx([0.5, 1.0, 1.5], rel=1e-3)
    assert torch.equal(moved.weights[:, 0], plain.weights[:, 0])
    assert torch.equal(plain.weighted(dict.fromkeys(NAMES, 7.0)).weights, plain.weights)


@pytest.mark.parametrize("kind", ["tiny", "tiny_gemma"])
def test_damage_is_what_the_artifact_does(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The pass sees in fp32 what the artifact, loaded back, does to the same text."""
    model = request.getfixturevalue(kind)
    made = quantize(config(model, precision="fp32", scheme="w4a16-g32"), tmp_path / "w4")
    about = ledger.read_json(made.path / "onggi.json")["balance"]
    best = about["rounds"][about["best"]]
    found, own = text.load("starter", LANGUAGES), Tokens(model)
    _, apart = draw.hold_out({tag: found.passages(tag) for tag in NAMES}, quantize_text.HELD_OUT)
    held = balance.draw(apart, own.encode, own.prefix, 3 * quantize_text.WATCHED, balanced=True)
    before, after = Engine(model), Engine(made.path)
    for number, name in enumerate(NAMES):
        rows = held.ids[held.owner == number]
        there = (held.weights[held.owner == number] > 0)[:, 1:]
        states = []
        for engine in (before, after):
            with torch.no_grad():
                states.append(engine.body(input_ids=rows, use_cache=False).last_hidden_state[:, :-1][there])
        kl = compare(states, [before.head, after.head], rows[:, 1:][there])[1].kl
        assert kl is not None
        assert best["damage"][name] == pytest.approx(float(kl.mean()), rel=0.02)


def digests(folder: Path) -> dict[str, str]:
    files = [file for file in folder.iterdir() if file.is_file() and file.name != "stage.json"]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_a_search_that_is_stopped_goes_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = quantize(config(tiny), tmp_path / "whole")
    ticks = []

    def stop(_job: ledger.Job) -> None:
        ticks.append(1)
        if len(ticks) == 5:  # in the second round
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ledger.Job, "tick", stop)
        quantize(config(tiny), tmp_path / "stopped")
    assert digests(quantize(config(tiny), tmp_path / "stopped").path) == digests(whole.path)
    assert "| Khmer |" in (whole.path / "README.md").read_text()


def test_more_text_than_one_batch_is_watched_too(tiny: Path, tmp_path: Path) -> None:
    held = drawn(tiny)
    source = Checkpoint(tiny)
    whole = fairness.unquantized(source, skeleton(tiny, torch.float32), held, tmp_path, torch.device("cpu"))
    found: list[torch.Tensor] = []
    alone = balance.replace(held, watched=len(held.ids))
    Pass(
        source, skeleton(tiny, torch.float32), lambda _: None, lambda *_: {}, tmp_path, alone, lambda *_: None,
        torch.device("cpu"), Method(), room=96 * 256 * 3,
    ).run(0, found.append)  # fmt: skip
    torch.testing.assert_close(found[0], whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "rtn"}, "fairness: minimax moves"),
        ({"fairness": "balanced", "damage": "relative"}, "damage: relative is for --fairness minimax"),
    ],
)
def test_what_cannot_be_is_refused(tiny: Path, options: dict[str, str], words: str) -> None:
    with pytest.raises(OnggiError, match=words):
        config(tiny, **options)


def test_one_language_has_no_other(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(OnggiError, match="two or more"):
        quantize(config(tiny, languages=Languages("ko")), tmp_path / "w4")


def test_the_record_is_json(tiny: Path, tmp_path: Path) -> None:
    made = quantize(config(tiny, damage="relative"), tmp_path / "w4")
    about = json.loads((made.path / "onggi.json").read_text(encoding="utf-8"))
    assert about["balance"]["damage"] == "relative" and about["fairness"] == "minimax"

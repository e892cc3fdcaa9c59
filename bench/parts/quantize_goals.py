"""What bench/quantize.py is judged by: ratios of the worst language with their paired intervals, and the goals of issue 7."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .tables import goal

_DRAWS = 4000
PEERS = ("llmcompressor", "gptqmodel", "autoround")


def ratios(items: Path, wanted: list[tuple[str, str]], calibrated: list[str]) -> dict[str, Any]:
    """`NAME:OTHER` → how NAME's KL stands to OTHER's, for every pair that is `wanted`. items: the `items.parquet` of
    `onggi evaluate`.

    worst: the largest over languages of the mean KL of a token, NAME's over OTHER's; mean: the same of the mean
    over languages; `calibrated`: of the languages that were calibrated on alone. Each with the 95% interval of the
    bootstrap over passages: both artifacts see the same passages in every draw, and so do all languages where the
    text is parallel.
    """
    import pyarrow.parquet as pq

    names = {name for pair in wanted for name in pair}
    table = pq.read_table(items, columns=["model", "language", "item", "metric", "value", "tokens"])
    kl: dict[str, dict[str, dict[str, tuple[float, int]]]] = {}
    for row in table.to_pylist():
        if row["metric"] == "kl" and row["model"] in names:
            of = kl.setdefault(row["model"], {}).setdefault(row["language"], {})
            of[row["item"]] = (row["value"], row["tokens"])
    found = {}
    for first, second in wanted:
        both = {"all": list(kl[first]), "calibrated": [tag for tag in kl[first] if tag in calibrated]}
        found[f"{first}:{second}"] = {
            who: _ratio({tag: kl[first][tag] for tag in tags}, {tag: kl[second][tag] for tag in tags})
            for who, tags in both.items()
            if tags
        }
    return found


def pairs(names: list[str]) -> list[tuple[str, str]]:
    """The pairs that a goal is about."""
    theirs = [name for name in names if name.startswith(PEERS)]
    wanted = [(ours, peer) for ours in ("balanced", "best", "free") for peer in theirs]
    wanted.append(("minimax", "balanced"))
    return [pair for pair in wanted if set(pair) <= set(names)]


def _ratio(
    first: dict[str, dict[str, tuple[float, int]]], second: dict[str, dict[str, tuple[float, int]]]
) -> dict[str, Any]:
    """language → passage → (sum of KL, tokens), of two models."""
    random = np.random.default_rng(0)
    items = {tag: list(rows) for tag, rows in first.items()}
    parallel = len({tuple(own) for own in items.values()}) == 1
    counts: npt.NDArray[np.float64] | None = None
    drawn: dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]] = {}
    for tag, own in items.items():
        if counts is None or not parallel:
            again = random.multinomial(len(own), np.full(len(own), 1 / len(own)), size=_DRAWS)
            counts = np.vstack([np.ones((1, len(own))), again])  # the sample itself first
        tokens = counts @ np.array([first[tag][item][1] for item in own])
        sides = (counts @ np.array([side[tag][item][0] for item in own]) for side in (first, second))
        a, b = (sums / tokens for sums in sides)
        drawn[tag] = a, b
    a, b = (np.stack([pair[i] for pair in drawn.values()]) for i in (0, 1))
    tags = list(drawn)

    def entry(top: npt.NDArray[np.float64], bottom: npt.NDArray[np.float64]) -> dict[str, float]:
        ratio = top / bottom
        low, high = np.quantile(ratio[1:], [0.025, 0.975])
        return {"value": float(ratio[0]), "low": float(low), "high": float(high)}

    return {
        "worst": entry(a.max(axis=0), b.max(axis=0)),
        "mean": entry(a.mean(axis=0), b.mean(axis=0)),
        "first": {
            "tag": tags[int(a[:, 0].argmax())],
            "kl": float(a[:, 0].max()),
            "mean": float(a[:, 0].mean()),
        },
        "second": {
            "tag": tags[int(b[:, 0].argmax())],
            "kl": float(b[:, 0].max()),
            "mean": float(b[:, 0].mean()),
        },
        "languages": len(tags),
    }


def goals(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of issue 7's table: what, at most, measured, met, and how it was judged. A row whose part was not
    measured is left out.
    """
    found: list[dict[str, Any]] = []
    for part in ("probe", "other"):
        if quality := result[part]:
            found += _quality(quality["ratios"], "the probe" if part == "probe" else "GNOME's help", result)
    if speed := result["speed"]:
        found += _speed(speed, result["titles"])
    if (made := result["artifacts"]) and "autoround-balanced" in made["records"]:
        theirs = made["records"]["autoround-balanced"]["wall"]
        for ours, said in (("best", "the same tokens"), ("free", "its own tokens")):
            if ours in made["records"]:
                wall = made["records"][ours]["wall"]
                note = f"{wall:.0f} s against {theirs:.0f} s, whole processes, one run each"
                found.append(
                    goal(f"wall time of --effort best, {said}, against AutoRound's", 0.5, wall / theirs, note)
                )
    if growth := result["growth"]:
        sizes = list(growth["runs"])
        seconds = ", ".join(f"{growth['runs'][n]['quantisation']:.0f}" for n in sizes)
        note = f"{seconds} s at {', '.join(sizes)} layers; the last layers' seconds over the first ones'"
        found.append(goal("cost of a layer as the model grows, 8B shapes", 1.1, growth["linear"], note))
        note = f"at {sizes[-1]} layers over {sizes[0]}; at most {growth['peak'] / 2**30:.2f} GiB"
        found.append(goal("peak memory as the model grows", 1.05, growth["flat"], note))
        found.append(goal("the same, of 8 GiB", 1.0, growth["peak"] / 2**33, note))
    return found


def best(ratios: dict[str, Any], ours: str, calibration: str) -> str | None:
    """The peer whose worst language on that calibration lost least, where there is one."""
    found = {
        peer: ratios[f"{ours}:{peer}-{calibration}"]["all"]["second"]["kl"]
        for peer in PEERS
        if f"{ours}:{peer}-{calibration}" in ratios
    }
    return min(found, key=found.__getitem__) if found else None


def _quality(ratios: dict[str, Any], where: str, result: dict[str, Any]) -> list[dict[str, Any]]:
    titles, found = result["titles"], list[dict[str, Any]]()
    for ours, most, calibration, said in (
        ("balanced", 0.85, "balanced", "same text and tokens, plain solver"),
        ("best", 0.85, "balanced", "same text and tokens, --effort best"),
        ("free", 0.7, "balanced", "ours free, same bytes"),
        ("balanced", 0.2, "english", "peers on the English rows"),
    ):
        if peer := best(ratios, ours, calibration):
            of = ratios[f"{ours}:{peer}-{calibration}"]["all"]
            if ours == "free" and result["artifacts"]:
                sizes = [result["artifacts"]["records"][n]["bytes"] for n in ("free", f"{peer}-balanced")]
                said += f" ({sizes[0] / 1e6:.0f} and {sizes[1] / 1e6:.0f} MB)"
            note = in_words(of, "worst") + f", {titles[f'{peer}-{calibration}']} the best of the peers"
            found.append(goal(f"worst-language KL on {where}: {said}", most, of["worst"]["value"], note))
    if "minimax:balanced" in ratios:
        of = ratios["minimax:balanced"]["calibrated"]
        interval = f"{of['languages']} calibrated languages"
        below = of["worst"]["high"] < 1
        found.append(
            goal(
                f"minimax against balanced on {where}, worst of {interval}",
                0.85,
                of["worst"]["value"],
                in_words(of, "worst") + ("" if below else " (the interval must lie below 1, and does not)"),
                also=below,
            )
        )
        found.append(goal(f"the same, mean of {interval}", 1.03, of["mean"]["value"], in_words(of, "mean")))
    return found


def in_words(of: dict[str, Any], what: str) -> str:
    """A ratio in words."""
    interval = f"[{of[what]['low']:.2f}, {of[what]['high']:.2f}]"
    if what == "mean":
        return f"{of['first']['mean']:.3f} against {of['second']['mean']:.3f}, {interval}"
    first, second = of["first"], of["second"]
    return f"{first['kl']:.3f} ({first['tag']}) against {second['kl']:.3f} ({second['tag']}), {interval}"


def _speed(speed: dict[str, Any], titles: dict[str, str]) -> list[dict[str, Any]]:
    def median(tool: str, what: str) -> float:
        return statistics.median(run[what] for run in speed["runs"] if run["tool"] == tool)

    if not speed["dtypes"]:
        return []
    peer = min(speed["dtypes"], key=lambda name: median(name, "wall"))
    said = f"{titles[f'{peer}-balanced'].partition(',')[0]} in {speed['dtypes'][peer]}, the faster of the GPTQ peers"
    ratio = {what: median("onggi", what) / median(peer, what) for what in ("wall", "quantisation", "peak")}
    note = f"{said}; the worse of {ratio['quantisation']:.2f}× quantisation alone and {ratio['wall']:.2f}× whole process"
    return [
        goal("wall time of the plain balanced solver", 0.6, max(ratio["wall"], ratio["quantisation"]), note),
        goal("peak memory of the plain balanced solver", 0.7, ratio["peak"], f"{said}; of the whole process"),
    ]

"""Documents packed into sequences: nothing lost, nothing twice, parts told apart, any place read alone."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onggi import text
from onggi.text import packing
from onggi.text.packing import Marks
from onggi.text.tokens import Tokens

MARKS = Marks(start=1, end=2, pad=0)


def documents(count: int, longest: int, seed: int = 0) -> list[tuple[int, int, np.ndarray]]:
    draw = random.Random(seed)
    return [
        (row, row % 3, np.array([draw.randint(3, 900) for _ in range(draw.randint(1, longest))]))
        for row in range(count)
    ]


def unpacked(shard: packing.Shard, marks: Marks) -> dict[int, list[int]]:
    """Row → its tokens, marks taken off, from the parts in their order; fails where one stands twice."""
    found: dict[int, dict[int, list[int]]] = {}
    for part in shard.parts:
        ids = shard.tokens[part["sequence"], part["start"] : part["stop"]].tolist()
        assert ids[0] == marks.start
        pieces = found.setdefault(int(part["row"]), {})
        assert int(part["part"]) not in pieces
        pieces[int(part["part"])] = ids[1:]
    whole = {}
    for row, pieces in found.items():
        assert sorted(pieces) == list(range(len(pieces)))
        ids = [token for number in sorted(pieces) for token in pieces[number]]
        assert marks.end is None or ids.pop() == marks.end
        whole[row] = ids
    return whole


@pytest.mark.parametrize("marks", [MARKS, Marks(1, None, 0), Marks(1, 1, 1)])
@pytest.mark.parametrize(("length", "longest"), [(8, 3), (64, 40), (64, 700), (16, 15)])
def test_nothing_is_lost_or_there_twice(length: int, longest: int, marks: Marks) -> None:
    given = documents(300, longest)
    shard = packing.pack(given, length, marks, np.uint16, seed=0)
    assert shard.tokens.dtype == np.uint16 and shard.tokens.shape[1] == length
    assert unpacked(shard, marks) == {row: ids.tolist() for row, _, ids in given}
    assert all(part["language"] == part["row"] % 3 for part in shard.parts)
    # Parts do not overlap, and what no part covers is padding.
    covered = np.zeros(shard.tokens.shape, int)
    for part in shard.parts:
        covered[part["sequence"], part["start"] : part["stop"]] += 1
    assert covered.max() == 1 and (shard.tokens[covered == 0] == marks.pad).all()


def test_only_what_is_too_long_is_cut() -> None:
    given = documents(400, 90)
    shard = packing.pack(given, 64, MARKS, np.uint16, seed=0)
    pieces = {row: sum(shard.parts["row"] == row) for row, *_ in given}
    for row, _, ids in given:
        assert pieces[row] == -(-(len(ids) + 1) // 63)


def test_best_fit_by_hand() -> None:
    # 7 opens one, 6 another; 4 fits neither (10 long); 3 fills the first, 4 the second, 2 and 1 the third.
    assert packing.best_fit([4, 7, 3, 6, 2, 4, 1], 10) == [[1, 2], [3, 0], [5, 4, 6]]
    assert packing.best_fit([5, 5, 5], 5) == [[0], [1], [2]]
    assert packing.best_fit([], 5) == []


def test_best_fit_against_a_search_of_all_bins() -> None:
    draw = random.Random(1)
    for _ in range(40):
        sizes = [draw.randint(1, 30) for _ in range(draw.randint(1, 120))]
        left: list[int] = []
        for size in sorted(sizes, reverse=True):
            fitting = [room for room in left if room >= size]
            if fitting:
                left[left.index(min(fitting))] -= size
            else:
                left.append(30 - size)
        found = packing.best_fit(sizes, 30)
        assert sorted(30 - sum(sizes[i] for i in numbers) for numbers in found) == sorted(left)
        assert sorted(i for numbers in found for i in numbers) == list(range(len(sizes)))


def test_sequences_are_shuffled_by_the_seed() -> None:
    given = documents(200, 40)
    first, same, other = (packing.pack(given, 64, MARKS, np.uint32, seed) for seed in (0, 0, 1))
    assert (first.tokens == same.tokens).all() and (first.parts == same.parts).all()
    assert (first.tokens != other.tokens).any() and unpacked(first, MARKS) == unpacked(other, MARKS)
    full = (first.tokens != 0).sum(1)
    assert list(full) != sorted(full, reverse=True)


def test_shards_hold_every_document_once() -> None:
    sizes = [random.Random(i).randint(0, 90) for i in range(500)]
    found = packing.shards(sizes, 4000, seed=0)
    assert sorted(number for shard in found for number in shard) == list(range(500))
    total = [sum(sizes[number] for number in shard) for shard in found]
    assert max(total) - min(total) < 200 and len(found) == round(sum(sizes) / 4000)
    assert found == packing.shards(sizes, 4000, seed=0) != packing.shards(sizes, 4000, seed=1)
    assert packing.shards([0, 0], 10, 0) in ([[0, 1]], [[1, 0]])


def test_what_is_in_a_shard_adds_up() -> None:
    given = documents(300, 200)
    shard = packing.pack(given, 64, MARKS, np.uint16, seed=0)
    facts = packing.facts(shard, ["en", "ko", "km"])
    content = sum(len(ids) for *_, ids in given)
    assert facts["tokens"] == content + len(shard.parts) + len(given)
    assert sum(entry["documents"] for entry in facts["languages"].values()) == 300
    assert sum(entry["tokens"] for entry in facts["languages"].values()) == facts["tokens"]
    assert (
        facts["fill"] == pytest.approx(facts["tokens"] / shard.tokens.size, abs=1e-5) and facts["fill"] > 0.99
    )
    low, high = (pick(entry["fill"] for entry in facts["languages"].values()) for pick in (min, max))
    assert low <= facts["fill"] <= high
    together = packing.totals([facts, facts], 64)
    assert together["tokens"] == 2 * facts["tokens"] and together["fill"] == facts["fill"]
    assert together["languages"]["ko"]["parts"] == 2 * facts["languages"]["ko"]["parts"]
    assert together["languages"]["ko"]["fill"] == pytest.approx(facts["languages"]["ko"]["fill"], abs=1e-5)


def test_special_tokens_in_a_text_are_text(tiny: Path) -> None:
    tokens = Tokens(tiny)
    texts = ["<s>한국어</s>", "ខ្មែរ <s>", "", "plain"]
    made = list(packing.encode(tokens.tokenizer, texts))
    assert [tokens.tokenizer.decode(ids.tolist(), skip_special_tokens=False) for ids in made] == texts
    assert not any({0, 1} & set(ids.tolist()) for ids in made)
    assert tokens.encode("<s>") == [0]  # as before
    assert packing.marks(tiny, tokens) == Marks(start=0, end=1, pad=1)


def test_real_text_fills_the_sequences(tiny: Path) -> None:
    tokens: Any = Tokens(tiny).tokenizer
    starter = text.load("starter")
    given = [
        (row, number, ids)
        for number, tag in enumerate(starter.languages)
        for row, ids in enumerate(packing.encode(tokens, list(starter.passages(tag).values())), 1000 * number)
    ]
    shard = packing.pack(given, 128, MARKS, np.uint16, seed=0)
    assert packing.facts(shard, starter.languages)["fill"] > 0.97

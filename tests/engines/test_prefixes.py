"""The plan computes every token once where it can, and each sees what it would see alone."""

from __future__ import annotations

import random

import pytest

from onggi.engines.prefixes import Segment, plan


def followed(
    segments: list[Segment], above: tuple[int, ...] = ()
) -> dict[int, list[tuple[tuple[int, ...], int]]]:
    """Sequence → (all the tokens its node has seen, the token wanted), as a computation would see it."""
    found: dict[int, list[tuple[tuple[int, ...], int]]] = {}
    for segment in segments:
        seen: list[tuple[int, ...]] = []
        for token, parent, depth in zip(segment.tokens, segment.parents, segment.depths, strict=True):
            assert parent < len(seen)
            seen.append((seen[parent] if parent >= 0 else above) + (token,))
            assert len(seen[-1]) == depth + 1
        for want in segment.wants:
            found.setdefault(want.sequence, []).append((seen[want.node], want.token))
        if segment.children:
            assert segment.parents == list(range(-1, len(segment.tokens) - 1))
            for sequence, wants in followed(segment.children, seen[-1]).items():
                found.setdefault(sequence, []).extend(wants)
    return found


def check(sequences: list[tuple[list[int], int]], segments: list[Segment]) -> None:
    found = followed(segments)
    for i, (ids, start) in enumerate(sequences):
        expected = [(tuple(ids[:j]), ids[j]) for j in range(start, len(ids))]
        assert sorted(found.get(i, [])) == sorted(expected)


@pytest.mark.parametrize("seed", range(20))
def test_every_token_sees_its_own_past(seed: int) -> None:
    draw = random.Random(seed)
    blocks = [[draw.randrange(5) for _ in range(draw.randrange(1, 60))] for _ in range(3)]
    sequences = []
    for _ in range(draw.randrange(1, 60)):
        ids = [9, *draw.choice(blocks), *(draw.randrange(3) for _ in range(draw.randrange(1, 12)))]
        sequences.append((ids, draw.randrange(1, len(ids) + 1)))
    sequences.append(sequences[0])
    check(sequences, plan(sequences, pack=draw.choice([1, 8, 50, 10_000]), shared=draw.choice([1, 4, 32])))


def test_shots_are_computed_once_and_a_question_once_for_its_choices() -> None:
    shots = [1, *range(100, 500)]
    sequences = []
    for question in range(50):
        body = [*shots, *(1000 + question * 40 + k for k in range(40))]
        sequences += [([*body, 7, choice], len(body)) for choice in range(4)]
    segments = plan(sequences, pack=256)
    check(sequences, segments)
    # 401 tokens of shots, 40 of each question, and the token that all of its choices begin with.
    assert sum(segment.work for segment in segments) == 401 + 50 * 41
    assert len(segments) == 1 and 8 <= len(segments[0].children) <= 9


def test_different_shots_share_nothing_but_the_choices_share_their_question() -> None:
    sequences = []
    for question in range(6):
        body = [1, *(question * 1000 + k for k in range(300))]
        sequences += [([*body, choice, 3], 301) for choice in range(4)]
    segments = plan(sequences)
    check(sequences, segments)
    # The start token once a segment; a question that does not fit stands in the next one.
    assert sum(segment.work for segment in segments) == 6 * (301 + 4)


def test_nothing_to_score() -> None:
    assert plan([]) == []
    assert plan([([1, 2, 3], 3)]) == []
    with pytest.raises(ValueError, match="cannot be scored from token 0"):
        plan([([1, 2], 0)])


def test_each_sequence_a_prefix_of_the_next() -> None:
    sequences = [([0] * n + [1], n) for n in range(1, 1500)]
    check(sequences[:50], plan(sequences[:50], pack=16, shared=4))
    assert sum(segment.work for segment in plan(sequences)) < 2.5 * 1499

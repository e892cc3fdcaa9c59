"""Divergences from drawn tokens, against the whole vocabulary."""

from __future__ import annotations

import pytest
import torch

from onggi.head import Head, compare, drawn, drawn_kl


def states(positions: int, seed: int) -> torch.Tensor:
    return torch.randn(positions, 24, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_close_to_the_whole_vocabulary(softcap: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    head = Head(
        0.3 * torch.randn(700, 24, generator=generator), torch.randn(700, generator=generator), softcap
    )
    before = states(60, 1)
    tokens = drawn(before, head, 4000, seed=0)
    for size in (0.05, 0.3):
        after = before + size * states(60, 2)
        exact = compare([before, after], [head, head], torch.zeros(60, dtype=torch.int64))[1].kl
        assert exact is not None
        found = drawn_kl(before, after, head, tokens)
        assert float(found.mean()) == pytest.approx(float(exact.mean()), rel=0.04)
        assert torch.corrcoef(torch.stack([found, exact]))[0, 1] > 0.99
    assert not drawn_kl(before, before, head, tokens).any()


def test_same_seed_same_tokens_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    head = Head(torch.randn(300, 24, generator=torch.Generator().manual_seed(0)))
    before = states(20, 1)
    tokens = drawn(before, head, 16, seed=3)
    assert torch.equal(tokens, drawn(before, head, 16, seed=3))
    assert not torch.equal(tokens, drawn(before, head, 16, seed=4))
    whole = drawn_kl(before, states(20, 2), head, tokens)
    monkeypatch.setattr("onggi.head.sampled._ROOM", 16 * 24 * 3)
    torch.testing.assert_close(drawn_kl(before, states(20, 2), head, tokens), whole)


def test_shapes_that_differ_are_refused() -> None:
    head = Head(torch.eye(24))
    with pytest.raises(ValueError, match="rows of tokens"):
        drawn_kl(states(3, 1), states(4, 1), head, torch.zeros(3, 2, dtype=torch.int64))

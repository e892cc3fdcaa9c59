"""What is stored of a teacher comes back as it was, to the rounding that is said."""

from __future__ import annotations

import pytest
import torch

from onggi.distill import names, store
from onggi.errors import OnggiError
from onggi.head import Dense, Head, Sparse, entries


def teacher(vocabulary: int, positions: int = 9) -> Dense:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(positions, 16, generator=generator)
    return Dense(hidden, Head(torch.randn(vocabulary, 16, generator=generator)))


@pytest.mark.parametrize(("vocabulary", "wide"), [(1009, 2), (1 << 16, 2), (70_001, 3)])
def test_there_and_back(vocabulary: int, wide: int) -> None:
    assert store.width(vocabulary) == wide
    given = entries(teacher(vocabulary), 12)
    octets, chances = store.encoded(given, wide)
    assert octets.nbytes + chances.nbytes == 9 * (12 * (wide + 2) + 2)
    ids, log_p, tail = store.decoded(octets, chances, 0)
    assert torch.equal(ids.long(), given.ids)
    torch.testing.assert_close(log_p, given.log_p, rtol=0, atol=4e-4)
    torch.testing.assert_close(tail, given.log_tail, rtol=0, atol=4e-4)
    torch.testing.assert_close(log_p.exp().sum(-1) + tail.exp(), torch.ones(9), rtol=0, atol=1e-6)


def test_the_entries_are_the_likeliest_and_the_tail_is_the_rest() -> None:
    given = teacher(1009)
    whole = given.head.logits(given.hidden).log_softmax(-1)
    found = entries(given, 20)
    assert torch.equal(found.ids, whole.topk(20).indices)
    torch.testing.assert_close(
        found.log_tail.exp(), 1 - whole.topk(20).values.exp().sum(-1), rtol=1e-4, atol=1e-6
    )
    flat = entries(given, 20, temperature=3.0)
    torch.testing.assert_close(
        flat.log_p, (given.head.logits(given.hidden) / 3).log_softmax(-1).topk(20).values
    )
    with pytest.raises(ValueError, match="of a vocabulary of 1009"):
        entries(given, 1009)


def test_draws_are_from_the_others_by_their_chances() -> None:
    given = teacher(40, positions=1)
    whole = given.head.logits(given.hidden).log_softmax(-1)[0]
    many = entries(given, 3, 20_000, generator=torch.Generator().manual_seed(1))
    drawn = many.ids[0, 3:]
    assert many.draws == 20_000 and not set(drawn.tolist()) & set(many.ids[0, :3].tolist())
    share = torch.bincount(drawn, minlength=40) / 20_000
    wanted = whole.exp() / many.log_tail.exp()
    wanted[many.ids[0, :3]] = 0
    torch.testing.assert_close(share, wanted, rtol=0, atol=0.02)
    torch.testing.assert_close(many.log_p[0, 3:], whole[drawn])
    # Rounding puts entries and tail right together; draws are no part of that sum.
    ids, log_p, tail = store.decoded(*store.encoded(many, 2), 20_000)
    assert float(log_p[0, :3].exp().sum() + tail.exp()) == pytest.approx(1, abs=1e-5)
    assert ids.shape == (1, 20_003)


def test_a_teacher_with_nothing_left_to_draw() -> None:
    sure = Dense(torch.tensor([[900.0]]), Head(torch.tensor([[1.0], [0.0], [-1.0], [-2.0]])))
    found = entries(sure, 1, 5, generator=torch.Generator().manual_seed(0))
    assert found.ids[0, 0] == 0 and float(found.log_tail.exp()) < 1e-30


def test_what_bytes_hold() -> None:
    assert store.entries_in(300, 262_144) == 59 and store.entries_in(300, 49_152) == 74
    assert store.entries_in(3, 49_152) == 0


def test_a_teacher_that_is_sure() -> None:
    """Nothing left for the tail: no infinity is written or read."""
    given = Sparse(torch.tensor([[7, 3]]), torch.tensor([[0.0, -90.0]]), torch.tensor([-80.0]))
    _, log_p, tail = store.decoded(*store.encoded(given, 2), 0)
    assert bool(torch.isfinite(log_p).all()) and bool(torch.isfinite(tail).all())
    assert float(log_p[0, 0]) == pytest.approx(0, abs=1e-6) and float(tail) < -30


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("kl", ("kl", 0.0)),
        ("reverse-kl", ("reverse-kl", 0.0)),
        ("jsd:0.5", ("jsd", 0.5)),
        ("skew:.1", ("skew", 0.1)),
    ],
)
def test_losses_by_name(text: str, kind: tuple[str, float]) -> None:
    assert names.loss(text) == kind


@pytest.mark.parametrize("text", ["", "kl:0.1", "jsd", "jsd:1", "skew:many", "tv:0.5", "skew:0", "카이엘"])
def test_what_is_no_loss(text: str) -> None:
    with pytest.raises(OnggiError, match="is none of kl, reverse-kl"):
        names.loss(text)

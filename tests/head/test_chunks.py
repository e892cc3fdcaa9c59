"""The head in chunks against the naive computation over the whole vocabulary."""

import math

import pytest
import torch

from onggi.head import Head, compare, score

VOCABULARY = 5003  # prime: the last tile is never full


def naive(hidden: torch.Tensor, head: Head) -> torch.Tensor:
    logits = hidden.double() @ head.weight.double().T * head.scale
    if head.bias is not None:
        logits = logits + head.bias.double()
    if head.softcap is not None:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    return logits.log_softmax(-1)


def models(seed: int = 0, count: int = 3, positions: int = 301) -> tuple[list, list, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(VOCABULARY, 48, generator=generator)
    hidden = [torch.randn(positions, 48, generator=generator) * 0.7 for _ in range(count)]
    # The second is close to the first, as a quantised model is to its reference.
    hidden[1] = hidden[0] + 0.05 * hidden[1]
    targets = torch.randint(0, VOCABULARY, (positions,), generator=generator)
    return hidden, [Head(weight)] * count, targets


@pytest.mark.parametrize("tile", [1, 512, 2048, VOCABULARY, 100_000])
def test_equals_the_naive_computation(tile: int) -> None:
    hidden, heads, targets = models(positions=31 if tile == 1 else 301)
    found = compare(hidden, heads, targets, positions=64, tile=tile)
    reference = naive(hidden[0], heads[0])
    for states, head, scores in zip(hidden, heads, found, strict=True):
        log_q = naive(states, head)
        nll = -log_q.gather(1, targets.unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(scores.nll.double(), nll, rtol=0, atol=1e-5)
        assert torch.equal(scores.top1, log_q.argmax(-1))
        if scores.kl is not None:
            kl = (reference.exp() * (reference - log_q)).sum(-1)
            torch.testing.assert_close(scores.kl.double(), kl, rtol=1e-5, atol=1e-5)
    assert found[0].kl is None


@pytest.mark.parametrize(
    "head",
    [
        {"bias": torch.linspace(-3, 3, VOCABULARY)},
        {"softcap": 30.0},
        {"scale": 0.0625},
        {"bias": torch.ones(VOCABULARY), "softcap": 5.0, "scale": 2.0},
    ],
)
def test_heads_of_other_shapes(head: dict) -> None:
    hidden, heads, targets = models()
    made = Head(heads[0].weight, **head)
    found = compare(hidden[:2], [made, made], targets)
    p, q = naive(hidden[0], made), naive(hidden[1], made)
    torch.testing.assert_close(found[1].kl.double(), (p.exp() * (p - q)).sum(-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        found[0].nll.double(), -p.gather(1, targets.unsqueeze(1)).squeeze(1), rtol=0, atol=1e-5
    )


def test_large_logits_do_not_overflow() -> None:
    hidden, heads, targets = models()
    found = compare([states * 90 for states in hidden], heads, targets)
    assert all(bool(torch.isfinite(scores.nll).all()) for scores in found)
    p = naive(hidden[0] * 90, heads[0])
    torch.testing.assert_close(
        found[0].nll.double(), -p.gather(1, targets.unsqueeze(1)).squeeze(1), rtol=1e-5, atol=1e-3
    )


def test_equal_models_have_no_divergence_and_small_ones_are_seen() -> None:
    hidden, heads, targets = models()
    nudged = hidden[0] + 1e-3 * torch.randn(hidden[0].shape, generator=torch.Generator().manual_seed(1))
    found = compare([hidden[0], hidden[0], nudged], heads, targets)
    assert found[1].kl is not None and float(found[1].kl.max()) < 1e-7
    p, q = naive(hidden[0], heads[0]), naive(nudged, heads[0])
    exact = (p.exp() * (p - q)).sum(-1)
    # A divergence of about 2e-5 nats, far below 8-bit weights': still right to a tenth of it.
    assert float(exact.mean()) < 1e-4
    assert found[2].kl is not None
    assert math.isclose(float(found[2].kl.mean()), float(exact.mean()), rel_tol=0.02)


def test_ties_go_to_the_first_token_as_argmax_does() -> None:
    weight = torch.zeros(100, 4)
    found = score(torch.ones(3, 4), Head(weight), torch.tensor([0, 5, 99]), tile=16)
    assert found.top1.tolist() == [0, 0, 0]
    torch.testing.assert_close(found.nll, torch.full((3,), math.log(100)))


def test_memory_is_bounded_by_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, heads, targets = models()
    largest = 0
    logits = Head.logits

    def spy(self: Head, states: torch.Tensor, start: int = 0, stop: int | None = None) -> torch.Tensor:
        nonlocal largest
        made = logits(self, states, start, stop)
        largest = max(largest, made.numel())
        return made

    monkeypatch.setattr(Head, "logits", spy)
    compare(hidden, heads, targets, positions=32, tile=256)
    assert 0 < largest <= 32 * 256


def test_what_cannot_be_compared_is_refused() -> None:
    hidden, heads, targets = models()
    with pytest.raises(ValueError, match="one vocabulary"):
        compare(hidden[:2], [heads[0], Head(heads[0].weight[:-1])], targets)
    with pytest.raises(ValueError, match="one hidden state per target"):
        compare([hidden[0], hidden[1][:-1]], heads[:2], targets)


def test_a_part_is_the_head_of_a_smaller_vocabulary() -> None:
    hidden, (head, *_), targets = models()
    whole = Head(head.weight, torch.linspace(-2, 2, VOCABULARY), 5.0, 0.5)
    found = score(hidden[0], whole.part(100), targets % 100)
    log_q = naive(hidden[0], Head(whole.weight[:100], whole.bias[:100], 5.0, 0.5))
    nll = -log_q.gather(1, (targets % 100).unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(found.nll.double(), nll, rtol=0, atol=1e-5)
    assert whole.part(10**6).vocabulary == VOCABULARY

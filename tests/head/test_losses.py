"""The loss in chunks against torch's own over whole logits, its gradients too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from onggi.head import Head, cross_entropy
from tensors import Largest

VOCABULARY, HIDDEN, POSITIONS = 5003, 48, 101

HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bias": {"bias": torch.linspace(-3, 3, VOCABULARY, dtype=torch.float64)},
    "softcap": {"softcap": 5.0},
    "scale": {"scale": 0.25},
    "all": {"bias": torch.linspace(-3, 3, VOCABULARY, dtype=torch.float64), "softcap": 7.0, "scale": 2.0},
}


def made(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """hidden, weight, targets, weights; one token in three has weight 0."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(POSITIONS, HIDDEN, generator=generator, dtype=dtype)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=dtype) * 0.3
    targets = torch.randint(0, VOCABULARY, (POSITIONS,), generator=generator)
    weights = torch.rand(POSITIONS, generator=generator, dtype=dtype)
    weights[::3] = 0
    return hidden.requires_grad_(), weight.requires_grad_(), targets, weights


def naive(hidden: Tensor, head: Head, targets: Tensor, weights: Tensor) -> Tensor:
    logits = head.finished(hidden @ head.weight.T, slice(None))
    return (F.cross_entropy(logits, targets, reduction="none") * weights).sum()


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("positions", [1, 32, POSITIONS, 1000])
def test_equals_the_naive_computation(kind: str, positions: int) -> None:
    hidden, weight, targets, weights = made()
    options = dict(HEADS[kind])
    inputs = [hidden, weight]
    if "bias" in options:
        options["bias"] = options["bias"].clone().requires_grad_()
        inputs.append(options["bias"])
    head = Head(weight, **options)
    # Not the bare loss: what comes after it scales the gradients.
    whole = 3 * naive(hidden, head, targets, weights)
    found = 3 * cross_entropy(hidden, head, targets, weights, positions=positions, dtype=torch.float64)
    torch.testing.assert_close(found, whole, rtol=1e-12, atol=0)
    for mine, own in zip(torch.autograd.grad(found, inputs), torch.autograd.grad(whole, inputs), strict=True):
        torch.testing.assert_close(mine, own, rtol=1e-9, atol=1e-12)
    assert bool((torch.autograd.grad(naive(hidden, head, targets, weights), hidden)[0][::3] == 0).all())


def test_fp32_the_mean_by_default_and_large_logits() -> None:
    hidden, weight, targets, _ = made(torch.float32)
    for size in (1.0, 60.0):
        states = (hidden.detach() * size).requires_grad_()
        found = cross_entropy(states, Head(weight), targets, positions=32)
        whole = F.cross_entropy(states @ weight.T, targets)
        torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-5)
        for mine, own in zip(
            torch.autograd.grad(found, [states, weight]),
            torch.autograd.grad(whole, [states, weight]),
            strict=True,
        ):
            torch.testing.assert_close(mine, own, rtol=1e-4, atol=1e-6)


def test_bf16_products_keep_the_gradient_to_their_precision() -> None:
    hidden, weight, targets, weights = made(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):  # what it is called in must not decide
        exact = cross_entropy(hidden, Head(weight), targets, weights)
        rough = cross_entropy(hidden, Head(weight), targets, weights, dtype=torch.bfloat16, positions=32)
    torch.testing.assert_close(exact, naive(hidden, Head(weight), targets, weights), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rough, exact, rtol=1e-2, atol=0)
    for mine, own in zip(
        torch.autograd.grad(rough, [hidden, weight]),
        torch.autograd.grad(exact, [hidden, weight]),
        strict=True,
    ):
        assert mine.dtype == torch.float32
        assert float((mine - own).norm() / own.norm()) < 0.02


def test_a_tied_weight_gets_both_gradients() -> None:
    """The embedding that is also the head: sparse from its rows, dense from the logits."""
    _, weight, targets, weights = made()
    ids = targets.flip(0)
    found = cross_entropy(weight[ids], Head(weight), targets, weights, positions=32, dtype=torch.float64)
    whole = naive(weight[ids], Head(weight), targets, weights)
    torch.testing.assert_close(
        torch.autograd.grad(found, weight)[0], torch.autograd.grad(whole, weight)[0], rtol=1e-9, atol=1e-12
    )


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    hidden, weight, targets, weights = made()
    frozen = Head(weight.detach())
    (gradient,) = torch.autograd.grad(
        cross_entropy(hidden, frozen, targets, weights, dtype=torch.float64), hidden
    )
    (own,) = torch.autograd.grad(naive(hidden, frozen, targets, weights), hidden)
    torch.testing.assert_close(gradient, own)
    with torch.no_grad():
        assert not cross_entropy(hidden, Head(weight), targets, weights).requires_grad
    nothing = cross_entropy(hidden, Head(weight), targets, torch.zeros(POSITIONS))
    nothing.backward()
    assert float(nothing.detach()) == 0 and not hidden.grad.any() and not weight.grad.any()


def test_memory_does_not_grow_with_the_tokens() -> None:
    def largest(tokens: int) -> int:
        hidden = torch.randn(tokens, 4, requires_grad=True)
        weight = torch.randn(VOCABULARY, 4, requires_grad=True)
        with Largest() as made:
            cross_entropy(hidden, Head(weight), torch.arange(tokens), positions=16).backward()
        return made.bytes

    assert largest(64) == largest(1024) == 16 * VOCABULARY * 4


def test_a_frozen_head_takes_no_memory_of_its_size() -> None:
    hidden, weight = torch.randn(9, 64, requires_grad=True), torch.randn(VOCABULARY, 64).bfloat16()
    with Largest() as made:
        cross_entropy(hidden, Head(weight), torch.arange(9), positions=4, dtype=torch.bfloat16).backward()
    assert made.bytes == 4 * VOCABULARY * 4 < weight.nbytes


def test_what_does_not_fit_is_refused() -> None:
    hidden, weight, targets, weights = made()
    with pytest.raises(ValueError, match="do not fit"):
        cross_entropy(hidden[:-1], Head(weight), targets)
    with pytest.raises(ValueError, match="weights for"):
        cross_entropy(hidden, Head(weight), targets, weights[:-1])
    with pytest.raises(ValueError, match="not among the 5003"):
        cross_entropy(hidden, Head(weight), targets + VOCABULARY)


@pytest.mark.parametrize("kind", ["plain", "gemma"])
def test_z_loss_is_the_square_of_the_log_sum(kind: str) -> None:
    torch.manual_seed(3)
    softcap = 5.0 if kind == "gemma" else None
    hidden = torch.randn(11, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(17, 6, dtype=torch.float64, requires_grad=True)
    targets, weights = torch.randint(0, 17, (11,)), torch.rand(11, dtype=torch.float64)
    found = cross_entropy(
        hidden, Head(weight, softcap=softcap), targets, weights, z=0.3, positions=4, dtype=torch.float64
    )
    found.backward()
    mine = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    logits = hidden @ weight.T
    logits = torch.tanh(logits / softcap) * softcap if softcap else logits
    own = F.cross_entropy(logits, targets, reduction="none") + 0.3 * logits.logsumexp(1) ** 2
    (own * weights).sum().backward()
    torch.testing.assert_close(found, (own * weights).sum())
    torch.testing.assert_close(mine, (hidden.grad, weight.grad))


@pytest.mark.parametrize(("dtype", "block"), [(torch.float32, None), (torch.float32, 5), (torch.bfloat16, 5)])
def test_a_few_rows_of_a_frozen_head(
    dtype: torch.dtype, block: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their gradient is that of the whole weight's rows; with softcap, scale and a bias, in one block or several."""
    torch.manual_seed(3)
    hidden, targets = torch.randn(50, 16), torch.randint(0, 300, (50,))
    weight, ids = torch.randn(300, 16, requires_grad=True), torch.tensor([7, 299, int(targets[0])])
    settings: dict[str, Any] = {"bias": torch.randn(300), "softcap": 4.0, "scale": 0.7}
    cross_entropy(hidden, Head(weight, **settings), targets, z=1e-3, positions=16).backward()
    assert weight.grad is not None
    if block:
        monkeypatch.setattr("onggi.head.losses._BLOCK", 300 * block)
    rows = weight.detach()[ids].clone().requires_grad_()
    head = Head(weight.detach().clone(), **settings)
    loss = cross_entropy(hidden, head, targets, z=1e-3, positions=16, dtype=dtype, rows=(ids, rows))
    (3 * loss).backward()
    near = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.05, "atol": 2e-3}
    torch.testing.assert_close(rows.grad, 3 * weight.grad[ids], **near)

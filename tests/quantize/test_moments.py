"""Second moments: the weights of languages, the symmetric blocks, and bf16 inputs."""

import pytest
import torch

from onggi.quantize.moments import second_moments
from onggi.quantize.solver import factor


def inputs(columns: int, tokens: int = 700) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(columns)
    x = torch.randn(tokens, columns, generator=generator) * torch.linspace(0.1, 30, columns)
    weights = torch.rand(tokens, generator=generator)
    weights[::9] = 0
    return x, weights


def relative(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """By the definition, in fp64."""
    unit = x.double() / x.double().square().mean(dim=1, keepdim=True).sqrt()
    return (unit * weights.double().unsqueeze(1)).T @ unit


@pytest.mark.parametrize("columns", [1, 96, 512, 1300])
def test_equals_the_definition_and_is_symmetric(columns: int) -> None:
    x, weights = inputs(columns)
    found = second_moments(x, weights)
    exact = relative(x, weights)
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-3 * float(exact.abs().max()))
    assert torch.equal(found, found.T)


def test_tokens_of_weight_zero_do_not_count_even_if_huge() -> None:
    x, weights = inputs(64)
    clean = second_moments(x, weights)
    x[weights == 0] = 1e8
    assert torch.equal(second_moments(x, weights), clean)
    assert torch.equal(
        second_moments(x, torch.zeros(len(x))), torch.zeros(64, 64)
    )  # a batch of none that count


def test_languages_have_their_share_in_one_matrix() -> None:
    x, _ = inputs(32, tokens=900)
    sizes = {"en": 600, "ko": 250, "km": 50}
    parts = x.split(list(sizes.values()))
    weights = torch.cat([torch.full((n,), 1 / n) for n in sizes.values()])
    separate = sum(second_moments(part, torch.full((len(part),), 1 / len(part))) for part in parts)
    torch.testing.assert_close(second_moments(x, weights), separate, rtol=1e-4, atol=1e-4)


def test_a_token_counts_by_its_weight_and_not_by_its_size() -> None:
    x, weights = inputs(96)
    sizes = torch.logspace(-20, 30, len(x)).unsqueeze(1)
    torch.testing.assert_close(
        second_moments(x * sizes, weights), second_moments(x, weights), rtol=1e-4, atol=1e-2
    )
    x[5], weights[5] = 0, 8
    assert bool(torch.isfinite(second_moments(x, weights)).all())
    for odd in (torch.nan, torch.inf):
        x[7, 3] = odd
        assert not bool(torch.isfinite(second_moments(x, weights)).all())


def test_bf16_inputs_that_lean_one_way_stay_definite() -> None:
    """Their products may be taken in bf16, not their sums: such moments would be indefinite, and the solver would damp more."""
    x, weights = inputs(256, tokens=4000)
    leaning = (x + 300).bfloat16()
    found = second_moments(leaning, weights)
    exact = relative(leaning, weights)
    torch.testing.assert_close(found.double(), exact, rtol=5e-4, atol=0)
    torch.testing.assert_close(second_moments(leaning.float(), weights).double(), exact, rtol=1e-5, atol=0)
    assert factor(found, 0.01)[1] == 0.01
    assert factor(found.bfloat16().float(), 0.01)[1] > 0.01
    assert torch.backends.mkldnn.matmul.fp32_precision == "none"
    other = torch.randn(64, 300), torch.randn(300, 64)
    torch.testing.assert_close(
        (other[0] @ other[1]).double(), other[0].double() @ other[1].double(), rtol=0, atol=1e-4
    )

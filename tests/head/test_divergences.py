"""Divergences in chunks against the plain computation over whole logits, its gradients by autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from onggi.head import Dense, Divergence, Head, Sparse, cross_entropy, divergence
from tensors import Largest

VOCABULARY, HIDDEN, TEACHERS, POSITIONS = 1009, 24, 40, 53

HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all": {"bias": torch.linspace(-3, 3, VOCABULARY, dtype=torch.float64), "softcap": 7.0, "scale": 2.0},
}
KINDS = [
    Divergence("kl"),
    Divergence("reverse-kl"),
    Divergence("jsd", 0.5),
    Divergence("jsd", 0.1),
    Divergence("skew", 0.1),
]


def made(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Dense, Tensor, Tensor]:
    """hidden, weight, teacher, targets, weights; one token in three has weight 0."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    hidden, weight = randn(POSITIONS, HIDDEN), randn(VOCABULARY, HIDDEN) * 0.3
    teacher = Dense(randn(POSITIONS, TEACHERS), Head(randn(VOCABULARY, TEACHERS) * 0.3, softcap=9.0))
    targets = torch.randint(0, VOCABULARY, (POSITIONS,), generator=generator)
    weights = torch.rand(POSITIONS, generator=generator, dtype=dtype)
    weights[::3] = 0
    return hidden.requires_grad_(), weight.requires_grad_(), teacher, targets, weights


def logits_of(hidden: Tensor, head: Head) -> Tensor:
    return head.finished(hidden @ head.weight.T, slice(None))


def by_definition(kind: Divergence, log_p: Tensor, log_q: Tensor) -> Tensor:
    """(positions,), with every sum as the papers write it."""
    p, q, a = log_p.exp(), log_q.exp(), kind.amount

    def kl(log_a: Tensor, log_b: Tensor) -> Tensor:
        return (log_a.exp() * (log_a - log_b)).sum(-1)

    if kind.kind == "kl":
        return kl(log_p, log_q)
    if kind.kind == "reverse-kl":
        return kl(log_q, log_p)
    log_m = (a * p + (1 - a) * q).log()
    if kind.kind == "jsd":
        return a * kl(log_p, log_m) + (1 - a) * kl(log_q, log_m)
    return kl(log_p, log_m)


def plain(
    hidden: Tensor,
    head: Head,
    teacher: Dense,
    targets: Tensor,
    weights: Tensor,
    kind: Divergence,
    text: float,
    t: float,
) -> Tensor:
    theirs, own = logits_of(teacher.hidden, teacher.head), logits_of(hidden, head)
    far = by_definition(kind, (theirs / t).log_softmax(-1), (own / t).log_softmax(-1))
    nll = F.cross_entropy(own, targets, reduction="none")
    return (weights * ((1 - text) * t**2 * far + text * nll)).sum()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.kind}:{kind.amount}")
@pytest.mark.parametrize("shape", HEADS)
def test_equals_the_plain_computation(kind: Divergence, shape: str) -> None:
    hidden, weight, teacher, targets, weights = made()
    options = dict(HEADS[shape])
    inputs = [hidden, weight]
    if "bias" in options:
        options["bias"] = options["bias"].clone().requires_grad_()
        inputs.append(options["bias"])
    head = Head(weight, **options)
    for text, t, positions in ((0.0, 1.0, 1000), (0.3, 1.0, 16), (0.25, 2.0, 7)):
        # Not the bare loss: what comes after it scales the gradients.
        whole = 3 * plain(hidden, head, teacher, targets, weights, kind, text, t)
        found = 3 * divergence(
            hidden,
            head,
            teacher,
            targets,
            weights,
            kind=kind,
            text=text,
            temperature=t,
            positions=positions,
            dtype=torch.float64,
        )
        torch.testing.assert_close(found, whole, rtol=1e-11, atol=0)
        for mine, own in zip(
            torch.autograd.grad(found, inputs), torch.autograd.grad(whole, inputs), strict=True
        ):
            torch.testing.assert_close(mine, own, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS[:3], ids=lambda kind: kind.kind)
def test_fp32_and_bf16_products(kind: Divergence) -> None:
    hidden, weight, teacher, targets, weights = made(torch.float32)
    whole = plain(hidden, Head(weight), teacher, targets, weights, kind, 0.2, 1.0)
    own = torch.autograd.grad(whole, [hidden, weight])
    with torch.autocast("cpu", torch.bfloat16):  # what it is called in must not decide
        for dtype, near in ((torch.float32, 1e-4), (torch.bfloat16, 0.03)):
            found = divergence(
                hidden,
                Head(weight),
                teacher,
                targets,
                weights,
                kind=kind,
                text=0.2,
                positions=16,
                dtype=dtype,
            )
            assert abs(float((found - whole).detach())) < near * float(whole.detach())
            for mine, theirs in zip(torch.autograd.grad(found, [hidden, weight]), own, strict=True):
                assert mine.dtype == torch.float32
                assert float((mine - theirs).norm() / theirs.norm()) < near


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.kind}:{kind.amount}")
def test_a_student_that_is_sure_and_wrong(kind: Divergence) -> None:
    """Logits of hundreds: nothing overflows, and the gradient is that of the definition."""
    hidden, weight, teacher, targets, weights = made()
    states = (hidden.detach() * 60).requires_grad_()
    found = divergence(
        states, Head(weight), teacher, targets, weights, kind=kind, positions=16, dtype=torch.float64
    )
    whole = plain(states, Head(weight), teacher, targets, weights, kind, 0.0, 1.0)
    torch.testing.assert_close(found, whole)
    torch.testing.assert_close(torch.autograd.grad(found, states), torch.autograd.grad(whole, states))
    rough = divergence(
        states.float(),
        Head(weight.float()),
        Dense(teacher.hidden.float(), Head(teacher.head.weight.float(), softcap=9.0)),
        targets,
        weights.float(),
        kind=kind,
    )
    torch.testing.assert_close(rough.double(), whole, rtol=1e-3, atol=0)


def test_a_student_like_its_teacher_has_nothing_to_learn() -> None:
    hidden, weight, _, targets, _ = made()
    for kind in KINDS:
        found = divergence(
            hidden,
            Head(weight),
            Dense(hidden.detach(), Head(weight.detach())),
            targets,
            kind=kind,
            dtype=torch.float64,
        )
        assert abs(float(found.detach())) < 1e-12
        assert float(torch.autograd.grad(found, hidden)[0].abs().max()) < 1e-12


def top(teacher: Dense, entries: int) -> tuple[Sparse, Tensor]:
    """The teacher's likeliest entries and its tail, and its whole log-probabilities."""
    whole = logits_of(teacher.hidden, teacher.head).log_softmax(-1)
    log_p, ids = whole.topk(entries)
    tail = whole.scatter(1, ids, -torch.inf).logsumexp(-1)
    return Sparse(ids, log_p, tail), whole


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.kind}:{kind.amount}")
def test_a_few_entries_and_a_tail(kind: Divergence) -> None:
    """Over the entries and one event for all others, by autograd; and never above the whole divergence."""
    hidden, weight, teacher, targets, weights = made()
    signal, whole_log_p = top(teacher, 20)
    head = Head(weight, softcap=11.0)
    found = divergence(
        hidden, head, signal, targets, weights, kind=kind, text=0.1, positions=16, dtype=torch.float64
    )
    log_q = logits_of(hidden, head).log_softmax(-1)
    rest = log_q.scatter(1, signal.ids, -torch.inf).logsumexp(-1, keepdim=True)
    events = torch.cat([log_q.gather(1, signal.ids), rest], 1)
    log_p = torch.cat([signal.log_p, signal.log_tail.unsqueeze(1)], 1)
    far = by_definition(kind, log_p, events)
    whole = (weights * (0.9 * far - 0.1 * log_q.gather(1, targets.unsqueeze(1)).squeeze(1))).sum()
    torch.testing.assert_close(found, whole)
    for mine, own in zip(
        torch.autograd.grad(found, [hidden, weight]),
        torch.autograd.grad(whole, [hidden, weight]),
        strict=True,
    ):
        torch.testing.assert_close(mine, own, rtol=1e-8, atol=1e-12)
    assert bool((far <= by_definition(kind, whole_log_p, log_q) + 1e-12).all())


def test_all_entries_are_the_whole_distribution() -> None:
    hidden, weight, teacher, targets, weights = made()
    signal, _ = top(teacher, VOCABULARY - 1)
    for kind in KINDS[:3]:
        options: dict[str, Any] = {"kind": kind, "dtype": torch.float64}
        found = divergence(hidden, Head(weight), signal, targets, weights, **options)
        whole = divergence(hidden, Head(weight), teacher, targets, weights, **options)
        torch.testing.assert_close(found, whole)
        torch.testing.assert_close(
            torch.autograd.grad(found, weight), torch.autograd.grad(whole, weight), rtol=1e-6, atol=1e-10
        )


def test_a_stored_teacher_has_its_temperature() -> None:
    """Stored with flattened logits, it is compared with the student's flattened alike."""
    hidden, weight, teacher, targets, weights = made()
    whole = (logits_of(teacher.hidden, teacher.head) / 3).log_softmax(-1)
    log_p, ids = whole.topk(VOCABULARY - 1)
    signal = Sparse(ids, log_p, whole.scatter(1, ids, -torch.inf).logsumexp(-1))
    options: dict[str, Any] = {"temperature": 3.0, "text": 0.2, "dtype": torch.float64}
    found = divergence(hidden, Head(weight), signal, targets, weights, **options)
    exact = divergence(hidden, Head(weight), teacher, targets, weights, **options)
    torch.testing.assert_close(found, exact)
    torch.testing.assert_close(
        torch.autograd.grad(found, hidden)[0], torch.autograd.grad(exact, hidden)[0], rtol=1e-6, atol=1e-10
    )


def test_draws_of_the_tail_are_right_on_average() -> None:
    hidden, weight, teacher, targets, weights = made()
    signal, log_p = top(teacher, 8)
    options: dict[str, Any] = {"dtype": torch.float64}
    whole = torch.autograd.grad(
        divergence(hidden, Head(weight), teacher, targets, weights, **options), hidden
    )[0]
    mean, value, times = torch.zeros_like(whole), 0.0, 200
    tail = log_p.exp().scatter(1, signal.ids, 0.0)
    generator = torch.Generator().manual_seed(1)
    for _ in range(times):
        drawn = torch.multinomial(tail, 60, replacement=True, generator=generator)
        entries = Sparse(
            torch.cat([signal.ids, drawn], 1),
            torch.cat([signal.log_p, log_p.gather(1, drawn)], 1),
            signal.log_tail,
            draws=60,
        )
        found = divergence(hidden, Head(weight), entries, targets, weights, **options)
        mean += torch.autograd.grad(found, hidden)[0] / times
        value += float(found.detach()) / times
    exact = float(divergence(hidden, Head(weight), teacher, targets, weights, **options).detach())
    assert value == pytest.approx(exact, rel=0.01)
    assert float((mean - whole).norm() / whole.norm()) < 0.04
    bucket = torch.autograd.grad(
        divergence(hidden, Head(weight), signal, targets, weights, **options), hidden
    )[0]
    # What the draws are for: one event for the whole tail is not right on average.
    assert float((bucket - whole).norm() / whole.norm()) > 0.1
    with pytest.raises(ValueError, match="are for kl"):
        divergence(hidden, Head(weight), entries, targets, kind=Divergence("jsd", 0.5))


def test_a_vocabulary_that_is_padded_in_one_of_them() -> None:
    hidden, weight, teacher, targets, weights = made()
    targets = targets % 1000
    padded = Dense(teacher.hidden, teacher.head)
    short = Dense(teacher.hidden, teacher.head.part(1000))
    own = weight[:1000].detach().requires_grad_()
    options: dict[str, Any] = {"kind": Divergence("reverse-kl"), "dtype": torch.float64}
    wanted = divergence(hidden, Head(own), short, targets, weights, **options)
    gradient = torch.autograd.grad(wanted, own)[0]
    for head, theirs in ((Head(own), padded), (Head(weight), short)):
        found = divergence(hidden, head, theirs, targets, weights, **options)
        torch.testing.assert_close(found, wanted)
        of_weight = torch.autograd.grad(found, head.weight)[0]
        torch.testing.assert_close(of_weight[:1000], gradient)
        assert not of_weight[1000:].any()


def test_text_alone_is_the_cross_entropy() -> None:
    hidden, weight, teacher, targets, weights = made()
    found = divergence(hidden, Head(weight), teacher, targets, weights, text=1.0, dtype=torch.float64)
    own = cross_entropy(hidden, Head(weight), targets, weights, dtype=torch.float64)
    torch.testing.assert_close(found, own)
    torch.testing.assert_close(
        torch.autograd.grad(found, [hidden, weight]), torch.autograd.grad(own, [hidden, weight])
    )


def test_only_what_is_asked_for_gets_a_gradient() -> None:
    hidden, weight, teacher, targets, weights = made()
    frozen = Head(weight.detach())
    (gradient,) = torch.autograd.grad(
        divergence(hidden, frozen, teacher, targets, weights, dtype=torch.float64), hidden
    )
    assert bool((gradient[::3] == 0).all()) and bool(gradient[1].any())
    with torch.no_grad():
        assert not divergence(hidden, Head(weight), teacher, targets).requires_grad
    nothing = divergence(hidden, Head(weight), teacher, targets, torch.zeros(POSITIONS))
    nothing.backward()
    assert float(nothing.detach()) == 0 and not hidden.grad.any() and not weight.grad.any()


@pytest.mark.parametrize("entries", [None, 5])
def test_memory_does_not_grow_with_the_tokens(entries: int | None) -> None:
    def largest(tokens: int) -> int:
        hidden = torch.randn(tokens, 4, requires_grad=True)
        weight = torch.randn(5003, 4, requires_grad=True)
        teacher: Dense | Sparse = Dense(torch.randn(tokens, 3), Head(torch.randn(5003, 3)))
        if entries:
            ids = torch.arange(entries).expand(tokens, -1)
            teacher = Sparse(ids, torch.full(ids.shape, -3.0), torch.full((tokens,), -1.0))
        with Largest() as made:
            divergence(hidden, Head(weight), teacher, torch.arange(tokens), positions=16).backward()
        return made.bytes

    assert largest(64) == largest(1024) == 16 * 5003 * 4


def test_what_does_not_fit_is_refused() -> None:
    hidden, weight, teacher, targets, weights = made()
    signal, _ = top(teacher, 3)
    for said, call in {
        "do not fit": lambda: divergence(hidden[:-1], Head(weight), teacher, targets),
        "teacher has 52": lambda: divergence(
            hidden, Head(weight), Dense(teacher.hidden[1:], teacher.head), targets
        ),
        "weights for": lambda: divergence(hidden, Head(weight), teacher, targets, weights[:-1]),
        "not among the 1009": lambda: divergence(hidden, Head(weight), teacher, targets + VOCABULARY),
        "beyond the student": lambda: divergence(hidden, Head(weight).part(5), signal, targets % 5),
        "is none of": lambda: Divergence("tv"),  # type: ignore[arg-type]
        "not between 0 and 1": lambda: Divergence("jsd", 1.0),
    }.items():
        with pytest.raises(ValueError, match=said):
            call()

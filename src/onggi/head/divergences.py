"""How far a student's next-token distributions are from a teacher's, forward and backward, in chunks.

As with the cross-entropy (`losses`), the gradient is made as soon as the logits are there, so that neither model's
logits of all tokens ever exist. A chunk's logits are multiplied out, and then gone through a few rows at a time,
which stay in the processor's caches: all that is between the products costs little beside them.

**The divergences**, with p the teacher and q the student at one position, m their mixture:

    kl           Σ p log(p / q)
    reverse-kl   Σ q log(q / p)
    jsd:β        β Σ p log(p / m) + (1 − β) Σ q log(q / m),   m = βp + (1 − β)q    (GKD, arXiv 2306.13649, eq. 1)
    skew:α       Σ p log(p / m),                              m = αp + (1 − α)q    (DistiLLM, arXiv 2402.03898, eq. 3)

Each is a function of q alone while it trains, and with h = q · ∂D/∂q its gradient with respect to the student's
logits is h − q Σh.

**A teacher that was stored** gives the probabilities of some tokens and of all others together (`Sparse`). These are
events as tokens are: the divergence between the two distributions over them is a lower bound of the whole one (by
the data processing inequality), and its gradient leaves the student free how to share the tail out. Or the others
are drawn from the teacher and stand for the rest of them: then the divergence kl and its gradient are right on average.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .chunks import Head
from .gradients import add, given_away, multiplied

# Positions of one chunk, and the logits of one model at most: 128 MB in fp32.
_POSITIONS, _LOGITS = 512, 128 << 18
# Logits that are gone through at a time between the products: on a CPU so many stay in its caches.
_AT_ONCE = {"cpu": 1 << 19}
_AT_ONCE_ELSEWHERE = 1 << 23

Kind = Literal["kl", "reverse-kl", "jsd", "skew"]
KINDS: tuple[Kind, ...] = ("kl", "reverse-kl", "jsd", "skew")


@dataclass(frozen=True)
class Divergence:
    """One of the module's docstring. amount: the β of jsd, the α of skew.

    Raises `ValueError` for an amount that makes none: both lie between 0 and 1.
    """

    kind: Kind = "kl"
    amount: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is none."""
        if self.kind not in KINDS:
            raise ValueError(f"{self.kind!r} is none of {', '.join(KINDS)}.")
        if self.kind in ("jsd", "skew") and not 0 < self.amount < 1:
            raise ValueError(f"{self.kind}:{self.amount:g} is not between 0 and 1, as in {self.kind}:0.1.")

    def of(self, log_p: Tensor, log_q: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """Of distributions over the last dimension, (rows, events) each: the divergence, (rows,), and h = q · ∂D/∂q,
        (rows, events). Writes over the teacher's, log_p and p.
        """
        if self.kind == "kl":
            return log_p.sub_(log_q).mul_(p).sum(-1), p.neg_()
        if self.kind == "reverse-kl":
            slope = torch.sub(log_q, log_p, out=log_p).mul_(q)
            return slope.sum(-1), slope
        m = torch.lerp(q, p, self.amount).clamp_min_(torch.finfo(q.dtype).tiny)
        far = self.amount if self.kind == "jsd" else 1.0
        skewed = (p * q).div_(m).mul_(self.amount - 1) if self.kind == "skew" else None
        log_m = m.log_()
        nats = far * log_p.sub_(log_m).mul_(p).sum(-1)
        if skewed is not None:
            return nats, skewed
        slope = torch.sub(log_q, log_m, out=log_m).mul_(q).mul_(1 - self.amount)
        return nats + slope.sum(-1), slope


@dataclass(frozen=True)
class Dense:
    """A teacher's distributions as what makes them: hidden (positions, its hidden size), and its head."""

    hidden: Tensor
    head: Head

    def chosen(self, positions: Tensor) -> Dense:
        """Of these positions alone."""
        return Dense(self.hidden[positions], self.head)


@dataclass(frozen=True)
class Sparse:
    """A teacher's distributions, a few entries of each. ids: (positions, entries) int64, of one position all different
    but for draws. log_p: their log-probabilities. log_tail: (positions,) that of all other tokens together.
    draws: the last so many entries were drawn, with repetition, from those others in proportion to their
    probabilities, and stand for them.
    """

    ids: Tensor
    log_p: Tensor
    log_tail: Tensor
    draws: int = 0

    def chosen(self, positions: Tensor) -> Sparse:
        """Of these positions alone."""
        return Sparse(self.ids[positions], self.log_p[positions], self.log_tail[positions], self.draws)


@torch.no_grad()
def entries(
    teacher: Dense,
    count: int,
    draws: int = 0,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
) -> Sparse:
    """What is stored of a teacher: its `count` likeliest tokens, likeliest first, then `draws` of the others.

    temperature: what its logits are divided by. generator: of the draws, on the CPU. Log-probabilities are fp32.
    Raises `ValueError` for more entries than the vocabulary has.
    """
    if not 0 < count < teacher.head.vocabulary:
        raise ValueError(f"{count} entries of a vocabulary of {teacher.head.vocabulary}.")
    weight = teacher.head.weight.to(dtype)
    at_once = max(_AT_ONCE.get(weight.device.type, _AT_ONCE_ELSEWHERE) * 8 // len(weight), 1)
    found = []
    for start in range(0, len(teacher.hidden), at_once):
        states = teacher.hidden[start : start + at_once].to(dtype)
        logits = teacher.head.finished((states @ weight.T).float(), slice(None))  # (few, vocab)
        log_p = (logits / temperature).log_softmax(-1)
        own, ids = log_p.topk(count)
        rest = log_p.exp().scatter_(1, ids, 0.0)
        tail = rest.sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
        if draws:
            rest[rest.sum(-1) == 0] = 1.0  # nothing is left to draw from: whatever it is, its mass is none
            more = torch.multinomial(rest.cpu(), draws, replacement=True, generator=generator).to(ids.device)
            own, ids = torch.cat([own, log_p.gather(1, more)], 1), torch.cat([ids, more], 1)
        found.append((ids, own, tail.log()))
    every_id, every_log_p, tails = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Sparse(every_id, every_log_p, tails, draws)


def divergence(
    hidden: Tensor,
    head: Head,
    teacher: Dense | Sparse,
    targets: Tensor,
    weights: Tensor | None = None,
    *,
    kind: Divergence = Divergence(),
    text: float = 0.0,
    temperature: float = 1.0,
    positions: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Σ weights · ((1 − text) · T² · D(teacher, student) + text · −log p(target)), nats, a scalar whose backward pass
    reaches `hidden` and the head: the student's.

    hidden: (positions, hidden size), the states that predict `targets` (positions,), token ids. weights: (positions,),
    by default 1 / positions each. text: the share of the cross-entropy. temperature: T, which both models' logits
    are divided by in D, as a stored teacher's were when it was stored; T² keeps the gradients' size (Hinton et al., arXiv
    1503.02531, section 2). positions: of a
    chunk, by default as many as keep the logits of each model within 128 MB. dtype: of the products; all between
    them is fp32, or wider where `dtype` is. Where one vocabulary is longer (padding of a family's models),
    both distributions are those over the tokens that they share.
    Raises `ValueError` where shapes differ, a target is not in both vocabularies, or a divergence other than kl is
    asked for of draws.
    """
    count = len(targets)
    if hidden.shape != (count, head.weight.shape[1]):
        raise ValueError(f"hidden states {tuple(hidden.shape)} do not fit {count} targets and the head.")
    given = len(teacher.hidden if isinstance(teacher, Dense) else teacher.ids)
    if given != count:
        raise ValueError(f"the teacher has {given} positions, the student {count}.")
    if isinstance(teacher, Sparse) and teacher.draws and kind.kind != "kl":
        raise ValueError(f"draws of a tail are for kl; {kind.kind} of them would be wrong on average.")
    if weights is None:
        weights = torch.full((count,), 1.0 / max(count, 1), device=hidden.device)
    if weights.shape != targets.shape:
        raise ValueError(f"{len(weights)} weights for {count} targets.")
    trained = weights != 0
    if not bool(trained.all()):
        hidden, targets, weights = hidden[trained], targets[trained], weights[trained]
        teacher = teacher.chosen(trained)
    if isinstance(teacher, Dense):
        shared = min(head.vocabulary, teacher.head.vocabulary)
        if head.vocabulary > shared:  # a part's gradient is copied into one of the whole
            head = head.part(shared)
        teacher = Dense(teacher.hidden, teacher.head.part(shared))
    elif teacher.ids.numel() and int(teacher.ids.max()) >= head.vocabulary:
        raise ValueError(f"the teacher has tokens beyond the student's {head.vocabulary}.")
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < head.vocabulary:
        raise ValueError(f"a target is not among the {head.vocabulary} of the vocabulary.")
    if positions is None:
        positions = max(min(_POSITIONS, _LOGITS // head.vocabulary), 1)
    wide = torch.promote_types(dtype, torch.float32)
    terms = _Terms(kind, text, temperature, targets, weights.to(wide))
    loss: Tensor = _Divergence.apply(
        hidden, head.weight, head.bias, head, teacher, terms, positions, dtype, torch.is_grad_enabled()
    )
    return loss


@dataclass(frozen=True)
class _Terms:
    """What a position's loss is made of. targets, weights: (positions,)."""

    kind: Divergence
    text: float
    temperature: float
    targets: Tensor
    weights: Tensor


class _Divergence(torch.autograd.Function):
    """See `divergence`; the gradients are made in the forward pass and only scaled in the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: Head,
        teacher: Dense | Sparse,
        terms: _Terms,
        positions: int,
        dtype: torch.dtype,
        backward: bool,
    ) -> Tensor:
        wide = torch.promote_types(dtype, torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            wanted = [backward and needed for needed in ctx.needs_input_grad[:3]]
            of_hidden, of_weight, of_bias = kept = [
                torch.zeros_like(tensor, dtype=wide) if need and tensor is not None else None
                for need, tensor in zip(wanted, (hidden, weight, bias), strict=True)
            ]
            states, rows = hidden.to(dtype), weight.to(dtype)
            size = min(positions, len(states))
            room = torch.empty(size, len(rows), dtype=dtype, device=rows.device)
            narrow = torch.empty_like(rows) if of_weight is not None and dtype != wide else None
            theirs = room_of_teacher = None
            if isinstance(teacher, Dense):
                theirs = teacher.head.weight.to(dtype)
                room_of_teacher = torch.empty_like(room)
            at_once = max(_AT_ONCE.get(rows.device.type, _AT_ONCE_ELSEWHERE) // len(rows), 1)
            loss = torch.zeros((), dtype=torch.float64, device=hidden.device)
            for start in range(0, len(states), positions):
                own = states[start : start + positions]
                products = multiplied(own, rows, room[: len(own)])  # (chunk, vocab)
                if isinstance(teacher, Dense):
                    assert theirs is not None and room_of_teacher is not None
                    their = teacher.hidden[start : start + positions].to(dtype)
                    products_of_teacher = multiplied(their, theirs, room_of_teacher[: len(own)])
                for at in range(0, len(own), at_once):
                    few = slice(start + at, min(start + at + at_once, start + len(own)))
                    here = products[at : at + at_once]
                    logits = head.finished(here.to(wide), slice(None))
                    bend = None if head.softcap is None else 1 - (logits / head.softcap) ** 2
                    signal: Tensor | Sparse
                    if isinstance(teacher, Dense):
                        signal = teacher.head.finished(
                            products_of_teacher[at : at + at_once].to(wide), slice(None)
                        )
                    else:
                        signal = teacher.chosen(torch.arange(few.start, few.stop, device=hidden.device))
                    nats, gradient = _rows(logits, signal, few, terms)
                    loss += nats.double().sum()
                    if bend is not None:
                        gradient *= bend
                    if of_bias is not None:
                        of_bias += gradient.sum(dim=0)
                    here.copy_(gradient if head.scale == 1.0 else gradient.mul_(head.scale))
                add(products, own, rows, slice(start, start + positions), of_hidden, of_weight, narrow)
        ctx.gradients = kept
        return loss.to(wide)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        return (*given_away(ctx, outer[0]), *[None] * 6)


def _rows(logits: Tensor, signal: Tensor | Sparse, few: slice, terms: _Terms) -> tuple[Tensor, Tensor]:
    """Of a few rows: what each gives to the loss, (rows,), and the gradient with respect to the logits, (rows, vocab).
    Writes over `logits` and `signal`.
    """
    weights, targets, degree = terms.weights[few], terms.targets[few].unsqueeze(1), terms.temperature
    log_q, q = _softmax(logits if degree == 1.0 else logits / degree)
    if isinstance(signal, Sparse):
        nats, gradient = _sparse(log_q, q, signal, terms.kind)
    else:
        log_p, p = _softmax(signal if degree == 1.0 else signal / degree)
        nats, gradient = terms.kind.of(log_p, log_q, p, q)
        total = gradient.sum(-1, keepdim=True)
        gradient = gradient.addcmul_(q, total, value=-1)
    share = (1 - terms.text) * weights
    gradient *= (degree * share).unsqueeze(1)
    nats = degree**2 * share * nats
    if terms.text:
        if degree != 1.0:
            log_q, q = _softmax(logits)
        share = terms.text * weights
        nats = nats - share * log_q.gather(1, targets).squeeze(1)
        gradient.addcmul_(q, share.unsqueeze(1))
        gradient.scatter_add_(1, targets, -share.unsqueeze(1))
    return nats, gradient


def _softmax(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of the probabilities, in the place of `logits`, and the probabilities, (rows, vocab) each. Of torch's
    own that takes one of them the exponential alone is as slow as this whole.
    """
    logits.sub_(logits.amax(-1, keepdim=True))
    chances = logits.exp()
    total = chances.sum(-1, keepdim=True)
    return logits.sub_(total.log()), chances.mul_(1 / total)


def _sparse(log_q: Tensor, q: Tensor, signal: Sparse, kind: Divergence) -> tuple[Tensor, Tensor]:
    """The divergence of each row, and its gradient with respect to the logits that `log_q` and `q` come from."""
    ids, log_p = signal.ids, signal.log_p.to(log_q.dtype)
    if signal.draws:
        mass = log_p.exp()
        mass[:, -signal.draws :] = (signal.log_tail.to(log_q.dtype).exp() / signal.draws).unsqueeze(1)
        nats = torch.linalg.vecdot(mass, log_p - log_q.gather(1, ids))
        return nats, (q * mass.sum(-1, keepdim=True)).scatter_add_(1, ids, -mass)
    own = q.gather(1, ids)
    # Summed, not 1 − Σ: where the student is sure the tail is less than what rounding would leave.
    rest = q.scatter(1, ids, 0.0).sum(-1, keepdim=True).clamp_min(torch.finfo(q.dtype).tiny)
    events = torch.cat([own, rest], 1)
    log_events = torch.cat([log_q.gather(1, ids), rest.log()], 1)
    log_p = torch.cat([log_p, signal.log_tail.to(log_p.dtype).unsqueeze(1)], 1)
    nats, slope = kind.of(log_p, log_events, log_p.exp(), events)
    total = slope.sum(-1, keepdim=True)
    gradient = q * (slope[:, -1:] / rest - total)
    return nats, gradient.scatter_(1, ids, slope[:, :-1] - own * total)

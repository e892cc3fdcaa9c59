"""A teacher with another tokenizer: the same text cut in two ways, compared where both cuts meet.

An id of one tokenizer says nothing of the other's, and neither does a probability of one token: 안녕 may be one token here
and four there. But where both have a boundary at the same place of the text, the tokens between two such places spell
the same characters, and both models have said how likely they hold them: the product of what they gave to their own
tokens. So the student is taught on these spans by approximate likelihood matching (Minixhofer et al.,
arXiv 2503.20083, section 3): with P and Q the teacher's and the student's likelihood of a span, each to the power 1/T,

    L = T · Σ n · (P log(P / Q) + (1 − P) log((1 − P) / (1 − Q))),      n the student's tokens in the span

which asks that both hold the span as likely as each other, neither more nor less. It needs the likelihood of the text's
own tokens alone, so heads are gone through as for any score, and its gradient is that of a cross-entropy whose tokens
weigh (P − Q) / (1 − Q): what is less likely to the student than to its teacher is made likelier, and the other way round.

Boundaries are those of characters; a token that ends within one (a byte of three) has none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..engines.transformers import head_of
from ..errors import OnggiError
from ..head import cross_entropy, score
from ..text.tokens import Tokens
from ..train.tokens import Batch, states_of

# Names in a batch, beside the student's own: the teacher's ids, and the number of each token's span (-1: none).
THEIRS, SPANS, THEIR_SPANS = "teacher_ids", "spans", "teacher_spans"
# A span that the student is this sure of gives no steeper gradient.
_SURE = 1e-3


def cut(tokens: Tokens, text: str) -> tuple[list[int], list[int]]:
    """The ids of a text, and for each the number of characters that end with it; -1 where it ends within one."""
    tokens.tokenizer.encode_special_tokens = True
    try:
        made = tokens.tokenizer.encode(text, add_special_tokens=False)
    finally:
        tokens.tokenizer.encode_special_tokens = False
    starts = [start for start, _ in made.offsets[1:]] + [len(text)]
    ends = [end if start >= end else -1 for (_, end), start in zip(made.offsets, starts, strict=True)]
    if ends:
        ends[-1] = len(text)
    return list(made.ids), ends


def spans(one: Sequence[int], other: Sequence[int]) -> tuple[list[int], list[int]]:
    """For each token of two cuts of one text the number of its span, by the ends that `cut` gives.

    Every token is in a span: the end of the text is a boundary of both.
    """
    shared = set(one) & set(other) - {-1}
    found = []
    for ends in (one, other):
        number, own, last = 0, [], -1
        for end in ends:
            own.append(number)
            # Some tokenizers have several tokens end at one place (trimmed spaces): the span goes to the last.
            if end in shared and end > last:
                number, last = number + 1, end
        found.append(own)
    count = min(max(own, default=-1) for own in found)
    return [min(number, count) for number in found[0]], [min(number, count) for number in found[1]]


def shared(student: Tokens, teacher: Tokens, texts: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Language → the share of the student's tokens after which the teacher has a boundary too: what is left of the
    student's steps when spans are compared.
    """
    found = {}
    for language, own in texts.items():
        tokens = places = 0
        for text in own:
            ids, ends = cut(student, text)
            numbers, _ = spans(ends, cut(teacher, text)[1])
            tokens, places = tokens + len(ids), places + len(set(numbers))
        found[language] = round(places / max(tokens, 1), 4)
    return found


class Aligned:
    """The batches of a plain source, in the student's tokens and in the teacher's, with the spans of both."""

    def __init__(self, source: Any, student: Tokens, teacher: Tokens):
        self._source, self._student, self._teacher = source, student, teacher

    @property
    def size(self) -> int:
        """Sequences of a step."""
        return int(self._source.size)

    def rows(self, step: int, start: int, stop: int) -> Batch:
        """Rows start to stop of a step. A sequence that begins or ends within a character loses that."""
        batch = self._source.rows(step, start, stop)
        made = [self._row(ids, weights) for ids, weights in zip(batch["ids"], batch["weights"], strict=True)]
        ids = _filled([row[0] for row in made], self._student.prefix)
        numbers = _filled([row[1] for row in made], -1)
        weights = torch.stack([(own > 0).any() * own.max() for own in batch["weights"]]).unsqueeze(1)
        return {
            "ids": ids,
            SPANS: numbers,
            THEIRS: _filled([row[2] for row in made], self._teacher.prefix),
            THEIR_SPANS: _filled([row[3] for row in made], -1),
            "weights": torch.where(numbers >= 0, weights, 0.0),
            "languages": batch["languages"][:, :1].expand(ids.shape),
        }

    def _row(self, ids: Tensor, weights: Tensor) -> tuple[list[int], list[int], list[int], list[int]]:
        own = ids[: int((weights > 0).sum()) + 1].tolist()[1:]
        text = self._student.tokenizer.decode(own, skip_special_tokens=False).strip("\ufffd")
        (mine, ends), (theirs, their_ends) = cut(self._student, text), cut(self._teacher, text)
        numbers, their_numbers = spans(ends, their_ends)
        return (
            [self._student.prefix, *mine],
            [-1, *numbers],
            [self._teacher.prefix, *theirs],
            [-1, *their_numbers],
        )


def _filled(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    found = np.full((len(rows), max(map(len, rows))), value, np.int64)
    for number, row in enumerate(rows):
        found[number, : len(row)] = row
    return torch.from_numpy(found)


class Spans:
    """`Spans(…)(model, batch)`: the loss of a batch of `Aligned`, to go back from; see the module's docstring.

    text: the share of the cross-entropy. temperature: T. Other arguments as of `lesson.Lesson`.
    """

    def __init__(
        self,
        teacher: Any,
        languages: Sequence[str],
        weigh: Callable[[], Mapping[str, float]],
        *,
        text: float = 0.0,
        temperature: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ):
        self._teacher, self._languages, self._weigh = teacher, list(languages), weigh
        self._text, self._temperature, self._dtype = text, temperature, dtype

    def __call__(self, model: Any, batch: Batch) -> Tensor:
        """The loss of some rows of a step. Raises OnggiError where the teacher's likelihoods are no numbers."""
        by_language = self._weigh()
        weigh = torch.tensor([by_language[tag] for tag in self._languages], device=batch["ids"].device)
        weights = (batch["weights"] * weigh[batch["languages"]])[:, 1:].flatten()
        states = states_of(model, batch, self._dtype)[:, :-1].flatten(0, 1)
        targets, head = batch["ids"][:, 1:].flatten(), head_of(model)
        width = batch[SPANS].shape[1]  # no sequence has more spans than the student has tokens
        place, count = _places(batch[SPANS], width)
        with torch.no_grad():
            theirs = batch[THEIRS]
            their_states = states_of(self._teacher.model, {"ids": theirs}, self._dtype)[:, :-1].flatten(0, 1)
            their_place, _ = _places(batch[THEIR_SPANS], width)
            likely = _summed(their_states, self._teacher.head, theirs[:, 1:].flatten(), their_place, count)
            if not bool(torch.isfinite(likely).all()):
                raise OnggiError(
                    f"{self._teacher.folder}: the teacher gives NaN or infinite likelihoods in this precision; "
                    "--precision fp32 mends it."
                )
            own = _summed(states.detach(), head, targets, place, count)
            mine, rest_of_mine = _chance(own / self._temperature)
            given, rest_of_given = _chance(likely / self._temperature)
            weight_of = torch.zeros(count + 1, device=own.device).index_add_(0, place, weights)
            far = given * (likely - own) / self._temperature
            far += rest_of_given * (rest_of_given / rest_of_mine).log()
            value = (1 - self._text) * self._temperature * (weight_of * far)[:-1].sum()
            lacking = (weight_of * (given - mine) / rest_of_mine)[place]
        # The gradient of the spans as that of a cross-entropy: each token weighs as much as its span still lacks.
        loss = cross_entropy(
            states, head, targets, (1 - self._text) * lacking + self._text * weights, dtype=self._dtype
        )
        if self._text:
            with torch.no_grad():
                value = value + cross_entropy(states, head, targets, weights * self._text, dtype=self._dtype)
        return loss + (value - loss).detach()


def _places(numbers: Tensor, width: int) -> tuple[Tensor, int]:
    """For each token that is predicted the place of its span among those of all sequences, `width` for each, and the
    number of places; tokens of no span have the place after the last.
    """
    count = len(numbers) * width
    rows = torch.arange(len(numbers), device=numbers.device).unsqueeze(1) * width
    return torch.where(numbers >= 0, rows + numbers, count)[:, 1:].flatten(), count


def _summed(states: Tensor, head: Any, targets: Tensor, place: Tensor, count: int) -> Tensor:
    """Log-likelihood of each span, (count + 1,), fp32; 0 where there is none."""
    nll = score(states, head, targets).nll.to(states.device)
    return torch.zeros(count + 1, device=states.device).index_add_(0, place, -nll)


def _chance(logs: Tensor) -> tuple[Tensor, Tensor]:
    """exp and 1 − exp, the latter not below `_SURE`."""
    return logs.exp(), (-torch.expm1(logs)).clamp_min(_SURE)

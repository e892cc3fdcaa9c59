"""What a stage is to the recipe, the runner and the command line: a plain function and its facts."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from .. import ledger
from ..errors import OnggiError
from ..ledger import Artifact


@dataclass(frozen=True)
class Plan:
    """What a stage is going to take, as far as it can be known before: about, not exactly."""

    tokens: int | None = None
    memory: int | None = None  # bytes, at the peak
    disk: int | None = None  # bytes of the outputs and of what is fetched


@dataclass(frozen=True, eq=False)
class Stage:
    """A verb. config: its dataclass, whose fields are the options of the command line and the keys
    of a recipe. run: config, folder → Artifact. inputs: the fingerprints of what the config names,
    by key. revision: raised when the verb's results change. positional: the fields that stand on
    the command line without a flag, with argparse's `nargs`. show: prints a finished artifact. dry_run: what
    `--dry-run` prints, for a verb that has it, and outlook the same as data, for `--json`. preview: prints what
    `--preview` does, for a verb that has it.
    """

    verb: str
    config: type[Any]
    run: Callable[[Any, Path], Artifact]
    inputs: Callable[[Any], dict[str, Any]]
    plan: Callable[[Any], Plan]
    positional: Mapping[str, str | None]
    revision: int = 1
    show: Callable[[Artifact], None] | None = None
    dry_run: Callable[[Any], str] | None = None
    outlook: Callable[[Any], dict[str, Any]] | None = None
    preview: Callable[[Any], None] | None = None


def flag(name: str) -> str:
    """The option that a config's field is: its name, without the underscore that keeps it apart from a word
    of Python's (`for_` is `--for`, and `for:` in a recipe).
    """
    return name.rstrip("_")


def no_probe(purpose: str) -> str:
    """What to say where the probe, which is measured on, is named as the text for something else."""
    return (
        f"text: the probe is for measuring and never for {purpose}; "
        "use --text starter, debian:libreoffice-help or your own."
    )


class Names(tuple[str, ...]):
    """A list of names: `a,b` on a command line, a list or that string in YAML; no doubles.

    Raises OnggiError where it is empty.
    """

    def __new__(cls, value: str | Iterable[str]) -> Names:
        """Parse `value`."""
        parts = value.split(",") if isinstance(value, str) else list(value)
        names = [part.strip() for part in parts if isinstance(part, str) and part.strip()]
        if not names or len(names) != len(
            [part for part in parts if not isinstance(part, str) or part.strip()]
        ):
            raise OnggiError(f"{value!r} is not a list of names, as in capitals,sums.")
        return super().__new__(cls, dict.fromkeys(names))

    def __str__(self) -> str:
        """As on a command line: `a,b`."""
        return ",".join(self)


def command(stage: Stage, config: Any, out: Path) -> str:
    """The command line that makes `out` again."""
    words = ["onggi", *stage.verb.split()]
    flags: list[str] = []
    defaults = {field.name: field.default for field in fields(config)}
    for name, value in options(config).items():
        if name in stage.positional:
            words += value if isinstance(value, list) else [str(value)]
        elif value is True:
            flags.append(f"--{name}")
        elif value is not None and getattr(config, name) != defaults[name]:
            flags += [f"--{flag(name)}", ",".join(value) if isinstance(value, list) else str(value)]
    return shlex.join([*words, *flags, "--out", str(out)])


def options(config: Any) -> dict[str, Any]:
    """A config dataclass as JSON-able options, in the order of its fields."""
    assert is_dataclass(config)
    found = {field.name: getattr(config, field.name) for field in fields(config)}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in found.items()}


def precision(job: ledger.Job, wanted: str, device: Any) -> Any:
    """The torch dtype of a pass that is asked for as auto, bf16 or fp32. Kept with the job: a run that
    goes on elsewhere must not change it.
    """
    import torch

    kept = job.partial / "precision"
    name = kept.read_text() if kept.is_file() else wanted
    dtype = multiplied_in(name, device)
    with ledger.writing(kept) as aside:
        aside.write_text("bf16" if dtype == torch.bfloat16 else "fp32")
    return dtype


def multiplied_in(wanted: str, device: Any) -> Any:
    """The torch dtype that auto, bf16 or fp32 is on `device`."""
    import torch

    if wanted == "auto":
        fast = device.type == "cuda" or any(
            torch.cpu.get_capabilities().get(feature) for feature in ("avx512_bf16", "amx_bf16", "bf16")
        )
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if wanted == "bf16" else torch.float32

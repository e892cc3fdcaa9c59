"""Where `onggi pretrain` begins: a model that is there, or a random one for the tokenizer of the packed text."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import ledger
from ..errors import OnggiError
from .pretrain_text import packed_folder

if TYPE_CHECKING:
    from .pretrain import PretrainConfig
    from .training import Processes

RANDOM = "random"


def start(config: PretrainConfig, job: ledger.Job, processes: Processes) -> Path:
    """The folder of the model to begin with; a random one is made in the job's own."""
    from ..models import references

    if not config.is_new:
        if processes.first:
            references.resolve(config.init)
        processes.wait()
        return references.resolve(config.init)
    folder = job.partial / "start"
    if processes.first and not (folder / "complete").is_file():
        _random(config, folder)
    processes.wait()
    return folder


def _random(config: PretrainConfig, folder: Path) -> None:
    from ..models import checkpoint as checkpoints
    from ..models import random
    from ..text.packing import Packed

    place = packed_folder(config.text)
    if place is None:
        raise OnggiError(
            f"text: a random start needs text that `onggi pack` made, which knows its tokenizer; {config.text} is none."
        )
    packed = Packed(place)
    tokenizer = _tokenizer(config, packed)
    packed.check(tokenizer)
    marks = packed.index["tokenizer"]
    assert config.size is not None
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shape = random.configuration(
        config.size,
        marks["vocabulary"],
        length=max(packed.length, 2048),
        bos=marks["start"],
        eos=marks["end"],
    )
    random.initialise(shape, config.seed, folder)
    for file in checkpoints.companions(tokenizer):
        if file.name != "generation_config.json":
            shutil.copyfile(file, folder / file.name)
    with ledger.writing(folder / "complete") as aside:
        aside.write_text("")


def _tokenizer(config: PretrainConfig, packed: Any) -> Path:
    """The folder of the tokenizer that the text was packed with."""
    from ..models import references

    source = config.tokenizer or packed.index["tokenizer"]["source"]
    folder = Path(source).expanduser()
    if (folder / "tokenizer.json").is_file():
        return folder
    try:
        return references.resolve(source)
    except OnggiError as error:
        raise OnggiError(
            f"tokenizer: {packed.folder} was packed with {source}, which is not there; name its folder with --tokenizer."
        ) from error

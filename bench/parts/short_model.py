"""The first layers of a model alone, as a folder of its own: what a trial of a bench runs on.

    python bench/parts/short_model.py MODEL LAYERS OUT

Real weights, a real vocabulary and every code path, in seconds instead of minutes; its numbers mean nothing.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

from safetensors.torch import save_file

from onggi.models import checkpoint as checkpoints
from onggi.models import references


def main(model: str, layers: str, out: str) -> None:
    """Write it."""
    source, folder = checkpoints.Checkpoint(references.resolve(model)), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    kept = {}
    for name in source.entries:
        number = re.search(r"\.layers\.(\d+)\.", name)
        if number is None or int(number[1]) < int(layers):
            kept[name] = source.tensor(name).contiguous()
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    config = dict(source.config)
    config["num_hidden_layers"] = int(layers)
    if config.get("layer_types"):
        config["layer_types"] = config["layer_types"][: int(layers)]
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    for file in checkpoints.companions(source.folder):
        shutil.copyfile(file, folder / file.name)


if __name__ == "__main__":
    main(*sys.argv[1:4])

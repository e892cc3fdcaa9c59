"""The off-grid reference, made once for all benches.

The packaged models lie on the grids of the GGUF files they came as, which flatters schemes that hit upon
such a grid (DESIGN §4). recipes/off-grid.yaml trains Gemma 3 270M on and its weights move off
them; the result is kept beside the converted models, where the ledger finds it the next time.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from onggi import ledger

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "off-grid.yaml"


def off_grid() -> Path:
    """Folder of the reference; made where it is not there (about half an hour on two cores, told on stderr).

    Raises `CalledProcessError` where the recipe fails, which has said why.
    """
    runs = ledger.cache_folder() / "runs"
    # stdout is the bench's own.
    subprocess.run(
        [sys.executable, "-m", "onggi", "run", str(RECIPE), "--runs", str(runs)],
        check=True,
        stdout=sys.stderr,
    )
    return runs / "off-grid" / "off_grid"

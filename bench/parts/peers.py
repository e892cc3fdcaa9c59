"""The tools that bench/ compares with, each in an environment of its own that is made once.

Their pins (torch, transformers, numpy) contradict each other and ours. Where one cannot be installed on the
machine at hand, the bench says so with its own message and goes on without it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "bench"
# Nothing is asked over the network: the model is a folder, the text is token ids.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Peer:
    """title: as the page names it. requirements: what pip is asked for, after torch. script: bench/peers/SCRIPT.py.
    constraints: the versions of all it needs, as frozen where the bench was written. dtypes: of the model while it
    is quantised, the peer's own default first; where there are two, the bench tries which is faster.
    """

    name: str
    title: str
    requirements: tuple[str, ...]
    venv: Path
    script: str
    constraints: str
    dtypes: tuple[str, ...] = ("bfloat16",)

    @property
    def python(self) -> Path:
        """Of its environment."""
        return self.venv / "bin" / "python"

    @property
    def files(self) -> list[Path]:
        """What decides its artifacts."""
        return [HERE / "peers" / f"{self.script}.py", HERE / self.constraints]

    def command(self, **given: object) -> list[str]:
        """Its script with these options."""
        words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
        return [str(self.python), str(self.files[0]), *words]


# GPTQModel 7.7 wants torch 2.14.1, whose wheels bring five gigabytes of CUDA libraries; 7.6 takes the torch of the others.
PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "llmcompressor",
            "llm-compressor",
            ("llmcompressor==0.14.*",),
            ROOT / ".venv-bench",
            "llmcompressor_gptq",
            "constraints.txt",
            ("bfloat16", "float32"),
        ),
        Peer(
            "gptqmodel",
            "GPTQModel",
            ("gptqmodel==7.6.0",),
            ROOT / "build" / ".venv-bench-gptqmodel",
            "gptqmodel_gptq",
            "constraints-gptqmodel.txt",
            ("bfloat16", "float32"),
        ),
        Peer(
            "autoround",
            "AutoRound",
            ("auto-round==0.16.1", "compressed-tensors==0.20.0"),
            ROOT / "build" / ".venv-bench-autoround",
            "autoround",
            "constraints-autoround.txt",
        ),
    )
}


def environment(peer: Peer) -> str | None:
    """Make the peer's environment where it is not there or its constraints changed; None, or why there is none.

    torch first, pinned: any looser order pulls gigabytes of CUDA libraries. A failure is kept, so that a bench does
    not try again and again for minutes what cannot be; to try anew remove the file that the message names.
    """
    wanted = (HERE / peer.constraints).read_text()
    stamp, failed = peer.venv / ".constraints", peer.venv / ".failed.json"
    if peer.python.exists() and stamp.is_file() and stamp.read_text() == wanted:
        return None
    if failed.is_file() and (kept := json.loads(failed.read_text()))["constraints"] == wanted:
        return f"{kept['message']} (kept in {failed})"
    print(f"bench: making {peer.venv.name} (1.5 GB, once)", file=sys.stderr, flush=True)
    peer.venv.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "venv", str(peer.venv)], check=True)
    torch = next(line for line in wanted.splitlines() if line.startswith("torch=="))
    pip = [str(peer.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for requirement in (torch, *peer.requirements):
        done = subprocess.run(
            [*pip, "--constraint", str(HERE / peer.constraints), requirement],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            message = " ".join(line.strip() for line in done.stdout.splitlines() if line.strip())[-600:]
            failed.write_text(json.dumps({"constraints": wanted, "message": message}))
            return message
    stamp.write_text(wanted)
    return None

"""What it takes to run a model on this machine: disk, memory, speed; behind a server, money and latency.

Quality alone chooses no model: the one that is a point better may need twice the memory. So every
artifact is measured in the same way: the same number of prompt tokens, then the same number of new
ones, one request at a time, on the same threads, after one round that does not count. Each in a
process of its own, since memory that another model left behind is not this one's.

What is measured is what runs here. A quantised checkpoint is unpacked to fp32 by the engine for folders,
so its speed and memory are those of an fp32 model, and the result says so (`weights`); what
it saves in another engine, its bytes on disk say. A `.gguf` is run as it is by llama.cpp, whose file is
mapped into memory: its pages count.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from .. import ledger
from ..engines import llamacpp, opening, server
from ..engines.spending import Options
from ..errors import OnggiError, one_line
from ..models import references
from ..progress import peak_memory, progress, release_memory, reset_peak_memory, say

_QUIET = 0.1  # contention up to which speeds are what they are


@dataclass(frozen=True)
class _Job:
    """What a child is to measure: `path`, a folder or a .gguf file, with `text` as its prompt."""

    path: str
    text: str
    prompt_tokens: int
    new_tokens: int
    repeats: int
    threads: int


def measure(
    source: str,
    texts: Sequence[str],
    repeats: int = 5,
    *,
    prompt_tokens: int = 256,
    new_tokens: int = 32,
    threads: int | None = None,
) -> dict[str, Any]:
    """What the model `source` takes on this machine, measured in a process of its own.

    texts: the prompt is their first `prompt_tokens` tokens, from the start again where they are too
    short; `new_tokens` follow it greedily, whatever they are. threads: default all cores.

    - `disk_bytes`: of the `.gguf`, or of all files of the folder.
    - `load_seconds`: until the model answers, libraries imported and files read once before.
    - `peak_memory_bytes`: of the whole process, loading included; `running_memory_bytes`: the same once it
      is loaded; `library_memory_bytes`: of both, what was there before the model.
      `peak_device_memory_bytes`: on a GPU, what PyTorch held there; None without.
    - `prefill_tokens_per_second`, `decode_tokens_per_second`: `value` is the median of `n` rounds, `low` and
      `high` the slowest and fastest of them. Prefill is the prompt up to the first new token; decode
      is each further one.
    - `contention`: of its threads' time the share that they waited for a core which others had; speeds are
      then too low, and a line says so. None where the system does not tell (Linux does).
    - `prompt_tokens`, `new_tokens`, `threads`, `device`, `engine` (transformers or llama.cpp), `precision`.
    - `weights`: `as stored`; `cast`, from 16 bits to fp32; or `unpacked`, a quantised model's to fp32.

    A `.gguf` runs in llama.cpp; where xllamacpp is not installed, dequantised in transformers.
    Raises OnggiError where the model cannot be run, has no room for so many tokens, or its process ends
    early, with the last that it said.
    """
    way = opening.how(source, "generate")
    if way == "server":
        raise OnggiError(f"{source}: what a model behind a server costs is known from its answers.")
    if repeats < 1 or prompt_tokens < 1 or new_tokens < 2:
        raise OnggiError("cost: needs 1 round, 1 prompt token and 2 new tokens at least.")
    file = references.gguf(source) if references.is_gguf(source) else None
    runs = file if file and way == "llama.cpp" else references.resolve(source)
    disk = file or runs
    files = [disk] if disk.is_file() else [file for file in disk.rglob("*") if file.is_file()]
    job = _Job(
        str(runs.absolute()),
        "\n".join(texts),
        prompt_tokens,
        new_tokens,
        repeats,
        threads or llamacpp.cores(),
    )
    # Loading, the round that does not count, the others.
    label = f"cost of {references.parse(source).name}"
    with progress(label, repeats + 2) as bar:
        found = _child(source, job, lambda what: bar.step(1, what))
    if (found["contention"] or 0) > _QUIET:
        say(
            f"{label}: its threads waited {found['contention']:.0%} of the time for cores that others had; "
            f"its speeds are too low."
        )
    weights = {"weights": "unpacked"} if way == "dequantised" else {}
    sizes = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "threads": job.threads}
    return {"disk_bytes": sum(file.stat().st_size for file in files)} | found | sizes | weights


def of_server(rows: Sequence[Mapping[str, Any]], options: Options) -> dict[str, Any]:
    """What answers from a server have cost. rows: `seconds`, `tokens`, `prompt_tokens` and `finish` of each.

    `requests` were answered, `failed` were not and count in nothing else. `latency_seconds`: `median` and
    `p95`, within which that share came. `tokens_per_second`: as one who waits for an answer sees it,
    Σ tokens / Σ seconds, however many were asked for at a time. `money`: in the currency of the prices of
    `options`. None for what is not known. Answers from the cache count as when they were asked for.
    """
    good = [row for row in rows if row["finish"] != "error"]
    seconds = sorted(float(row["seconds"]) for row in good)
    tokens, prompt_tokens = (sum(row[key] for row in good) for key in ("tokens", "prompt_tokens"))
    return {
        "requests": len(good),
        "failed": len(rows) - len(good),
        "latency_seconds": {
            "median": statistics.median(seconds) if seconds else None,
            "p95": seconds[math.ceil(0.95 * len(seconds)) - 1] if seconds else None,
        },
        "prompt_tokens": prompt_tokens,
        "tokens": tokens,
        "tokens_per_second": tokens / sum(seconds) if sum(seconds) else None,
        "money": options.money(prompt_tokens, tokens),
    }


def _child(source: str, job: _Job, step: Callable[[str], None]) -> dict[str, Any]:
    """The result of a new process that does `job`; `step` is called for what it has done."""
    command = [sys.executable, "-P", "-m", __name__]
    with tempfile.TemporaryFile() as said:
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, encoding="utf-8"
        ) as child:
            assert child.stdin and child.stdout
            try:
                with contextlib.suppress(BrokenPipeError), child.stdin as given:
                    given.write(json.dumps(asdict(job)))
                for line in child.stdout:
                    message = json.loads(line)
                    if "error" in message:
                        raise OnggiError(message["error"])
                    if "result" in message:
                        result: dict[str, Any] = message["result"]
                        return result
                    step(message["done"])
                child.wait()
            finally:
                child.kill()
        said.seek(0)
        last = said.read().decode("utf-8", "replace").strip().splitlines()[-1:]
    raise OnggiError(f"{source}: measuring its cost ended early ({_end(child.returncode, last)}).")


def _end(status: int, last: Sequence[str]) -> str:
    if status == -signal.SIGKILL:
        return "its process was killed; is there too little memory?"
    if status < 0:
        return f"its process ended by {signal.Signals(-status).name}"
    return one_line(last[0]) if last else f"exit code {status}"


@dataclass
class _Measured:
    """One model that is loaded. `round`: seconds up to the first new token, and of the further ones."""

    round: Callable[[], tuple[float, float]]
    device: str
    precision: str
    weights: str
    loaded: float  # seconds
    libraries: int  # bytes


def _main() -> None:
    """A child: the job on stdin, what is done and the result as lines of JSON on stdout."""
    # Libraries print: what they say goes to stderr, and stdout is ours alone.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)

        def tell(**message: Any) -> None:
            print(json.dumps(message), file=out, flush=True)

        try:
            job = _Job(**json.load(sys.stdin))
            tell(result=_run(job, lambda what: tell(done=what)))
        except OnggiError as error:
            tell(error=str(error))


def _run(job: _Job, tell: Callable[[str], None]) -> dict[str, Any]:
    path = Path(job.path)
    opened = _llamacpp(path, job) if path.is_file() else _transformers(path, job)
    with opened as model:
        tell("loaded")
        model.round()
        tell("warm")
        peak = peak_memory()
        reset_peak_memory()
        prefill, decode, waited, begun = [], [], _waited(), time.perf_counter()
        for number in range(job.repeats):
            first, rest = model.round()
            prefill.append(job.prompt_tokens / first)
            decode.append((job.new_tokens - 1) / rest)
            tell(f"{number + 1} of {job.repeats}")
        share = (_waited() - waited) / (time.perf_counter() - begun) / job.threads
        running = peak_memory()
        return {
            "peak_memory_bytes": max(peak, running),
            "running_memory_bytes": running,
            "library_memory_bytes": model.libraries,
            "peak_device_memory_bytes": _device_memory(model.device),
            "load_seconds": model.loaded,
            "prefill_tokens_per_second": _spread(prefill),
            "decode_tokens_per_second": _spread(decode),
            "contention": None if math.isnan(share) else share,
            "engine": "llama.cpp" if path.is_file() else "transformers",
            "device": model.device,
            "precision": model.precision,
            "weights": model.weights,
        }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"value": statistics.median(values), "low": min(values), "high": max(values), "n": len(values)}


def _device_memory(device: str) -> int | None:
    if not device.startswith("cuda"):
        return None
    import torch

    return int(torch.cuda.max_memory_allocated())


def _waited() -> float:
    """Seconds that the threads of this process have waited for a core; nan where the system does not tell."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        tasks = list(Path("/proc/self/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[1]) for task in tasks) / 1e9
    return math.nan


def _so_far() -> int:
    """Bytes that the process takes now."""
    release_memory()
    reset_peak_memory()
    return peak_memory()


def _read(path: Path) -> None:
    """Read every file once: all models are then loaded from what the system holds in memory."""
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            ledger.sha256(file)


def _prompt(path: Path, encode: Callable[[str], list[int]], job: _Job) -> list[int]:
    """The first `prompt_tokens` tokens of the text, which begins again where it is too short."""
    text, ids = job.text, encode(job.text)
    if not job.text.strip() or not ids:
        raise OnggiError(f"{path}: there is no text to measure its cost with.")
    while len(ids) < job.prompt_tokens:
        text = f"{text}\n{text}"
        ids = encode(text)
    return ids[: job.prompt_tokens]


def _room(path: Path, window: int | None, job: _Job) -> None:
    if window is not None and window < job.prompt_tokens + job.new_tokens:
        raise OnggiError(
            f"{path}: its window of {window} has no room for {job.prompt_tokens} tokens and {job.new_tokens} more."
        )


@contextlib.contextmanager
def _transformers(folder: Path, job: _Job) -> Iterator[_Measured]:
    import torch
    from transformers import AutoModelForCausalLM  # noqa: F401  (imports what the engine will)

    from ..engines.transformers import Engine
    from ..models.checkpoint import Checkpoint

    torch.set_num_threads(job.threads)
    _read(folder)
    libraries, begun = _so_far(), time.perf_counter()
    engine = Engine(folder)
    loaded = time.perf_counter() - begun
    _room(folder, engine.window, job)
    ids = _prompt(folder, lambda text: [engine.tokens.prefix, *engine.tokens.encode(text)], job)
    engine.ends = frozenset()  # the same number of tokens from every model

    def once() -> tuple[float, float]:
        begun = time.perf_counter()
        times = [time.perf_counter() for _ in engine.follow(ids, job.new_tokens)]
        return times[0] - begun, times[-1] - times[0]

    stored = Checkpoint(folder)
    weights = "as stored"
    if "quantization_config" in stored.config:
        weights = "unpacked"
    elif any(e.dtype != torch.float32 for e in stored.entries.values() if e.dtype.is_floating_point):
        weights = "cast"
    device = "cpu"
    if engine.device.type != "cpu":
        device = f"{engine.device.type} ({torch.cuda.get_device_name(engine.device)})"
    yield _Measured(once, device, "fp32", weights, loaded, libraries)


@contextlib.contextmanager
def _llamacpp(path: Path, job: _Job) -> Iterator[_Measured]:
    import xllamacpp

    _read(path)
    window, precision = _facts(path)
    _room(path, window, job)
    libraries, begun = _so_far(), time.perf_counter()
    options, context = server.Options(concurrency=1), job.prompt_tokens + job.new_tokens
    with llamacpp.running(path, options, context=context, threads=job.threads, cache=False) as engine:
        loaded = time.perf_counter() - begun
        address = engine.at.url.removesuffix("/v1")
        ids = _prompt(
            path, lambda text: _post(address, "tokenize", content=text, add_special=True)["tokens"], job
        )

        def once() -> tuple[float, float]:
            reply = _post(
                address,
                "completion",
                prompt=ids,
                n_predict=job.new_tokens,
                ignore_eos=True,
                cache_prompt=False,
                temperature=0,
            )
            # By the server's own clock, which leaves out what HTTP takes.
            took = reply["timings"]
            if (took["prompt_n"], took["predicted_n"]) != (job.prompt_tokens, job.new_tokens):
                raise OnggiError(
                    f"{path}: llama.cpp took {took['prompt_n']} of {job.prompt_tokens} tokens and gave "
                    f"{took['predicted_n']} of {job.new_tokens}."
                )
            return took["prompt_ms"] / 1000, took["predicted_ms"] / 1000

        cards = [d["description"] for d in xllamacpp.get_device_info() if "GPU" in str(d["type"])]
        device = f"gpu ({', '.join(cards)})" if cards else "cpu"
        yield _Measured(once, device, precision, "as stored", loaded, libraries)


def _facts(path: Path) -> tuple[int | None, str]:
    """The window of a GGUF file, where it states one, and on what grid it says it lies (`Q4_K_M`)."""
    import gguf

    from ..models.gguf.container import File

    file = File(path)
    window = file.metadata.get(f"{file.metadata.get('general.architecture')}.context_length")
    try:
        kind = gguf.LlamaFileType(file.metadata.get("general.file_type")).name
    except ValueError:  # it says none: the grid of most tensors
        kind = statistics.mode(tensor.grid.name for tensor in file.tensors.values())
    return window, kind.removeprefix("MOSTLY_").removeprefix("ALL_")


def _post(address: str, path: str, **body: Any) -> dict[str, Any]:
    """The reply of llama.cpp's server to a request of its own kind."""
    request = urllib.request.Request(
        f"{address}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    reply: IO[bytes]
    with opener.open(request) as reply:
        found: dict[str, Any] = json.load(reply)
        return found


if __name__ == "__main__":
    _main()

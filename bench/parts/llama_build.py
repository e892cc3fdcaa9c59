"""llama.cpp from source, once: the peer of bench/quantize_gguf.py, and what its files are measured by.

    python bench/parts/llama_build.py        prints the folder; about six minutes on two cores the first time

llama-cpp-python's source package carries llama.cpp. Of it are built its library, `llama-quantize`, `llama-imatrix` and `llama-bench`;
the Python package is put beside the library, where `PYTHONPATH` finds it. All of it lies in onggi's cache under the
version's name. A stopped build goes on from its last finished file.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from onggi import ledger

VERSION = "0.3.36"
PACKAGE = f"llama-cpp-python=={VERSION}"
TARGETS = ("llama", "llama-quantize", "llama-imatrix", "llama-bench")
# Native code of this machine, as llama-cpp-python's own build has it; nothing that needs the network.
_OFF = ["LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_SERVER", "LLAMA_BUILD_APP", "LLAMA_OPENSSL"]


def folder() -> Path:
    """Where it lies, or will: `site/` for PYTHONPATH, `bin/` with the programs."""
    return ledger.cache_folder() / "bench" / f"llama-cpp-python-{VERSION}"


def python() -> dict[str, str]:
    """What a child's environment needs to import llama_cpp."""
    paths = [str(folder() / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}


def program(name: str) -> str:
    """`llama-quantize`, `llama-imatrix` or `llama-bench`."""
    return str(folder() / "bin" / name)


def build() -> Path:
    """Build what is not there. Raises CalledProcessError where a step fails, which has said why on stderr."""
    made = folder()
    work = made.with_name(made.name + ".build")
    if made.is_dir():
        return made
    work.mkdir(parents=True, exist_ok=True)

    def run(*words: str | Path) -> None:
        subprocess.run([str(word) for word in words], check=True, stdout=sys.stderr)

    source = work / f"llama_cpp_python-{VERSION}"
    if not source.is_dir():
        print("bench: fetching and unpacking llama.cpp (74 MB, once)", file=sys.stderr, flush=True)
        if not (archive := work / f"llama_cpp_python-{VERSION}.tar.gz").is_file():
            run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work, PACKAGE)
        aside = work / "unpacked"
        shutil.rmtree(aside, ignore_errors=True)
        with tarfile.open(archive) as packed:
            packed.extractall(aside, filter="data")
        (aside / source.name).rename(source)
    print("bench: compiling llama.cpp (about six minutes on two cores, once)", file=sys.stderr, flush=True)
    objects = work / "objects"
    flags = {"CMAKE_BUILD_TYPE": "Release", "BUILD_SHARED_LIBS": "ON", **dict.fromkeys(_OFF, "OFF")}
    flags |= {"CMAKE_BUILD_WITH_INSTALL_RPATH": "ON", "CMAKE_INSTALL_RPATH": "$ORIGIN"}
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    run(
        "cmake",
        *generator,
        "-S",
        source / "vendor" / "llama.cpp",
        "-B",
        objects,
        *(f"-D{key}={value}" for key, value in flags.items()),
    )
    jobs = os.environ.get("ONGGI_BENCH_JOBS", str(len(os.sched_getaffinity(0))))
    run("cmake", "--build", objects, "--parallel", jobs, "--target", *TARGETS)
    whole = work / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        whole / "site",
        "diskcache",
    )
    shutil.copytree(source / "llama_cpp", whole / "site" / "llama_cpp")
    libraries = whole / "site" / "llama_cpp" / "lib"
    libraries.mkdir(exist_ok=True)
    shutil.copytree(objects / "bin", whole / "bin", symlinks=True)
    for library in (objects / "bin").glob("lib*.so*"):
        shutil.copy(library, libraries / library.name, follow_symlinks=False)
    whole.rename(made)
    return made


if __name__ == "__main__":
    print(build())

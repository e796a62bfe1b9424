#!/usr/bin/env bash
# Make the environment in the folder given, with the tested versions of everything, from the first Python >= 3.11 found.
# PYTHON=/path/to/python chooses one by hand.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:?usage: scripts/make-venv.sh FOLDER}

usable() { # one that runs, is new enough and can make an environment with pip in it
    "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
        if usable "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    {
        echo "lifelong-edit needs Python 3.11 or newer with its venv and ensurepip modules; none was found"
        echo "(tried: ${PYTHON:-python3 python3.13 python3.12 python3.11 python})."
        echo "Found: $(python3 --version 2>&1 || echo 'no python3 at all')."
        echo "Install one, or name one: make PYTHON=/path/to/python3.11 …"
    } >&2
    return 1
}

if ! { [ -x "$venv/bin/python" ] && usable "$venv/bin/python"; }; then
    python=$(find_python)
    echo "making $venv with $("$python" --version) ($python)" >&2
    "$python" -m venv "$venv"
fi
echo "installing the packages of constraints.txt into $venv: some minutes, PyTorch is large" >&2
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'

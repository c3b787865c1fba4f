# shellcheck shell=bash
# Sourced by demo.sh and test.sh: makes the Python environment, installs what is pinned, and activates it.
# MONAI_RDAD_VENV: folder of the environment (default .venv); PYTHON: interpreter to make it with (default python3).
# An environment that already holds a build of torch 2.13.0, say one for a certain CUDA version, keeps it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
venv=${MONAI_RDAD_VENV:-$PWD/.venv}

fail() { echo "error: $*" >&2 && exit 1; }

# pip, with one line per package; everything that pip says is in $log.
install() {
    if ! "$venv/bin/python" -m pip install --no-compile --disable-pip-version-check --no-input "$@" 2>&1 | tee -a "$log" \
        | awk '/^Collecting/ { n++; printf "  %d %s\n", n, $2; fflush() } /^Installing collected/ { print "  installing"; fflush() }'; then
        tail -n 20 "$log" >&2
        fail "pip install $* failed; all that it said is in $log"
    fi
}

if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    command -v "$python" >/dev/null || fail "$python not found: install Python 3.10 or newer, or set PYTHON"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
        || fail "$("$python" --version) is too old: Python 3.10 or newer is needed; set PYTHON to one"
    "$python" -c 'import ensurepip, venv' 2>/dev/null \
        || fail "$python lacks the module venv or ensurepip: install it (Debian, Ubuntu: apt-get install python3-venv)"
    echo "== environment: $venv"
    "$python" -m venv "$venv"
fi

# Installed again only when what it is made from has changed.
log=$venv/install.log
stamp=$("$venv/bin/python" -c 'import hashlib, os, sys
files = [open(f, "rb").read() for f in ("requirements.lock", "setup.cfg", "pyproject.toml")]
print(hashlib.sha256(b"".join([*files, sys.version.encode(), os.getcwd().encode()])).hexdigest())')
if [ "$(cat "$venv/installed" 2>/dev/null)" != "$stamp" ]; then
    echo "== installing (once; a few minutes)"
    : >"$log"
    # Before all else: a dependency that asks for "torch" would bring in the newest build with its CUDA packages.
    install torch==2.13.0
    if "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        install -r requirements.lock
        install --no-deps -e .
    else # The pinned versions need 3.11: here pip picks the newest that 3.10 can have.
        install -e '.[dev,onnx]'
    fi
    echo "$stamp" >"$venv/installed"
fi
# shellcheck disable=SC1091
source "$venv/bin/activate"

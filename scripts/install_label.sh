#!/usr/bin/env bash
# Makes the Python environment of the MONAI Label server, from nothing, in the folder given as the argument (default
# .venv-label). It is not the environment of the package's tests: MONAI Label 0.8.5 needs NumPy 1.26 and pydicom 2.4.
# Run again, it does only what is missing. PYTHON: interpreter to make it with, 3.11 or newer (default python3).
#
# On a machine without a GPU, some gigabytes less: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
venv=${1:-$here/.venv-label}
python=${PYTHON:-python3}
begin=$SECONDS

fail() { echo "error: $*" >&2 && exit 1; }
step() { echo "== $1 ($((SECONDS - begin)) s)"; }

# pip, with one line per package; everything that pip says is in $log.
install() {
    if ! "$venv/bin/python" -m pip install --no-compile --disable-pip-version-check --no-input "$@" 2>&1 | tee -a "$log" \
        | awk '/^Collecting/ { n++; printf "  %d %s\n", n, $2; fflush() } /^Installing collected/ { print "  installing"; fflush() }'; then
        tail -n 20 "$log" >&2
        fail "pip install $* failed; all that it said is in $log"
    fi
}

if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    command -v "$python" >/dev/null || fail "$python not found: install Python 3.11, or set PYTHON"
    "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' \
        || fail "$("$python" --version) does not suit: MONAI Label's dependencies need Python 3.11 or 3.12; set PYTHON to one"
    "$python" -c 'import ensurepip, venv' 2>/dev/null \
        || fail "$python lacks the module venv or ensurepip: install it (Debian, Ubuntu: apt-get install python3-venv)"
    step "environment: $venv"
    "$python" -m venv "$venv"
fi

log=$venv/install.log
stamp=$(cat "$here/scripts/requirements-label.lock" "$here/setup.cfg" "$0" | "$venv/bin/python" -c 'import hashlib, sys
print(hashlib.sha256(sys.stdin.buffer.read() + sys.version.encode() + sys.argv[1].encode()).hexdigest())' "$here")
if [ "$(cat "$venv/installed" 2>/dev/null)" = "$stamp" ]; then
    step "already installed: $venv"
    exit
fi
: >"$log"

step "torch"
# Before all else: a dependency that asks for "torch" would bring in the newest build, with its CUDA packages.
install torch==2.13.0 numpy==1.26.4 setuptools==80.10.2 wheel==0.48.0
# Not its dependencies: they are those of torch, and pip would look for a torch of the same build.
install --no-deps torchvision==0.28.0

step "MONAI Label and what it needs"
# sam2 comes as source. Built against the torch that is there, or pip would fetch another one for the build alone.
SAM2_BUILD_CUDA=0 install --no-build-isolation -r "$here/scripts/requirements-label.lock"
install --no-deps --no-build-isolation -e "$here"

step "check"
if ! "$venv/bin/python" -c 'import torchvision' 2>/dev/null; then
    # torchvision holds compiled operators for one build of torch; PyPI's wheel for Linux is made for torch with CUDA.
    # Without them it would do for MONAI Label, which saves pictures with it, but fails on import because it describes
    # two operators that are not there. Named here, without an implementation, they let it be imported.
    echo "  torchvision is made for another build of torch: its compiled operators (nms, roi_align) are left out"
    "$venv/bin/python" - "$venv" <<'PY'
import sys
from importlib.util import find_spec
from pathlib import Path

path = Path(find_spec("torchvision").submodule_search_locations[0]) / "extension.py"
path.write_text(
    path.read_text(encoding="utf-8")
    + """

# Added by install_label.sh of monai_rdad: names of operators whose compiled code does not fit this build of torch.
if not _has_ops():
    for _name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{_name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
""",
    encoding="utf-8",
)
PY
fi
"$venv/bin/python" -m pip check
"$venv/bin/python" -c 'import torch, torchvision, monailabel.app, monai_rdad
print("  torch", torch.__version__, "with" if torch.cuda.is_available() else "without", "GPU")' 2>>"$log" \
    || fail "the server cannot be imported; the reason is at the end of $log"
echo "$stamp" >"$venv/installed"
step "done; start the server with: $venv/bin/monai-rdad label start --studies FOLDER --models FOLDER"

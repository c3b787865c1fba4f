#!/usr/bin/env bash
# Tests of the MONAI Label server: makes both environments if need be, starts a server in its own, and asks it from the
# other. The first argument is the folder of the server's environment (default .venv-label); the others go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
label=${1:-$PWD/.venv-label}
[ $# -eq 0 ] || shift
bash scripts/install_label.sh "$label"
MONAI_RDAD_LABEL_PYTHON=$(cd "$label" && pwd)/bin/python
export MONAI_RDAD_LABEL_PYTHON
# shellcheck source=scripts/_env.sh
source scripts/_env.sh
pytest tests/integration/test_label_server.py "$@"

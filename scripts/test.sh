#!/usr/bin/env bash
# Makes the environment if need be, then runs every check: style, types, layers, tests. Arguments go to pytest.
source "$(dirname "$0")/_env.sh"

echo "== ruff"
ruff check .
ruff format --check .
echo "== mypy"
mypy
echo "== import layers"
lint-imports
echo "== pytest"
# One thread in each worker: more would compete for the same cores.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
pytest -n auto --maxprocesses 8 --dist worksteal --durations 10 "$@"

#!/usr/bin/env bash
# Generates the Python stubs: generate.sh PYTHON OUT. `make proto` writes libs/, `make lint` compares with a fresh copy.
set -euo pipefail
python=$1 out=$2
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out"
PATH="$(dirname "$python"):$PATH" "$python" -m grpc_tools.protoc -I "$here" \
  --python_out="$out" --grpc_python_out="$out" --mypy_out="quiet:$out" --mypy_grpc_out="quiet:$out" \
  $(cd "$here" && find catena -name '*.proto' | sort)

#!/usr/bin/env bash
# Measures the GPU path on the machine it runs on: bench/gpu.sh [--dry] [ops] [engine] [serve], all three by default.
# Each part replaces its section of bench/results/gpu-NAME.json, so that a part can be run again; the table comes last.
# A part ends by itself when its time is up and names what it left out: together they take less than nine minutes.
# It fails when a result is wrong or a kernel was not called. --dry runs tiny sizes in Triton's interpreter on the CPU,
# to try the script itself, and writes nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD PYTHON=${PYTHON:-python3} PYTHONUNBUFFERED=1 GRAMME_DRY=
if [ "${1:-}" = --dry ]; then
    shift
    export GRAMME_DRY=1 TRITON_INTERPRET=1
fi
declare -A seconds=([ops]=210 [engine]=190 [serve]=100)
for part in ${@:-ops engine serve}; do
    timeout $((${seconds[$part]} + 20)) "$PYTHON" "bench/gpu/$part.py" "${seconds[$part]}"
done
[ -n "$GRAMME_DRY" ] || "$PYTHON" bench/gpu/table.py

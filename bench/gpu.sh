#!/usr/bin/env bash
# Measures the GPU path on the machine it runs on: bench/gpu.sh [--dry] [ops] [engine] [serve], all three by default.
# Each part replaces its section of bench/results/gpu-NAME.json, figure by figure, so that a part that was cut off has
# left what it had, and can be run again by itself; the table comes last. A part ends by itself when its time is up and
# names what it left out: together they take less than nine minutes. It fails when a result is wrong or a kernel was not
# called, after the other parts have run. --dry runs tiny sizes in Triton's interpreter on the CPU, to try the script
# itself, and writes nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=$PWD PYTHON=${PYTHON:-python3} PYTHONUNBUFFERED=1 GRAMME_DRY=
if [ "${1:-}" = --dry ]; then
    shift
    export GRAMME_DRY=1 TRITON_INTERPRET=1
fi
export GRAMME_BENCH_CACHE=$(mktemp -d)  # of compiled kernels and measured choices; emptied for the cold start
export XDG_CACHE_HOME=$GRAMME_BENCH_CACHE TRITON_CACHE_DIR=$GRAMME_BENCH_CACHE/triton
trap 'rm -rf "$GRAMME_BENCH_CACHE"' EXIT
declare -A seconds=([ops]=190 [engine]=170 [serve]=90)
failed=
for part in ${@:-ops engine serve}; do
    limit=$((${seconds[$part]} + 20))
    [ -z "$GRAMME_DRY" ] || limit=0  # none: an interpreter takes what it takes
    timeout "$limit" "$PYTHON" "bench/gpu/$part.py" "${seconds[$part]}" || failed="$failed $part"
done
[ -n "$GRAMME_DRY" ] || timeout 20 "$PYTHON" bench/gpu/table.py
[ -z "$failed" ] || { echo "failed:$failed"; exit 1; }

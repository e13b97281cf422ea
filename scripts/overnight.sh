#!/usr/bin/env bash
# Train every model on every fold through the night, one run a card at a time, then blend and predict.
# Start it again after any stop: finished folds are skipped, half-trained ones go on.
#
#   scripts/overnight.sh                                   the presets, folds 0 to 4, every card
#   MODELS="convnext_base vit_base" FOLDS="0 1 2" scripts/overnight.sh --epochs 15
#   DATA=/data/cars scripts/overnight.sh                   data elsewhere than in input/
#   CUDA_VISIBLE_DEVICES=0,1 scripts/overnight.sh          these cards alone
#   HOURS=9 scripts/overnight.sh                           what fills nine hours: scripts/plan.py
#
# Further words go to train_fold.py (with HOURS: to plan.py). What runs print lies in output/logs/.
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
command -v "$PYTHON" >/dev/null || PYTHON=python3
PLACES=(--data_dir "${DATA:-input}" --output_dir "${OUTPUT:-output}")
if [ -n "${HOURS:-}" ]; then # MODELS are timm ids then
    [ -z "${FOLDS:-}" ] || { echo "FOLDS: the plan of HOURS chooses them; leave it out" >&2; exit 2; }
    # shellcheck disable=SC2086
    exec "$PYTHON" scripts/plan.py --hours "$HOURS" ${MODELS:+--models $MODELS} "${PLACES[@]}" "$@"
fi
# shellcheck disable=SC2086
exec "$PYTHON" scripts/overnight.py ${MODELS:+--models $MODELS} ${FOLDS:+--folds $FOLDS} "${PLACES[@]}" -- "$@"

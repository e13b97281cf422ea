#!/usr/bin/env bash
# Train every model on every fold through the night, then blend and answer.
# Start it again after any stop: finished folds are skipped, a half-trained one goes on.
#
#   scripts/overnight.sh                                   the seven presets, folds 0 to 4
#   MODELS="convnext_base vit_base" FOLDS="0 1 2" scripts/overnight.sh --epochs 15
#
#   DATA=/data/cars scripts/overnight.sh                   data elsewhere than in input/
#
# Further words go to train_fold.py. What each run prints lies in output/logs/.
set -u
cd "$(dirname "$0")/.."
MODELS=${MODELS:-"convnext_large efficientnetv2_l swin_large efficientnet_b7 convnext_base resnet152d vit_base"}
FOLDS=${FOLDS:-"0 1 2 3 4"}
DATA=${DATA:-input}
OUTPUT=${OUTPUT:-output}
PYTHON=${PYTHON:-.venv/bin/python}
command -v "$PYTHON" >/dev/null || PYTHON=python3
mkdir -p "$OUTPUT/logs"
PLACES=(--data_dir "$DATA" --output_dir "$OUTPUT")
failed=()
for fold in $FOLDS; do # all models on one fold first: a blend is possible early
    for model in $MODELS; do
        log="$OUTPUT/logs/$(echo "$model" | tr -c 'A-Za-z0-9._\n-' _)_fold$fold.log"
        echo "$(date '+%F %T') $model fold $fold (log: $log)"
        "$PYTHON" train_fold.py --model "$model" --fold "$fold" "${PLACES[@]}" "$@" 2>&1 | tee -a "$log"
        status=${PIPESTATUS[0]}
        if [ "$status" -eq 129 ] || [ "$status" -eq 130 ] || [ "$status" -eq 143 ]; then # somebody stopped it
            exit "$status"
        elif [ "$status" -ne 0 ]; then
            failed+=("$model/fold$fold")
        fi
    done
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}; mend them and start this script again" >&2
    exit 1
fi
"$PYTHON" optimize_weights.py "${PLACES[@]}" 2>&1 | tee "$OUTPUT/logs/optimize_weights.log"
[ "${PIPESTATUS[0]}" -eq 0 ] || exit 1
"$PYTHON" infer_ensemble.py --tta_steps 5 "${PLACES[@]}" 2>&1 | tee "$OUTPUT/logs/infer_ensemble.log"
exit "${PIPESTATUS[0]}"

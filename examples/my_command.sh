#!/bin/sh
# Any program: parameters come as arguments, metrics go out as lines of JSON.
# hpsearch run examples/my_command.yaml --allow './my_command.sh'
lr=$1
echo "training with lr $lr, momentum $HPSEARCH_PARAM_MOMENTUM and seed $HPSEARCH_SEED" >&2
epoch=1
while [ "$epoch" -le "$HPSEARCH_EPOCHS" ]; do
    awk -v lr="$lr" -v m="$HPSEARCH_PARAM_MOMENTUM" -v n="$epoch" 'BEGIN {
        d = log(lr / 0.01) / log(10); printf "{\"step\": %d, \"val_loss\": %.6f}\n", n, d * d + (1 - m) ^ 2 + 1 / n }'
    epoch=$((epoch + 1))
done

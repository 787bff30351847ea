#!/usr/bin/env bash
# R1-Zero: GRPO on word problems, straight from a base model.
#   bash recipes/r1_zero/run.sh [OUTPUT_FOLDER] [twin]
# With `twin` the same command uses a small model and files of $RLHF_DATA: rlhf docs recipes.
# Run it again after a failure to continue where it stopped.
set -euo pipefail
out=${1:-runs/r1_zero}

grpo=()
if [ "${2:-}" = twin ]; then
  : "${RLHF_DATA:?set RLHF_DATA to the folder of public data (see rlhf docs data)}"
  problems=$RLHF_DATA/math
  rlhf sft config=r1_zero/twin/base data="${problems}_train.jsonl" output_dir="$out/base"
  grpo=(config=r1_zero/twin/grpo model="$out/base")
  grpo+=(data="${problems}_train.jsonl" data.eval="${problems}_test.jsonl")
fi

rlhf grpo config=r1_zero/grpo "${grpo[@]}" output_dir="$out/grpo"

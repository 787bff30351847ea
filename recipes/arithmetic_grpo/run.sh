#!/usr/bin/env bash
# Arithmetic: SFT until about half of the sums are correct, then GRPO. Nothing is downloaded.
#   bash recipes/arithmetic_grpo/run.sh [OUTPUT_FOLDER]
# Run it again after a failure to continue where it stopped.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-runs/arithmetic_grpo}

rlhf sft config=arithmetic_grpo/sft output_dir="$out/sft"
rlhf grpo config=arithmetic_grpo/grpo model="$out/sft" output_dir="$out/grpo"
for temperature in 1 0; do
  rlhf evaluate "$out/grpo" baseline="$out/sft" judge="$here/judge.py:score" \
    prompts="$here/data/test.jsonl" temperature=$temperature max_new_tokens=6 batch_size=200 \
    output="$out/temperature-$temperature.json"
done

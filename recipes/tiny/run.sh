#!/usr/bin/env bash
# All stages on the shipped data: nothing is downloaded, two CPU cores are enough.
#   bash recipes/tiny/run.sh [OUTPUT_FOLDER]
# Run it again after a failure to continue where it stopped.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-runs/tiny}

rlhf pretrain config=tiny/pretrain output_dir="$out/pretrain"
rlhf sft config=tiny/sft model="$out/pretrain" output_dir="$out/sft"
for stage in reward dpo bco; do
  rlhf $stage config=tiny/$stage model="$out/sft" output_dir="$out/$stage"
done

rlhf ppo config=tiny/ppo model="$out/sft" reward.function= reward.model="$out/reward" output_dir="$out/ppo"

for stage in pretrain sft dpo bco ppo; do
  rlhf generate model="$out/$stage" prompts=tiny temperature=0.7 max_new_tokens=60 batch_size=100 \
    output="$out/$stage/answers.jsonl"
done
python "$here/table.py" "$out" pretrain sft reward dpo bco ppo

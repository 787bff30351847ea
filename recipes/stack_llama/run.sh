#!/usr/bin/env bash
# StackLLaMA: SFT, a reward model and PPO, all as adapters on one base.
#   bash recipes/stack_llama/run.sh [OUTPUT_FOLDER] [twin]
# With `twin` the same commands use a small model and files of $RLHF_DATA: rlhf docs recipes.
# Run it again after a failure to continue where it stopped.
set -euo pipefail
out=${1:-runs/stack_llama}

sft=() reward=() ppo=()
if [ "${2:-}" = twin ]; then
  : "${RLHF_DATA:?set RLHF_DATA to the folder of public data (see rlhf docs data)}"
  pairs=$RLHF_DATA/preference_arguments
  rows=(data="${pairs}_train.jsonl" data.eval="${pairs}_test.jsonl")
  sft=(config=stack_llama/twin/sft model="$out/base" "${rows[@]}")
  reward=(config=stack_llama/twin/reward "${rows[@]}")
  ppo=(config=stack_llama/twin/ppo "${rows[@]}")
  rlhf pretrain config=twin/base data="${pairs}_train.jsonl" \
    data.columns.text="{prompt}\n\n{chosen}" output_dir="$out/base"
fi

rlhf sft config=stack_llama/sft "${sft[@]}" output_dir="$out/sft"
rlhf reward config=stack_llama/reward "${reward[@]}" model="$out/sft" output_dir="$out/reward"
rlhf ppo config=stack_llama/ppo "${ppo[@]}" model="$out/sft" adapter.start=stack \
  reward.model="$out/reward" output_dir="$out/ppo"

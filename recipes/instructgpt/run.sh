#!/usr/bin/env bash
# InstructGPT: pretraining, SFT, a reward model from rankings, and PPO-ptx.
#   bash recipes/instructgpt/run.sh [OUTPUT_FOLDER] [twin]
# With `twin` the same commands use a small model and files of $RLHF_DATA: rlhf docs recipes.
# Run it again after a failure to continue where it stopped.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-runs/instructgpt}

if [ "${2:-}" = twin ]; then
  : "${RLHF_DATA:?set RLHF_DATA to the folder of public data (see rlhf docs data)}"
  text=$RLHF_DATA/text_movie_reviews.jsonl pairs=$RLHF_DATA/preference_arguments
  rows=(data="${pairs}_train.jsonl" data.eval="${pairs}_test.jsonl")
  pretrain=(config=instructgpt/twin/pretrain data="$text")
  sft=(config=instructgpt/twin/sft "${rows[@]}")
  reward=(config=instructgpt/twin/reward data="$RLHF_DATA/ranked_arguments.jsonl")
  ppo=(config=instructgpt/twin/ppo "${rows[@]}" ptx_data="$text")
else
  pretrain=() sft=() reward=(data="$out/rankings.jsonl") ppo=()
  mkdir -p "$out"
  [ -e "$out/rankings.jsonl" ] || python "$here/rankings.py" "$out/rankings.jsonl"
fi

rlhf pretrain config=instructgpt/pretrain "${pretrain[@]}" output_dir="$out/pretrain"
rlhf sft config=instructgpt/sft "${sft[@]}" model="$out/pretrain" output_dir="$out/sft"
rlhf reward config=instructgpt/reward "${reward[@]}" model="$out/sft" output_dir="$out/reward"
rlhf ppo config=instructgpt/ppo "${ppo[@]}" model="$out/sft" value=model \
  reward.model="$out/reward" output_dir="$out/ppo"

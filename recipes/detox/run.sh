#!/usr/bin/env bash
# Detoxifying: PPO against a classifier, so that toxic texts get neutral continuations.
#   bash recipes/detox/run.sh [OUTPUT_FOLDER] [twin]
# With `twin` the same command uses a small model, a small classifier and files of $RLHF_DATA:
# rlhf docs recipes. Run it again after a failure to continue.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-runs/detox}

if [ "${2:-}" = twin ]; then
  : "${RLHF_DATA:?set RLHF_DATA to the folder of public data (see rlhf docs data)}"
  labels=$RLHF_DATA/sentiment
  rlhf pretrain config=twin/base data="${labels}_train.jsonl" output_dir="$out/base"
  rlhf reward config=detox/twin/classifier data="${labels}_train.jsonl" \
    data.eval="${labels}_test.jsonl" output_dir="$out/classifier"
  ppo=(config=detox/twin/ppo model="$out/base" data="$RLHF_DATA/prompts_movie.jsonl")
  ppo+=(reward.classifier="$out/classifier/model" reward.label=LABEL_0)
else
  ppo=(data="$out/prompts.jsonl")
  mkdir -p "$out"
  [ -e "$out/prompts.jsonl" ] || python "$here/prompts.py" "$out/prompts.jsonl"
fi

rlhf ppo config=detox/ppo "${ppo[@]}" output_dir="$out/ppo"

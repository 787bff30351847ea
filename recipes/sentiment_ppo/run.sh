#!/usr/bin/env bash
# A small model of movie reviews, a sentiment classifier, and PPO with the classifier as reward.
#   RLHF_DATA=... bash recipes/sentiment_ppo/run.sh [OUTPUT_FOLDER] [SEED]
# $RLHF_DATA holds the files of public data (see rlhf docs data). With another seed, only PPO runs again.
# Run it again after a failure to continue where it stopped.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-runs/sentiment_ppo}
seed=${2:-0}
: "${RLHF_DATA:?set RLHF_DATA to the folder of public data (see rlhf docs data)}"

write() { # RUN: answers to the held-out prompts, drawn as in training
  rlhf generate model="$out/$1" prompts="$out/data/prompts_test.jsonl" template=never \
    temperature=0.7 max_new_tokens=40 batch_size=100 output="$out/$1/answers.jsonl"
}

mkdir -p "$out/data"
python "$here/sentences.py" "$RLHF_DATA/text_movie_reviews.jsonl" "$out/data/sentences.jsonl"
head -n 800 "$RLHF_DATA/prompts_movie.jsonl" >"$out/data/prompts_train.jsonl"
tail -n +801 "$RLHF_DATA/prompts_movie.jsonl" >"$out/data/prompts_test.jsonl"

rlhf pretrain config=sentiment_ppo/pretrain output_dir="$out/pretrain" \
  data="[$out/data/sentences.jsonl,$RLHF_DATA/sentiment_train.jsonl]"
rlhf reward config=sentiment_ppo/reward output_dir="$out/reward" model="$out/pretrain" \
  data="$RLHF_DATA/sentiment_train.jsonl" data.eval="$RLHF_DATA/sentiment_test.jsonl"
rlhf ppo config=sentiment_ppo/ppo output_dir="$out/ppo-$seed" model="$out/pretrain" seed="$seed" \
  reward.model="$out/reward" sampling.seed="$seed" \
  data="$out/data/prompts_train.jsonl" data.eval="$out/data/prompts_test.jsonl"
write pretrain
write "ppo-$seed"
python "$here/table.py" "$out" "$RLHF_DATA/sentiment_train.jsonl"

#!/usr/bin/env bash
# Thumbs up and down: BCO from a chat model.
#   bash recipes/bco_thumbs/run.sh [OUTPUT_FOLDER] [twin]
# With `twin` the same command uses a small model and files of $RLHF_DATA: rlhf docs recipes.
# Run it again after a failure to continue where it stopped.
set -euo pipefail
out=${1:-runs/bco_thumbs}

bco=()
if [ "${2:-}" = twin ]; then
  : "${RLHF_DATA:?set RLHF_DATA to the folder of public data (see rlhf docs data)}"
  thumbs=$RLHF_DATA/binary_coffee
  rlhf pretrain config=twin/base data="${thumbs}_train.jsonl" \
    data.columns.text="{prompt} {completion}" output_dir="$out/base"
  bco=(config=bco_thumbs/twin/bco model="$out/base")
  bco+=(data="${thumbs}_train.jsonl" data.eval="${thumbs}_test.jsonl")
fi

rlhf bco config=bco_thumbs/bco "${bco[@]}" output_dir="$out/bco"

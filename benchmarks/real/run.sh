#!/usr/bin/env bash
# From nothing to reward models, DPO and BCO on real judgments, and how far a small model comes.
#   RLHF_DATA=... bash benchmarks/real/run.sh [OUTPUT_FOLDER]
# $RLHF_DATA holds the files that docs/data.md describes. Given again, it continues where it stopped.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$(realpath -m "${1:-runs/real}")
: "${RLHF_DATA:?set RLHF_DATA to the folder that docs/data.md describes}"
export RLHF_DATA

# text after text is joined as it stands, so the columns bring what goes between them
arguments='data.columns.prompt="{prompt}\n\n"'
coffee='data.columns.completion=" {completion}"'
math='data.columns.prompt="{prompt}\n"'
helpful=$RLHF_DATA/preference_helpful
harmless=$RLHF_DATA/preference_harmless

learn() { # STAGE NAME WORD...: from the fine-tuned model to $out/STAGE-NAME
  rlhf "$1" config="$here/$1.yaml" model="$out/sft" output_dir="$out/$1-$2" "${@:3}"
}

rlhf pretrain config="$here/pretrain.yaml" output_dir="$out/pretrain"
rlhf sft config="$here/sft.yaml" model="$out/pretrain" output_dir="$out/sft"

learn reward arguments "$arguments" \
  data="$RLHF_DATA/preference_arguments_train.jsonl" data.eval="$RLHF_DATA/preference_arguments_test.jsonl"
learn reward assistant \
  data="[${helpful}_train.jsonl,${harmless}_train.jsonl]" data.eval="[${helpful}_test.jsonl,${harmless}_test.jsonl]"
learn dpo helpful data="${helpful}_train.jsonl" data.eval="${helpful}_test.jsonl"
learn bco coffee "$coffee" \
  data="$RLHF_DATA/binary_coffee_train.jsonl" data.eval="$RLHF_DATA/binary_coffee_test.jsonl"
learn bco math "$math" \
  data="$RLHF_DATA/binary_math_train.jsonl" data.eval="$RLHF_DATA/binary_math_test.jsonl"
cd "$here/../.." && python -m benchmarks.real.table "$out"

#!/usr/bin/env bash
# StackLLaMA 2: SFT and DPO, each an adapter on a 4-bit base.
#   bash recipes/stack_llama_2/run.sh [OUTPUT_FOLDER] [twin]
# With `twin` the same commands use a small model and files of $RLHF_DATA: rlhf docs recipes.
# Run it again after a failure to continue where it stopped.
set -euo pipefail
out=${1:-runs/stack_llama_2}

sft=() dpo=()
if [ "${2:-}" = twin ]; then
  : "${RLHF_DATA:?set RLHF_DATA to the folder of public data (see rlhf docs data)}"
  pairs=$RLHF_DATA/preference_arguments
  rows=(data="${pairs}_train.jsonl" data.eval="${pairs}_test.jsonl")
  sft=(config=stack_llama_2/twin/sft model="$out/base" "${rows[@]}")
  dpo=(config=stack_llama_2/twin/dpo "${rows[@]}")
  rlhf pretrain config=twin/base data="${pairs}_train.jsonl" \
    data.columns.text="{prompt}\n\n{chosen}" output_dir="$out/base"
fi

rlhf sft config=stack_llama_2/sft "${sft[@]}" output_dir="$out/sft"
rlhf dpo config=stack_llama_2/dpo "${dpo[@]}" model="$out/sft" adapter.start=stack \
  output_dir="$out/dpo"

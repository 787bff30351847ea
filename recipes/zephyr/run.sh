#!/usr/bin/env bash
# Zephyr: SFT on dialogues, then DPO.
#   bash recipes/zephyr/run.sh [OUTPUT_FOLDER] [twin] [qlora | sharded]
# With `sharded`, 8 GPUs divide the weights; with `qlora`, adapters are trained on 4-bit weights;
# with `twin`, the same commands use a small model and files of $RLHF_DATA: rlhf docs recipes. Run
# it again after a failure to continue.
set -euo pipefail
out=${1:-runs/zephyr}
options=" ${*:2} "

sft=() dpo=()
if [[ $options == *" qlora "* ]]; then
  sft+=(config=zephyr/qlora) dpo+=(config=zephyr/qlora)
fi
if [[ $options == *" sharded "* ]]; then
  sft+=(config=zephyr/sharded) dpo+=(config=zephyr/sharded)
fi
if [[ $options == *" twin "* ]]; then
  : "${RLHF_DATA:?set RLHF_DATA to the folder of public data (see rlhf docs data)}"
  chats=$RLHF_DATA/chat_assistant pairs=$RLHF_DATA/preference_helpful
  sft+=(config=zephyr/twin/sft model="$out/base" data="${chats}_train.jsonl")
  sft+=(data.eval="${chats}_test.jsonl")
  dpo+=(config=zephyr/twin/dpo data="${pairs}_train.jsonl" data.eval="${pairs}_test.jsonl")
  rlhf pretrain config=twin/base data="${pairs}_train.jsonl" data.columns.text=chosen \
    output_dir="$out/base"
fi

rlhf sft config=zephyr/sft "${sft[@]}" output_dir="$out/sft"
rlhf dpo config=zephyr/dpo "${dpo[@]}" model="$out/sft" output_dir="$out/dpo"

#!/usr/bin/env bash
# Every stage, for a few steps, on a real pretrained chat model and a real encoder.
#   RLHF_DATA=... bash benchmarks/real/pretrained.sh CHAT_MODEL ENCODER [OUTPUT_FOLDER]
# CHAT_MODEL: SmolLM2-135M-Instruct, ENCODER: all-MiniLM-L6-v2 (folders or hub ids). Given again, it continues where it stopped.
set -euo pipefail
chat=$1 encoder=$2 out=$(realpath -m "${3:-runs/pretrained}")
: "${RLHF_DATA:?set RLHF_DATA to the folder that docs/data.md describes}"
export RLHF_DATA

few='split: "[:12]"'
helpful="data=$RLHF_DATA/preference_helpful_train.jsonl"
held_out="data.eval=[{path: $RLHF_DATA/preference_helpful_test.jsonl, $few}]"
short=(data.split="[:64]" data.max_length=128 train.batch_size=4 train.max_steps=6 train.log_steps=3)

rlhf generate model="$chat" prompt="Name three kinds of tea, in one sentence." temperature=0 max_new_tokens=32
rlhf sft model="$chat" data="$RLHF_DATA/chat_assistant_train.jsonl" adapter=lora "${short[@]}" \
  data.eval="[{path: $RLHF_DATA/chat_assistant_test.jsonl, $few}]" output_dir="$out/sft-lora"
rlhf sft model="$chat" data="$RLHF_DATA/chat_assistant_train.jsonl" "${short[@]}" \
  data.eval="[{path: $RLHF_DATA/chat_assistant_test.jsonl, $few}]" output_dir="$out/sft"
rlhf dpo model="$out/sft" "$helpful" "$held_out" "${short[@]}" lr=1e-6 output_dir="$out/dpo"
rlhf reward model="$out/sft" "$helpful" "$held_out" "${short[@]}" output_dir="$out/reward"
rlhf ppo model="$out/sft" reward.model="$out/reward" data="$RLHF_DATA/prompts_assistant.jsonl" train.batch_size=4 \
  train.max_steps=2 sampling.max_new_tokens=24 data.max_length=128 ppo_epochs=1 minibatches=2 output_dir="$out/ppo"
rlhf bco model="$chat" data="$RLHF_DATA/binary_math_train.jsonl" udm.embedding_model="$encoder" "${short[@]}" lr=1e-6 \
  'data.columns.prompt="{prompt}\n"' data.eval="[{path: $RLHF_DATA/binary_math_test.jsonl, $few}]" output_dir="$out/bco"
[ -d "$out/merged" ] || rlhf merge model="$out/sft-lora" output_dir="$out/merged"
rlhf generate model="$out/merged" prompt="Name three kinds of tea, in one sentence." temperature=0 max_new_tokens=32

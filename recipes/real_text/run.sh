#!/usr/bin/env bash
# Real text from random weights: pretraining on plays, then speeches, then SFT on shell commands.
#   RLHF_DATA=... bash recipes/real_text/run.sh [OUTPUT_FOLDER]
# $RLHF_DATA holds the files of public data (see rlhf docs data).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-runs/real_text}
: "${RLHF_DATA:?set RLHF_DATA to the folder of public data (see rlhf docs data)}"

# the last tenth of each text is held out
mkdir -p "$out/data"
for text in shakespeare speeches; do
  lines=$(wc -l <"$RLHF_DATA/text_$text.txt")
  head -n $((lines * 9 / 10)) "$RLHF_DATA/text_$text.txt" >"$out/data/${text}_train.txt"
  tail -n +$((lines * 9 / 10 + 1)) "$RLHF_DATA/text_$text.txt" >"$out/data/${text}_test.txt"
done

rlhf pretrain config=real_text/shakespeare output_dir="$out/shakespeare" \
  data="$out/data/shakespeare_train.txt" data.eval="$out/data/shakespeare_test.txt"
rlhf pretrain config=real_text/speeches output_dir="$out/speeches" model="$out/shakespeare" \
  data="$out/data/speeches_train.txt" data.eval="$out/data/speeches_test.txt"
rlhf sft config=real_text/commands output_dir="$out/commands" model="$out/speeches" \
  data="$RLHF_DATA/sft_commands_train.jsonl" data.eval="$RLHF_DATA/sft_commands_test.jsonl"
rlhf generate model="$out/commands" temperature=0 max_new_tokens=60 \
  prompts="$RLHF_DATA/sft_commands_test.jsonl" output="$out/commands/answers.jsonl"

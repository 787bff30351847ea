"""Tokenizers and rows without torch: the same ids, and torch is not loaded."""

import json
import subprocess
import sys

from rlhf_cli.cache import tokenizer_state
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.models.tokenizer import load_tokenizer, tokenization_hash
from rlhf_cli.resources import SHIPPED
from tests.data.toy import write_jsonl

STATE = """
import json, sys
from rlhf_cli.torch_free import hide_torch
hide_torch()
from rlhf_cli import cli
assert cli.main(["data", "show", sys.argv[1], "stage=sft"]) == 0
from rlhf_cli.cache import tokenizer_state
from rlhf_cli.models.config import ModelConfig
from rlhf_cli.models.tokenizer import load_tokenizer, tokenization_hash
tokenizer = load_tokenizer(ModelConfig(path="tiny"))
found = [tokenizer_state(tokenizer), tokenization_hash(tokenizer), tokenizer("a b")["input_ids"]]
print(json.dumps([found, sorted(name for name in sys.modules if name.startswith("torch."))]))
"""


def test_without_torch_the_tokenizer_is_the_same(tmp_path):
    write_jsonl(tmp_path / "rows.jsonl", {"prompt": "p", "completion": "c"})
    done = subprocess.run(
        [sys.executable, "-c", STATE, str(tmp_path / "rows.jsonl")],
        capture_output=True,
        text=True,
        check=True,
    )
    found, loaded = json.loads(done.stdout.splitlines()[-1])
    assert loaded == []
    tokenizer = load_tokenizer(ModelConfig(path=SHIPPED))
    ids = tokenizer("a b")["input_ids"]
    assert found == [tokenizer_state(tokenizer), tokenization_hash(tokenizer), ids]
    assert "PyTorch" not in done.stderr

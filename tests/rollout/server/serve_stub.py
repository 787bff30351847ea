"""Serve a stub: python serve_stub.py FOLDER PORT NAME [tokenizer]

The last word makes its tokenizer and vocabulary those of the folder.
"""

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.rollout.server.stub import Stub, serving

folder, port, name, *real = sys.argv[1:]
stub = Stub(token=os.environ["VLLM_API_KEY"], weights=folder)
if real:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    stub.tokenize = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
    stub.rows = json.loads((Path(folder) / "config.json").read_text())["vocab_size"]
present = [file for file in ("config.json", "tokenizer.json") if (Path(folder) / file).exists()]
print("pid", os.getpid(), "name", name, "files", *present, flush=True)
with serving(stub, port=int(port)):
    time.sleep(600)

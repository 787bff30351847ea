"""Serve a stub: python serve_stub.py FOLDER PORT NAME"""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.rollout.server.stub import serving

folder, port, name = sys.argv[1:]
present = [file for file in ("config.json", "tokenizer.json") if (Path(folder) / file).exists()]
print("pid", os.getpid(), "name", name, "files", *present, flush=True)
with serving(port=int(port), token=os.environ["VLLM_API_KEY"]):
    time.sleep(600)

"""A server of the standard library with the endpoints of vLLM or SGLang, and faults by switch.

It writes responses by a rule of the prompt, the seed and the weights, or by a real model.
"""

import hashlib
import json
import threading
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

PAUSED = threading.Condition()


class Refusal(Exception):
    """An answer with the status of an error."""

    def __init__(self, status, body):
        super().__init__(body)
        self.status, self.body = status, body


@dataclass
class Stub:
    """What the server has, does and has been asked.

    Attributes:
        kind: vllm or sglang.
        rows: ids of its model.
        root: folder that it says it was started with.
        token: that it asks for under /v1 and /inference.
        faults: what to do with the next requests for a response, one each: a function of the body
            that answers in the server's place, or a status.
        always: the same for each request, after `faults`.
        missing: paths that it lacks.
        closed: paths of POSTs that it answers by 403, as vLLM without --enable-scale-out does.
        write: prompt ids, sampling parameters, weights -> token ids, log-probs, finish reason.
        tokenize: text -> token ids.
        score: token ids -> log-prob of each but the first.
        calls: method, path and body of each request.
    """

    kind: str = "vllm"
    rows: int = 97
    context: int = 256
    token: str = ""
    version: str = "default"
    software: str = "0.32.0"
    root: str = ""
    faults: list = field(default_factory=list)
    always: object = None
    missing: set = field(default_factory=set)
    closed: set = field(default_factory=set)
    write: object = None
    tokenize: object = lambda text: [ord(c) % 100 for c in text]
    score: object = lambda ids: [-token / 50 for token in ids[1:]]
    mode: str = "processed"
    is_dead: bool = False
    is_healthy: bool = True
    paused: bool = False
    reload_error: str = ""
    weights: str = "start"
    adapters: dict = field(default_factory=dict)
    calls: list = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    seconds: float = 0.0
    lock: object = field(default_factory=threading.RLock)

    def paths(self):
        """Path of each request, in order."""
        return [path for _, path, _ in self.calls]

    def count(self, path):
        return Counter(self.paths())[path]


def rule(prompt, params, weights):
    """Tokens by a hash of prompt, seed and weights; a log-prob that depends on the token."""
    count = params.get("max_tokens") or params.get("max_new_tokens")
    seed = params.get("seed", params.get("sampling_seed"))
    digest = hashlib.sha256(repr((list(prompt), seed, weights)).encode()).digest()
    tokens = [10 + digest[k % 32] % 80 for k in range(count)]
    return tokens, [-tokens[k] / 50 for k in range(count)], "length"


def model_writer(model, tokenizer):
    """Write responses by a real model, whose log-probs are true; `weights` is a folder."""
    from rlhf_cli.rollout.config import SamplingConfig
    from rlhf_cli.rollout.engine import generate

    loaded = {"start": model}

    def load(folder):
        if folder not in loaded:
            from transformers import AutoModelForCausalLM

            if (Path(folder) / "adapter_config.json").exists():
                from peft import PeftModel

                base = AutoModelForCausalLM.from_pretrained(model.name_or_path)
                loaded[folder] = PeftModel.from_pretrained(base, folder).merge_and_unload().eval()
            else:
                loaded[folder] = AutoModelForCausalLM.from_pretrained(folder).eval()
        return loaded[folder]

    def write(prompt, params, weights):
        cfg = SamplingConfig(
            max_new_tokens=params.get("max_tokens") or params["max_new_tokens"],
            temperature=params["temperature"],
            seed=params.get("seed", params.get("sampling_seed")) % 2**32,
            stop=params.get("stop") or [],
        )
        wanted = cfg.temperature > 0
        (one,) = generate(load(weights), tokenizer, [list(prompt)], cfg, logprobs=wanted)
        return one.token_ids, one.logprobs, "stop" if one.finished else "length"

    write.load = load
    return write


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, request, client_address):
        pass


@contextmanager
def serving(stub=None, *, port=0, **changed):
    """The stub at an address of this machine; yields it with `url` set."""
    stub = stub or Stub(**changed)
    handler = type("Handler", (_Handler,), {"stub": stub})
    server = _Server(("127.0.0.1", port), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    stub.url = f"http://127.0.0.1:{server.server_port}"
    stub.port = server.server_port
    try:
        yield stub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    stub = None

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer("GET", None)

    def do_HEAD(self):
        self.send_response(405)
        self.end_headers()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer("POST", json.loads(body or b"{}"))

    def _answer(self, method, body):
        stub, parts = self.stub, urlsplit(self.path)
        with stub.lock:
            stub.calls.append((method, parts.path, body))
        if stub.is_dead:
            self.connection.close()
            return
        try:
            guarded = parts.path.startswith(("/v1", "/inference")) or stub.kind == "sglang"
            if stub.token and guarded and parts.path != "/health":
                self._check_token()
            table = VLLM if stub.kind == "vllm" else SGLANG
            if parts.path in stub.missing or parts.path not in table:
                raise Refusal(404, {"detail": "Not Found"})
            wanted, act = table[parts.path]
            if wanted != method:
                raise Refusal(405, {"detail": "Method Not Allowed"})
            if parts.path in stub.closed:
                raise Refusal(403, {"error": {"message": "endpoints are disabled"}})
            found = act(stub, body, parse_qs(parts.query))
            status = 200
        except Refusal as refusal:
            status, found = refusal.status, refusal.body
        text = found if isinstance(found, bytes) else json.dumps(found).encode()
        self.send_response(status)
        if status in (301, 302, 307):
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _check_token(self):
        if self.headers.get("Authorization") != f"Bearer {self.stub.token}":
            raise Refusal(401, {"error": "Unauthorized"})


def _health(stub, _body, _query):
    if not stub.is_healthy:
        raise Refusal(503, b"")
    return b""


def _faulty(stub, body):
    """The answer of a fault, or None."""
    with stub.lock:
        fault = stub.faults.pop(0) if stub.faults else stub.always
    if isinstance(fault, int):
        raise Refusal(fault, {"error": "as asked"})
    return fault(body) if fault else None


@contextmanager
def _flight(stub):
    with stub.lock:
        stub.in_flight += 1
        stub.most_in_flight = max(stub.most_in_flight, stub.in_flight)
    try:
        time.sleep(stub.seconds)
        with PAUSED:
            while stub.paused:
                PAUSED.wait(0.05)
        yield
    finally:
        with stub.lock:
            stub.in_flight -= 1


def _weights_of(stub, model):
    return stub.adapters.get(model, stub.weights)


def _require_known(stub, prompt):
    if max(prompt) >= stub.rows:
        raise Refusal(400, {"error": {"message": f"Token id {max(prompt)} is out of vocabulary"}})


def _vllm_generate(stub, body, _query):
    if "token_ids" not in body:
        raise Refusal(400, {"error": {"message": "token_ids: Field required"}})
    params = body["sampling_params"]
    if body["model"] not in ("tiny", *stub.adapters):
        raise Refusal(404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
    _require_known(stub, body["token_ids"])
    allowed = params.get("allowed_token_ids")
    with stub.lock:
        version = stub.version
    with _flight(stub):
        found = _faulty(stub, body)
        if found is not None:
            return found
        if allowed:
            values = {"processed": [0.0], "raw": [-6.9], "none": []}[stub.mode]
            return vllm_answer([allowed[0]], values, "length", version)
        write = stub.write or rule
        with stub.lock:
            weights = _weights_of(stub, body["model"])
            tokens, logprobs, reason = write(body["token_ids"], params, weights)
    return vllm_answer(tokens, logprobs, reason, version)


def vllm_answer(tokens, logprobs, reason, version, **changed):
    """What vLLM answers to a request for one response."""
    content = [{"token_id": t, "logprob": p} for t, p in zip(tokens, logprobs, strict=False)]
    choice = {
        "index": 0,
        "finish_reason": reason,
        "token_ids": tokens,
        "weight_versions": [{"version": version, "start": 0, "end": len(tokens)}],
        "logprobs": {"content": content},
        **changed,
    }
    return {"choices": [choice]}


def _vllm_completions(stub, body, _query):
    """Log-probs of a prompt; a token that is generated beside them is left out."""
    ids = body["prompt"]
    _require_known(stub, ids)
    with _flight(stub):
        found = _faulty(stub, body)
        if found is not None:
            return found
        pairs = zip(ids[1:], stub.score(ids), strict=True)
        listed = [None, *({str(token): {"logprob": value}} for token, value in pairs)]
    assert body["prompt_logprobs"] == 0
    return {"choices": [{"prompt_logprobs": listed if stub.mode != "none" else None}]}


def _vllm_models(stub, _body, _query):
    names = ["tiny", *stub.adapters]
    facts = {"max_model_len": stub.context, "root": stub.root}
    return {"data": [{"id": name, **facts} for name in names]}


def _tokenize(stub, body, _query):
    return {"tokens": stub.tokenize(body["prompt"]), "count": 0}


def _pause(stub, _body, _query):
    stub.paused = True
    return {"status": "paused"}


def _resume(stub, _body, _query):
    with PAUSED:
        stub.paused = False
        PAUSED.notify_all()
    return {"status": "resumed"}


def _reload(stub, folder):
    if stub.reload_error:
        raise Refusal(500, {"error": {"message": stub.reload_error}})
    assert (Path(folder) / "config.json").exists(), folder
    with stub.lock:
        if stub.write is not None:
            stub.write.load(folder)
        stub.weights = folder


def _collective_rpc(stub, body, _query):
    assert body["method"] == "reload_weights"
    assert stub.paused
    _reload(stub, body["kwargs"]["weights_path"])
    return {"results": [None]}


def _set_version(stub, body, _query):
    stub.version = body["new_version"]
    return {"success": True, "new_version": stub.version}


def _load_adapter(stub, body, _query):
    name, folder = body["lora_name"], body["lora_path"]
    if name in stub.adapters:
        raise Refusal(400, {"error": {"message": f"{name} has already been loaded"}})
    assert (Path(folder) / "adapter_config.json").exists()
    with stub.lock:
        if stub.write is not None:
            stub.write.load(folder)
        stub.adapters[name] = folder
    return {"success": True}


def _unload_adapter(stub, body, _query):
    if stub.adapters.pop(body["lora_name"], None) is None:
        raise Refusal(404, {"error": {"message": "no such adapter"}})
    return {"success": True}


VLLM = {
    "/health": ("GET", _health),
    "/version": ("GET", lambda stub, *_: {"version": stub.software}),
    "/v1/models": ("GET", _vllm_models),
    "/inference/v1/generate": ("POST", _vllm_generate),
    "/v1/completions": ("POST", _vllm_completions),
    "/tokenize": ("POST", _tokenize),
    "/pause": ("POST", _pause),
    "/resume": ("POST", _resume),
    "/collective_rpc": ("POST", _collective_rpc),
    "/reset_prefix_cache": ("POST", lambda *_: {"success": True}),
    "/weight_info": ("GET", lambda stub, *_: {"weight_version": stub.version}),
    "/update_weight_version": ("POST", _set_version),
    "/v1/load_lora_adapter": ("POST", _load_adapter),
    "/v1/unload_lora_adapter": ("POST", _unload_adapter),
}


def _sglang_generate(stub, body, _query):
    params = body["sampling_params"]
    _require_known(stub, body["input_ids"])
    with stub.lock:
        version = stub.version
    with _flight(stub):
        found = _faulty(stub, body)
        if found is not None:
            return found
        if params["max_new_tokens"] == 0:
            return _sglang_input_logprobs(stub, body)
        write = stub.write or rule
        with stub.lock:
            weights = _weights_of(stub, body.get("lora_path"))
            tokens, logprobs, reason = write(body["input_ids"], params, weights)
    pairs = [[p, t, None] for p, t in zip(logprobs, tokens, strict=False)]
    return {
        "text": "",
        "output_ids": tokens,
        "meta_info": {
            "finish_reason": {"type": reason},
            "weight_version": version,
            "output_token_logprobs": pairs if stub.mode != "none" else [],
        },
    }


def _sglang_input_logprobs(stub, body):
    ids, start = body["input_ids"], body["logprob_start_len"]
    pairs = [[p, t, None] for p, t in zip(stub.score(ids), ids[1:], strict=True)]
    listed = [[None, ids[start], None], *pairs[start:]]
    return {"meta_info": {"input_token_logprobs": listed if stub.mode != "none" else []}}


def _sglang_reload(stub, body, _query):
    _reload(stub, body["model_path"])
    stub.version = body["weight_version"]
    return {"success": True, "message": ""}


def _sglang_info(stub, _body, _query):
    return {"version": stub.software, "model_path": stub.root}


SGLANG = {
    "/health": ("GET", _health),
    "/get_model_info": ("GET", lambda stub, *_: {"weight_version": stub.version}),
    "/get_server_info": ("GET", _sglang_info),
    "/v1/models": ("GET", _vllm_models),
    "/generate": ("POST", _sglang_generate),
    "/tokenize": ("POST", _tokenize),
    "/pause_generation": ("POST", _pause),
    "/continue_generation": ("POST", _resume),
    "/update_weights_from_disk": ("POST", _sglang_reload),
    "/update_weight_version": ("POST", _set_version),
    "/load_lora_adapter": ("POST", _load_adapter),
    "/unload_lora_adapter": ("POST", _unload_adapter),
}

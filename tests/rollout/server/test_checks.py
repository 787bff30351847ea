"""A server that does not fit the policy is refused in one line before the first response."""

import socket
from dataclasses import replace

import pytest

from rlhf_cli.errors import ConfigError, InferenceServerError
from rlhf_cli.rollout.server import checks
from rlhf_cli.rollout.server.checks import ServerNeeds, check_server, open_to_others
from rlhf_cli.rollout.server.config import ServerConfig
from rlhf_cli.rollout.server.connect import connect
from tests.rollout.server.stub import Refusal, serving


def tokenizer(text, add_special_tokens):
    return {"input_ids": [ord(c) % 100 for c in text]}


NEEDS = ServerNeeds(tokenizer, rows=97, context_length=200)
KINDS = ("vllm", "sglang")


def check(stub, needs=NEEDS, **cfg):
    (api,) = connect(ServerConfig(server=stub.url, timeout=2, **cfg))
    return check_server(api, needs)


@pytest.mark.parametrize(("kind", "name"), [("vllm", "tiny"), ("sglang", "")])
def test_a_server_that_fits_is_named_once(kind, name, capsys):
    with serving(kind=kind) as stub:
        assert check(stub) == name
        assert f"at {stub.url} generates the responses" in capsys.readouterr().err


def refused(stub, needs=NEEDS, kind=ConfigError, **cfg):
    with pytest.raises(kind) as caught:
        check(stub, needs, **cfg)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    assert line.startswith(f"rollout.server: {stub.url}: ")
    return line


@pytest.mark.parametrize("kind", KINDS)
def test_a_shorter_context_is_refused(kind):
    with serving(kind=kind, context=199) as stub:
        assert "takes 199 tokens of prompt and response; need 200" in refused(stub)


@pytest.mark.parametrize("kind", KINDS)
def test_another_tokenizer_is_refused(kind):
    with serving(
        kind=kind, tokenize=lambda text: [1, *tokenizer(text, False)["input_ids"]]
    ) as stub:
        assert "has another tokenizer" in refused(stub)


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_without_a_tokenizer_is_asked_for_its_vocabulary_alone(kind):
    with serving(kind=kind, missing={"/tokenize"}) as stub:
        check(stub)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("rows", "line"),
    [(96, "has no token id 96"), (98, "has the token id 97; need the policy's 97")],
)
def test_another_vocabulary_is_refused(kind, rows, line):
    with serving(kind=kind, rows=rows) as stub:
        assert line in refused(stub)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fixed_model_is_that_of_the_folder_or_of_the_name(kind, tmp_path):
    def needs(*model):
        return replace(NEEDS, syncs=False, model=model)

    with serving(kind=kind, root=str(tmp_path)) as stub:
        check(stub, needs("runs/sft", f"{tmp_path}/."))
        assert f"serves {tmp_path}; need model.path=runs/sft" in refused(stub, needs("runs/sft"))
        stub.root = "/models/on/another/machine"
        check(stub, needs("tiny"))  # what it calls its model
        stub.root = "org/name"
        check(stub, needs("org/name"))
        for version in ("free", "rlhf-0123456789ab-5"):
            stub.version = version
            assert f"handed over ({version})" in refused(stub, needs("org/name"))
        stub.version = "default"
        check(stub, needs("org/name"))


def test_a_server_whose_weights_nobody_can_change_names_none():
    with serving(missing={"/weight_info"}) as stub:
        check(stub, replace(NEEDS, syncs=False, model=("tiny",)))


def test_log_probs_before_temperature_are_refused():
    with serving(mode="raw") as stub:
        assert "--logprobs-mode processed_logprobs" in refused(stub)
        greedy = ServerNeeds(tokenizer, 97, 200, logprobs=False)
        check(stub, greedy)


@pytest.mark.parametrize("kind", KINDS)
def test_no_log_probs_are_refused(kind):
    with serving(kind=kind, mode="none") as stub:
        assert "gives no log-probs" in refused(stub)


@pytest.mark.parametrize(
    ("kind", "path", "opens"),
    [
        ("vllm", "/inference/v1/generate", "--enable-scale-out"),
        ("vllm", "/collective_rpc", "VLLM_SERVER_DEV_MODE=1"),
        ("vllm", "/update_weight_version", "VLLM_SERVER_DEV_MODE=1"),
        ("sglang", "/update_weights_from_disk", "SGLang 0.5.4 or later"),
    ],
)
def test_a_server_without_an_endpoint_is_refused_with_what_opens_it(kind, path, opens):
    with serving(kind=kind, missing={path}, software="0.8.5") as stub:
        line = refused(stub)
    assert f"0.8.5 has not got {path} ({opens}" in line


def test_a_vllm_whose_token_endpoints_are_closed_is_refused_with_the_option_that_opens_them():
    with serving(closed={"/inference/v1/generate"}) as stub:
        assert "/inference/v1/generate (--enable-scale-out); need it" in refused(stub)


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_a_killed_run_has_left_frozen_goes_on(kind):
    with serving(kind=kind, paused=True) as stub:
        check(stub)
        assert not stub.paused


def test_adapters_need_their_endpoints_and_a_command_that_trains_nothing_needs_few():
    adapters = ServerNeeds(tokenizer, 97, 200, adapters=True)
    fixed = ServerNeeds(tokenizer, 97, 200, syncs=False)
    with serving(missing={"/v1/load_lora_adapter", "/pause"}) as stub:
        line = refused(stub, adapters)
        assert "/pause (VLLM_SERVER_DEV_MODE=1), /v1/load_lora_adapter (VLLM_ALLOW" in line
        check(stub, fixed)


@pytest.mark.parametrize("kind", KINDS)
def test_another_key_is_refused(kind, monkeypatch):
    monkeypatch.setenv("KEY", "secret")
    with serving(kind=kind, token="secret") as stub:
        check(stub, token="secret")
        for given in ("", "other"):
            line = refused(stub, kind=InferenceServerError, token=given)
            assert "asks for another key (HTTP 401)" in line
            assert "secret" not in line


def test_a_token_that_is_not_set_is_refused():
    with pytest.raises(ConfigError, match="variable RLHF_NO_SUCH is not set"):
        connect(ServerConfig(server="http://127.0.0.1:9", token="${oc.env:RLHF_NO_SUCH}"))


def test_other_software_and_nothing_at_all_are_refused():
    with serving(missing={"/version"}) as stub:
        assert "is neither vLLM nor SGLang" in refused(stub, kind=InferenceServerError)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(InferenceServerError, match=r"cannot be reached.*rollout\.start=vllm"):
        connect(ServerConfig(server=url))


def test_a_redirect_is_refused():
    def redirect(*_):
        raise Refusal(302, b"")

    from tests.rollout.server import stub as stubs

    with serving() as stub:
        patched = {**stubs.VLLM, "/version": ("GET", redirect)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stubs, "VLLM", patched)
            assert "redirects to" in refused(stub, kind=InferenceServerError)


def test_a_server_that_others_reach_is_warned_about(monkeypatch, capsys):
    with serving() as stub:
        (api,) = connect(ServerConfig(server=stub.url))
        assert open_to_others(api, lambda: ["127.0.0.1"]) == []
        monkeypatch.setattr(checks, "_listens", lambda address, port: port == stub.port)
        (line,) = open_to_others(api, lambda: ["127.0.0.1", "192.0.2.7"])
        assert "listens on 192.0.2.7 too" in line
        assert "--host 127.0.0.1" in line
        monkeypatch.setattr(checks, "own_addresses", lambda: ["192.0.2.7"])
        check(stub)
        assert "warning: rollout.server" in capsys.readouterr().err
        monkeypatch.setattr(checks, "is_loopback", lambda host: False)
        (line,) = open_to_others(api)
        assert "for everyone who reaches it, without a key" in line


def test_the_addresses_of_this_machine_are_addresses():
    for address in checks.own_addresses():
        assert socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)

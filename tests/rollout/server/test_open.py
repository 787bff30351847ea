"""Engines are opened on running and on started servers, by one process and by several."""

import os
import shlex
import signal
import sys
from pathlib import Path

import pytest
import torch

from rlhf_cli.context import RunContext
from rlhf_cli.errors import ConfigError, InferenceServerError, RankFailed
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.server.config import RolloutConfig, ServerConfig
from rlhf_cli.rollout.server.open import open_engine, open_fixed_engine
from tests.helpers import tiny_llama, tokenizer_of
from tests.rollout.server.helpers import ids, respond
from tests.rollout.server.stub import serving
from tests.rollout.server.test_hand_over import policy_of, save_tokenizer
from tests.thread_ranks import on_ranks

SAMPLING = SamplingConfig(max_new_tokens=6)
STUB = Path(__file__).parent / "serve_stub.py"


class Tokenizer:
    """A tokenizer whose ids are those of the stub's."""

    eos_token_id = 2
    get_vocab = staticmethod(tokenizer_of(range(97)).get_vocab)
    save_pretrained = staticmethod(save_tokenizer)

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [ord(c) % 100 for c in text]}


def opened(tmp_path, ranks=None, length=200, **cfg):
    context = {} if ranks is None else {"ranks": ranks}
    ctx = RunContext(torch.device("cpu"), torch.float32, 0, tmp_path, **context)
    settings = RolloutConfig(**{"timeout": 5, "deadline": 20, **cfg})
    return open_engine(settings, policy_of(tiny_llama()), Tokenizer(), SAMPLING, ctx, length)


def test_an_engine_on_servers_that_run(tmp_path):
    with serving() as one, serving() as other:
        engine = opened(tmp_path, server=[one.url, other.url], sync_folder=str(tmp_path / "s"))
        engine.hand_over(7)
        found = respond(engine)
        assert {response.weights_version for response in found} == {7}
        assert one.version == other.version != "default"
        engine.close()
        assert list((tmp_path / "s").iterdir()) == []
        assert (one.version, other.version) == ("free", "free")


def test_one_server_of_several_that_does_not_fit_is_named(tmp_path):
    with serving() as one, serving(context=100) as other:
        with pytest.raises(ConfigError, match=other.url):
            opened(tmp_path, server=[one.url, other.url])
        one.version = "rlhf-0123456789ab-5"
        with pytest.raises(InferenceServerError, match="the weights of another run"):
            opened(tmp_path, server=one.url)


def test_a_started_server_gets_a_folder_to_start_from_and_ends_with_the_engine(tmp_path):
    start = f"{shlex.quote(sys.executable)} {STUB} {{model}} {{port}} {{name}}"
    engine = opened(tmp_path, start=start, sync_folder=str(tmp_path / "s"))
    engine.hand_over(0)
    assert {one.weights_version for one in respond(engine)} == {0}
    assert "config.json tokenizer.json" in (tmp_path / "server.log").read_text()
    engine.close()
    assert engine.process._process.poll() is not None


def test_a_started_server_that_does_not_fit_is_stopped(tmp_path):
    start = f"{shlex.quote(sys.executable)} {STUB} {{model}} {{port}} {{name}}"
    with pytest.raises(ConfigError, match=r"rollout\.start: .*need 300"):
        opened(tmp_path, start=start, length=300, sync_folder=str(tmp_path / "s"))
    assert not list((tmp_path / "s").iterdir())
    assert "pid" in (tmp_path / "server.log").read_text()
    pid = int((tmp_path / "server.log").read_text().split("pid ")[1].split()[0])
    assert not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_text()


def test_a_server_that_cannot_start_leaves_no_weights_behind(tmp_path):
    for start in ("no-such-server {model}", "false {model}"):
        with pytest.raises((ConfigError, InferenceServerError)):
            opened(tmp_path, start=start, sync_folder=str(tmp_path / "s"))
        assert list((tmp_path / "s").iterdir()) == []


def test_a_started_server_that_dies_is_not_waited_for(tmp_path):
    start = f"{shlex.quote(sys.executable)} {STUB} {{model}} {{port}} {{name}}"
    engine = opened(tmp_path, start=start, sync_folder=str(tmp_path / "s"), deadline=1000)
    engine.hand_over(0)
    pid = int((tmp_path / "server.log").read_text().split("pid ")[1].split()[0])
    os.kill(pid, signal.SIGKILL)
    engine.process._process.wait(10)
    with pytest.raises(InferenceServerError, match="the server ended with exit code 137"):
        respond(engine)
    engine.close()


def test_several_ranks_share_the_servers_and_rank_0_hands_over(tmp_path):
    def act(ranks):
        engine = opened(tmp_path, ranks, server=stub.url, sync_folder=str(tmp_path / "s"))
        engine.hand_over(3)
        numbers = ranks.shard(4)
        prompts = [[5, 6], [7], [8], [9]]
        found = respond(engine, [prompts[k] for k in numbers], numbers=numbers)
        versions = {one.weights_version for one in found}
        ranks.all_gather_json(0)
        engine.close()
        return ids(found), versions

    with serving() as stub:
        (first, versions), (second, _) = on_ranks(2, act)
        reloads = [call for call in stub.calls if call[:2] == ("POST", "/collective_rpc")]
        assert len(reloads) == 1
        assert versions == {3}
        stub.calls.clear()
        engine = opened(tmp_path, server=stub.url, sync_folder=str(tmp_path / "s"))
        engine.hand_over(3)
        assert ids(respond(engine, [[5, 6], [7], [8], [9]])) == [*first, *second]


def test_the_ranks_learn_the_address_of_the_server_that_rank_0_starts(tmp_path):
    start = f"{shlex.quote(sys.executable)} {STUB} {{model}} {{port}} {{name}}"

    def act(ranks):
        engine = opened(tmp_path, ranks, start=start, sync_folder=str(tmp_path / "s"))
        engine.hand_over(1)
        found = respond(engine, [[5]])
        ranks.all_gather_json(0)
        engine.close()
        return engine.connections[0].api.client.url, ids(found)

    one, other = on_ranks(2, act)
    assert one == other


def test_where_a_hand_over_fails_all_ranks_end(tmp_path):
    ended = []

    def act(ranks):
        engine = opened(tmp_path, ranks, server=stub.url, sync_folder=str(tmp_path / "s"))
        stub.version = "rlhf-0123456789ab-5"
        try:
            engine.hand_over(0)
        except (InferenceServerError, RankFailed) as error:
            ended.append(type(error))
            raise

    with serving() as stub, pytest.raises(InferenceServerError, match="another run"):
        on_ranks(2, act)
    assert sorted(kind.__name__ for kind in ended) == ["InferenceServerError", "RankFailed"]


def test_a_command_that_trains_nothing_takes_the_weights_that_are_there(tmp_path):
    with serving() as stub:
        stub.version = "rlhf-0123456789ab-5"  # of a run that trains
        engine = open_fixed_engine(
            ServerConfig(server=stub.url),
            tiny_llama(),
            Tokenizer(),
            SAMPLING,
            200,
            folder=tmp_path,
            log=tmp_path / "log",
        )
        engine.hand_over(4)
        assert {one.weights_version for one in respond(engine)} == {0}
        engine.close()
        assert stub.version == "rlhf-0123456789ab-5"
    assert "/collective_rpc" not in stub.paths()


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_a_server_that_a_killed_run_has_left_paused_goes_on(kind, tmp_path):
    with serving(kind=kind) as stub:
        stub.paused = True
        engine = opened(tmp_path, server=stub.url, sync_folder=str(tmp_path / "s"))
        assert not stub.paused
        engine.hand_over(0)
        assert {one.weights_version for one in respond(engine)} == {0}
        engine.close()

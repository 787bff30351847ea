"""Open a `ServerEngine`: start or find the servers, check them, and prepare the hand-over."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

from rlhf_cli.context import RunContext
from rlhf_cli.distributed.ranks import SINGLE_PROCESS, Ranks
from rlhf_cli.errors import InferenceServerError
from rlhf_cli.http_client import HTTPFailure
from rlhf_cli.models.policy import Policy
from rlhf_cli.models.vocabulary import num_embeddings
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.server.api import ServerAPI
from rlhf_cli.rollout.server.checks import ServerNeeds, check_server
from rlhf_cli.rollout.server.config import RolloutConfig, ServerConfig
from rlhf_cli.rollout.server.connect import connect
from rlhf_cli.rollout.server.connection import Connection
from rlhf_cli.rollout.server.engine import ServerEngine
from rlhf_cli.rollout.server.hand_over import WeightSync, choose_folder
from rlhf_cli.rollout.server.owner import Owner
from rlhf_cli.rollout.server.process import ServedModel, ServerProcess
from rlhf_cli.rollout.server.write import PolicyWriter, choose_kind
from rlhf_cli.runs.run_files import SERVER_LOG

START_SECONDS = 900.0
"""Time that a started server may take to load its model, at least."""


def open_engine(
    cfg: RolloutConfig,
    policy: Policy,
    tokenizer: Any,
    sampling: SamplingConfig,
    ctx: RunContext,
    context_length: int,
) -> ServerEngine:
    """Open the engine of a training run; every rank calls it.

    `hand_over` comes before the first response.

    Args:
        cfg: the group `rollout`.
        policy: the model that is trained.
        tokenizer: the policy's.
        sampling: how tokens are sampled.
        ctx: run folder, compute type and ranks.
        context_length: tokens of the longest prompt and response together.

    Raises:
        ConfigError: the servers or the policy cannot do what the configuration asks for.
        InferenceServerError: a server cannot be started or reached, or belongs to another run.
        RankFailed: another rank failed.
    """
    sharded = ctx.mesh is not None
    kind = choose_kind(cfg.sync, policy, sharded=sharded)
    write = PolicyWriter(
        policy,
        tokenizer,
        kind,
        ctx.compute,
        ctx.ranks,
        sharded=sharded,
        untied=bool(cfg.start) and ctx.device.type == "cpu",
    )
    owner = Owner.of_run(ctx.out)
    folder = choose_folder(cfg.sync_folder, owner)
    sync = WeightSync(write, kind, owner, folder, ranks=ctx.ranks, kept=cfg.lag)
    needs = ServerNeeds(
        tokenizer,
        num_embeddings(policy.model),
        context_length,
        logprobs=sampling.temperature > 0,
        adapters=kind == "adapter",
    )
    try:
        process = _start_policy(cfg, policy, sync, ctx, context_length) if cfg.start else None
        return _open(cfg, policy, tokenizer, sampling, needs, process, sync, ctx.ranks)
    except BaseException:
        sync.close([])  # its folder is as large as the model, in memory
        raise


def _start_policy(
    cfg: RolloutConfig, policy: Policy, sync: WeightSync, ctx: RunContext, context_length: int
) -> ServerProcess | _Remote:
    """Start a server with the policy: with its current weights, or with its base for adapters."""
    served, rank = sync.folder / "start", 0
    if policy.adapters is not None and sync.kind == "adapter":
        served, rank = Path(policy.adapters.source.folder), _rank_of(policy)
    else:
        sync.write_start(served)
    dtype = str(ctx.compute).removeprefix("torch.")
    model = ServedModel(
        served,
        dtype,
        context_length,
        rank,
        adapters=cfg.lag + 2,
        on_cpu=ctx.device.type == "cpu",
    )
    process = _start(cfg, model, ctx.out, ctx.ranks)
    shutil.rmtree(sync.folder / "start", ignore_errors=True)
    return process


def open_fixed_engine(
    cfg: ServerConfig,
    model: Any,
    tokenizer: Any,
    sampling: SamplingConfig,
    context_length: int,
    *,
    folder: Path,
    log: Path,
    dtype: str = "auto",
    path: str = "",
    logprobs: bool = True,
    on_cpu: bool = False,
) -> ServerEngine:
    """Open the engine of a command that trains nothing: the servers keep the weights they have.

    Args:
        cfg: the group `rollout`.
        model: has the vocabulary and end tokens of what the servers serve; may be without weights.
        tokenizer: of the model.
        sampling: how tokens are sampled.
        context_length: tokens of the longest prompt and response together.
        folder: of the model, for a server that is started.
        log: file for the output of a server that is started.
        dtype: of its weights.
        path: `model.path`, which running servers must have been started with; empty takes any
            with its vocabulary.
        logprobs: whether the log-probs of the samplers are used.
        on_cpu: whether a server that is started computes on a CPU.

    Raises:
        ConfigError: the servers cannot do what the configuration asks for, or have another model.
        InferenceServerError: a server cannot be started or reached.
    """
    process = None
    if cfg.start:
        served = ServedModel(folder, dtype, context_length, on_cpu=on_cpu)
        process = ServerProcess(cfg.start, served, log)
        process.wait_until_healthy(max(cfg.deadline, START_SECONDS))
    inner = getattr(model, "model", model) if isinstance(model, Policy) else model
    needs = ServerNeeds(
        tokenizer,
        num_embeddings(inner),
        context_length,
        logprobs=logprobs and sampling.temperature > 0,
        syncs=False,
        model=[path, str(folder)] if path and process is None else [],
    )
    engine = _open(cfg, model, tokenizer, sampling, needs, process, None, SINGLE_PROCESS)
    engine.logprobs = logprobs
    return engine


def _rank_of(policy: Policy) -> int:
    """Rank of the trained adapter."""
    assert policy.adapters is not None
    return max(int(config.r) for config in policy.adapters.model.peft_config.values())


class _Remote:
    """A server that another rank has started: its address."""

    def __init__(self, address: str, token: str) -> None:
        self.address, self.token = address, token

    def require_running(self) -> None:
        """Rank 0 looks."""

    def stop(self) -> None:
        """Rank 0 stops it."""


def _start(
    cfg: ServerConfig, model: ServedModel, out: Path, ranks: Ranks
) -> ServerProcess | _Remote:
    """Start the server on rank 0; the others learn its address."""
    started: list[ServerProcess] = []

    def start() -> None:
        process = ServerProcess(cfg.start, model, out / SERVER_LOG)
        started.append(process)
        process.wait_until_healthy(max(cfg.deadline, START_SECONDS))

    try:
        ranks.run_on_main(start)
    except BaseException:
        for process in started:
            process.stop()
        raise
    own = [started[0].address, started[0].token] if started else ["", ""]
    address, token = ranks.all_gather_json(own)[0]
    return started[0] if started else _Remote(address, token)


def _open(
    cfg: ServerConfig,
    model: Any,
    tokenizer: Any,
    sampling: SamplingConfig,
    needs: ServerNeeds,
    process: ServerProcess | _Remote | None,
    sync: WeightSync | None,
    ranks: Ranks,
) -> ServerEngine:
    try:
        apis = ranks.call_together(lambda: _connect(cfg, process))
        names: list[str] = []

        def check() -> None:
            for api in apis:
                if sync is not None:
                    _require_owned(sync, api)
                names.append(check_server(api, needs))

        ranks.run_on_main(check)
        names = ranks.all_gather_json(names)[0]
    except BaseException:
        if process is not None:
            process.stop()
        raise
    slots = threading.BoundedSemaphore(cfg.concurrency)
    connections = [Connection(api, cfg.deadline, slots, process) for api in apis]
    return ServerEngine(
        connections,
        names,
        model,
        tokenizer,
        sampling,
        concurrency=cfg.concurrency,
        sync=sync,
        process=process,
    )


def _connect(cfg: ServerConfig, process: ServerProcess | _Remote | None) -> list[ServerAPI]:
    if process is None:
        return connect(cfg)
    return connect(cfg, [process.address], process.token)


def _require_owned(sync: WeightSync, api: ServerAPI) -> None:
    try:
        sync.require_owned(api)
    except HTTPFailure as error:
        raise InferenceServerError(f"{api.origin}: {error}") from error

"""Responses of inference servers, for commands that train nothing: no weights in this process."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_cli.commands.generator import Responses, TextGenerator
from rlhf_cli.commands.served.config import ServedConfig
from rlhf_cli.context import RunContext
from rlhf_cli.models.config import ModelConfig, QuantConfig
from rlhf_cli.models.outline import load_outline
from rlhf_cli.models.resolve import resolve_folder
from rlhf_cli.rollout.config import SamplingConfig
from rlhf_cli.rollout.response import Response
from rlhf_cli.rollout.server.config import ServerConfig
from rlhf_cli.rollout.server.engine import ServerEngine
from rlhf_cli.rollout.server.open import open_fixed_engine
from rlhf_cli.runs.run_files import SERVER_LOG


@contextmanager
def open_generator(
    cfg: ServedConfig, model: ModelConfig, ctx: RunContext, *, skip_special_tokens: bool = False
) -> Iterator[TextGenerator]:
    """A model that generates in this process, or in servers where the configuration names some.

    A server that is started is ended after it. Its log stays where it failed.

    Args:
        cfg: of the command.
        model: that generates.
        ctx: device and compute type.
        skip_special_tokens: remove all special tokens from the texts of responses.

    Raises:
        ModelError: the model cannot be loaded.
    """
    if not cfg.rollout.is_used:
        yield TextGenerator(
            model, cfg.quant, cfg.template, ctx, skip_special_tokens=skip_special_tokens
        )
        return
    log = Path(tempfile.mkdtemp(prefix="rlhf-server-")) if cfg.rollout.start else Path()
    generator = ServedGenerator(
        model, cfg.rollout, cfg.template, ctx, log=log, skip_special_tokens=skip_special_tokens
    )
    try:
        yield generator
    finally:
        generator.close()
    if cfg.rollout.start:
        shutil.rmtree(log, ignore_errors=True)


class ServedGenerator(TextGenerator):
    """A language model in inference servers, with its tokenizer and prompt format.

    Args:
        model: whole weights, in a folder, a run or on the hub.
        rollout: the servers.
        template: whether a text becomes a user message.
        ctx: compute type, for a server that is started.
        log: folder for the log of a server that is started.
        skip_special_tokens: remove all special tokens from the texts of responses.
    """

    def __init__(
        self,
        model: ModelConfig,
        rollout: ServerConfig,
        template: str,
        ctx: RunContext,
        *,
        log: Path,
        skip_special_tokens: bool = False,
    ) -> None:
        super().__init__(
            model, QuantConfig(), template, ctx, skip_special_tokens=skip_special_tokens
        )
        self._cfg, self._rollout, self._ctx, self._log = model, rollout, ctx, log
        self._engine: ServerEngine | None = None

    def load(self, cfg: ModelConfig, quant: QuantConfig, ctx: RunContext) -> Any:
        """Load what the tokens need; the servers have the weights."""
        return load_outline(cfg)

    def generate(
        self,
        tokens: Sequence[list[int]],
        sampling: SamplingConfig,
        batch_size: int,
        samples: int = 1,
    ) -> Iterator[Responses]:
        """Generate responses; the servers are started or found before the first one.

        `rollout.concurrency` requests are in flight at once, whatever `batch_size` is.
        """
        length = max(map(len, tokens)) + sampling.max_new_tokens
        self._engine = self._open(sampling, length)
        return super().generate(tokens, sampling, self._rollout.concurrency, samples)

    def _open(self, sampling: SamplingConfig, length: int) -> ServerEngine:
        """Start or find the servers, and check them."""
        cfg = self._cfg
        weights = bool(self._rollout.start)
        return open_fixed_engine(
            self._rollout,
            self.model,
            self.tokenizer,
            sampling,
            length,
            folder=Path(resolve_folder("model.path", cfg.path, cfg.revision, weights=weights)),
            log=self._log / SERVER_LOG,
            dtype=str(self._ctx.compute).removeprefix("torch."),
            path=cfg.path,
            logprobs=False,
            on_cpu=self._ctx.device.type == "cpu",
        )

    def respond(
        self,
        prompts: Sequence[list[int]],
        sampling: SamplingConfig,
        batch_size: int,
        samples: int,
        numbers: Sequence[int],
    ) -> list[Response]:
        """Ask the servers for responses to some of the prompts."""
        assert self._engine is not None
        return self._engine.generate(prompts, samples=samples, prompt_numbers=numbers)

    def stream(self, prompt: list[int], sampling: SamplingConfig) -> None:
        """Print the response to one prompt when it is complete."""
        (found,) = self.generate([prompt], sampling, 1)
        print(*found.texts)

    def close(self) -> None:
        """End a server that was started."""
        if self._engine is not None:
            self._engine.close()

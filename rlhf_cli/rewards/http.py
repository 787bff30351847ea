"""Scorer that queries an HTTP endpoint: POST {prompts, responses, columns} -> {scores}."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from rlhf_cli.config.references import public_url, unset_names
from rlhf_cli.errors import ConfigError, DataError
from rlhf_cli.http_client import (
    HTTPClient,
    HTTPFailure,
    excerpt,
    run_concurrently,
    with_retries,
)
from rlhf_cli.rewards.config import ScorerConfig
from rlhf_cli.rewards.samples import Samples
from rlhf_cli.rewards.scorer import check_scores

T = TypeVar("T")


class HTTPScorer:
    """Scores batches by an HTTP endpoint, with retries; a missing score is an error.

    Args:
        cfg: `url`, `headers`, `timeout`, `retries`, `batch_size` and `concurrency` are read.
        key: config key of the url, for messages.
        sleep: waits for a number of seconds.

    Raises:
        ConfigError: the url or a header refers to an environment variable that is not set.
    """

    nbytes = 0

    def __init__(
        self, cfg: ScorerConfig, key: str, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        for text in (cfg.url, *cfg.headers.values()):
            for name in unset_names(text):
                raise ConfigError(
                    f"{key}: the environment variable {name} is not set, which its address or "
                    f"headers refer to. Try export {name}=..."
                )
        self.cfg, self.sleep = cfg, sleep
        self.description = public_url(cfg.url)
        self.client = HTTPClient(cfg.url, key, cfg.timeout, cfg.headers)
        self.origin = self.client.origin

    def require_reachable(self) -> None:
        """Check before a run starts that the endpoint is reachable and does not redirect.

        Raises:
            DataError: it is not reachable, or redirects.
        """
        self._with_retries(self.client.require_reachable)

    def __call__(self, samples: Samples) -> list[float]:
        """Scores [n], requested in batches, `concurrency` of them at once.

        Raises:
            DataError: no answer, or not a finite number for each response; of several batches that
                fail, the first is named.
        """
        firsts = range(0, len(samples), self.cfg.batch_size)
        score = partial(self._score, samples)
        batches = run_concurrently(score, firsts, self.cfg.concurrency, in_order=True)
        return [score for scores in batches for score in scores]

    def _score(self, samples: Samples, first: int) -> list[float]:
        """Scores of the batch that begins at sample `first`; called by several threads."""
        part = samples.part(first, first + self.cfg.batch_size)
        columns = {name: list(values) for name, values in part.columns.items()}
        body = json.dumps({**part.call_arguments(), "columns": columns}, default=str).encode()
        answer = self._with_retries(partial(self.client.request, body=body))
        return check_scores(self._parse(answer), part, self.origin, first)

    def _with_retries(self, request: Callable[[], T]) -> T:
        """Call `request`, and again up to `retries` times if it fails.

        Raises:
            DataError: every call failed, or the server refused one.
        """
        try:
            return with_retries(request, self.cfg.retries, self.origin, self.sleep)
        except HTTPFailure as error:
            raise DataError(f"{self.origin}: {error}") from error

    def _parse(self, answer: bytes) -> Any:
        try:
            return json.loads(answer)["scores"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise DataError(
                f"{self.origin}: answers {excerpt(answer) or 'nothing'}; need a JSON object "
                '{"scores": [...]} with a number for each response'
            ) from None

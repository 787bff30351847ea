"""Scorer that queries an HTTP endpoint: POST {prompts, responses, columns} -> {scores}."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from http.client import HTTPException, HTTPMessage
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin, urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from rlhf_cli.config.references import public_url, unset_names
from rlhf_cli.console import logger
from rlhf_cli.errors import ConfigError, DataError, first_line
from rlhf_cli.rewards.config import ScorerConfig
from rlhf_cli.rewards.samples import Samples
from rlhf_cli.rewards.scorer import check_scores

MIN_BACKOFF, MAX_BACKOFF = 0.5, 30.0
"""Seconds before a retry; doubled after each."""

RETRY_STATUS = (408, 425, 429)
"""HTTP status codes to retry, besides all from 500."""

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
"""Hosts that are reached without a proxy."""


class _RetryableError(Exception):
    """A request failed in a way that a retry may fix."""


class _NoRedirects(HTTPRedirectHandler):
    """Raises HTTPError on a redirect: urllib would send the headers to any other host."""

    def http_error_302(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage
    ) -> None:
        """Do nothing, so that urllib raises the error."""

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class HTTPScorer:
    """Scores batches by an HTTP endpoint, with retries; a missing score is an error.

    Args:
        cfg: `url`, `headers`, `timeout`, `retries` and `batch_size` are read.
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
        self.cfg, self.key, self.sleep = cfg, key, sleep
        self.description = public_url(cfg.url)
        self.origin = f"{key}: {self.description}"
        is_local = urlsplit(cfg.url).hostname in LOCAL_HOSTS
        proxies = [ProxyHandler({})] if is_local else []
        self.opener = build_opener(_NoRedirects, *proxies)

    def require_reachable(self) -> None:
        """Check before a run starts that the endpoint is reachable and does not redirect.

        Raises:
            DataError: it is not reachable, or redirects.
        """
        self._with_retries(self._ping)

    def __call__(self, samples: Samples) -> list[float]:
        """Scores [n], requested in batches.

        Raises:
            DataError: no answer, or not a finite number for each response.
        """
        scores: list[float] = []
        for first in range(0, len(samples), self.cfg.batch_size):
            part = samples.part(first, first + self.cfg.batch_size)
            columns = {name: list(values) for name, values in part.columns.items()}
            body = json.dumps({**part.call_arguments(), "columns": columns}, default=str).encode()
            answer = self._with_retries(partial(self._post, body))
            scores += check_scores(self._parse(answer), part, self.origin, first)
        return scores

    def _with_retries(self, request: Callable[[], bytes]) -> bytes:
        """Call `request`, and again up to `retries` times if it fails.

        Raises:
            DataError: every call failed.
        """
        backoff = MIN_BACKOFF
        for left in range(self.cfg.retries, -1, -1):
            try:
                return request()
            except _RetryableError as error:
                if not left:
                    times = f"{self.cfg.retries + 1} times" if self.cfg.retries else "once"
                    raise DataError(f"{self.origin}: {error}; asked {times}") from error
                logger.info(f"{self.origin}: {error}; asking again in {backoff:g} s")
                self.sleep(backoff)
                backoff = min(2 * backoff, MAX_BACKOFF)
        raise AssertionError("retries is 0 or more")

    def _ping(self) -> bytes:
        try:
            self._open(Request(self.cfg.url, headers=self.cfg.headers, method="HEAD"))
        except HTTPError as error:
            error.close()
        except URLError as error:
            if not isinstance(error.reason, TimeoutError):
                raise _RetryableError(f"cannot be reached ({first_line(error)})") from error
        except (OSError, HTTPException):
            pass  # a server is there, which rejects HEAD
        return b""

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", **self.cfg.headers}
        request = Request(self.cfg.url, body, headers)
        late = f"no answer within timeout={self.cfg.timeout:g} seconds"
        try:
            return self._open(request)
        except HTTPError as error:
            with error:
                text = f"answers HTTP {error.code}: {_start(error.read(400)) or error.reason}"
            if error.code in RETRY_STATUS or error.code >= 500:
                raise _RetryableError(text) from error
            raise DataError(f"{self.origin}: {text}") from error
        except TimeoutError as error:
            raise _RetryableError(late) from error
        except URLError as error:
            timed_out = isinstance(error.reason, TimeoutError)
            reason = late if timed_out else f"cannot be reached ({first_line(error)})"
            raise _RetryableError(reason) from error
        except (OSError, HTTPException) as error:
            raise _RetryableError(f"broke off ({first_line(error)})") from error

    def _open(self, request: Request) -> bytes:
        try:
            with self.opener.open(request, timeout=self.cfg.timeout) as answer:
                return bytes(answer.read())
        except HTTPError as error:
            location = error.headers.get("Location")
            if location is None or not 300 <= error.code < 400:
                raise
            error.close()
            raise DataError(self._redirected(error.code, location)) from error

    def _redirected(self, code: int, location: str) -> str:
        try:
            target = public_url(urljoin(self.cfg.url, " ".join(location.split())))
        except ValueError:
            target = "an address that cannot be read"
        return (
            f"{self.origin}: redirects to {target} (HTTP {code}); need an endpoint that answers "
            "itself, because headers and prompts are sent to no other address. "
            f"Try the final address as {self.key}"
        )

    def _parse(self, answer: bytes) -> Any:
        try:
            return json.loads(answer)["scores"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise DataError(
                f"{self.origin}: answers {_start(answer) or 'nothing'}; need a JSON object "
                '{"scores": [...]} with a number for each response'
            ) from None


def _start(answer: bytes) -> str:
    """Start of an answer, on one line."""
    text = " ".join(answer[:200].decode("utf-8", "replace").split())
    return text if len(text) <= 80 else text[:80] + "..."

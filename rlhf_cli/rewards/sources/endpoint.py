"""Scores of an HTTP endpoint: POST {prompts, responses, columns}, answered by {scores}."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from http.client import HTTPException, HTTPMessage
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin, urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from rlhf_cli.config.references import public_url, unset_names
from rlhf_cli.console import logger
from rlhf_cli.errors import ConfigError, DataError, first_line
from rlhf_cli.rewards.samples import Samples
from rlhf_cli.rewards.sources.config import RewardSource
from rlhf_cli.rewards.sources.scorer import numbers

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a request is repeated; each pause is twice the one before."""

TRANSIENT = (408, 425, 429)
"""HTTP codes that say `later`, beside all from 500 on."""

LOCAL = ("localhost", "127.0.0.1", "::1")
"""Hosts that no proxy knows."""


class _Unanswered(Exception):
    """The request may be answered if it is repeated."""


class _NoRedirects(HTTPRedirectHandler):
    """Leaves a redirect as an HTTPError: urllib would send the headers to any other host."""

    def http_error_302(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage
    ) -> None:
        """Not handled, so that urllib raises the error."""

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class EndpointScorer:
    """Sends batches to an endpoint, again where it does not answer; a score is never made up.

    Args:
        source: `url`, `timeout`, `retries` and `batch_size`.
        key: that named it, for messages.
        pause: waits for some seconds.

    Raises:
        ConfigError: its address or a header needs an environment variable that is not set.
    """

    nbytes = 0

    def __init__(
        self, source: RewardSource, key: str, pause: Callable[[float], None] = time.sleep
    ) -> None:
        for text in (source.url, *source.headers.values()):
            for name in unset_names(text):
                raise ConfigError(
                    f"{key}: the environment variable {name} is not set, which its address or "
                    f"headers refer to. Try export {name}=..."
                )
        self.source, self.key, self.pause = source, key, pause
        self.described = public_url(source.url)
        self.who = f"{key}: {self.described}"
        own_machine = urlsplit(source.url).hostname in LOCAL
        proxies = [ProxyHandler({})] if own_machine else []
        self.opener = build_opener(_NoRedirects, *proxies)

    def require_listener(self) -> None:
        """Find out before a run starts whether anything is there that does not redirect.

        Raises:
            DataError: nothing is there, or it redirects.
        """
        self._patiently(self._knock)

    def __call__(self, samples: Samples) -> list[float]:
        """Scores, batch by batch.

        Raises:
            DataError: it does not answer, or not with a finite number for each response.
        """
        scores: list[float] = []
        for first in range(0, len(samples), self.source.batch_size):
            part = samples.part(first, first + self.source.batch_size)
            columns = {name: list(values) for name, values in part.columns.items()}
            body = json.dumps({**part.call_arguments(), "columns": columns}, default=str).encode()
            answer = self._patiently(lambda body=body: self._post(body))  # type: ignore[misc]
            scores += numbers(self._read(answer), part, self.who, first)
        return scores

    def _patiently(self, ask: Callable[[], bytes]) -> bytes:
        """Ask until there is an answer, at most `retries` times more.

        Raises:
            DataError: there is none.
        """
        pause = FIRST_PAUSE
        for left in range(self.source.retries, -1, -1):
            try:
                return ask()
            except _Unanswered as error:
                if not left:
                    times = f"{self.source.retries + 1} times" if self.source.retries else "once"
                    raise DataError(f"{self.who}: {error}; asked {times}") from error
                logger.info(f"{self.who}: {error}; asking again in {pause:g} s")
                self.pause(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        raise AssertionError("retries is 0 or more")

    def _knock(self) -> bytes:
        try:
            self._open(Request(self.source.url, headers=self.source.headers, method="HEAD"))
        except HTTPError as error:
            error.close()
        except URLError as error:
            if not isinstance(error.reason, TimeoutError):
                raise _Unanswered(f"cannot be reached ({first_line(error)})") from error
        except (OSError, HTTPException):
            pass  # somebody is there who answers only what is asked in the right way
        return b""

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", **self.source.headers}
        request = Request(self.source.url, body, headers)
        late = f"no answer within timeout={self.source.timeout:g} seconds"
        try:
            return self._open(request)
        except HTTPError as error:
            with error:
                text = f"answers HTTP {error.code}: {_start(error.read(400)) or error.reason}"
            if error.code in TRANSIENT or error.code >= 500:
                raise _Unanswered(text) from error
            raise DataError(f"{self.who}: {text}") from error
        except TimeoutError as error:
            raise _Unanswered(late) from error
        except URLError as error:
            timed_out = isinstance(error.reason, TimeoutError)
            reason = late if timed_out else f"cannot be reached ({first_line(error)})"
            raise _Unanswered(reason) from error
        except (OSError, HTTPException) as error:
            raise _Unanswered(f"broke off ({first_line(error)})") from error

    def _open(self, request: Request) -> bytes:
        try:
            with self.opener.open(request, timeout=self.source.timeout) as answer:
                return bytes(answer.read())
        except HTTPError as error:
            location = error.headers.get("Location")
            if location is None or not 300 <= error.code < 400:
                raise
            error.close()
            raise DataError(self._redirected(error.code, location)) from error

    def _redirected(self, code: int, location: str) -> str:
        try:
            target = public_url(urljoin(self.source.url, " ".join(location.split())))
        except ValueError:
            target = "an address that cannot be read"
        return (
            f"{self.who}: redirects to {target} (HTTP {code}); need an endpoint that answers "
            "itself, because headers and prompts are sent to no other address. "
            f"Try the final address as {self.key}"
        )

    def _read(self, answer: bytes) -> Any:
        try:
            return json.loads(answer)["scores"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise DataError(
                f"{self.who}: answers {_start(answer) or 'nothing'}; need a JSON object "
                '{"scores": [...]} with a number for each response'
            ) from None


def _start(answer: bytes) -> str:
    """How an answer begins, on one line."""
    text = " ".join(answer[:200].decode("utf-8", "replace").split())
    return text if len(text) <= 80 else text[:80] + "..."

"""Requests to one server over HTTP, by the standard library.

Redirects are refused, because headers would be sent to another host. Hosts of this machine are
reached without a proxy. An error is one line that says what the server did; the caller adds which
key names the server, and decides whether to ask again.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from http.client import HTTPException, HTTPMessage
from typing import IO, Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin, urlsplit
from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

from rlhf_cli.config.references import public_url
from rlhf_cli.console import logger
from rlhf_cli.errors import first_line

S = TypeVar("S")
T = TypeVar("T")

MIN_BACKOFF, MAX_BACKOFF = 0.5, 30.0
"""Seconds before a retry; doubled after each."""

RETRY_STATUS = (408, 425, 429)
"""HTTP status codes to retry, besides all from 500."""

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
"""Hosts that are reached without a proxy."""


class HTTPFailure(Exception):
    """A request failed; the message says what the server did.

    Attributes:
        status: HTTP status code; 0 where there was no answer, or one that cannot be used.
    """

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class RetryableFailure(HTTPFailure):
    """A request failed in a way that a retry may fix."""


class RefusedRequest(HTTPFailure):
    """The server refused a request, or redirects it; a retry would not change that."""


class _NoRedirects(HTTPRedirectHandler):
    """Raises HTTPError on a redirect: urllib would send the headers to any other host."""

    def http_error_302(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage
    ) -> None:
        """Do nothing, so that urllib raises the error."""

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class HTTPClient:
    """Sends requests to one address; threads may share it.

    Args:
        url: address that paths are appended to.
        key: config key of the address, for messages.
        timeout: seconds without an answer after which a request has failed.
        headers: of every request.
    """

    def __init__(
        self, url: str, key: str, timeout: float, headers: Mapping[str, str] | None = None
    ) -> None:
        self.url, self.key, self.timeout = url, key, timeout
        self.headers = dict(headers or {})
        self.origin = f"{key}: {public_url(url)}"
        proxies = [ProxyHandler({})] if urlsplit(url).hostname in LOCAL_HOSTS else []
        self._opener = build_opener(_NoRedirects, *proxies)

    def request(
        self,
        path: str = "",
        body: bytes | None = None,
        *,
        method: str | None = None,
        timeout: float | None = None,
    ) -> bytes:
        """Send a request, and return the body of the answer.

        Args:
            path: appended to the address.
            body: JSON; without one, the request is a GET.
            method: by default POST with a body, else GET.
            timeout: seconds, by default the client's.

        Raises:
            RetryableFailure: no answer, or one that says that the server is busy or broken.
            RefusedRequest: another status of an error, or a redirect.
        """
        headers = {**({} if body is None else {"Content-Type": "application/json"}), **self.headers}
        seconds = self.timeout if timeout is None else timeout
        late = f"no answer within timeout={seconds:g} seconds"
        url = self.url + path
        try:
            with self._opener.open(
                Request(url, body, headers, method=method), timeout=seconds
            ) as answer:
                return bytes(answer.read())
        except HTTPError as error:
            with error:
                raise self._failure(url, error) from error
        except TimeoutError as error:
            raise RetryableFailure(late) from error
        except URLError as error:
            timed_out = isinstance(error.reason, TimeoutError)
            reason = late if timed_out else f"cannot be reached ({first_line(error)})"
            raise RetryableFailure(reason) from error
        except (OSError, HTTPException) as error:
            raise RetryableFailure(f"broke off ({first_line(error)})") from error

    def request_json(
        self,
        path: str = "",
        value: Any = None,
        *,
        method: str | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Send a JSON value, or a GET where it is None, and return that of the answer.

        Raises:
            RetryableFailure: as `request`, or the answer is no JSON.
            RefusedRequest: as `request`.
        """
        body = None if value is None else json.dumps(value).encode()
        answer = self.request(path, body, method=method, timeout=timeout)
        try:
            return json.loads(answer)
        except (ValueError, RecursionError):
            raise RetryableFailure(
                f"answers {excerpt(answer) or 'nothing'}; need a JSON object"
            ) from None

    def require_reachable(self) -> None:
        """Check that a server listens at the address, and does not redirect.

        Raises:
            RetryableFailure: it cannot be reached.
            RefusedRequest: it redirects.
        """
        try:
            with self._opener.open(
                Request(self.url, headers=self.headers, method="HEAD"), timeout=self.timeout
            ):
                pass
        except HTTPError as error:
            with error:
                if _location(error) is not None:
                    raise self._failure(self.url, error) from error
        except URLError as error:
            if not isinstance(error.reason, TimeoutError):
                raise RetryableFailure(f"cannot be reached ({first_line(error)})") from error
        except (OSError, HTTPException):
            pass  # a server is there, which rejects HEAD

    def _failure(self, url: str, error: HTTPError) -> HTTPFailure:
        """The failure that an error's status means."""
        location = _location(error)
        if location is not None:
            return RefusedRequest(self._redirected(url, error.code, location), error.code)
        text = f"answers HTTP {error.code}: {excerpt(error.read(400)) or error.reason}"
        if error.code in RETRY_STATUS or error.code >= 500:
            return RetryableFailure(text, error.code)
        return RefusedRequest(text, error.code)

    def _redirected(self, url: str, code: int, location: str) -> str:
        try:
            target = public_url(urljoin(url, " ".join(location.split())))
        except ValueError:
            target = "an address that cannot be read"
        return (
            f"redirects to {target} (HTTP {code}); need an endpoint that answers "
            "itself, because headers and prompts are sent to no other address. "
            f"Try the final address as {self.key}"
        )


def _location(error: HTTPError) -> str | None:
    """Target of a redirect; None for other errors."""
    return error.headers.get("Location") if 300 <= error.code < 400 else None


def backoffs() -> Iterator[float]:
    """Seconds to wait before each retry, without end."""
    return (min(MIN_BACKOFF * 2**count, MAX_BACKOFF) for count in itertools.count())


def with_retries(
    request: Callable[[], T],
    retries: int,
    origin: str,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Call `request`, and again up to `retries` times if it fails in a way that a retry may fix.

    Args:
        request: sends a request.
        retries: further calls.
        origin: key and address, for the log.
        sleep: waits for a number of seconds.

    Raises:
        HTTPFailure: the last call failed, or the server refused the request.
    """
    for left, backoff in zip(range(retries, -1, -1), backoffs(), strict=False):
        try:
            return request()
        except RetryableFailure as error:
            if not left:
                times = f"{retries + 1} times" if retries else "once"
                raise RetryableFailure(f"{error}; asked {times}") from error
            logger.info(f"{origin}: {error}; asking again in {backoff:g} s")
            sleep(backoff)
    raise AssertionError("retries is 0 or more")


def run_concurrently(
    act: Callable[[S], T], items: Sequence[S], limit: int, *, in_order: bool = False
) -> list[T]:
    """Call a function for each item, in threads; results are in the order of the items.

    Its threads end with the process: where one call fails, the others are not waited for.

    Args:
        act: called for each item.
        items: its arguments.
        limit: calls at once.
        in_order: of several calls that fail, raise the exception of the first item, whichever ended
            first; calls for earlier items are then waited for.

    Raises:
        Exception: the first that a call raised; no further calls begin.
    """
    results: list[Future[T]] = [Future() for _ in items]
    positions, failed, lock = iter(range(len(items))), threading.Event(), threading.Lock()

    def work() -> None:
        while True:
            with lock:
                index = None if failed.is_set() else next(positions, None)
            if index is None:
                return
            try:
                results[index].set_result(act(items[index]))
            except BaseException as error:
                failed.set()
                results[index].set_exception(error)

    for _ in range(min(limit, len(items))):
        threading.Thread(target=work, daemon=True).start()
    try:
        if not in_order:
            for one in wait(results, return_when=FIRST_EXCEPTION).done:
                one.result()
        return [one.result() for one in results]
    finally:
        failed.set()  # also after Ctrl-C


def excerpt(answer: bytes) -> str:
    """Start of an answer, on one line."""
    text = " ".join(answer[:200].decode("utf-8", "replace").split())
    return text if len(text) <= 80 else text[:80] + "..."

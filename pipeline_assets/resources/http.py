"""HTTP GET from third-party servers, whose answers may be slow, huge, broken or hostile.

Belongs here: the shared session, its limits and retries, and which addresses may be reached.
Doesn't belong here: what an answer means; the caller reads the status and the body. Python code that talks to
another company's server goes through `HttpClient`, so that a limit is set once.
"""

import ipaddress
import random
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.cookiejar import DefaultCookiePolicy
from types import TracebackType
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, Retry
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from pipeline_assets import __version__
from pipeline_assets.failures import TRANSIENT_STATUSES, PermanentError, TransientError

USER_AGENT = f"pipeline-assets/{__version__} (daily news digest; headlines with credit and link)"
REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})


class FetchError(TransientError):
    """No usable answer, with a message that is the same every time; a later try may succeed."""


class PermanentFetchError(FetchError, PermanentError):
    """A failure that another try can't fix: somebody has to change something first."""


@dataclass(frozen=True)
class Response:
    """One answer, decompressed; `url` is where it came from after redirects."""

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Limits:
    """How long to wait and how much to take; times in seconds."""

    connect: float = 5
    read: float = 10  # the longest silence
    total: float = 30  # one attempt, its redirects and its body included
    body_bytes: int = 5_000_000  # after decompression; a large feed has 2 MB
    redirects: int = 5
    attempts: int = 4
    backoff: float = 1  # doubled after each attempt, plus up to as much again of jitter
    retry_after: float = 60  # a server that asks for a longer pause is not tried again
    per_host: int = 2  # requests under way at one host at a time


def is_transient(response: Response) -> bool:
    """Whether the status says that the same request may succeed later."""
    return response.status in TRANSIENT_STATUSES


class HttpClient:
    """A session shared by threads. It keeps no cookies, and no connection open (see `_Attempt`)."""

    def __init__(
        self,
        user_agent: str,
        limits: Limits | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.limits = limits or Limits()
        self._sleep = sleep
        self._hosts: defaultdict[str, threading.Semaphore] = defaultdict(
            lambda: threading.Semaphore(self.limits.per_host)
        )
        self._session = _Session()
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self._session.headers.update({"User-Agent": user_agent, "Connection": "close"})
        self._session.mount("http://", _Adapter())
        self._session.mount("https://", _Adapter())

    def get(
        self,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        transient: Callable[[Response], bool] = is_transient,
        public_only: bool = False,
    ) -> Response:
        """Ask until there is an answer that isn't `transient`, or the attempts are used up.

        Returns the last answer whatever its status; raises FetchError when there was none.
        `headers` are sent to the origin of `url` only, not to another one that it redirects to.
        With `public_only`, not even `url` itself may lead into the private network.
        """
        try:
            target = requests.Request("GET", url, params=params).prepare().url or url
        except requests.RequestException:
            raise PermanentFetchError("isn't a valid URL") from None
        host = urlsplit(target).hostname or ""
        for attempt in range(1, self.limits.attempts + 1):
            last = attempt == self.limits.attempts
            # Exponential, and jittered so that many feeds of one host don't retry in step.
            pause = self.limits.backoff * 2 ** (attempt - 1) * (1 + random.random())  # noqa: S311 - no secret
            try:
                with self._hosts[host]:
                    response = self._attempt(target, headers or {}, public_only=public_only)
            except PermanentFetchError:
                raise
            except FetchError:
                if last:
                    raise
            else:
                asked = _retry_after(response)
                if last or not transient(response) or asked > self.limits.retry_after:
                    return response
                pause = max(pause, asked)
            self._sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def _attempt(self, url: str, headers: Mapping[str, str], *, public_only: bool) -> Response:
        start = _origin(url)
        with _Attempt(self.limits.total) as attempt:
            for _ in range(self.limits.redirects + 1):
                at_home = _origin(url) == start
                attempt.public_only = public_only or not at_home
                answer = self._exchange(url, headers if at_home else {}, attempt)
                location = answer.headers.get("location")
                if answer.status not in REDIRECT_STATUSES or not location:
                    return answer
                try:
                    url = urljoin(url, location)
                    scheme = urlsplit(url).scheme
                except ValueError as error:  # such as an unclosed bracket of an IPv6 address
                    raise PermanentFetchError(
                        "redirects to an address that isn't a valid URL"
                    ) from error
                if scheme not in ("http", "https"):
                    raise PermanentFetchError("redirects to an address that isn't HTTP")
        raise PermanentFetchError(f"redirects more than {self.limits.redirects} times")

    def _exchange(self, url: str, headers: Mapping[str, str], attempt: "_Attempt") -> Response:
        limits = self.limits
        try:
            with self._session.get(
                url,
                headers=dict(headers),
                timeout=(limits.connect, limits.read),
                allow_redirects=False,
                stream=True,
            ) as answer:
                body = bytearray()
                # read1 returns what has arrived; read would wait for the whole chunk.
                while chunk := answer.raw.read1(65_536, decode_content=True):
                    body += chunk
                    if len(body) > limits.body_bytes:
                        raise PermanentFetchError(
                            f"sent more than {limits.body_bytes / 1e6:g} MB, which no feed needs"
                        )
                if attempt.expired:  # a cut connection can look like the end of the body
                    raise FetchError(f"was not done within {limits.total:g} s")
                return Response(
                    url, answer.status_code, CaseInsensitiveDict(answer.headers), bytes(body)
                )
        except (requests.RequestException, HTTPError, OSError) as error:
            if attempt.expired:
                raise FetchError(f"was not done within {limits.total:g} s") from error
            raise _in_words(error, limits) from error


def _in_words(error: Exception, limits: Limits) -> FetchError:
    """The failure without the object addresses and ports that differ from one run to the next."""
    if isinstance(error, requests.exceptions.SSLError):
        return FetchError("has a TLS certificate that can't be trusted")
    if isinstance(error, requests.Timeout | TimeoutError) or "timed out" in str(error):
        return FetchError(f"was silent for {limits.read:g} s")
    if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.InvalidSchema):
        return PermanentFetchError("has an address that isn't a valid URL")
    if isinstance(error, requests.exceptions.ConnectionError):
        return FetchError("could not be reached")
    return FetchError("broke off its answer")


def _retry_after(response: Response) -> float:
    """Seconds that the server asks to wait; 0 if it doesn't ask, or the value is invalid."""
    value = response.headers.get("retry-after")
    try:
        return float(Retry().parse_retry_after(value)) if value else 0.0
    except Exception:  # third-party text may break the parser in any way
        return 0.0


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.lower()


_EMBEDDING = [
    ipaddress.IPv6Network(network) for network in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96")
]
"""NAT64 (RFC 6052, RFC 8215) and IPv4-compatible addresses: the last 32 bits are an IPv4 address."""


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether an address is on the public Internet, in whichever IPv6 form an IPv4 address is wrapped."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if any(address in network for network in _EMBEDDING):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(inner)
        if address.is_site_local:
            return False
    return address.is_global and not address.is_multicast


class _Attempt:
    """Cuts its connections at the deadline, and keeps third parties' URLs out of the private network.

    The timeouts of requests apply to each single read: a server that sends a byte every nine
    seconds never exceeds them, and while headers or a chunk's length are read no loop of ours runs. So a
    timer shuts down the socket itself. For this reason each request opens its own connection, which its
    pool closes after the answer; that costs nothing, as an edition asks each host once or twice.
    """

    current = threading.local()

    def __init__(self, seconds: float) -> None:
        self.expired = False
        self.public_only = False
        self._socket: socket.socket | None = None
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True

    def __enter__(self) -> "_Attempt":
        _Attempt.current.attempt = self
        self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        _Attempt.current.attempt = None
        self._release()

    def own(self, connected: socket.socket, *, by_proxy: bool) -> None:
        """Register a new connection; refuse one to a private address if only public ones are allowed.

        The address checked is the one connected to, so a name that resolves differently the
        second time gains nothing. Behind a proxy only the proxy knows the address.
        """
        if self.public_only and not by_proxy:
            address = ipaddress.ip_address(connected.getpeername()[0].partition("%")[0])
            if not is_public(address):
                connected.close()
                raise PermanentFetchError("leads to a private address")
        self._release()
        self._socket = connected.dup()
        if self.expired:
            self._expire()

    def _expire(self) -> None:
        self.expired = True
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # closed a moment ago

    def _release(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class _HttpConnection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        connected = super()._new_conn()
        _Attempt.current.attempt.own(connected, by_proxy=self.proxy is not None)
        return connected


class _HttpsConnection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        connected = super()._new_conn()
        _Attempt.current.attempt.own(connected, by_proxy=self.proxy is not None)
        return connected


class _ClosingPool:
    """Closes a connection after its answer: a server may keep one open that it was asked to close."""

    def _put_conn(self, conn: Any) -> None:
        if conn:
            conn.close()


class _HttpPool(_ClosingPool, HTTPConnectionPool):
    ConnectionCls = _HttpConnection


class _HttpsPool(_ClosingPool, HTTPSConnectionPool):
    ConnectionCls = _HttpsConnection


class _Session(requests.Session):
    """requests' session that ignores redirects, which `HttpClient` follows itself.

    Even with `allow_redirects=False`, requests reads the whole body of a redirect, past every limit, and
    parses its address.
    """

    def get_redirect_target(self, resp: requests.Response) -> None:
        """None: to requests no answer is a redirect."""


class _Adapter(HTTPAdapter):
    """requests' adapter on the connections above, with a proxy or without."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
        return manager

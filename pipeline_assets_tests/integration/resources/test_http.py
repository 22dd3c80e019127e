"""The HTTP client against real sockets: faults, floods, drips and redirects."""

import gzip
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from email.utils import format_datetime
from pathlib import Path

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from pipeline_assets.resources.http import FetchError, HttpClient, Limits, PermanentFetchError
from pipeline_assets_tests.security.test_proxy import self_signed

PATIENT = Limits(connect=10, read=10, total=20, body_bytes=100_000, attempts=1, backoff=0.01)
"""One time in a thousand, a busy machine takes more than half a second to answer."""


def client(**changes: float) -> HttpClient:
    return HttpClient("test", Limits(**{**PATIENT.__dict__, **changes}))


@pytest.fixture
def sleeps() -> list[float]:
    """The pauses between the client's attempts, recorded instead of waited for."""
    return []


def answers(server: HTTPServer, *responses: Response) -> list[Request]:
    """Make the server give these responses in turn; returns the requests as they come."""
    queue = iter(responses)
    seen: list[Request] = []

    def handle(request: Request) -> Response:
        seen.append(request)
        return next(queue)

    server.expect_request("/feed").respond_with_handler(handle)
    return seen


class TestRetries:
    def test_transient_answers_are_asked_again_with_growing_jittered_pauses(
        self, httpserver: HTTPServer, sleeps: list[float]
    ) -> None:
        seen = answers(httpserver, *[Response(status=s) for s in (500, 503, 502)], Response("ok"))
        patient = HttpClient("test", Limits(attempts=4, backoff=1), sleep=sleeps.append)

        answer = patient.get(httpserver.url_for("/feed"))

        assert (answer.status, answer.body, len(seen)) == (200, b"ok", 4)
        for pause, base in zip(sleeps, (1, 2, 4), strict=True):
            assert base <= pause <= 2 * base

    def test_the_last_answer_is_returned_when_no_attempt_is_left(
        self, httpserver: HTTPServer, sleeps: list[float]
    ) -> None:
        seen = answers(httpserver, *[Response(status=503)] * 3)
        patient = HttpClient("test", Limits(attempts=3), sleep=sleeps.append)

        assert patient.get(httpserver.url_for("/feed")).status == 503
        assert (len(seen), len(sleeps)) == (3, 2)

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 426])
    def test_other_answers_are_not_asked_again(self, httpserver: HTTPServer, status: int) -> None:
        seen = answers(httpserver, Response(status=status), Response("ok"))

        assert client(attempts=3).get(httpserver.url_for("/feed")).status == status
        assert len(seen) == 1

    @pytest.mark.parametrize("as_date", [False, True])
    def test_retry_after_is_honoured(
        self, httpserver: HTTPServer, sleeps: list[float], as_date: bool
    ) -> None:
        from datetime import UTC, datetime, timedelta

        moment = format_datetime(datetime.now(UTC) + timedelta(seconds=31), usegmt=True)
        header = {"Retry-After": moment if as_date else "30"}
        answers(httpserver, Response(status=429, headers=header), Response("ok"))
        patient = HttpClient("test", Limits(attempts=2, backoff=0.01), sleep=sleeps.append)

        assert patient.get(httpserver.url_for("/feed")).status == 200
        assert 28 <= sleeps[0] <= 31

    def test_a_server_that_asks_for_a_long_pause_is_left_alone(
        self, httpserver: HTTPServer, sleeps: list[float]
    ) -> None:
        seen = answers(httpserver, Response(status=429, headers={"Retry-After": "3600"}))
        patient = HttpClient("test", Limits(attempts=4), sleep=sleeps.append)

        assert patient.get(httpserver.url_for("/feed")).status == 429
        assert (len(seen), sleeps) == (1, [])

    @pytest.mark.security
    @pytest.mark.parametrize("asked", ["9" * 5000, "soon", "Fri, 31 Dec 9999999999 23:59:59 GMT"])
    def test_a_pause_that_cannot_be_read_is_none(
        self, httpserver: HTTPServer, sleeps: list[float], asked: str
    ) -> None:
        answers(httpserver, Response(status=503, headers={"Retry-After": asked}), Response("ok"))
        patient = HttpClient("test", Limits(attempts=2, backoff=0.01), sleep=sleeps.append)

        assert patient.get(httpserver.url_for("/feed")).body == b"ok"
        assert sleeps[0] <= 0.02

    def test_a_server_that_is_not_there_is_tried_as_often_as_said(
        self, sleeps: list[float]
    ) -> None:
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        patient = HttpClient("test", Limits(attempts=3), sleep=sleeps.append)

        with pytest.raises(FetchError, match=r"^could not be reached$"):
            patient.get(f"http://127.0.0.1:{port}/feed")
        assert len(sleeps) == 2


class TestPoliteness:
    def test_it_says_who_asks_and_keeps_no_cookies(self, httpserver: HTTPServer) -> None:
        cookie = Response("ok", headers={"Set-Cookie": "id=1; Path=/"})
        seen = answers(httpserver, cookie, Response("ok"))
        one = HttpClient("pipeline-assets/1 (digest)")

        one.get(httpserver.url_for("/feed"))
        one.get(httpserver.url_for("/feed"))

        assert seen[1].headers["User-Agent"] == "pipeline-assets/1 (digest)"
        assert "Cookie" not in seen[1].headers

    def test_one_host_is_asked_for_few_things_at_a_time(self) -> None:
        under_way, most = 0, 0
        lock = threading.Lock()

        def handle(request: Request) -> Response:
            nonlocal under_way, most
            with lock:
                under_way += 1
                most = max(most, under_way)
            time.sleep(0.05)
            with lock:
                under_way -= 1
            return Response("ok")

        polite = client(per_host=2)
        with HTTPServer(threaded=True) as many, ThreadPoolExecutor(8) as pool:
            many.expect_request("/feed").respond_with_handler(handle)
            list(pool.map(lambda _: polite.get(many.url_for("/feed")), range(8)))

        assert most == 2


@pytest.fixture
def raw_server() -> Iterator[Callable[[Callable[[socket.socket], None]], str]]:
    """A function that serves one connection by calling `behave` with its socket; it returns the address."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:

        def serve(behave: Callable[[socket.socket], None]) -> str:
            def run() -> None:
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65_536)
                    try:
                        behave(connection)
                    except OSError:
                        return  # the client has hung up, as it should

            threading.Thread(target=run, daemon=True).start()
            return f"http://127.0.0.1:{listener.getsockname()[1]}/feed"

        yield serve


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\n"
DRIPS = {
    "headers": b"HTTP/1.1 200 OK\r\nX-Slow: ",
    "body": HEAD + b"Content-Length: 90000\r\n\r\n",
    "chunk length": HEAD + b"Transfer-Encoding: chunked\r\n\r\n",
}


class Clinging:
    """A server that keeps connections open, though asked not to, and drips all answers but the first."""

    def __init__(self, listener: socket.socket) -> None:
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/feed"
        self.listener = listener
        self.clients: list[int] = []
        self.dripped = 0
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            threading.Thread(target=self.answer, args=(connection,), daemon=True).start()

    def answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):  # the client has hung up, as it should
            while connection.recv(65_536):
                self.clients.append(connection.getpeername()[1])
                connection.sendall(HEAD + b"Connection: keep-alive\r\nContent-Length: 100\r\n\r\n")
                if len(self.clients) == 1:
                    connection.sendall(bytes(100))
                    continue
                for _ in range(100):
                    connection.sendall(b"0")
                    self.dripped += 1
                    time.sleep(0.1)


@pytest.fixture
def clinging() -> Iterator[Clinging]:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        yield Clinging(listener)


@pytest.mark.security
class TestServersThatKeepTheConnection:
    """Every request has a connection of its own, which its deadline and its address check cover."""

    def test_the_next_request_has_its_deadline(self, clinging: Clinging) -> None:
        one = client(total=3)
        assert one.get(clinging.url).status == 200
        with pytest.raises(FetchError, match=r"^was not done within 3 s$"):
            one.get(clinging.url)
        assert 0 < clinging.dripped < 100, "it was cut off"
        assert len(set(clinging.clients)) == 2

    def test_the_next_request_may_not_lead_inside(self, clinging: Clinging) -> None:
        one = client()
        assert one.get(clinging.url).status == 200
        with pytest.raises(PermanentFetchError, match="private address"):
            one.get(clinging.url, public_only=True)
        assert len(clinging.clients) == 1, "not even asked"


class TestHostileServers:
    @pytest.mark.parametrize("part", DRIPS)
    def test_a_drip_ends_at_the_deadline(
        self, raw_server: Callable[[Callable[[socket.socket], None]], str], part: str
    ) -> None:
        def drip(connection: socket.socket) -> None:
            connection.sendall(DRIPS[part])
            for _ in range(100):
                connection.sendall(b"0")
                time.sleep(0.1)

        began = time.monotonic()
        with pytest.raises(FetchError, match=r"^was not done within 1\.2 s$"):
            client(total=1.2).get(raw_server(drip))
        assert 1.1 < time.monotonic() - began < 8

    def test_silence_ends_at_the_read_timeout(
        self, raw_server: Callable[[Callable[[socket.socket], None]], str]
    ) -> None:
        began = time.monotonic()
        with pytest.raises(FetchError, match=r"^was silent for 0\.6 s$"):
            client(read=0.6).get(raw_server(lambda _: time.sleep(8)))
        assert time.monotonic() - began < 5

    def test_a_body_shorter_than_promised_is_a_failure(
        self, raw_server: Callable[[Callable[[socket.socket], None]], str]
    ) -> None:
        cut = HEAD + b"Content-Length: 1000\r\n\r\n<rss>"
        with pytest.raises(FetchError, match="broke off"):
            client().get(raw_server(lambda connection: connection.sendall(cut)))

    @pytest.mark.security
    def test_a_gzip_bomb_is_cut_at_the_size_limit(self, httpserver: HTTPServer) -> None:
        bomb = gzip.compress(bytes(80_000_000))
        assert len(bomb) < 100_000, "small on the wire"
        seen = answers(httpserver, *[Response(bomb, headers={"Content-Encoding": "gzip"})] * 3)

        with pytest.raises(PermanentFetchError, match=r"sent more than 0\.1 MB"):
            client(attempts=3).get(httpserver.url_for("/feed"))
        assert len(seen) == 1, "asking again would bring the same"

    def test_a_body_that_is_not_what_its_encoding_says_is_a_failure(
        self, httpserver: HTTPServer
    ) -> None:
        answers(httpserver, Response(b"<rss/>", headers={"Content-Encoding": "gzip"}))
        with pytest.raises(FetchError, match="broke off"):
            client().get(httpserver.url_for("/feed"))

    @pytest.mark.security
    def test_an_untrusted_certificate_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        certificate, key = self_signed("localhost", tmp_path)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        with HTTPServer(ssl_context=context) as server:
            seen = answers(server, Response("ok"))
            with pytest.raises(FetchError, match="certificate") as refused:
                client().get(server.url_for("/feed"))
            assert "CERTIFICATE_VERIFY_FAILED" in str(refused.value.__cause__)
            assert seen == [], "not even asked"

            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
            assert client().get(server.url_for("/feed")).body == b"ok", "once it is trusted"


@pytest.mark.security
class TestRedirects:
    def test_a_redirect_on_the_same_host_is_followed(self, httpserver: HTTPServer) -> None:
        answers(httpserver, Response(status=301, headers={"Location": "/new"}))
        httpserver.expect_request("/new").respond_with_data("moved")

        answer = client().get(httpserver.url_for("/feed"))

        assert (answer.body, answer.url) == (b"moved", httpserver.url_for("/new"))

    def test_a_loop_ends(self, httpserver: HTTPServer) -> None:
        seen = answers(httpserver, *[Response(status=302, headers={"Location": "/feed"})] * 20)

        with pytest.raises(PermanentFetchError, match="redirects more than 5 times"):
            client(attempts=3).get(httpserver.url_for("/feed"))
        assert len(seen) == 6

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0"])
    def test_a_redirect_into_the_private_network_is_refused(
        self, httpserver: HTTPServer, host: str
    ) -> None:
        with HTTPServer() as inside:
            asked = answers(inside, Response("secret"))
            inside_url = f"http://{host}:{inside.port}/feed"
            answers(httpserver, Response(status=302, headers={"Location": inside_url}))

            with pytest.raises(PermanentFetchError, match="private address"):
                client().get(httpserver.url_for("/feed"))
        assert asked == [], "not even asked"

    @pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://example.com/x", "gopher://x"])
    def test_a_redirect_to_another_scheme_is_refused(
        self, httpserver: HTTPServer, target: str
    ) -> None:
        answers(httpserver, Response(status=302, headers={"Location": target}))
        with pytest.raises(PermanentFetchError, match="isn't HTTP"):
            client().get(httpserver.url_for("/feed"))

    @pytest.mark.parametrize("target", ["http://[", "//[", "http://a]/"])
    def test_a_redirect_to_what_is_no_url_is_refused(
        self, raw_server: Callable[[Callable[[socket.socket], None]], str], target: str
    ) -> None:
        answer = f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n"
        with pytest.raises(PermanentFetchError, match="redirects to an address that isn't a valid"):
            client(attempts=3).get(raw_server(lambda peer: peer.sendall(answer.encode())))

    def test_headers_stay_with_the_host_that_they_were_meant_for(
        self, httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Loopback has to pass for public here: no other server can be reached from a test.
        monkeypatch.setattr("pipeline_assets.resources.http.is_public", lambda _: True)
        with HTTPServer() as other:
            asked = answers(other, Response("ok"))
            answers(httpserver, Response(status=302, headers={"Location": other.url_for("/feed")}))
            client().get(httpserver.url_for("/feed"), headers={"X-Api-Key": "secret"})

        assert "X-Api-Key" not in asked[0].headers

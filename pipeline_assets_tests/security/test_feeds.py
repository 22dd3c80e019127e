"""News feeds that attack the fetcher: they reach nothing in the private network, and cost little.

What the entries of a feed do to the digest's pages is tested in a browser (browser/news).
"""

import gzip
import io
import ipaddress
import json
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from pipeline_assets.news import newsapi, rss
from pipeline_assets.news.items import Answer, Run, Source, Window
from pipeline_assets.news.settings import Feed, NewsSettings
from pipeline_assets.resources.http import (
    FetchError,
    HttpClient,
    Limits,
    PermanentFetchError,
    is_public,
)

pytestmark = pytest.mark.security
WINDOW = Window(datetime(2026, 11, 21, 8, tzinfo=UTC), datetime(2026, 11, 22, 8, tzinfo=UTC))
ONCE = Limits(attempts=1)


@pytest.fixture
def inside() -> Iterator[tuple[HTTPServer, list[Request]]]:
    """A server in the private network that answers every request with something secret."""
    asked: list[Request] = []

    def answer(request: Request) -> Response:
        asked.append(request)
        return Response("<rss version='2.0'><channel><title>secret</title></channel></rss>")

    with HTTPServer() as server:
        server.expect_request("/feed").respond_with_handler(answer)
        yield server, asked


def run_of(url: str, **feed: Any) -> tuple[Run, Source]:
    settings = NewsSettings(
        news_provider="rss",
        news_feeds=(Feed.model_validate({"outlet": "Evil", "url": url, **feed}),),
    )
    run = Run(WINDOW, settings, HttpClient("test", ONCE), WINDOW.end)
    return run, rss.sources(run)[0]


@pytest.mark.parametrize(
    "host",
    [
        *("2130706433", "0x7f000001", "017700000001", "127.1", "0x7f.1", "127.0.0.1.", "127.8.8.8"),
        *("[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "0", "0.0.0.0", "localhost", "LOCALHOST"),
        *("user@127.0.0.1", "evil.example#@127.0.0.1", "127.0.0.1%2f@localhost"),
    ],
)
def test_a_redirect_reaches_nothing_inside_however_it_writes_the_address(
    httpserver: HTTPServer, inside: tuple[HTTPServer, list[Request]], host: str
) -> None:
    server, asked = inside
    location = f"http://{host}:{server.port}/feed"
    httpserver.expect_request("/feed").respond_with_data(
        "", status=302, headers={"Location": location}
    )
    run, source = run_of(httpserver.url_for("/feed"))
    with pytest.raises(FetchError):
        rss.fetch(source, run, [])
    assert asked == []


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0"),
        *("100.64.0.1", "224.0.0.1", "255.255.255.255", "198.18.0.1", "240.0.0.1"),
        *("::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254"),
        *("::127.0.0.1", "::10.0.0.1"),
        *("64:ff9b::127.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::10.0.0.1"),
        *("2002:7f00:1::1", "2002:a9fe:a9fe::1"),
        "2001:0:7f00:1::",
    ],
)
def test_no_address_of_the_inside_is_public(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "2606:4700::1", "::ffff:1.1.1.1", "64:ff9b::1.1.1.1", "2002:101:101::1"]
)
def test_the_internet_is(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


class Resolver:
    """A resolver that answers as an attacker's own name server would: each time with the next address."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
        self.addresses = list(addresses)
        self.asked = 0
        self.real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self.resolve)

    def resolve(self, host: str, *rest: Any, **options: Any) -> Any:
        if host == "feeds.evil.example":
            host = self.addresses[min(self.asked, len(self.addresses) - 1)]
            self.asked += 1
        return self.real(host, *rest, **options)


def test_a_name_that_is_rebound_to_the_inside_reaches_nothing(
    inside: tuple[HTTPServer, list[Request]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The feed is configured, but the owner of its domain name decides where it leads, at any time."""
    server, asked = inside
    resolver = Resolver(monkeypatch, "127.0.0.1")
    run, source = run_of(f"http://feeds.evil.example:{server.port}/feed")

    with pytest.raises(PermanentFetchError, match="private address"):
        rss.fetch(source, run, [])

    assert resolver.asked == 1
    assert asked == []


def test_a_name_that_is_rebound_between_two_redirects_reaches_nothing(
    inside: tuple[HTTPServer, list[Request]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answer comes from outside, and redirects to the same name: the same origin."""
    server, asked = inside
    hops: list[str] = []

    def redirect(request: Request) -> Response:
        hops.append(request.path)
        return Response(status=302, headers={"Location": "/feed"})

    # Two servers on one port: the one outside has an address that passes for a public one.
    outside = HTTPServer(host="127.0.0.2", port=server.port)
    outside.expect_request("/start").respond_with_handler(redirect)
    outer = ipaddress.ip_address("127.0.0.2")
    monkeypatch.setattr(
        "pipeline_assets.resources.http.is_public", lambda address: address == outer
    )
    resolver = Resolver(monkeypatch, "127.0.0.2", "127.0.0.1")
    with outside:
        run, source = run_of(f"http://feeds.evil.example:{server.port}/start")
        with pytest.raises(PermanentFetchError, match="private address"):
            rss.fetch(source, run, [])

    assert (hops, resolver.asked) == (["/start"], 2)
    assert asked == []


def test_a_feed_of_the_own_network_says_so(
    inside: tuple[HTTPServer, list[Request]], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, asked = inside
    Resolver(monkeypatch, "127.0.0.1")
    run, source = run_of(f"http://feeds.evil.example:{server.port}/feed", private=True)
    assert b"secret" in rss.fetch(source, run, [])[0].body
    assert len(asked) == 1


# On Linux a new process's `ru_maxrss` starts at its parent's, which hides what it uses itself.
PEAK = """
import resource, sys
from pathlib import Path
def peak():
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
"""
FETCH = f"""{PEAK}
from pipeline_assets.resources.http import FetchError, HttpClient, Limits
before = peak()
try:
    HttpClient("test", Limits(attempts=1)).get(sys.argv[1])
except FetchError as error:
    print(error)
print(peak() - before)
"""


@cache
def zeros(size: int) -> bytes:
    compressed = io.BytesIO()
    with gzip.GzipFile(fileobj=compressed, mode="wb", compresslevel=1) as file:
        for _ in range(size >> 20):
            file.write(bytes(1 << 20))
    return compressed.getvalue()


@pytest.mark.parametrize("status", [200, 302])
@pytest.mark.parametrize("encoding", ["gzip", "deflate", "gzip, gzip", "gzip, gzip, gzip"])
def test_a_compressed_bomb_takes_no_memory(
    httpserver: HTTPServer, encoding: str, status: int
) -> None:
    """268 MB of zeros in 1 MB; compressed twice, in a few kB, which one read would decompress as a whole."""
    body = zlib.compress(bytes(1 << 28), 1) if encoding == "deflate" else zeros(1 << 28)
    for _ in range(encoding.count(",")):
        body = gzip.compress(body)
    httpserver.expect_request("/feed").respond_with_data(
        body, status, headers={"Content-Encoding": encoding, "Location": "/feed"}
    )

    fetched = subprocess.run(
        [sys.executable, "-c", FETCH, httpserver.url_for("/feed")],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )

    said, kilobytes = fetched.stdout.splitlines()
    assert said == "sent more than 5 MB, which no feed needs"
    assert int(kilobytes) < 150_000


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
HOSTILE_XML = {
    "billion laughs": f'<!DOCTYPE r [<!ENTITY l0 "lol">{LAUGHS}]>ITEM&l11;END',
    "laughs of parameters": "<!DOCTYPE r [<!ENTITY % a \"<!ENTITY b SYSTEM 'FILE'>\">%a;]>ITEM&b;END",
    "quadratic": f'<!DOCTYPE r [<!ENTITY a "{"x" * 50_000}">]>ITEM{"&a;" * 50_000}END',
    "a file": '<!DOCTYPE r [<!ENTITY a SYSTEM "FILE">]>ITEM&a;END',
    "a server": '<!DOCTYPE r [<!ENTITY a SYSTEM "SERVER">]>ITEM&a;END',
    "a DTD": '<!DOCTYPE r SYSTEM "SERVER">ITEM END',
    "a DTD's parameter": '<!DOCTYPE r [<!ENTITY % d SYSTEM "SERVER"> %d;]>ITEM END',
    "a style sheet": '<?xml-stylesheet href="SERVER"?>ITEM END',
    "an inclusion": "ITEM<xi:include xmlns:xi='http://www.w3.org/2001/XInclude' href='FILE'/>END",
    "depth": "<a>" * 100_000 + "ITEM END",
    "attributes": "<a " + " ".join(f"a{n}='1'" for n in range(100_000)) + "/>ITEM END",
}
PARSE = f"""{PEAK}
from datetime import UTC, datetime
from functools import cache
from pipeline_assets.news import rss
from pipeline_assets.news.items import Answer, Source
from pipeline_assets.resources.http import FetchError
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
answer = Answer("http://x/", datetime.now(UTC), {{}}, Path(sys.argv[1]).read_bytes())
try:
    items = rss.parse(Source("a", "a", "a", "http://x/"), answer)
    print(sum(len(item.title) + len(item.summary) for item in items))
    print(*(item.title[:1000] + item.summary[:1000] for item in items))
except FetchError as error:
    print(0)
print(peak())
"""


@pytest.mark.parametrize("name", HOSTILE_XML)
def test_hostile_xml_reads_nothing_and_costs_little(
    name: str, inside: tuple[HTTPServer, list[Request]], tmp_path: Path
) -> None:
    server, asked = inside
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret")
    text = (
        HOSTILE_XML[name]
        .replace("FILE", secret.as_uri())
        .replace("SERVER", server.url_for("/feed"))
        .replace("ITEM", "<rss version='2.0'><channel><item><title>A")
        .replace("END", "</title></item></channel></rss>")
    )
    feed = tmp_path / "feed.xml"
    feed.write_text(f"<?xml version='1.0'?>{text}")

    parsed = subprocess.run(
        [sys.executable, "-c", PARSE, str(feed)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )

    assert parsed.returncode == 0, parsed.stderr
    size, *titles, kilobytes = parsed.stdout.splitlines()
    assert int(size) <= 5_000_000, "no more than came"
    assert "the secret" not in " ".join(titles)
    assert asked == []
    assert int(kilobytes) < 500_000


@pytest.mark.parametrize(
    "body",
    [b"[" * 100_000, b'{"articles": ' + b"[" * 100_000, b"\xff", b"null", b'{"articles": 1}'],
)
def test_hostile_json_is_a_failure_in_words(body: bytes) -> None:
    source = Source("a", "a", "a", "http://x/")
    with pytest.raises(FetchError, match="isn't NewsAPI's"):
        newsapi.parse(source, Answer("http://x/", WINDOW.end, {}, body))


@pytest.mark.parametrize("status", [400, 401, 426, 500])
def test_a_server_that_echoes_the_key_does_not_get_it_shown(
    httpserver: HTTPServer, status: int
) -> None:
    def echo(request: Request) -> Response:
        key = request.headers["X-Api-Key"]
        answer = {"status": "error", "code": key, "message": f"{key} is refused"}
        return Response(json.dumps(answer), status=status)

    httpserver.expect_request("/v2/everything").respond_with_handler(echo)
    httpserver.expect_request("/v2/top-headlines").respond_with_handler(echo)
    settings = NewsSettings.model_validate(
        {
            "news_provider": "newsapi",
            "newsapi_key": "c4n4ry0fnews",
            "newsapi_url": httpserver.url_for("/"),
        }
    )
    run = Run(WINDOW, settings, HttpClient("test", ONCE), WINDOW.end)
    for source in newsapi.sources(run):
        with pytest.raises(Exception, match=r"NewsAPI|answered|plan") as caught:
            newsapi.fetch(source, run, [])
        assert "c4n4ry0fnews" not in f"{caught.value!r} {caught.value.__cause__!r}"

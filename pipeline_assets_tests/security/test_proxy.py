"""The proxy in front of Dagster's web UI: real requests through a real nginx to two real web servers.

Each attack that is refused here succeeds on the web server itself, which a test shows first.
"""

import base64
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
pytestmark = [
    pytest.mark.security,
    pytest.mark.slow,
    pytest.mark.skipif(NGINX is None and not os.environ.get("CI"), reason="nginx is not installed"),
]
PROXY = Path(__file__).parents[2] / "deploy" / "proxy"
BIN = Path(sys.executable).parent
NAME = "dagster.example.com"
DEFINITIONS = """
import dagster as dg

@dg.asset
def ledger() -> None: ...

defs = dg.Definitions([ledger])
"""
REPORT = (
    "mutation { reportRunlessAssetEvents(eventParams: {eventType: ASSET_MATERIALIZATION,"
    ' assetKey: {path: ["ledger"]}}) { __typename } }'
)
COUNT = "{ assetNodes { assetMaterializations { runId } } }"
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: str

    @property
    def data(self) -> Any:
        return json.loads(self.body)["data"]


@dataclass(frozen=True)
class Site:
    """The proxy's and the web servers' ports; requests go through the proxy unless they say `direct`."""

    port: int
    operators: int
    viewers: int

    @property
    def origin(self) -> str:
        return f"https://{NAME}:{self.port}"

    def ask(
        self,
        method: str,
        path: str,
        *,
        login: str | None = "operator",
        origin: str | None = None,
        body: str | None = None,
        host: str = NAME,
        headers: dict[str, str] | None = None,
        direct: bool = False,
    ) -> Answer:
        sent = {"Host": host, **(headers or {})}
        if login and not direct:
            sent["Authorization"] = (
                f"Basic {base64.b64encode(f'{login}:pass-{login}'.encode()).decode()}"
            )
        if origin:
            sent["Origin"] = origin
        connection = (
            HTTPConnection("127.0.0.1", self.operators, timeout=60)
            if direct
            else HTTPSConnection(
                "127.0.0.1",
                self.port,
                timeout=60,
                context=ssl._create_unverified_context(),  # noqa: S323  # its own, made a moment ago
            )
        )
        try:
            connection.request(method, path, body=body, headers=sent)
            answer = connection.getresponse()
            # A WebSocket has no end; its handshake is what counts.
            text = "" if answer.status == 101 else answer.read().decode(errors="replace")
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, text)
        finally:
            connection.close()

    def graphql(self, query: str, **how: Any) -> Answer:
        how = {"origin": self.origin, "headers": JSON, **how}
        return self.ask("POST", "/graphql", body=json.dumps({"query": query}), **how)

    def websocket(self, **how: Any) -> Answer:
        handshake = {
            "Connection": "Upgrade",
            "Upgrade": "websocket",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            "Sec-WebSocket-Protocol": "graphql-ws",
        }
        return self.ask("GET", "/graphql", headers=handshake, **how)

    def materializations(self) -> int:
        (asset,) = self.graphql(COUNT, direct=True).data["assetNodes"]
        return len(asset["assetMaterializations"])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def until_open(port: int, process: subprocess.Popen[Any], log: Callable[[], str]) -> None:
    deadline = time.monotonic() + 240
    while True:
        assert process.poll() is None, log()
        assert time.monotonic() < deadline, log()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return


@contextmanager
def running(command: list[Any], folder: Path, port: int, **variables: str) -> Iterator[None]:
    log = folder / f"{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=os.environ | variables, stdout=output, stderr=output
        )
        try:
            until_open(port, process, log.read_text)
            yield
        finally:
            process.terminate()
            process.wait(60)


def self_signed(name: str, folder: Path) -> tuple[Path, Path]:
    """Make a certificate of a host's name that nobody signed; returns its file and that of its key."""
    certificate, key = folder / "certificate.pem", folder / "certificate.key"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "1", "-subj", f"/CN={name}"]
    command += ["-addext", f"subjectAltName=DNS:{name}"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def configure(folder: Path, *, port: int, operators: int, viewers: int) -> Path:
    """Make nginx's folder as documented, with ports of the test's own; returns the configuration file."""
    own = folder / "dagster"
    shutil.copytree(PROXY / "dagster", own)
    for name, old, new in (
        ("listen.conf", "443", f"127.0.0.1:{port}"),
        ("upstreams.conf", "127.0.0.1:3000", f"127.0.0.1:{operators}"),
        ("upstreams.conf", "127.0.0.1:3001", f"127.0.0.1:{viewers}"),
        ("origins.conf", NAME, f"{NAME}:{port}"),
    ):
        file = own / name
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))
    self_signed(NAME, own)
    lines = []
    for login in ("operator", "viewer"):
        hashed = subprocess.run(
            ["openssl", "passwd", "-6", "-stdin"],
            input=f"pass-{login}\n",
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        lines.append(f"{login}:{hashed}")
    (own / "passwords").write_text("".join(lines))
    main = folder / "nginx.conf"
    user = (
        "user root;\n" if os.geteuid() == 0 else ""
    )  # its default, nobody, can't read the test's folder
    main.write_text(
        f"{user}daemon off;\npid {folder}/pid;\nerror_log {folder}/error.log;\nevents {{}}\n"
        f"http {{\n    access_log {folder}/access.log;\n"
        + "".join(
            f"    {kind}_temp_path {folder}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        + f"    include {PROXY / 'nginx.conf'};\n}}\n"
    )
    return main


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("proxy")
    (folder / "definitions.py").write_text(DEFINITIONS)
    (folder / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    ports = Site(free_port(), free_port(), free_port())
    home = str(folder)
    serve = [BIN / "dagster-webserver", "-f", "definitions.py", "-h", "127.0.0.1", "-p"]
    nginx_folder = folder / "nginx"
    nginx_folder.mkdir()
    config = configure(
        nginx_folder,
        port=ports.port,
        operators=ports.operators,
        viewers=ports.viewers,
    )
    nginx = [NGINX, "-p", str(config.parent), "-c", str(config)]
    with ExitStack() as stack:
        for command, port in (
            ([*serve, str(ports.operators)], ports.operators),
            ([*serve, str(ports.viewers), "--read-only"], ports.viewers),
            (nginx, ports.port),
        ):
            stack.enter_context(running(command, folder, port, DAGSTER_HOME=home))
        yield ports


EVIL = "https://evil.example"


def test_without_the_proxy_each_attack_succeeds(site: Site) -> None:
    before = site.materializations()
    by_address = site.ask(
        "GET",
        f"/graphql?query={quote(REPORT)}",
        direct=True,
        origin=EVIL,
    )
    assert by_address.status == 200
    assert site.graphql(REPORT, direct=True, origin=EVIL).status == 200
    assert (
        site.ask("POST", "/report_asset_materialization/ledger", direct=True, origin=EVIL).status
        == 200
    )
    assert site.websocket(direct=True, origin=EVIL).status == 101
    assert site.materializations() > before


def test_nothing_answers_without_a_login(site: Site) -> None:
    for login in (None, "stranger"):
        for path in ("/", "/server_info", "/graphql", "/logs/a", "/runs", "/download_debug/a"):
            assert site.ask("GET", path, login=login).status in (401, 403, 405), path
        assert site.ask("GET", "/", login=login).status == 401
        assert site.graphql("{ version }", login=login).status == 401
        assert site.websocket(login=login, origin=site.origin).status == 401


def test_an_operator_may_change_things_and_a_viewer_may_look(site: Site) -> None:
    before = site.materializations()
    for login in ("operator", "viewer"):
        page = site.ask("GET", "/", login=login)
        assert (page.status, page.body[:9].lower()) == (200, "<!doctype")
        assert "version" in site.graphql("{ version }", login=login).data
        assert site.websocket(login=login, origin=site.origin).status == 101

    refused = site.graphql(REPORT, login="viewer").data["reportRunlessAssetEvents"]
    assert refused["__typename"] == "UnauthorizedError"
    assert site.materializations() == before

    done = site.graphql(REPORT, login="operator").data["reportRunlessAssetEvents"]
    assert done["__typename"] == "ReportRunlessAssetEventsSuccess"
    assert site.materializations() == before + 1


# What another page can make a logged-in browser send, and more.
@pytest.mark.parametrize(
    "origin",
    [
        *(EVIL, "null", f"http://{NAME}", f"https://{NAME}.evil.example", f"https://x.{NAME}"),
        *(f"https://{NAME}", f"https://evil.example?https://{NAME}", "file://", "https://"),
    ],
)
def test_another_pages_requests_change_and_read_nothing(site: Site, origin: str) -> None:
    """One origin is the proxy's own name at another port."""
    before = site.materializations()
    assert site.graphql(REPORT, origin=origin).status == 403
    plain = {"Content-Type": "text/plain"}
    assert site.graphql(REPORT, origin=origin, headers=plain).status == 403
    assert site.ask("GET", "/server_info", origin=origin).status == 403
    assert site.websocket(origin=origin).status == 403
    assert site.materializations() == before


def test_what_changes_something_says_where_it_comes_from(site: Site) -> None:
    before = site.materializations()
    assert site.graphql(REPORT, origin=None).status == 403
    assert site.websocket(origin=None).status == 403
    assert site.materializations() == before


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
@pytest.mark.parametrize(
    "path", ["/graphql", "//graphql", "/%67raphql", "/graphql/", "/./graphql", "/x/../graphql"]
)
def test_no_query_runs_out_of_the_address(site: Site, method: str, path: str) -> None:
    before = site.materializations()
    query = "".join(f"%{ord(letter):02x}" for letter in REPORT)
    answer = site.ask(method, f"{path}?query={query}", origin=site.origin)
    assert "Success" not in answer.body
    assert site.materializations() == before
    if path == "/graphql":
        assert answer.status in (403, 405)


@pytest.mark.parametrize("login", ["operator", "viewer"])
@pytest.mark.parametrize(
    "path",
    [
        "/report_asset_materialization/ledger",
        "/report_asset_check/ledger",
        "/report_asset_observation/ledger",
        "//report_asset_materialization/ledger",
        "/%72eport_asset_materialization/ledger",
        "/x/../report_asset_materialization/ledger",
        "/REPORT_ASSET_MATERIALIZATION/ledger",
        "/notebook?path=/etc/passwd&repoLocName=definitions.py",
    ],
)
def test_no_forged_report_gets_in(site: Site, login: str, path: str) -> None:
    before = site.materializations()
    for origin in (site.origin, EVIL, None):
        for method in ("POST", "GET"):
            answer = site.ask(method, path, login=login, origin=origin, body="{}", headers=JSON)
            assert "root:" not in answer.body
            assert answer.status in (403, 404) or method == "GET"
    assert site.materializations() == before


@pytest.mark.parametrize(
    "path",
    [
        "/logs/../../../../../../etc/passwd",
        "/logs/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/logs/..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/static/..%2f..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/download_debug/..%2f..%2fetc%2fpasswd",
    ],
)
def test_no_file_is_read_by_its_path(site: Site, path: str) -> None:
    assert "root:" not in site.ask("GET", path).body


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", f"{NAME}.evil.example", "localhost"])
def test_another_name_that_leads_here_finds_nothing(site: Site, host: str) -> None:
    """DNS rebinding: the attacker's page then has the same origin as the UI."""
    before = site.materializations()
    answer = site.graphql(REPORT, host=host, origin=f"https://{host}:{site.port}")
    assert answer.status in (403, 421)
    assert site.ask("GET", "/", host=host).status == 421
    assert site.materializations() == before


def test_another_site_may_link_to_it_and_not_embed_it(site: Site) -> None:
    cross = {"Sec-Fetch-Site": "cross-site"}
    link = site.ask("GET", "/runs", headers=cross | {"Sec-Fetch-Mode": "navigate"})
    assert link.status == 200
    for mode in ("no-cors", "cors", "websocket"):
        assert site.ask("GET", "/runs", headers=cross | {"Sec-Fetch-Mode": mode}).status == 403


def test_every_answer_has_the_headers_that_browsers_heed(site: Site) -> None:
    for answer in (
        site.ask("GET", "/"),
        site.ask("GET", "/", origin=EVIL),
        site.ask("GET", "/", login=None),
    ):
        headers = answer.headers
        assert headers["x-frame-options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["strict-transport-security"].startswith("max-age=")
        assert headers["referrer-policy"] == "same-origin"
        assert "access-control-allow-origin" not in headers
        assert "/" not in headers["server"], "its version is nobody's business"


def test_old_tls_is_refused(site: Site) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", site.port)) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(plain)


def test_the_shipped_files_are_a_valid_configuration(tmp_path: Path) -> None:
    config = configure(tmp_path, port=free_port(), operators=3000, viewers=3001)
    checked = subprocess.run(
        [str(NGINX), "-t", "-p", str(tmp_path), "-c", str(config)], capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stderr

"""A real TLS server on this machine, with a certificate authority that the test makes."""

from __future__ import annotations

import datetime
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dato import https
from dato.card import card_json, card_markdown
from dato.strategy import Strategy, StrategyError

STRATEGY = Strategy.uniform(5, 2, prune_ratio=0.4)
PAGES = {
    "/strategy.json": STRATEGY.to_json(),
    "/card.json": card_json(STRATEGY),
    "/card.md": card_markdown(STRATEGY),
    "/page.html": "<html>not a strategy</html>",
    "/huge.json": " " * (1 << 20) + "{}",
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        moved = {"/moved": "/strategy.json", "/down": f"http://127.0.0.1:{self.server.server_port}/strategy.json", "/file": "file:///etc/passwd", "/loop": "/loop"}  # type: ignore[attr-defined]
        if path in moved:
            self.send_response(302)
            self.send_header("Location", moved[path])
            self.end_headers()
            return
        if path == "/garbage":
            self.wfile.write(b"this is not HTTP\r\n\r\n")
            return
        if path in ("/cut", "/drip"):
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            for _ in range(1 if path == "/cut" else 100):
                with suppress(OSError):
                    self.wfile.write(b" ")
                    self.wfile.flush()
                time.sleep(0.05)
            return
        if path not in PAGES:
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(PAGES[path].encode())

    def log_message(self, format: str, *args: object) -> None:
        return


def certificate(folder: Path) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    plain = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
    (folder / "ca.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return folder / "ca.pem"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("tls")
    authority = certificate(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority, folder / "key.pem")
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    running.socket = context.wrap_socket(running.socket, server_side=True)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"https://127.0.0.1:{running.server_port}", authority
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def address(server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SSL_CERT_FILE", str(server[1]))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return server[0]


@pytest.mark.parametrize("path", ["/strategy.json", "/card.json", "/card.md", "/moved"])
def test_a_strategy_over_https(address: str, path: str) -> None:
    assert Strategy.load(address + path) == STRATEGY


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/missing", "HTTP 404"),
        ("/huge.json", "has more than 1048576 bytes"),
        ("/page.html", "is not JSON"),
        ("/down", "which is not https"),
        ("/file", "is not allowed"),
        ("/loop", "cannot read"),
        ("/garbage", "cannot read .*this is not HTTP"),
        ("/cut", "cannot read|is not JSON"),
    ],
)
def test_what_is_refused(address: str, path: str, message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        Strategy.load(address + path)


def test_an_unknown_authority_is_not_trusted(server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(StrategyError, match="CERTIFICATE_VERIFY_FAILED"):
        Strategy.load(f"{server[0]}/strategy.json")


@pytest.mark.parametrize("source", ["http://127.0.0.1/s.json", "ftp://127.0.0.1/s.json", "file:///etc/passwd"])
def test_other_protocols_are_refused(source: str) -> None:
    with pytest.raises(StrategyError, match="over https only"):
        Strategy.load(source)


def test_secrets_in_an_address_are_never_shown(address: str) -> None:
    with pytest.raises(StrategyError, match="with a user or password") as caught:
        Strategy.load(address.replace("https://", "https://user:secret@") + "/strategy.json")
    assert "secret" not in str(caught.value)
    with pytest.raises(StrategyError, match="HTTP 404") as caught:
        Strategy.load(address + "/missing?token=secret")
    assert "secret" not in str(caught.value)


def test_a_server_that_sends_a_byte_at_a_time_is_not_waited_for(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(https, "TIMEOUT_S", 0.5)
    with pytest.raises(StrategyError, match=r"did not end within 0\.5 s"):
        Strategy.load(address + "/drip")


@pytest.mark.parametrize("source", ["https://user:secret@[", "https://[::1", "https://a b/", "https://\u2100.com/x", "https://:99999999/"])
def test_what_is_no_address_is_one_message_without_secrets(source: str) -> None:
    with pytest.raises(StrategyError, match=r"give its path|give the https address") as caught:
        Strategy.load(source)
    assert "secret" not in str(caught.value)

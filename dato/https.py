"""Fetch a small text over https, and nothing else: no other protocol, no large body, no redirect that leaves https."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPMessage
from typing import IO
from urllib.parse import urlsplit

from dato.schema import StrategyError

TIMEOUT_S = 30
"""Seconds without an answer, and for the whole of it: a server may send a byte at a time for ever."""


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    max_redirections = 3

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme != "https":
            raise StrategyError(f"{shown(req.full_url)} redirects to {shown(newurl)}, which is not https; give the https address of the file itself")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch(address: str, limit: int) -> tuple[str, bytes]:
    """The address as it may be shown (without user, password and query), and at most `limit` bytes of body.

    Certificates are verified against the system's authorities, or those of the file that SSL_CERT_FILE names.

    Raises:
        StrategyError: Not https, a password in the address, an untrusted certificate, a redirect elsewhere, or too large.
    """
    try:
        parts = urlsplit(address)
    except ValueError:  # whose text may hold a password
        raise StrategyError(f"this https address cannot be read ({len(address)} characters); give the https address of the file") from None
    if parts.scheme != "https":
        raise StrategyError(f"{shown(address)} is {parts.scheme}; a strategy is read over https only, or download the file and give its path")
    if parts.username or parts.password:
        raise StrategyError(f"{shown(address)} was given with a user or password in it; download the file with your own client and give its path")
    # No other handlers: no file, ftp or data addresses, and no proxy but the environment's.
    opener = urllib.request.OpenerDirector()
    for handler in (urllib.request.ProxyHandler, urllib.request.HTTPSHandler, urllib.request.HTTPDefaultErrorHandler, _HttpsOnly, urllib.request.HTTPErrorProcessor):
        opener.add_handler(handler())
    try:
        with opener.open(urllib.request.Request(address, headers={"Accept": "application/json"}), timeout=TIMEOUT_S) as answer:
            body, end = b"", time.monotonic() + TIMEOUT_S
            while len(body) <= limit and (piece := answer.read1(limit + 1 - len(body))):
                body += piece
                if time.monotonic() > end:
                    raise TimeoutError(f"it did not end within {TIMEOUT_S} s")
    except (OSError, ValueError, HTTPException) as error:  # URLError and ssl's errors are OSErrors
        if isinstance(error, StrategyError):
            raise
        reason = f"HTTP {error.code} {error.reason}" if isinstance(error, urllib.error.HTTPError) else str(getattr(error, "reason", error))
        raise StrategyError(f"cannot read {shown(address)} ({reason}); check the address, or download the file and give its path") from None
    if len(body) > limit:
        raise StrategyError(f"{shown(address)} has more than {limit} bytes; a strategy file has at most {limit}")
    return shown(address), body


def shown(address: str) -> str:
    """An address without what may be secret in it: user, password, query and fragment."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return "an address that cannot be read"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

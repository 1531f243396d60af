"""Serve a page and the actions of its buttons to the browser of one user on this machine.

The address of the page contains a random token, so that other users of the machine cannot open the page. Everything is
kept in memory: an uploaded print is never written to the disk.
"""

from __future__ import annotations

import hmac
import json
import secrets
import sys
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any, NamedTuple

from fingerprint_accel.errors import UserError
from fingerprint_accel.untrusted import DAMAGED, Fields, parse_json

HOST = "127.0.0.1"
MOST_BYTES = 50_000_000  # size of one print
MOST_PRINTS = 2  # number of prints in one request
MOST_HEAD = 10_000  # bytes of the line of JSON in front of the prints
SECONDS = 60  # time in which a browser must send the next part of a request
# The page may run its own script and style, show pictures that its script has received, and ask this server only.
POLICY = (
    "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Cache-Control": "no-store",  # the browser must not keep prints on the disk
    "Referrer-Policy": "no-referrer",  # the address contains the token
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
TEXT, HTML, JSON, BYTES = "text/plain; charset=utf-8", "text/html; charset=utf-8", "application/json", "octet-stream"


class Upload(NamedTuple):
    """An uploaded print: the name and the contents of its file."""

    name: str
    data: bytes


Action = Callable[[Fields, list[Upload]], dict[str, Any]]


class PageServer(ThreadingHTTPServer):
    """Server of one page. Call `serve_forever` to answer requests, and `server_close` at the end.

    A request of the page's script has the path of an action and a body that consists of one line of JSON and the bytes
    of the prints. The entry "prints" of the JSON object has the name and the size of each print.

    Args:
        port: port on 127.0.0.1; 0 for any free port.
        page: HTML of the page, in which NONCE is the value of the attribute `nonce` of each script and style.
        actions: function of each action. It gets the JSON object and the prints, and returns a JSON object.

    Raises:
        UserError: if the port cannot be used.
    """

    daemon_threads = True  # an open connection does not keep the program running

    def __init__(self, port: int, page: str, actions: Mapping[str, Action]) -> None:
        self.page, self.actions = page, actions
        self.token = secrets.token_urlsafe(24)
        self.turn = Lock()  # for one request with prints at a time, which bounds the memory
        try:
            super().__init__((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"--port {port}: cannot be used ({error}); choose another") from error
        port = self.server_port
        names = [f"{host}:{port}" for host in (HOST, "localhost")] + ([HOST, "localhost"] if port == 80 else [])
        self.hosts = set(names)
        self.origins = {f"http://{name}" for name in names}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print the traceback of an error, unless the browser has closed the connection."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    @property
    def address(self) -> str:
        """Address of the page. Whoever knows it can use the page."""
        return f"http://{HOST}:{self.server_port}/{self.token}/"


class _Refused(Exception):  # noqa: N818  (the status of an answer)
    """Raised for a request that is not answered. The arguments are a status code of HTTP and a text."""


class _Handler(BaseHTTPRequestHandler):
    """Answer one request. Every request without the token is refused in the same way."""

    server: PageServer
    server_version, sys_version = "fingerprint-accel", ""
    timeout = SECONDS

    def _answer(self) -> None:
        nonce = secrets.token_urlsafe(16)
        try:
            kind, content = self._content(nonce)
            status = 200
        except _Refused as refused:
            (status, text), kind = refused.args, TEXT
            content = f"{text}\n".encode()
        except UserError as error:
            status, kind, content = 400, JSON, json.dumps({"error": str(error)}).encode()
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(content)), **HEADERS}
        headers["Content-Security-Policy"] = POLICY.format(nonce=nonce)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _answer  # noqa: N815

    def _content(self, nonce: str) -> tuple[str, bytes]:
        """Return the type and the content of the answer."""
        self._check_sender()
        action = self._path_after_token()
        if not action:
            if self.command not in ("GET", "HEAD"):
                raise _Refused(405, "only GET is allowed")
            return HTML, self.server.page.replace("NONCE", nonce).encode()
        if action not in self.server.actions:
            raise _Refused(404, "no such page")
        if self.command != "POST":
            raise _Refused(405, "only POST is allowed")
        if self.headers.get_content_subtype() != BYTES:  # browsers send this type to another host only after asking it
            raise _Refused(415, f"the type must be application/{BYTES}")
        with self.server.turn:
            return JSON, json.dumps(self.server.actions[action](*self._values_and_prints())).encode()

    def _check_sender(self) -> None:
        """Check that the request was made for this server, by its own page.

        In DNS rebinding, the host name of a foreign page leads to 127.0.0.1, but the browser sends this name as `Host`.
        The browser sends the address of a foreign page that makes a request as `Origin`.
        """
        hosts = [value.lower() for value in self.headers.get_all("Host", [])]
        origins = {value.lower() for value in self.headers.get_all("Origin", [])}
        if len(hosts) != 1 or hosts[0] not in self.server.hosts or not origins <= self.server.origins:
            raise self._forbidden()

    def _path_after_token(self) -> str:
        """Return what follows the token in the path of the request."""
        first, slash, rest = self.path.removeprefix("/").partition("/")
        if not (hmac.compare_digest(first.encode(), self.server.token.encode()) and slash):
            raise self._forbidden()
        return rest

    def _forbidden(self) -> _Refused:
        port = self.server.server_port
        return _Refused(
            403,
            "open the whole address that the demo has printed; from another machine, run "
            f"ssh -L {port}:{HOST}:{port} first",
        )

    def _values_and_prints(self) -> tuple[Fields, list[Upload]]:
        """Read the body of a request: a line of JSON, and the bytes of the prints. Its size is checked before."""
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise _Refused(411, "the length is missing")
        if len(length) > 12 or int(length) > MOST_PRINTS * MOST_BYTES + MOST_HEAD:
            raise _Refused(413, f"too large; a print may have at most {MOST_BYTES // 1_000_000} MB")
        body = self.rfile.read(int(length))
        head, _, rest = body.partition(b"\n")
        try:
            values = parse_json(head[: MOST_HEAD + 1])
        except DAMAGED as error:
            raise _Refused(400, "the request is damaged") from error
        listed = values.pop("prints", [])
        prints, start = [], 0
        for each in listed if type(listed) is list else []:
            fields = Fields(each if type(each) is dict else {}, "print", "reload the page")
            size = fields.integer("size", 0, MOST_BYTES)
            prints.append(Upload(fields.text("name"), rest[start : start + size]))
            start += size
        if start != len(rest) or len(prints) > MOST_PRINTS:
            raise _Refused(400, "the request is damaged")
        return Fields(values, "page", "enter another value"), prints

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the path contains the token."""

"""An artifact store over HTTP as MLflow's server offers one, with switches that may be thrown while it serves."""

from __future__ import annotations

import json
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

ROUTE = "/api/2.0/mlflow-artifacts/artifacts"
SLICE_S = 0.1


class ArtifactStore:
    """Serves the folder ``root`` on a free port of loopback. Use as a context manager.

    bytes_per_s: pace of every download, None for none. reply: status, content type and body given instead of
    everything, None to serve. downloads: path of every file that was asked for, oldest first.
    """

    def __init__(self, root: Path) -> None:
        """Listen; nothing is answered before the block begins."""
        self.root = root
        self.bytes_per_s: int | None = None
        self.reply: tuple[int, str, bytes] | None = None
        self.downloads: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(SLICE_S,), daemon=True)

    @property
    def address(self) -> str:
        """Return the server's URL."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def url(self, folder: str) -> str:
        """Return the artifact URI of a folder below ``root``."""
        return f"{self.address}{ROUTE}/{folder}"

    def __enter__(self) -> Self:
        """Serve."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop; downloads under way are cut off."""
        self.reply = (HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", b"closed")
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    store: ArtifactStore

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if self.store.reply is not None:
            self._send(*self.store.reply)
        elif parts.path == ROUTE:
            folder = self.store.root / parse_qs(parts.query).get("path", [""])[0]
            files = [
                {"path": path.name, "is_dir": path.is_dir(), "file_size": path.stat().st_size if path.is_file() else 0}
                for path in sorted(folder.iterdir())
            ]
            self._send(HTTPStatus.OK, "application/json", json.dumps({"files": files}).encode())
        else:
            name = unquote(parts.path).removeprefix(f"{ROUTE}/")
            self.store.downloads.append(name)
            self._send(HTTPStatus.OK, "application/octet-stream", (self.store.root / name).read_bytes())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            while body and self.store.bytes_per_s is not None:
                if self.store.reply is not None:
                    return
                size = max(1, int(self.store.bytes_per_s * SLICE_S))
                self.wfile.write(body[:size])
                body = body[size:]
                time.sleep(SLICE_S)  # a slow store is slow in real time
            self.wfile.write(body)
        except OSError:
            self.close_connection = True

    do_POST = do_GET  # noqa: N815 - the names that http.server looks for
    do_PATCH = do_GET  # noqa: N815 - likewise

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that http.server gives it
        """Print nothing."""

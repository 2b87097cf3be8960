# SPDX-License-Identifier: Apache-2.0
"""A web server in this process for tests: addresses and what they answer."""

import contextlib
import http.server
import threading
from collections.abc import Callable, Iterator

Answer = bytes | Callable[["Handler"], None]


class FileServer(http.server.ThreadingHTTPServer):
    """`answers`: path -> bytes, or a function that answers by itself.

    `requests`: the paths that were asked for. `closing`: tells it to stop.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Answer] = {}
        self.requests: list[str] = []
        self.closing = threading.Event()

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing is said of clients that hang up."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        answer = self.server.answers.get(self.path)
        if answer is None:
            return self.send_error(404)
        if callable(answer):
            return answer(self)
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)
        return None

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def running() -> Iterator[FileServer]:
    with FileServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()

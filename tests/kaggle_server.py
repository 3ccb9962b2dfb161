"""A server on 127.0.0.1 that answers as Kaggle does, for the real client in a subprocess.

The client's requests reach it because it is named as the HTTP proxy; see `environment`.
"""

import json
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ETAG = '"one"'
DATE = "Mon, 02 Mar 2020 12:00:00 GMT"


class KaggleServer:
    """Serves `archives`, one a download (the last again and again), and behaves as told.

    Args:
        archives: the bytes of the zip at the first, second, … download.
        status: the status of the API's answer; 302 leads to the archive.
        token: when not empty, only requests with it are answered.
        cuts: how many times the archive is cut half-way through what was asked for.
        fail_first: how many API requests are answered with 503 before.
    """

    def __init__(self, *archives, status=302, token="", cuts=0, fail_first=0):
        self.archives, self.status, self.token = list(archives), status, token
        self.cuts, self.fail_first = cuts, fail_first
        self.requests, self.ranges, self.served, self.downloads = [], [], 0, 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_POST(self):
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                server.answer_api(self)

            def do_GET(self):
                server.send_archive(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.http.shutdown()
        self.http.server_close()

    def environment(self, home, **more):
        """The environment in which the real client talks to this server only."""
        kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        return {
            **{name: value for name, value in kept.items() if not name.startswith("KAGGLE_")},
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "http_proxy": f"http://127.0.0.1:{self.http.server_port}",
            "no_proxy": "",
            "HOME": str(home),
            **more,
        }

    def answer_api(self, request):
        self.requests.append(f"POST {request.path}")
        authorization = request.headers.get("Authorization", "")
        if request.path.endswith("IntrospectToken"):
            active = authorization == f"Bearer {self.token}"
            return self.send_json(request, 200, {"active": active, "username": "reader" if active else ""})
        if self.fail_first:
            self.fail_first -= 1
            return self.send_json(request, 503, {"code": 503, "message": "busy"})
        if self.token and authorization != f"Bearer {self.token}":
            return self.send_json(request, 401, {"code": 401, "message": f"bad token {authorization}"})
        if self.status != 302:
            return self.send_json(request, self.status, {"code": self.status, "message": "no"})
        self.downloads += 1
        request.send_response(302)
        request.send_header("Location", "http://localhost/storage/archive.zip?signature=s3cret")
        request.send_header("Content-Length", "0")
        request.end_headers()
        return None

    def send_json(self, request, status, answer):
        body = json.dumps(answer).encode()
        request.send_response(status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def send_archive(self, request):
        self.requests.append(f"GET {request.path}")
        data = self.archives[min(self.downloads, len(self.archives)) - 1]
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        request.send_response(206 if asked else 200)
        request.send_header("Content-Length", str(len(data) - start))
        if asked:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        for name, value in {"ETag": ETAG, "Last-Modified": DATE, "Accept-Ranges": "bytes"}.items():
            request.send_header(name, value)
        request.end_headers()
        part = data[start:]
        if self.cuts:
            self.cuts -= 1
            part = part[: len(part) // 2]
            request.close_connection = True
        self.served += len(part)
        request.wfile.write(part)

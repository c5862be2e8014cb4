"""What the subjects share: an HTTP server on 127.0.0.1 whose answers come from two functions."""
from http.server import BaseHTTPRequestHandler, HTTPServer


def serve(port, get, post=None):
    """get(path) and post(text) return the text of the answer."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self, text):
            body = text.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.answer(get(self.path))

        def do_POST(self):
            self.answer(post(self.rfile.read(int(self.headers["Content-Length"])).decode()))

        def log_message(self, *_):
            pass

    HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()


def sum_up(port, check, rounds):
    """Holds a sum: POST n adds n to it, and any GET answers it but /check and /rounds, which answer these functions."""
    total = 0

    def get(path):
        if path == "/check":
            return check()
        return str(rounds() if path == "/rounds" else total)

    def post(text):
        nonlocal total
        total += int(text)
        return str(total)

    serve(port, get, post)

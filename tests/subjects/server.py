"""An HTTP server that holds one character: GET answers it, POST sets it. Argument: the port."""
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

state = "0"


class Handler(BaseHTTPRequestHandler):
    def answer(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(state)))
        self.end_headers()
        self.wfile.write(state.encode())

    def do_GET(self):
        self.answer()

    def do_POST(self):
        global state
        state = self.rfile.read(int(self.headers["Content-Length"])).decode()[:1]
        self.answer()


HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()

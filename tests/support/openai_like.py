"""A server like vLLM's, for faults of endpoints, and a process to be found: standard library only.

    python3 .../vllm serve MODEL [--host ADDRESS] [--port N] [--api-key KEY] [--fault NAME]
        [--log FILE: gets each request's "user"] [--tls CERT KEY] ...

Copied to a file named vllm, it has the command line of a real one. It prints its port when ready.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

GIVEN = dict(zip(sys.argv, [*sys.argv[1:], ""], strict=False))
MODEL = sys.argv[2] if len(sys.argv) > 2 else "none"
FAULT = GIVEN.get("--fault", "")
KEY = GIVEN.get("--api-key", "")
NAMES = GIVEN.get("--served-model-name", MODEL).split(",")
START = time.time()
#: Seconds between two events of a stream.
PAUSE = 0.04
#: Seconds to the first of them with the fault "slow": more than a busy machine adds to it.
SLOW = 0.4
#: Of a server with the fault "restarts": so many streams before it does.
STREAMS = iter(range(4))
METRICS = (
    f"process_start_time_seconds {START}\n"
    'vllm:num_requests_running{engine="0"} 8\n'
    'vllm:num_requests_waiting{engine="0"} 5\n'
    'vllm:kv_cache_usage_perc{engine="0"} 0.97\n'
    "vllm:request_success_total 3\n"
)


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_words: Any) -> None:
        """Nothing."""

    def answer(self, body: str | bytes, status: int = 200) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def allowed(self) -> bool:
        return not KEY or self.headers.get("Authorization") == f"Bearer {KEY}"

    def do_GET(self) -> None:
        bare = self.path in ("/version", "/metrics", "/health")
        if FAULT == "html":
            self.answer("<html>It works!</html>")
        elif FAULT == "json":
            self.answer('{"data": [')
        elif FAULT == "huge":
            self.answer(b"x" * (20 << 20))
        elif FAULT == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
        elif not bare and not self.allowed():
            self.answer('{"error": "Unauthorized"}', 401)
        elif self.path == "/v1/models":
            models = [] if FAULT == "empty" else NAMES
            if FAULT == "escapes":
                models = ["\x1b]0;owned\x07evil"]
            data = [{"id": name, "root": MODEL, "max_model_len": 4096} for name in models]
            self.answer(json.dumps({"object": "list", "data": data}))
        elif FAULT == "router":
            self.answer("not found", 404)
        elif self.path == "/version":
            self.answer('{"version": "0.30.0"}')
        elif self.path == "/metrics":
            self.answer(METRICS)
        elif self.path == "/health":
            self.answer("")
        else:
            self.answer("not found", 404)

    def stream(self, asked: dict[str, Any]) -> None:
        """Tokens, two in each event, and their count at the end."""
        if FAULT == "restarts" and next(STREAMS, None) is None:
            os.execv(sys.executable, [sys.executable, *sys.argv])
        if FAULT == "refuses":
            return self.answer('{"error": "\x1b[2J no such model"}', 404)
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        many, length = asked["max_tokens"], len(asked["prompt"])
        if FAULT == "slow":
            time.sleep(SLOW)
        if FAULT == "endless":
            while True:
                self.wfile.write(b"x" * (1 << 16))
        for _ in range(0, many, 2):
            self.wfile.write(b'data: {"choices": [{"text": "a b"}]}\n\n')
            time.sleep(PAUSE)
        usage = {"completion_tokens": many, "prompt_tokens": length}
        self.wfile.write(f'data: {{"choices": [], "usage": {json.dumps(usage)}}}\n\n'.encode())
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True
        return None

    def completion(self, asked: dict[str, Any]) -> None:
        """Not streamed: of a base model; or of tokens, to see whether they are understood."""
        told = {"tokens": ["Paris", "."], "token_logprobs": [-0.5, -0.1]}
        choice = {"text": "Paris.", "finish_reason": "length", "logprobs": told}
        usage = {"prompt_tokens": len(asked["prompt"])}
        self.answer(json.dumps({"choices": [choice], "usage": usage}))

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "--log" in GIVEN:
            with Path(GIVEN["--log"]).open("a", encoding="utf-8") as log:
                log.write(f"{asked.get('user')}\n")
        chat = "chat" in self.path
        if not self.allowed():
            self.answer('{"error": "Unauthorized"}', 401)
        elif self.path == "/tokenize":
            found = json.dumps({"tokens": list(range(40))})
            self.answer(found) if FAULT != "router" else self.answer("not found", 404)
        elif asked.get("stream"):
            self.stream(asked)
        elif chat and FAULT == "base":
            self.answer('{"error": {"message": "... must provide a chat template ..."}}', 400)
        elif not chat:
            self.completion(asked)
        elif FAULT == "nonsense":
            self.answer(json.dumps({"choices": [{"message": {"content": None}}]}))
        else:
            self.chat()

    def chat(self) -> None:
        text = "Paris, or so." if FAULT != "wrong" else "\x1b[2Jbanana"
        if FAULT == "unsteady":
            text += str(time.time())
        tokens = [{"token": word, "logprob": -0.5} for word in text.split()]
        choice = {
            "message": {"content": text},
            "finish_reason": "stop",
            "logprobs": {"content": tokens},
        }
        self.answer(json.dumps({"choices": [choice]}))


class Listening(ThreadingHTTPServer):
    """Many connections may wait, as in vLLM: with Python's five, more at once are reset."""

    request_queue_size = 2048


def main() -> None:
    address = (GIVEN.get("--host", "127.0.0.1"), int(GIVEN.get("--port", "0")))
    server = Listening(address, Handler)
    if "--tls" in GIVEN:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(GIVEN["--tls"])
        server.socket = context.wrap_socket(server.socket, server_side=True)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()

"""A stand-in for the W&B server that `wandb sweep` and `wandb agent` talk to: it hands out the points of a sweep.

W&B's own server can't run here. The clients are the real ones; this only answers their GraphQL requests (wandb 0.31,
wandb/apis/public/sweeps.py).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY, PROJECT, SWEEP = "somebody", "stabilab", "sweep456"


@dataclass
class SweepServer:
    points: Sequence[Mapping[str, Any]]
    url: str = ""
    config: str | None = None
    """YAML of the created sweep."""
    given: list[str] = field(default_factory=list)
    """Ids of the runs handed out to agents."""

    def answer(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        if "viewer" in query:
            teams = {"edges": [{"node": {"name": ENTITY}}]}
            return {"viewer": {"id": "1", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": teams}}
        if "upsertSweep" in query:
            self.config = variables["config"]
            project = {"id": "1", "name": PROJECT, "entity": {"id": "1", "name": ENTITY}}
            sweep = {"id": SWEEP, "name": SWEEP, "project": project}
            return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}
        if "SweepWithRuns" in query:
            return {"project": {"sweep": {"id": SWEEP, "config": self.config, "runs": {"edges": []}}}}
        if "createAgent" in query:
            return {"createAgent": {"agent": {"id": "agent"}}}
        if "agentHeartbeat" in query:
            commands = [] if any(json.loads(variables["runState"]).values()) else [self._next()]
            return {"agentHeartbeat": {"agent": {"id": variables["id"]}, "commands": json.dumps(commands)}}
        raise AssertionError(query)

    def _next(self) -> dict[str, Any]:
        if len(self.given) == len(self.points):
            return {"type": "exit"}
        arguments = {key: {"value": value} for key, value in self.points[len(self.given)].items()}
        self.given.append(f"agentrun{len(self.given)}")
        return {"type": "run", "run_id": self.given[-1], "program": "train", "args": arguments}


@contextmanager
def serving(points: Sequence[Mapping[str, Any]]) -> Iterator[SweepServer]:
    state = SweepServer(points)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            if self.path != "/graphql":  # wandb's own telemetry
                self.send_error(404)
                return
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps({"data": state.answer(asked["query"], asked.get("variables") or {})}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield state
        server.shutdown()

"""A hub without a network: repositories in the cache of `huggingface_hub`, and a server."""

import json
import re
import shutil
from base64 import b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

FIRST, SECOND = "1" * 40, "2" * 40


class Hub:
    """A cache folder that holds all there is on the hub."""

    def __init__(self, cache: Path, patch: pytest.MonkeyPatch) -> None:
        self.cache = cache
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))

    def publish(self, hub_id: str, folder: Path, commit: str, *branches: str) -> Path:
        """Make a commit of a model from a folder, and let branches (`main` too) point at it."""
        repository = self.cache / f"models--{hub_id.replace('/', '--')}"
        snapshot = repository / "snapshots" / commit
        shutil.copytree(folder, snapshot)
        (repository / "refs").mkdir(exist_ok=True)
        for branch in ("main", *branches):
            (repository / "refs" / branch).write_text(commit)
        return snapshot


class HubServer:
    """A server on this machine that speaks what `huggingface_hub` asks when it uploads.

    Attributes:
        files: `org/name` -> name of each file -> content.
        private: `org/name` -> whether it was created as private.
        tokens: what requests were authorized with.
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.tokens: set[str] = set()
        self.objects: dict[str, bytes] = {}
        self.refuses = False
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()
        template = self.address + "/{repo_id}/resolve/{revision}/{filename}"
        values = {"ENDPOINT": self.address, "HUGGINGFACE_CO_URL_TEMPLATE": template}
        values |= {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}
        for name, value in values.items():
            patch.setattr(f"huggingface_hub.constants.{name}", value)

    def close(self) -> None:
        """Stop."""
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """Answers one request; what it does not know is 404."""

    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        """Whether a file exists."""
        found = re.fullmatch(r"/(.+?)/resolve/main/(.+)", self.path)
        content = self.hub.files.get(found[1], {}).get(found[2]) if found else None
        if content is None:
            code = "EntryNotFound" if found and found[1] in self.hub.files else "RepoNotFound"
            self._send(404, b"", {"X-Error-Code": code})
        else:
            self._send(200, b"", {"ETag": '"1"', "X-Repo-Commit": FIRST, "X-Linked-Size": "1"})

    def do_PUT(self) -> None:
        """A large file."""
        self.hub.objects[self.path.rpartition("/")[2]] = self._body()
        self._send(200, b"")

    def do_POST(self) -> None:
        """Create a repository, announce files, commit."""
        body = self._body()
        self.hub.tokens.add(self.headers.get("Authorization", ""))
        if self.hub.refuses:
            self._send(403, b'{"error": "Forbidden: no write access"}')
        elif self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [one["path"] for one in json.loads(body)["files"]]
            self._json({"files": [_announced(path) for path in files]})
        elif self.path.endswith("/info/lfs/objects/batch"):
            self._json({"transfer": "basic", "objects": self._places(json.loads(body)["objects"])})
        elif "/commit/" in self.path:
            self._commit(body)
        else:
            self._send(404, b"")

    def _create(self, asked: dict[str, Any]) -> None:
        hub_id = f"{asked['organization']}/{asked['name']}"
        known = hub_id in self.hub.files
        self.hub.files.setdefault(hub_id, {})
        self.hub.private.setdefault(hub_id, asked.get("visibility") == "private")
        status = 409 if known else 200
        self._json({"url": f"{self.hub.address}/{hub_id}", "name": hub_id}, status)

    def _places(self, objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Where to put large files."""
        return [
            {
                "oid": one["oid"],
                "size": one["size"],
                "authenticated": True,
                "actions": {"upload": {"href": f"{self.hub.address}/lfs/{one['oid']}"}},
            }
            for one in objects
        ]

    def _commit(self, body: bytes) -> None:
        hub_id = self.path.split("/models/")[1].split("/commit/")[0]
        for text in body.decode().splitlines():
            line = json.loads(text)
            value = line["value"]
            if line["key"] == "file":
                self.hub.files[hub_id][value["path"]] = b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.files[hub_id][value["path"]] = self.hub.objects[value["oid"]]
        url = f"{self.hub.address}/{hub_id}/commit/{FIRST}"
        self._json({"commitUrl": url, "commitOid": FIRST, "success": True})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _json(self, content: dict[str, Any], status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def _announced(path: str) -> dict[str, Any]:
    mode = "lfs" if path.endswith(".safetensors") else "regular"
    return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": None}

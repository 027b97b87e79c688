"""A Hub in memory, on loopback: as much of huggingface.co as creating, uploading, downloading and streaming need.

    with Hub() as hub:
        subprocess.run(..., env=os.environ | hub.environment(home))

Set the environment before huggingface_hub is imported: it reads its endpoint then. Reading a private repository, and
any writing, needs the token. `hub.refuse("/commit/", 500)` makes the next request whose path holds that text fail.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

TOKEN = "hf_kept_out_of_every_file"
DROP = 0  # a status for `refuse`: read a part of what is sent, then cut the connection


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0

    @property
    def sha(self) -> str:
        return f"{self.commits:040x}"


class Hub(ThreadingHTTPServer):
    """repositories: by "models/user/name", "datasets/user/name" or "spaces/user/name"."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.refusals: list[tuple[str, int]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.shutdown()
        self.server_close()

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """What a process needs in order to take this for the Hub. home: its cache."""
        settings = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        return settings | ({"HF_TOKEN": token} if token else {})

    def refuse(self, path: str, status: int, times: int = 1) -> None:
        self.refusals += [(path, status)] * times

    def refusal(self, path: str) -> int | None:
        found = next((r for r in self.refusals if r[0] in path), None)
        if found:
            self.refusals.remove(found)
            return found[1]

    def handle_error(self, request, client_address) -> None:
        """A client that hangs up is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def do_GET(self) -> None:
        self.route()

    do_HEAD = do_POST = do_GET

    def route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        refusal = self.server.refusal(path)
        if refusal == DROP:
            return self.hang_up()
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self.read_chunks()
        if refusal:
            return self.fail(refusal, f"refused for the test: {refusal}")
        self.signed_in = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if self.command == "POST" and not self.signed_in and "/paths-info/" not in path:
            return self.fail(401, "sign in to write")
        if path == "/api/repos/create":
            return self.create(json.loads(self.body))
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path == "/api/whoami-v2":
            return self.answer({"type": "user", "name": "user", "orgs": []})
        if found := re.fullmatch(
            r"/api/((?:models|datasets|spaces)/[^/]+/[^/]+)(?:/([\w-]+))?(?:/([^/]+))?(?:/(.+))?", path
        ):
            return self.api(*found.groups())
        if found := re.fullmatch(r"/(datasets/|spaces/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.resolve((found[1] or "models/") + found[2], found[4])
        self.fail(404, f"no such page: {path}")

    def create(self, wanted: dict) -> None:
        owner, kind = wanted.get("organization") or "user", wanted.get("type") or "model"
        name = f"{kind}s/{owner}/{wanted['name']}"
        url = {"url": f"{self.server.url}/{owner}/{wanted['name']}"}
        if name in self.server.repositories:
            return self.answer(url | {"error": "You already created this repo"}, 409)
        self.server.repositories[name] = Repository(private=wanted.get("visibility", "public") == "private")
        self.answer(url)

    def api(self, name: str, action: str | None, revision: str | None, path: str | None) -> None:
        if (repository := self.readable(name)) is None:
            return
        files = repository.files
        if action in (None, "revision"):
            about = {"id": name.split("/", 1)[1], "sha": repository.sha, "private": repository.private, "tags": []}
            return self.answer(about | {"siblings": [{"rfilename": f} for f in files], "downloads": 0, "likes": 0})
        if action == "preupload":
            wanted = [f["path"] for f in json.loads(self.body)["files"]]
            return self.answer(
                {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for p in wanted]}
            )
        if action == "commit":
            return self.commit(name, repository)
        if action == "paths-info":
            wanted = self.json_or_form()["paths"]
            return self.answer([_entry(f, files[f]) for f in wanted if f in files])
        if action == "tree":
            inside = {f: c for f, c in files.items() if not path or f.startswith(path + "/")}
            if path and not inside:
                return self.fail(404, f"no {path} in {name}", "EntryNotFound")
            return self.answer([_entry(f, content) for f, content in inside.items()])
        self.fail(404, f"no such call: {action}")

    def commit(self, name: str, repository: Repository) -> None:
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                del repository.files[value["path"]]
        repository.commits += 1
        url = f"{self.server.url}/{name.removeprefix('models/')}/commit/{repository.sha}"
        self.answer({"success": True, "commitOid": repository.sha, "commitUrl": url})

    def resolve(self, name: str, file: str) -> None:
        if (repository := self.readable(name)) is None:
            return
        if file not in repository.files:
            return self.fail(404, f"no {file} in {name}", "EntryNotFound")
        content, status, extra = repository.files[file], 200, {}
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
            extra, status = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}, 206
            content = content[first : last + 1]
        etag = {"ETag": f'"{_digest(repository.files[file])}"', "X-Repo-Commit": repository.sha}
        self.send(content, status, etag | extra | {"Accept-Ranges": "bytes"})

    def readable(self, name: str) -> Repository | None:
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and not self.signed_in):
            return self.fail(404 if self.signed_in else 401, f"no {name}, or none for you", "RepoNotFound")
        return repository

    def json_or_form(self) -> dict:
        if "json" in self.headers.get("Content-Type", ""):
            return json.loads(self.body)
        pairs = [unquote(p.replace("+", " ")).split("=", 1) for p in self.body.decode().split("&")]
        return {"paths": [value for key, value in pairs if key == "paths"]}

    def read_chunks(self) -> bytes:
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def hang_up(self) -> None:
        self.rfile.read(min(100, int(self.headers.get("Content-Length", 0))))
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def fail(self, status: int, message: str, code: str | None = None) -> None:
        self.answer({"error": message}, status, {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {}))

    def answer(self, content: dict | list, status: int = 200, headers: dict | None = None) -> None:
        self.send(json.dumps(content).encode(), status, {"Content-Type": "application/json"} | (headers or {}))

    def send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments) -> None:
        """Quiet."""


def _entry(path: str, content: bytes) -> dict:
    return {"type": "file", "path": path, "size": len(content), "oid": _digest(content)}


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()

"""A hub on this machine: the part of the HTTP API of huggingface.co that uploads and downloads a model use."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar
from unittest import mock

from huggingface_hub import ModelCard, constants

COMMIT = "a" * 40
TOKEN = "hf_secret"


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves repositories of the user `someone`, whose token is `TOKEN`.

    Large files take the way of Git LFS, and a commit lists them by their digest, as on the real hub.
    """

    repos: ClassVar[dict[str, dict[str, Any]]] = {}  # name -> visibility, commit titles and files
    objects: ClassVar[dict[str, bytes]] = {}
    requests: ClassVar[list[str]] = []

    def do_POST(self):
        Hub.requests.append(f"POST {self.path}")
        body = self._read()
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token != TOKEN:
            self._answer(401, {"error": "Invalid credentials in Authorization header"})
        elif self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self._validate(json.loads(body)["content"])
        elif found := re.fullmatch(r"/api/models/(.+)/preupload/main", self.path):
            self._preupload(found[1], json.loads(body)["files"])
        elif re.fullmatch(r"/.+\.git/info/lfs/objects/batch", self.path):
            self._batch(json.loads(body)["objects"])
        elif found := re.fullmatch(r"/api/models/(.+)/commit/main", self.path):
            self._commit(found[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._answer(404, {"error": "not found"})

    def do_PUT(self):
        body = self._read()
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == oid
        Hub.objects[oid] = body
        self._answer(200, {})

    def do_HEAD(self):
        self._serve()

    def do_GET(self):
        self._serve()

    def _read(self) -> bytes:
        """Returns the body of a request, which may be sent in chunks."""
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _create(self, asked):
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != "someone":
            error = f'You don\'t have the rights to create a model under the namespace "{asked["organization"]}"'
            self._answer(403, {"error": error})
        elif name in Hub.repos:
            self._answer(409, {"error": "You already created this model repo", "url": f"{constants.ENDPOINT}/{name}"})
        else:
            Hub.repos[name] = {"visibility": asked.get("visibility"), "titles": [], "files": {}}
            self._answer(200, {"url": f"{constants.ENDPOINT}/{name}", "name": name, "id": name})

    def _validate(self, content):
        license = ModelCard(content).data.license
        known = license is None or license in ("apache-2.0", "mit", "cc-by-nc-4.0", "other")
        errors = [] if known else [{"message": f'"license" must be one of [...], got {license}'}]
        self._answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def _preupload(self, repo, files):
        if repo not in Hub.repos:
            self._answer(404, {"error": "Repository not found"})
            return
        mode = {True: "lfs", False: "regular"}
        rows = [{"path": f["path"], "uploadMode": mode[f["path"].endswith("safetensors")]} for f in files]
        self._answer(200, {"files": [{**row, "shouldIgnore": False, "oid": None} for row in rows]})

    def _batch(self, objects):
        href = f"{constants.ENDPOINT}/lfs/"
        rows = [{**each, "actions": {"upload": {"href": href + each["oid"]}}} for each in objects]
        self._answer(200, {"transfer": "basic", "objects": rows})

    def _commit(self, repo, lines):
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                Hub.repos[repo]["titles"].append(value["summary"])
            elif line["key"] == "file":
                Hub.repos[repo]["files"][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                Hub.repos[repo]["files"][value["path"]] = Hub.objects[value["oid"]]
        url = f"{constants.ENDPOINT}/{repo}/commit/{COMMIT}"
        self._answer(200, {"success": True, "commitOid": COMMIT, "commitUrl": url})

    def _serve(self):
        found = re.fullmatch(r"/(.+?)/resolve/[^/]+/(.+)", self.path)
        files = Hub.repos.get(found[1], {}).get("files", {}) if found else {}
        if found is None or found[2] not in files:
            self._answer(404, {"error": "not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        content = files[found[2]]
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        self._answer(200, content, headers)

    def _answer(self, status, body, headers=None):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        error = {"X-Error-Message": body["error"]} if isinstance(body, dict) and "error" in body else {}
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **error, **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args):
        pass


@contextmanager
def running_hub(cache: str) -> Iterator[type[Hub]]:
    """Runs an empty hub to which the client of this process is connected, logged in as `someone`.

    Args:
      cache: folder for what is downloaded.
    """
    Hub.repos, Hub.objects, Hub.requests = {}, {}, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        replaced = {
            "ENDPOINT": endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": cache,
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }
        with mock.patch.multiple(constants, **replaced), mock.patch.dict("os.environ", HF_TOKEN=TOKEN):
            yield Hub
        server.shutdown()

"""A small hub on a port of this machine."""

import hashlib
import http.server
import json
import re


class Hub(http.server.ThreadingHTTPServer):
    """As much of the hub's protocol as a snapshot needs. A push makes a commit and moves the branch
    `main`."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.commits = {}  # (models/org/name, commit) to files
        self.branches = {}  # (models/org/name, branch) to commit
        self.refused = {}  # models/org/name to (step, status): gated
        self.asked = []

    def push(self, files, repository="models/org/name"):
        commit = hashlib.sha1(json.dumps([repository, files]).encode()).hexdigest()
        self.commits[repository, commit] = {name: text.encode() for name, text in files.items()}
        self.branches[repository, "main"] = commit
        return commit

    def commit(self, repository, revision):
        return (
            revision
            if (repository, revision) in self.commits
            else self.branches.get((repository, revision))
        )


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.wfile.write(self.answer())

    def answer(self):
        path = self.path.split("?")[0]
        self.server.asked.append(path)
        found = re.fullmatch(r"/api/(\w+/\w+/\w+)/(revision|tree)/([^/]+)", path)
        if found:
            repository, step, revision = found.groups()
        else:
            found = re.fullmatch(r"/(datasets/)?(\w+/\w+)/(resolve)/([^/]+)/(.+)", path)
            kind, name, step, revision, file = found.groups()
            repository = f"{kind or 'models/'}{name}"
        if not any(known == repository for known, _ in self.server.commits):
            return self.refuse(401, "RepoNotFound")
        commit = self.server.commit(repository, revision)
        if commit is None:
            return self.refuse(404, "RevisionNotFound")
        refused_step, status = self.server.refused.get(repository, (None, None))
        if step == refused_step:
            return self.refuse(status, "GatedRepo")
        files = self.server.commits[repository, commit]
        if step == "resolve":
            body = files[file]
        elif step == "revision":
            body = json.dumps({"id": repository.partition("/")[2], "sha": commit}).encode()
        else:
            body = json.dumps(
                [
                    {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                    for n, b in files.items()
                ]
            ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", commit)
        self.end_headers()
        return body

    def refuse(self, status, code):
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
        return b""

    def log_message(self, *words):
        pass


def ask(monkeypatch, url):
    """Point the hub library, which reads its settings when it is imported, to another hub."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(
        "huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False
    )

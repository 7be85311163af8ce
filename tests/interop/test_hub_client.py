"""The client of the Hugging Face hub against a stub of the hub on this machine.

The client reads its settings when it is imported, so each call is a process of its own.
"""

import base64
import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest

pytest.importorskip("huggingface_hub")

COMMIT = "0123456789" * 4
FILES = {
    "README.md": b"a card",
    "model_index.json": b"{}",
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.safetensors": b"weights",
    "unet/diffusion_pytorch_model.bin": b"the same again",
}


ONE_FILE = {"README.md": b"a card", "weights/model.pt": b"weights of one file"}
TWO_FILES = ONE_FILE | {"step-2000.ckpt": b"other weights"}


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub with one model, owner/model, whose branch main and tag v1 are the same commit."""

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer()

    def do_POST(self):
        self.server.posted[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer()

    def answer(self, body=True):
        path = self.path.split("?")[0]
        self.server.asked.append(path)
        headers, data = self.found(path)
        self.send_response(404 if data is None else 200)
        for name, value in {"Content-Length": len(data or b""), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if body:
            self.wfile.write(data or b"")

    def found(self, path):
        api, files = "/api/models/owner/model", f"/owner/model/resolve/{COMMIT}/"
        if path.startswith(files):
            data = self.server.files.get(path.removeprefix(files))
            etag = data and hashlib.sha1(data).hexdigest()
            return {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, data
        there = self.server.files
        tree = [{"type": "file", "path": f, "size": len(x), "oid": "0"} for f, x in there.items()]
        info = {"id": "owner/model", "sha": COMMIT, "siblings": [{"rfilename": f} for f in there]}
        url = f"http://{self.headers['Host']}/owner/model"
        answers = {
            f"{api}/tree/main": tree,
            f"{api}/tree/v1": tree,
            f"{api}/tree/{COMMIT}": tree,
            f"{api}/revision/main": info,
            f"{api}/revision/v1": info,
            api: info,
            "/api/whoami-v2": {"name": "owner", "type": "user"},
            "/api/repos/create": {"url": url, "id": "owner/model"},
            "/api/validate-yaml": {"errors": [], "warnings": []},
            f"{api}/commit/main": {"commitUrl": f"{url}/commit/{COMMIT}", "commitOid": COMMIT},
        }
        if path == f"{api}/preupload/main":
            names = [file["path"] for file in json.loads(self.server.posted[path])["files"]]
            answers[path] = {
                "files": [
                    {"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names
                ]
            }
        if path == "/api/whoami-v2" and not self.headers.get("Authorization"):
            return {}, None
        data = answers.get(path)
        return {"Content-Type": "application/json"}, data and json.dumps(data).encode()

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.asked, server.posted, server.files = [], {}, FILES
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def call(server, folder, code, **environment):
    """Run a line with our functions, a cache in `folder` and the stub for the hub."""
    settings = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "127.0.0.1",
    }
    start = (
        "from ddpm_jax.interop.hub import *\n"
        "from ddpm_jax.interop.hub import check_push, origin, push\n"
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    result = subprocess.run(
        [sys.executable, "-c", start + code],
        env=inherited | settings | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout.strip().splitlines(), result.stderr


RESOLVE = "path = resolve({!r}); print(path, origin(path), sep='\\n')"


@pytest.mark.full
def test_a_model_is_downloaded_once_at_one_commit_and_read_without_a_network(hub, tmp_path):
    (path, name), _ = call(hub, tmp_path, RESOLVE.format("hub:owner/model"))
    assert name == f"owner/model@{COMMIT}"
    there = pathlib.Path(path)
    found = {file.relative_to(there).as_posix() for file in there.rglob("*") if file.is_file()}
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert found == {"model_index.json", "unet/config.json", weights}
    assert (there / weights).read_bytes() == b"weights"
    asked = len(hub.asked)
    for text in ("owner/model", f"owner/model@{COMMIT}"):
        offline, _ = call(hub, tmp_path, RESOLVE.format(text), HF_HUB_OFFLINE="1")
        assert offline == [path, name]
    assert len(hub.asked) == asked
    _, said = call(hub, tmp_path, RESOLVE.format("owner/other"), HF_HUB_OFFLINE="1")
    assert "owner/other is no file and no directory, and cannot be downloaded" in said


@pytest.mark.full
def test_a_tag_is_asked_for_and_another_is_not_there(hub, tmp_path):
    (_, name), _ = call(hub, tmp_path, RESOLVE.format("owner/model@v1"))
    assert name == f"owner/model@{COMMIT}"
    _, said = call(hub, tmp_path, RESOLVE.format("owner/model@v2"))
    assert "FailureError: owner/model@v2 is no file and no directory" in said


@pytest.mark.full
def test_a_model_that_is_one_file_is_that_file_also_without_a_network(hub, tmp_path):
    hub.files = ONE_FILE
    (path, name), _ = call(hub, tmp_path, RESOLVE.format("hub:owner/model"))
    assert pathlib.Path(path).read_bytes() == b"weights of one file"
    assert name == f"hub:owner/model/weights/model.pt@{COMMIT}"
    for text in ("owner/model", name):
        offline, _ = call(hub, tmp_path, RESOLVE.format(text), HF_HUB_OFFLINE="1")
        assert offline == [path, name]


@pytest.mark.full
def test_of_several_files_one_is_named(hub, tmp_path):
    hub.files = TWO_FILES
    _, said = call(hub, tmp_path, RESOLVE.format("hub:owner/model"))
    assert said.splitlines()[-1].endswith(
        "UsageError: owner/model has several files of weights: step-2000.ckpt, weights/model.pt. "
        "Name one of them, as hub:owner/model/step-2000.ckpt."
    )
    (path, name), _ = call(hub, tmp_path, RESOLVE.format("hub:owner/model/step-2000.ckpt@v1"))
    assert pathlib.Path(path).read_bytes() == b"other weights"
    assert name == f"hub:owner/model/step-2000.ckpt@{COMMIT}"
    _, said = call(hub, tmp_path, RESOLVE.format("hub:owner/model/model.pt"))
    assert "UsageError: owner/model has no model.pt: there is step-2000.ckpt, weights" in said


@pytest.mark.full
def test_files_are_pushed_as_one_commit(hub, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"new weights")
    code = (
        "repo = check_push('owner/model')\n"
        f"files = {{'unet/a.safetensors': pathlib.Path({str(tmp_path)!r}) / 'model.safetensors',\n"
        "  'README.md': b'---\\nlicense: mit\\n---\\n'}\n"
        "print(push(repo, files, message='Add it', private=True))"
    )
    (url,), said = call(hub, tmp_path, code, HF_TOKEN="hf_secret")
    assert url.endswith(f"/commit/{COMMIT}"), said
    made = json.loads(hub.posted["/api/repos/create"])
    assert made["name"] == "model"
    assert made.get("private") or made.get("visibility") == "private"
    lines = hub.posted["/api/models/owner/model/commit/main"].splitlines()
    header, *files = [json.loads(line) for line in lines]
    assert header["value"]["summary"] == "Add it"
    sent = {file["value"]["path"]: base64.b64decode(file["value"]["content"]) for file in files}
    assert sent == {
        "unet/a.safetensors": b"new weights",
        "README.md": b"---\nlicense: mit\n---\n",
    }


@pytest.mark.full
def test_without_a_login_nothing_is_pushed(hub, tmp_path):
    _, said = call(hub, tmp_path, "check_push('owner/model')")
    assert "FailureError: owner/model cannot be pushed to the Hugging Face hub" in said
    assert "hf auth login" in said
    assert not hub.posted

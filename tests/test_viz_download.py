"""viz/download.py with a local stand-in for the Hugging Face hub and GitHub, which gives small versions of their answers."""

import hashlib
import http.server
import json
import threading
import urllib.parse

import pytest

from conftest import ROOT, complains, run
from subprojects import Subproject

SUBPROJECT = viz = Subproject("viz")
download = viz.load("download")
InputError = viz.load("common.errors").InputError

BODY = bytes(range(256)) * 400
HUB, GIT = "zhouyuxuanyx/MaxSup-Regularized-ResNet50", "ZhouYuxuanYX/Maximum-Suppression-Regularization"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path = urllib.parse.urlparse(self.path).path
        here = f"http://127.0.0.1:{self.server.server_port}"
        self.server.asked.append((self.command, path, self.headers.get("Range")))
        status, headers, content = 200, {}, b"{}"
        if path.startswith(f"/api/models/{HUB}"):
            names = ["README.md", "maxsup/last.ckpt", "ls.pth"]
            lfs = {"size": len(BODY), "sha256": self.server.digest, "pointerSize": 1}
            rows = [{"rfilename": name, "size": len(BODY), "lfs": lfs} for name in names]
            content = json.dumps({"id": HUB, "sha": "a" * 40, "siblings": rows}).encode()
        elif path == f"/repos/{GIT}/releases/tags/checkpoint_deit":
            row = {"size": self.server.size, "digest": f"sha256:{self.server.digest}"}
            rows = [row | {"name": name, "browser_download_url": f"{here}/files/{name}"} for name in self.server.names]
            content = self.server.release or json.dumps({"assets": rows}).encode()
        elif path.startswith("/files/") and self.server.elsewhere:
            status, headers = 302, {"Location": self.server.elsewhere.format(here=here)}
        elif path.startswith((f"/{HUB}/resolve/", "/files/")):
            content = BODY
            headers = {"X-Repo-Commit": "a" * 40, "ETag": '"b"', "Accept-Ranges": "bytes"}
            if self.headers.get("Range"):
                start = int(self.headers["Range"].removeprefix("bytes=").split("-")[0])
                status, content = 206, BODY[start:]
                headers["Content-Range"] = f"bytes {start}-{len(BODY) - 1}/{len(BODY)}"
        else:
            status = 404
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content[: self.server.cut] if status == 200 and content is BODY else content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.asked, server.names, server.cut = [], ["deit_maxsup.pth", "train_map.txt"], None
        server.size, server.digest, server.release, server.elsewhere = len(BODY), hashlib.sha256(BODY).hexdigest(), None, None
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("GITHUB_API_URL", f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()


def call(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["download.py", *map(str, words)])
    download.main()


def test_the_hubs_checkpoints(server, tmp_path, monkeypatch, capsys):
    call(monkeypatch, "resnet50", "--output", tmp_path)
    assert (tmp_path / "resnet50/maxsup/last.ckpt").read_bytes() == BODY == (tmp_path / "resnet50/ls.pth").read_bytes()
    assert not (tmp_path / "resnet50/README.md").exists()
    said = capsys.readouterr().out
    assert "0.2926 / 0.2998" in said and "last.ckpt" in said
    server.asked.clear()
    call(monkeypatch, "resnet50", "--output", tmp_path, "--files", "ls*")
    assert not any(command == "GET" and "resolve" in path for command, path, _ in server.asked)  # the files exist


def test_githubs_release_resumes(server, tmp_path, monkeypatch):
    server.cut = 30_000  # the connection ends early, as when a network fails
    with pytest.raises(InputError, match="not fetched .*30,000 of 102,400 bytes|not fetched .*; the same command goes on"):
        call(monkeypatch, "deit-small", "--output", tmp_path)
    part = tmp_path / "deit-small/deit_maxsup.pth.part"
    assert part.read_bytes() == BODY[:30_000] and not part.with_suffix("").exists()
    server.cut = None
    call(monkeypatch, "deit-small", "--output", tmp_path)
    assert (tmp_path / "deit-small/deit_maxsup.pth").read_bytes() == BODY and not part.exists()
    assert ("GET", "/files/deit_maxsup.pth", "bytes=30000-") in server.asked
    assert not any("train_map" in path for _, path, _ in server.asked)
    server.asked.clear()
    call(monkeypatch, "deit-small", "--output", tmp_path)
    assert not any("/files/" in path for _, path, _ in server.asked)


def test_what_cannot_be_fetched_is_one_line(server, tmp_path, monkeypatch):
    server.names = ["../../evil.pth"]
    for name, words, match in (
        ("deit-small", [], "evil.pth' is not a valid file name"),
        ("deit-small", ["--files", "*.ckpt"], "no weights match --files"),
        ("selective", [], "ENSTA-U2IS/Label-smoothing-Selective-classification: not fetched"),
        ("nothing", [], "no such release; there are resnet50, deit-small, selective"),
    ):
        with pytest.raises(InputError, match=match) as told:
            call(monkeypatch, name, "--output", tmp_path, *words)
        assert "\n" not in str(told.value)
    assert not (tmp_path.parent / "evil.pth").exists()
    port = server.server_port
    server.shutdown()
    server.server_close()
    monkeypatch.setenv("GITHUB_API_URL", f"http://127.0.0.1:{port}")
    complains(run(ROOT / "viz/download.py", "deit-small", "--output", tmp_path), f"{GIT}: not fetched (", "Connection refused")


def test_the_list_needs_no_network(monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    call(monkeypatch, "--list")
    said = capsys.readouterr().out
    assert all(release.repository in said for release in download.RELEASES.values()) and "74.58" in said


def test_a_host_that_lies_is_told_in_one_line_and_leaves_no_file(server, tmp_path, monkeypatch):
    """It gives wrong lengths, checksums, redirects, names and release lists."""

    def refused(match, name="deit-small", **lies):
        true = {key: getattr(server, key) for key in lies}
        for key, lie in lies.items():
            setattr(server, key, lie)
        with pytest.raises(InputError, match=match) as told:
            call(monkeypatch, name, "--output", tmp_path)
        for key, value in true.items():
            setattr(server, key, value)
        assert "\n" not in str(told.value)
        assert not [path for path in tmp_path.rglob("*") if path.suffix in (".pth", ".ckpt")]

    refused("more than the 1,000 bytes came that its host states", size=1000)
    refused("not fetched .*102,400 of 200,000 bytes", size=200_000)
    (tmp_path / "deit-small/deit_maxsup.pth.part").unlink()
    refused("came with the SHA-256 .* its host states 000", digest="0" * 64)
    refused("came with the SHA-256 .* its host states 000", "resnet50", digest="0" * 64)
    refused("not fetched .*redirect", elsewhere="{here}/files/again")  # redirects to itself
    refused("not fetched .*file:", elsewhere="file:///etc/hostname")
    for name in ("../x.pth", "a/../../x.pth", "/x.pth", "a\\x.pth", "x\ny.pth", "./x.pth"):
        refused("is not a valid file name", names=[name])
    for answer in (b"[" * 10**5, b"[]", b"null", b"\xff", b'{"assets": [{"name": 1}]}', b'{"assets": 7}'):
        refused("answers with something other than a release", release=answer)
    call(monkeypatch, "deit-small", "--output", tmp_path)
    assert (tmp_path / "deit-small/deit_maxsup.pth").read_bytes() == BODY

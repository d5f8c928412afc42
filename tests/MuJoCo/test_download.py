"""download_d4rl_datasets.py against a server of our own: whole, broken, wrong and missing files, and no server."""

import hashlib
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

import download_d4rl_datasets as script
from MuJoCo.files import D4RL_FILES, D4RLFile, d4rl_name
from MuJoCo.tasks import HOPPER, TASKS, WALKER2D
from tests.mujoco_files import episodes, write_d4rl

NAME = "hopper_medium-v2.hdf5"


class Server:
    """Serves `files` {name: bytes}, breaking off after `breaks` bytes of a response; `requests` are (path, range)."""

    def __init__(self):
        self.files, self.breaks, self.ranges, self.length, self.requests = {}, None, True, True, []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.requests.append((self.path, self.headers.get("Range")))
                content = server.files.get(self.path.rpartition("/")[2])
                if content is None:
                    return self.send_error(404)
                start = int(re.search(r"\d+", self.headers["Range"])[0]) if self.headers["Range"] else 0
                partial = bool(self.headers["Range"]) and server.ranges
                if partial and start >= len(content):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(content)}")
                    self.send_header("Content-Length", "0")
                    return self.end_headers()
                body = content[start:] if partial else content
                self.send_response(206 if partial else 200)
                if partial:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                if server.length:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: server.breaks])

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/d4rl/"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def content(tmp_path):
    return write_d4rl(tmp_path / "made.hdf5", HOPPER, [40] * 20).read_bytes()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(script.time, "sleep", lambda seconds: None)


@pytest.fixture
def recorded(monkeypatch, content):
    """The content's size and digest, recorded as those of D4RL's file."""
    known = D4RLFile(len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(D4RL_FILES, NAME, known)
    return known


def run(folder, url, *datasets, tries=1, check=False):
    """The exit status."""
    chosen = ["--datasets", *datasets] if datasets else []
    flags = [*chosen, "--data_dir", str(folder), "--url", url, "--tries", str(tries), "--timeout", "5"]
    flags += ["--check_digests", str(check).lower()]
    try:
        script.main(flags)
    except SystemExit as stop:
        return stop.code
    return 0


def names(folder):
    return sorted(path.name for path in folder.glob("*"))


def test_a_file_is_downloaded_once(server, content, folder, capsys):
    server.files[NAME] = content
    assert run(folder, server.url, "hopper-medium", "hopper-medium") == 0
    assert names(folder) == [NAME] and (folder / NAME).read_bytes() == content
    assert server.requests == [(f"/d4rl/{NAME}", None)]
    assert run(folder, server.url, "hopper-medium") == 0
    assert len(server.requests) == 1 and "there and good" in capsys.readouterr().out


def test_all_twelve_by_default(server, tmp_path, content, folder):
    larger = write_d4rl(tmp_path / "other.hdf5", WALKER2D).read_bytes()
    server.files = {d4rl_name(task): content if task.robot is HOPPER else larger for task in TASKS}
    assert run(folder, server.url) == 0
    assert names(folder) == sorted(server.files)
    assert {"halfcheetah_medium_replay-v2.hdf5", "walker2d_medium_expert-v2.hdf5"} <= set(names(folder))


@pytest.mark.parametrize("ranges", [True, False])
def test_broken_download_continues(server, content, folder, capsys, ranges):
    server.files[NAME], server.breaks, server.ranges = content, 1000, ranges
    assert run(folder, server.url, "hopper-medium") == 2
    assert names(folder) == [f"{NAME}.part"] and (folder / f"{NAME}.part").read_bytes() == content[:1000]
    error = capsys.readouterr().err
    assert "1000 bytes are kept" in error and f"ended after 1000 of {len(content)} bytes" in error
    server.breaks = None
    assert run(folder, server.url, "hopper-medium") == 0
    assert server.requests[-1] == (f"/d4rl/{NAME}", "bytes=1000-")
    assert names(folder) == [NAME] and (folder / NAME).read_bytes() == content


def test_several_tries_in_one_run(server, content, folder):
    server.files[NAME], server.breaks = content, len(content) // 4 + 1
    assert run(folder, server.url, "hopper-medium", tries=4) == 0
    assert (folder / NAME).read_bytes() == content and len(server.requests) == 4


def test_complete_part_is_not_downloaded_again(server, content, folder):
    folder.mkdir()
    (folder / f"{NAME}.part").write_bytes(content)
    server.files[NAME] = content
    assert run(folder, server.url, "hopper-medium") == 0
    assert names(folder) == [NAME]


def test_too_long_part_is_restarted(server, content, folder):
    folder.mkdir()
    (folder / f"{NAME}.part").write_bytes(content + b"more")
    server.files[NAME] = content
    assert run(folder, server.url, "hopper-medium", tries=2) == 0
    assert (folder / NAME).read_bytes() == content


@pytest.mark.parametrize("what", ["a page", "cut short", "another robot", "no rewards", "part of another file"])
def test_wrong_content_is_not_kept(server, content, folder, tmp_path, capsys, what):
    wrong = {
        "a page": b"<html>Sign in to go on</html>",
        "cut short": content[:-500],
        "another robot": write_d4rl(tmp_path / "b.hdf5", WALKER2D).read_bytes(),
        "no rewards": write_d4rl(tmp_path / "c.hdf5", HOPPER, rewards=None).read_bytes(),
        "part of another file": content,
    }
    if what == "part of another file":
        folder.mkdir()
        (folder / f"{NAME}.part").write_bytes(bytes(3000))
    server.files[NAME] = wrong[what]
    assert run(folder, server.url, "hopper-medium") == 2
    assert names(folder) == []
    assert "It was deleted" in capsys.readouterr().err


def test_existing_bad_file_is_reported_and_kept(server, content, folder, capsys):
    folder.mkdir()
    (folder / NAME).write_bytes(content[:-500])
    server.files[NAME] = content
    assert run(folder, server.url, "hopper-medium") == 2
    assert (folder / NAME).read_bytes() == content[:-500] and not server.requests
    assert "Delete or rename it" in capsys.readouterr().err


def test_missing_file_on_server_does_not_stop_others(server, content, folder, capsys):
    server.files[NAME] = content
    assert run(folder, server.url, "hopper-expert", "hopper-medium", tries=3) == 2
    assert names(folder) == [NAME] and len(server.requests) == 2  # 404 is not retried
    error = capsys.readouterr().err
    assert "404" in error and "1 of 2 files are missing or bad: hopper_expert-v2.hdf5" in error


def test_download_without_length_is_refused(server, content, folder, capsys):
    server.files[NAME], server.length = content, False
    assert run(folder, server.url, "hopper-medium") == 2
    assert names(folder) == [] and "does not say how long" in capsys.readouterr().err


def test_without_a_network(folder, capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    assert run(folder, url, tries=2) == 2
    assert not folder.exists() or names(folder) == []
    error = capsys.readouterr().err
    assert error.count("no connection") == 1  # the others are not tried
    assert "12 of 12 files are missing or bad: halfcheetah_medium-v2.hdf5, " in error
    assert url in error and f"Put them into '{folder}' by hand" in error and "generate_dataset.py" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--datasets", "hopper-medum"], r"unknown \(did you mean hopper-medium"),
        (["--url", "ftp://x"], "must begin with http:// or https://"),
        (["--tries", "0"], "must be at least 1"),
    ],
)
def test_bad_flags(flags, message, capsys):
    with pytest.raises(SystemExit) as stop:
        script.main(flags)
    assert stop.value.code == 2 and re.search(message, capsys.readouterr().err)


def test_full_disk_is_reported(server, content, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    server.files[NAME] = content
    assert run(tmp_path / "file", server.url, "hopper-medium") == 2
    assert "cannot write" in capsys.readouterr().err


# --- recorded sizes and digests ---


def test_every_file_is_recorded_and_loaded_over_https():
    assert set(D4RL_FILES) == {d4rl_name(task) for task in TASKS}
    assert all(len(file.sha256) == 64 and file.size > 50_000_000 for file in D4RL_FILES.values())
    assert script.URL.startswith("https://") and script.Options().check_digests


def test_the_recorded_file_is_taken_whole_or_in_parts(server, content, folder, recorded):
    server.files[NAME], server.breaks = content, len(content) // 2
    assert run(folder, server.url, "hopper-medium", tries=3, check=True) == 0
    assert (folder / NAME).read_bytes() == content
    assert run(folder, server.url, "hopper-medium", check=True) == 0


def test_a_file_of_another_size_is_not_loaded(server, content, folder, recorded, capsys):
    server.files[NAME] = content + b"more"
    assert run(folder, server.url, "hopper-medium", tries=3, check=True) == 2
    assert names(folder) == [] and len(server.requests) == 1
    error = capsys.readouterr().err
    assert f"the server's file has {len(content) + 4} bytes, D4RL's has {len(content)}" in error


def test_a_changed_byte_is_found(server, content, folder, recorded, capsys):
    """In the numbers, where it is still valid data."""
    place = content.rindex(np.float32(episodes(HOPPER, [40] * 20)[3]["rewards"][5]).tobytes())
    changed = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
    server.files[NAME] = changed
    assert run(folder, server.url, "hopper-medium", check=True) == 2
    assert names(folder) == [] and f"D4RL's file has {recorded.sha256}. It was deleted" in capsys.readouterr().err
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAME).write_bytes(changed)
    assert run(folder, server.url, "hopper-medium", check=True) == 2
    assert (folder / NAME).read_bytes() == changed and "Delete or rename it" in capsys.readouterr().err
    assert run(folder, server.url, "hopper-medium", check=False) == 0

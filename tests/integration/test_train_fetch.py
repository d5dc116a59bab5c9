"""Fetching data over HTTP and S3 from servers on loopback: right bytes, other bytes, half of them, none."""

import hashlib
import http.server
import threading

import pytest

from pipeline.errors import IntegrityError, ProgramFailed
from train.fetch import fetch

CONTENT = b"1,2,0\n" * 100_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT at /rows.csv and /bucket/rows.csv, half of it at /half.csv, and counts requests."""

    asked: list[str]

    def do_GET(self):
        self.server.asked.append(self.path)
        if self.path.partition("?")[0] not in ("/rows.csv", "/half.csv", "/bucket/rows.csv"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: len(CONTENT) // 2] if "half" in self.path else CONTENT)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """A web server on loopback."""
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.asked = []
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture
def base(server):
    return f"http://127.0.0.1:{server.server_port}"


def get(source, tmp_path, sha256=SHA256):
    return fetch(source, sha256, tmp_path, tmp_path, lambda text: None)


def test_a_file_is_fetched_once_and_used_again(base, server, tmp_path):
    first = get(f"{base}/rows.csv?token=secret", tmp_path)
    assert first.read_bytes() == CONTENT
    assert get(f"{base}/rows.csv?token=secret", tmp_path) == first
    assert len(server.asked) == 1


def test_other_bytes_are_an_integrity_error_and_leave_nothing(base, tmp_path):
    with pytest.raises(IntegrityError) as caught:
        get(f"{base}/rows.csv?token=secret", tmp_path, "0" * 64)
    assert SHA256 in str(caught.value)
    assert "secret" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_half_a_file_is_told_and_leaves_nothing(base, tmp_path):
    with pytest.raises(ProgramFailed, match="broke off"):
        get(f"{base}/half.csv", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_fetch_are_replaced(base, tmp_path):
    (tmp_path / "source.csv.part").write_bytes(b"half")
    (tmp_path / "source.csv").write_bytes(b"other")
    assert get(f"{base}/rows.csv", tmp_path).read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["source.csv"]


def test_an_absent_file_and_an_absent_server_are_told(base, tmp_path):
    with pytest.raises(ProgramFailed, match="answered 404 Not Found"):
        get(f"{base}/none.csv", tmp_path)
    with pytest.raises(ProgramFailed, match="could not be reached"):
        get("http://127.0.0.1:9/rows.csv", tmp_path)


@pytest.fixture
def s3(base, monkeypatch):
    """The usual AWS variables, pointing at the server on loopback."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", base)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "word")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def test_an_object_in_s3_is_fetched_from_the_endpoint_of_the_environment(s3, server, tmp_path):
    assert get("s3://bucket/rows.csv", tmp_path).read_bytes() == CONTENT
    assert server.asked == ["/bucket/rows.csv"]


def test_an_absent_object_is_told(s3, tmp_path):
    with pytest.raises(ProgramFailed, match=r"s3://bucket/none\.csv could not be fetched: 404"):
        get("s3://bucket/none.csv", tmp_path)


def test_missing_credentials_are_told(s3, tmp_path, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ProgramFailed, match="credentials"):
        get("s3://bucket/rows.csv", tmp_path)

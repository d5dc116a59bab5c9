"""S3 in trouble: a real server (SeaweedFS) behind a proxy that answers late, wrongly, half or not at all."""

import dataclasses
import hashlib
import os
import signal
import subprocess
import sys
import time
import uuid

import pytest

from pipeline import bucket_s3, s3_client
from pipeline.bucket_s3 import Limits, S3Bucket
from pipeline.buckets import open_bucket
from pipeline.errors import IntegrityError, ProgramFailed, SettingsError
from tests.integration.support_s3 import (
    ACCESS_KEY,
    BUCKET,
    SECRET_KEY,
    Fault,
    free_ports,
    plain_client,
)

pytest_plugins = ["tests.integration.support_s3"]

MIB = 1 << 20
PART = 5 * MIB
ALWAYS = 10_000
# Short enough for tests; S3 takes no parts of less than 5 MiB.
QUICK = Limits(connect_s=1, read_s=0.7, tries=4, part_bytes=PART, parts_at_once=2)
TWO_PARTS_AND_MORE = 2 * PART + 777


@pytest.fixture(autouse=True)
def _proven_anew(monkeypatch):
    """Each test proves the server's conditional writes for itself."""
    monkeypatch.setattr(bucket_s3, "_proven", set())


@pytest.fixture
def address():
    return f"s3://{BUCKET}/trouble/{uuid.uuid4().hex}"


@pytest.fixture
def bucket(address, proxy):
    """A bucket behind the proxy, with something in it."""
    bucket = S3Bucket.at(address, QUICK)
    bucket.write("there", b"what was there")
    proxy.seen.clear()
    return bucket


@pytest.fixture
def behind(weed, address):
    """The same objects as the server has them: a function that gives boto3's arguments, and boto3."""
    client = plain_client(weed.endpoint)

    class Behind:
        def at(self, path):
            return {"Bucket": BUCKET, "Key": f"{address.removeprefix(f's3://{BUCKET}/')}/{path}"}

        def put(self, path, data):
            client.put_object(**self.at(path), Body=data)

        def get(self, path):
            return client.get_object(**self.at(path))["Body"].read()

        def unfinished(self, path):
            listed = client.list_multipart_uploads(Bucket=BUCKET, Prefix=self.at(path)["Key"])
            return [row["UploadId"] for row in listed.get("Uploads", ())]

        def kept(self, path):
            uploads = self.unfinished(path)
            listed = [client.list_parts(**self.at(path), UploadId=upload) for upload in uploads]
            return {row["PartNumber"] for page in listed for row in page.get("Parts", ())}

    behind = Behind()
    behind.client = client
    return behind


@pytest.fixture
def source(tmp_path):
    def make(size):
        path = tmp_path / "source"
        path.write_bytes(os.urandom(size))
        return path, hashlib.sha256(path.read_bytes()).hexdigest()

    return make


def upload(bucket, folder):
    (folder / "file").write_bytes(b"uploaded")
    bucket.upload("uploaded", folder / "file", hashlib.sha256(b"uploaded").hexdigest())
    return bucket.read("uploaded", 100)


def download(bucket, folder):
    sha256 = hashlib.sha256(b"what was there").hexdigest()
    return bucket.download("there", folder / "to", sha256) and (folder / "to").read_bytes()


# What is asked, by which method, and what comes of it.
ASKED = {
    "read": ("GET", lambda bucket, folder: bucket.read("there", 100), b"what was there"),
    "write": ("PUT", lambda bucket, folder: bucket.write("there", b"new"), None),
    "create": ("PUT", lambda bucket, folder: bucket.create("new", b"new"), True),
    "size": ("HEAD", lambda bucket, folder: bucket.size("there"), 14),
    "upload": ("PUT", upload, b"uploaded"),
    "download": ("GET", download, b"what was there"),
    "items": ("GET", lambda bucket, folder: [item.path for item in bucket.items("")], ["there"]),
    "delete": ("DELETE", lambda bucket, folder: bucket.delete("there"), None),
}
PASSING = {
    "500": {"kind": "answer", "status": 500, "code": "InternalError"},
    "503": {"kind": "answer", "status": 503, "code": "ServiceUnavailable"},
    "late": {"kind": "slow", "seconds": 0.3},
    "closed before the answer": {"kind": "lose_answer"},
    "closed within the request": {"kind": "cut_request"},
    "closed within the answer": {"kind": "cut_answer"},
}


@pytest.mark.parametrize("asked", ASKED)
def test_trouble_that_passes_is_not_noticed(bucket, proxy, behind, tmp_path, asked):
    method, ask, expected = ASKED[asked]
    for trouble in PASSING.values():
        behind.put("there", b"what was there")
        for other in ("new", "uploaded"):
            behind.client.delete_object(**behind.at(other))
        proxy.faults[:] = [Fault(method=method, times=2, **trouble)]
        assert ask(bucket, tmp_path) == expected, trouble
        assert proxy.faults[0].met >= 1, trouble


@pytest.mark.parametrize("asked", ASKED)
def test_trouble_that_stays_ends_after_the_stated_number_of_tries_in_a_clear_error(
    bucket, proxy, tmp_path, behind, asked
):
    method, ask, _ = ASKED[asked]
    proxy.faults.append(Fault("answer", method, times=ALWAYS, status=500))
    with pytest.raises(ProgramFailed) as caught:
        ask(bucket, tmp_path)
    text = str(caught.value)
    assert f"s3://{BUCKET}/trouble/" in text
    assert proxy.endpoint in text
    assert f"it answered 500 {'500' if method == 'HEAD' else 'InternalError'}, 4 times in a row" in text
    assert "run again" in text
    assert proxy.count(method) == QUICK.tries
    proxy.faults.clear()
    assert behind.get("there") == b"what was there"
    assert not (tmp_path / "to").exists()


def test_a_server_that_is_too_busy_is_given_time(bucket, proxy):
    proxy.faults.append(Fault("answer", "GET", times=2, status=503, code="SlowDown"))
    assert bucket.read("there", 100) == b"what was there"


def test_a_server_that_says_nothing_is_given_up_after_the_stated_time_and_tries(bucket, address, proxy):
    proxy.faults.append(Fault("hang", "GET", times=ALWAYS))
    bucket = S3Bucket.at(address, dataclasses.replace(QUICK, tries=2))
    with pytest.raises(
        ProgramFailed, match=r"get_object at .* in the end with ReadTimeoutError.*AWS_ENDPOINT_URL"
    ):
        bucket.read("there", 100)
    assert proxy.count("GET") == 2


def test_a_server_that_hangs_once_is_asked_again(bucket, proxy):
    proxy.faults.append(Fault("hang", "GET"))
    assert bucket.read("there", 100) == b"what was there"


def test_an_endpoint_that_is_down_is_named_with_the_variable_to_check(aws, address):
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    aws(endpoint)
    with pytest.raises(ProgramFailed) as caught:
        S3Bucket.at(address, QUICK).write("x", b"x")
    for word in (f"{address}/x", "put_object", endpoint, "EndpointConnectionError", "AWS_ENDPOINT_URL"):
        assert word in str(caught.value)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_endpoint_that_is_no_s3_server_is_told_by_the_variable_to_check(bucket, proxy, source, method):
    proxy.faults.append(Fault("answer", method, times=ALWAYS, status=200, code="<html"))
    with pytest.raises(
        ProgramFailed, match=r"blobs/x: .* failed.*check that AWS_ENDPOINT_URL|Check AWS_ENDPOINT_URL"
    ):
        bucket.upload("blobs/x", *source(TWO_PARTS_AND_MORE))


def test_a_bucket_that_does_not_exist_is_named_with_the_remedy(aws, tmp_path):
    bucket = S3Bucket.at(f"s3://{BUCKET}-nowhere/x", QUICK)
    for _, ask, _ in ASKED.values():
        with pytest.raises(ProgramFailed) as caught:
            ask(bucket, tmp_path)
        assert f"s3://{BUCKET}-nowhere/x/" in str(caught.value)
        assert "404 NoSuchBucket. There is no such bucket. Create it" in str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "s3://",
        "s3:///x",
        "s3://ab",
        "s3://Upper/x",
        "s3://under_score",
        "s3://bucket//x",
        "s3://bucket/a/../b",
        "s3://bucket/a?b=c",
        "s3://key:secret@bucket/x",
    ],
)
def test_an_address_that_cannot_be_is_refused_without_a_connection(root, address):
    with pytest.raises(SettingsError, match="must be s3://BUCKET/PREFIX"):
        open_bucket(address, root)


@pytest.mark.parametrize("address", ["s3://abc", "s3://abc/", "s3://abc/a/b", "s3://abc/a/b/"])
def test_a_prefix_may_be_left_out_or_end_in_a_slash(root, address):
    prefix = address.removeprefix("s3://abc").strip("/")
    assert open_bucket(address, root).where("x") == "/".join(filter(None, ("s3://abc", prefix, "x")))


# Creating


def test_a_created_object_whose_answer_was_lost_is_known_as_ours(bucket, proxy, behind):
    bucket.create("warm", b"")
    proxy.faults.append(Fault("lose_answer", "PUT", times=2))
    assert bucket.create("locks/x", b"ours") is True
    assert bucket.create("locks/x", b"ours") is False
    assert behind.get("locks/x") == b"ours"


def test_an_object_of_another_with_the_same_bytes_is_not_taken_for_ours(bucket, proxy, behind):
    """Our request is cut, the other's arrives meanwhile, ours is sent again: one winner, the other."""
    bucket.create("warm", b"")

    def other_is_first(request):
        behind.put("locks/x", b"the same")
        return True

    proxy.faults.append(Fault("cut_request", "PUT", matching=other_is_first))
    assert bucket.create("locks/x", b"the same") is False
    assert proxy.count("PUT") >= 2


def test_creating_waits_while_others_write_at_the_same_moment(bucket, proxy):
    bucket.create("warm", b"")
    conflict = {"status": 409, "code": "ConditionalRequestConflict"}
    proxy.faults.append(Fault("answer", "PUT", times=2, **conflict))
    assert bucket.create("locks/x", b"ours") is True
    proxy.faults.append(Fault("answer", "PUT", times=ALWAYS, **conflict))
    with pytest.raises(
        ProgramFailed, match="locks/y could not be written: ConditionalRequestConflict, 4 times"
    ):
        bucket.create("locks/y", b"ours")


def test_a_server_that_ignores_the_condition_is_refused_before_anything_is_created(bucket, proxy, behind):
    proxy.faults.append(Fault("forget_condition", "PUT", times=ALWAYS))
    for _ in range(2):
        with pytest.raises(
            ProgramFailed, match=r"does not do conditional writes.* must not be used as a store"
        ):
            bucket.create("locks/x", b"ours")
    listed = behind.client.list_objects_v2(Bucket=BUCKET, Prefix=behind.at("")["Key"])["Contents"]
    assert [row["Key"] for row in listed] == [behind.at("there")["Key"]]


def test_a_server_without_the_condition_that_says_so_is_refused_too(bucket, proxy):
    proxy.faults.append(Fault("answer", "PUT", times=ALWAYS, status=501, code="NotImplemented"))
    with pytest.raises(ProgramFailed, match=r"501 NotImplemented\. A store needs conditional writes"):
        bucket.create("locks/x", b"ours")


def test_the_server_is_put_to_the_test_once_and_only_where_something_is_created(bucket, address, proxy):
    def probes():
        return sum("/.probe-" in request.path for request in proxy.seen)

    bucket.write("x", b"")
    bucket.read("x", 1)
    assert probes() == 0
    for number in range(3):
        S3Bucket.at(address, QUICK).create(f"locks/{number}", b"")
    assert probes() == 3  # put, put again, delete


# Credentials


def test_credentials_that_expire_half_way_are_named_and_a_rerun_sends_what_is_missing(
    bucket, proxy, behind, source
):
    path, sha256 = source(6 * PART)
    fault = Fault("answer", "PUT", after=3, times=ALWAYS, status=403, code="ExpiredToken")
    proxy.faults.append(fault)
    with pytest.raises(ProgramFailed) as caught:
        bucket.upload("blobs/x", path, sha256)
    for word in ("blobs/x", "upload_part", "403 ExpiredToken", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"):
        assert word in str(caught.value)
    assert SECRET_KEY not in str(caught.value)
    assert ACCESS_KEY not in str(caught.value)
    assert bucket.size("blobs/x") is None

    proxy.faults.clear()
    proxy.seen.clear()
    bucket.upload("blobs/x", path, sha256)
    assert proxy.count("PUT", "partNumber") == 3
    assert behind.get("blobs/x") == path.read_bytes()


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"AWS_ACCESS_KEY_ID": "SOMEBODYELSE12345"}, "InvalidAccessKeyId.*Check AWS_ACCESS_KEY_ID"),
        (
            {"AWS_SECRET_ACCESS_KEY": "wrong-secret-67890"},
            "SignatureDoesNotMatch.*Check AWS_SECRET_ACCESS_KEY",
        ),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "NoCredentialsError. Set AWS_ACCESS_KEY_ID"),
    ],
)
def test_wrong_credentials_are_told_by_the_variable_to_check(aws, monkeypatch, address, variables, says):
    for name, value in variables.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    with pytest.raises(ProgramFailed, match=says) as caught:
        S3Bucket.at(address, QUICK).write("x", b"x")
    assert not {SECRET_KEY, *filter(None, variables.values())} & set(
        str(caught.value).replace(".", " ").split()
    )


def test_rights_that_are_missing_are_listed_and_not_asked_for_again(bucket, proxy, tmp_path):
    for method, ask, _ in ASKED.values():
        proxy.seen.clear()
        proxy.faults[:] = [Fault("answer", method, times=ALWAYS, status=403, code="AccessDenied")]
        with pytest.raises(ProgramFailed, match=r"403 AccessDenied\. .* its rights must cover s3:GetObject"):
            ask(bucket, tmp_path)
        assert proxy.count(method) == 1


@pytest.mark.parametrize(
    ("variables", "hidden"),
    [
        ({"AWS_PROFILE": "nobody"}, SECRET_KEY),
        ({"AWS_SECRET_ACCESS_KEY": ""}, ACCESS_KEY),
        ({"AWS_ENDPOINT_URL": "no address"}, "no address"),
        ({"AWS_ENDPOINT_URL": "http://user:hunter2@bad host"}, "hunter2"),
    ],
)
def test_settings_that_boto3_refuses_are_told_by_the_variable(aws, monkeypatch, address, variables, hidden):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        SettingsError, match=r"Check AWS_ENDPOINT_URL .* AWS_SECRET_ACCESS_KEY .* AWS_PROFILE"
    ) as caught:
        S3Bucket.at(address, QUICK).read("x", 1)
    assert hidden not in str(caught.value)


# Uploading


UPLOADER = """
import sys
from pathlib import Path
from pipeline.bucket_s3 import Limits, S3Bucket
address, path, sha256, part_bytes = sys.argv[1:]
S3Bucket.at(address, Limits(part_bytes=int(part_bytes), parts_at_once=2)).upload("blobs/x", Path(path), sha256)
"""


def test_an_uploader_that_was_killed_is_followed_by_one_that_sends_only_the_missing_parts(
    bucket, address, proxy, behind, source, root
):
    path, sha256 = source(8 * PART)
    held = Fault("hang", "PUT", after=5, times=ALWAYS, matching=lambda request: "partNumber" in request.query)
    proxy.faults.append(held)
    child = subprocess.Popen(
        [sys.executable, "-c", UPLOADER, address, str(path), sha256, str(PART)], cwd=root
    )
    deadline = time.monotonic() + 30
    while len(behind.kept("blobs/x")) < held.after or held.met == held.after:
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert bucket.size("blobs/x") is None

    proxy.faults.clear()
    proxy.seen.clear()
    bucket.upload("blobs/x", path, sha256)
    assert proxy.count("PUT", "partNumber") == 8 - held.after
    assert proxy.count("POST", "uploads") == 0
    assert behind.get("blobs/x") == path.read_bytes()
    assert behind.unfinished("blobs/x") == []


def test_a_part_that_is_there_with_other_content_is_sent_again(bucket, proxy, behind, source):
    path, sha256 = source(TWO_PARTS_AND_MORE)
    begun = behind.client.create_multipart_upload(**behind.at("blobs/x"))["UploadId"]
    right = path.read_bytes()[PART : 2 * PART]
    for number, data in ((1, b"x" * PART), (2, right)):
        behind.client.upload_part(**behind.at("blobs/x"), UploadId=begun, PartNumber=number, Body=data)
    bucket.upload("blobs/x", path, sha256)
    sent = sorted(request.query["partNumber"] for request in proxy.seen if "partNumber" in request.query)
    assert sent == ["1", "3"]
    assert behind.get("blobs/x") == path.read_bytes()


def test_an_unfinished_upload_of_an_object_with_a_longer_name_is_left_alone(bucket, behind, source):
    path, sha256 = source(TWO_PARTS_AND_MORE)
    begun = behind.client.create_multipart_upload(**behind.at("blobs/x-and-more"))["UploadId"]
    bucket.upload("blobs/x", path, sha256)
    assert behind.unfinished("blobs/x-and-more") == [begun]
    assert behind.get("blobs/x") == path.read_bytes()


def test_a_sweep_ends_what_was_begun_long_ago_and_leaves_what_is_under_way(bucket, behind):
    begun = behind.client.create_multipart_upload(**behind.at("blobs/x"))["UploadId"]
    assert bucket.sweep(before=time.time() - 60) == 0
    assert behind.unfinished("blobs/x") == [begun]
    assert bucket.sweep(before=time.time() + 60) == 1
    assert behind.unfinished("blobs/x") == []


def test_an_upload_that_another_gives_up_meanwhile_is_begun_anew(bucket, proxy, behind, source):
    path, sha256 = source(TWO_PARTS_AND_MORE)

    given_up = []

    def give_up(request):
        if request.query.get("partNumber") == "2" and not given_up:
            given_up.append(request.query["uploadId"])
            behind.client.abort_multipart_upload(**behind.at("blobs/x"), UploadId=given_up[0])
        return False

    proxy.faults.append(Fault("answer", "PUT", matching=give_up))
    bucket.upload("blobs/x", path, sha256)
    assert proxy.count("POST", "uploads") == 2
    assert behind.get("blobs/x") == path.read_bytes()
    assert behind.unfinished("blobs/x") == []


@pytest.mark.parametrize("kind", ["lose_answer", "cut_answer"])
def test_an_upload_whose_completion_was_not_answered_is_complete(bucket, proxy, behind, source, kind):
    path, sha256 = source(TWO_PARTS_AND_MORE)
    completes = {"matching": lambda request: "uploadId" in request.query}
    proxy.faults.append(Fault(kind, "POST", times=2, **completes))
    bucket.upload("blobs/x", path, sha256)
    assert behind.get("blobs/x") == path.read_bytes()


@pytest.mark.parametrize("trouble", PASSING)
def test_trouble_with_some_parts_is_not_noticed(bucket, proxy, behind, source, trouble):
    path, sha256 = source(4 * PART)
    parts = {"matching": lambda request: "partNumber" in request.query}
    proxy.faults.append(Fault(method="PUT", after=1, times=2, **parts, **PASSING[trouble]))
    bucket.upload("blobs/x", path, sha256)
    assert behind.get("blobs/x") == path.read_bytes()


def test_what_was_damaged_on_its_way_is_refused_by_the_server(bucket, behind, source, monkeypatch):
    path, sha256 = source(100)
    monkeypatch.setattr(s3_client, "md5_of", lambda data: hashlib.md5(data + b"damaged").digest())
    with pytest.raises(ProgramFailed, match="400 BadDigest"):
        bucket.upload("blobs/x", path, sha256)
    with pytest.raises(behind.client.exceptions.NoSuchKey):
        behind.get("blobs/x")


# VmHWM, not getrusage: ru_maxrss of a new program begins at what its parent had, here pytest's.
MEASURED = """
import re, sys
from pathlib import Path
from pipeline.bucket_s3 import S3Bucket
address, path, sha256 = sys.argv[1:]
def peak_kib():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
bucket = S3Bucket.at(address)
bucket.write("warm", b"")
before = peak_kib()
bucket.upload("blobs/x", Path(path), sha256)
print(peak_kib() - before)
"""


def test_512_mib_are_uploaded_within_the_memory_of_less_than_five_parts(aws, address, tmp_path, root, behind):
    """Four parts of 16 MiB, and up to 4 MiB for each of their threads, over a process that has written once."""
    path = tmp_path / "large"
    with path.open("wb") as stream:
        stream.truncate(512 * MIB)
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    argv = [sys.executable, "-c", MEASURED, address, str(path), sha256]
    done = subprocess.run(argv, cwd=root, text=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert 0 < int(done.stdout) * 1024 <= 4 * (16 + 4) * MIB
    assert open_bucket(address, root).size("blobs/x") == 512 * MIB
    behind.client.delete_object(**behind.at("blobs/x"))


@pytest.mark.parametrize("size", [16 * MIB + 1, 2 << 30, 156 << 30, 157 << 30, 640 << 30, 5 << 40])
def test_no_file_needs_more_than_10_000_parts_nor_its_parts_more_memory_than_stated(size):
    limits = Limits()
    part_bytes, at_once = limits.plan(size)
    assert -(-size // part_bytes) <= 10_000
    assert part_bytes >= limits.part_bytes
    assert at_once == 1 or part_bytes * at_once <= 64 * MIB
    assert part_bytes <= 16 * MIB or size > 156 << 30


# Reading


def test_a_download_whose_connection_breaks_goes_on_where_it_was(bucket, proxy, behind, source, tmp_path):
    path, sha256 = source(3 * MIB)
    behind.put("blobs/x", path.read_bytes())
    proxy.faults.append(Fault("cut_answer", "GET", times=2))
    assert bucket.download("blobs/x", tmp_path / "to", sha256) is True
    assert (tmp_path / "to").read_bytes() == path.read_bytes()
    begins = [int(r.headers.get("range", "bytes=0-")[6:-1]) for r in proxy.seen if r.method == "GET"]
    assert begins[0] == 0 < begins[1] < begins[2]


@pytest.mark.parametrize("asked", ["read", "download"])
def test_a_connection_that_breaks_time_and_again_ends_in_a_clear_error_and_no_file(
    bucket, proxy, tmp_path, asked
):
    proxy.faults.append(Fault("cut_answer", "GET", times=ALWAYS))
    with pytest.raises(ProgramFailed, match=r"there: get_object at .* in the end with \w+.*run again"):
        ASKED[asked][1](bucket, tmp_path)
    assert proxy.count("GET") <= QUICK.tries * QUICK.tries
    assert list(tmp_path.iterdir()) == []


def test_an_object_replaced_while_it_is_read_is_not_mixed_with_the_next(bucket, proxy, behind, tmp_path):
    old, new = b"o" * MIB, b"n" * MIB
    behind.put("channels/x", old)

    def replaced(request):
        if "range" in request.headers:
            behind.put("channels/x", new)
        return True

    proxy.faults.append(Fault("cut_answer", "GET", matching=replaced))
    with pytest.raises(
        ProgramFailed, match=r"412 PreconditionFailed\. The object was replaced while it was read"
    ):
        bucket.download("channels/x", tmp_path / "to", hashlib.sha256(old).hexdigest())
    assert list(tmp_path.iterdir()) == []


DAMAGES = {
    "one byte": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "truncated": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + b"x",
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("size", [1000, TWO_PARTS_AND_MORE])
def test_an_object_that_was_changed_in_the_server_is_named_and_not_used(
    bucket, behind, source, tmp_path, size
):
    path, sha256 = source(size)
    for damage in DAMAGES.values():
        changed = damage(path.read_bytes())
        behind.put("blobs/x", changed)
        found = hashlib.sha256(changed).hexdigest()
        says = f"s3://.*/blobs/x has sha256 {found}, not {sha256}; it is not used"
        with pytest.raises(IntegrityError, match=says):
            bucket.download("blobs/x", tmp_path / "to", sha256)
        assert list(tmp_path.iterdir()) == [path]
    bucket.upload("blobs/x", path, sha256)
    assert bucket.download("blobs/x", tmp_path / "to", sha256) is True


def test_an_absurdly_large_object_is_refused_by_its_length_alone(bucket, proxy, behind):
    """Had its body been waited for, the broken connection would have made a second request."""
    behind.put("records/x", b"x" * (8 * MIB))
    proxy.faults.append(Fault("cut_answer", "GET", times=ALWAYS))
    with pytest.raises(IntegrityError, match="records/x has more than 1,000 bytes"):
        bucket.read("records/x", 1000)
    assert proxy.count("GET") == 1


def test_the_limits_are_the_documented_ones():
    assert dataclasses.asdict(Limits()) == {
        "connect_s": 5,
        "read_s": 60,
        "tries": 8,
        "part_bytes": 16 * MIB,
        "parts_at_once": 4,
    }

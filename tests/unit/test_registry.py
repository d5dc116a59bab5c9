"""The registry client against answers made by hand: retries, logins, refusals."""

import base64
import io
import json
from email.message import Message
from urllib.parse import parse_qs, urlsplit

import pytest

from deploy.credentials import Login, login_for
from deploy.oci import LAYER, Descriptor, of_bytes
from deploy.publish import RemoteRegistry, give_version
from deploy.registry import ATTEMPTS, Client
from deploy.transport import Answer, Unreachable
from pipeline.errors import IntegrityError, ProgramFailed
from tests.support_images import model_image

CONTENT = b"weights" * 1000
BLOB = Descriptor(LAYER, of_bytes(CONTENT), len(CONTENT))
BASIC = 'Basic realm="registry"'
BEARER = (
    'Bearer realm="https://auth.example/token",service="registry",scope="repository:team/digits:pull,push"'
)


def answer(status: int, body: bytes = b"", **headers: str) -> Answer:
    message = Message()
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    return Answer(status, message, io.BytesIO(body))


class Wire:
    """Answers in order, and remembers what was asked."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    def __call__(self, request):
        body = b"".join(request.body()) if request.body else b""
        self.asked.append((request.method, request.url, dict(request.headers), body))
        following = self.answers.pop(0)
        if isinstance(following, Exception):
            raise following
        return following


def client(wire, login=None, repository="registry.example/team/digits", sleep=lambda seconds: None) -> Client:
    return Client(repository, transport=wire, login=lambda host: login, sleep=sleep)


@pytest.mark.parametrize(
    ("repository", "begins"),
    [
        ("registry.example/a", "https://registry.example/v2/a/"),
        ("registry.example:5000/a/b", "https://registry.example:5000/v2/a/b/"),
        ("127.0.0.1:5000/a", "http://127.0.0.1:5000/v2/a/"),
        ("localhost/a", "http://localhost/v2/a/"),
        ("127.0.0.1.evil.example/a", "https://127.0.0.1.evil.example/v2/a/"),
        ("docker.io/team/a", "https://registry-1.docker.io/v2/team/a/"),
    ],
)
def test_plain_http_is_spoken_to_this_machine_alone(repository, begins):
    wire = Wire(answer(404))
    client(wire, repository=repository).tags()
    assert wire.asked[0][1].startswith(begins)


@pytest.mark.parametrize(
    "trouble",
    [Unreachable("connection refused"), answer(500), answer(503), answer(429), answer(502, b"<html>")],
)
def test_trouble_is_tried_again(trouble):
    wire = Wire(trouble, answer(200, Docker_Content_Digest="sha256:1"))
    assert client(wire).resolve("v1") == "sha256:1"
    assert len(wire.asked) == 2


def test_pauses_grow_and_end_in_a_clear_error():
    slept = []
    said = b'{"errors":[{"code":"UNAVAILABLE","message":"going down"}]}'
    wire = Wire(*[answer(503, said) for _ in range(ATTEMPTS)])
    with pytest.raises(ProgramFailed, match=r"failed 5 times: UNAVAILABLE going down \(503\)"):
        client(wire, sleep=slept.append).resolve("v1")
    assert slept == sorted(slept)
    assert len(slept) == ATTEMPTS - 1
    assert sum(slept) < 10


@pytest.mark.parametrize(("header", "pause"), [("7", 7.0), ("9999", 60.0), ("tomorrow", 0.25)])
def test_registry_says_how_long_to_wait_within_reason(header, pause):
    slept = []
    client(Wire(answer(429, Retry_After=header), answer(404)), sleep=slept.append).resolve("v1")
    assert slept == [pause]


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (403, "no right to this"),
        (404, "Create the repository"),
        (405, "read-only"),
        (413, "limit"),
        (400, "as it is"),
    ],
)
def test_refusal_says_what_the_registry_said_and_the_next_move(status, says):
    wire = Wire(answer(status, b'{"errors":[{"code":"SAID","message":"so it is"}]}'))
    with pytest.raises(ProgramFailed) as caught:
        client(wire).push(BLOB, lambda: io.BytesIO(CONTENT))
    assert says in str(caught.value)
    assert f"{status} to POST /v2/team/digits/blobs/uploads/: SAID so it is" in str(caught.value)
    assert len(wire.asked) == 1


def test_upload_is_one_streamed_put_with_the_digest():
    wire = Wire(answer(202, Location="/v2/team/digits/blobs/uploads/1?state=x"), answer(201))
    client(wire).push(BLOB, lambda: io.BytesIO(CONTENT))
    method, url, _, body = wire.asked[1]
    assert (method, body) == ("PUT", CONTENT)
    assert url.startswith("https://registry.example/v2/team/digits/blobs/uploads/1?")
    assert parse_qs(urlsplit(url).query) == {"state": ["x"], "digest": [BLOB.digest]}


def test_upload_that_breaks_begins_anew_with_all_bytes():
    opened = answer(202, Location="/up")
    wire = Wire(opened, Unreachable("broken pipe"), answer(404), answer(202, Location="/up2"), answer(201))
    client(wire).push(BLOB, lambda: io.BytesIO(CONTENT))
    assert [body for method, _, _, body in wire.asked if method == "PUT"] == [CONTENT, CONTENT]


@pytest.mark.parametrize(
    "place", ["http://registry.example/up", "ftp://registry.example/up", "http://other.example/up"]
)
def test_upload_is_not_sent_over_plain_http(place):
    wire = Wire(answer(202, Location=place))
    with pytest.raises(ProgramFailed, match="not https; nothing was sent"):
        client(wire).push(BLOB, lambda: io.BytesIO(CONTENT))
    assert len(wire.asked) == 1


def test_login_is_sent_when_it_is_asked_for_and_then_kept():
    wire = Wire(answer(401, WWW_Authenticate=BASIC), answer(404), answer(404))
    one = client(wire, Login("ci", "secret"))
    one.resolve("v1")
    one.resolve("v2")
    expected = "Basic " + base64.b64encode(b"ci:secret").decode()
    assert [headers.get("Authorization") for _, _, headers, _ in wire.asked] == [None, expected, expected]


def test_login_is_not_sent_to_another_host():
    place = "https://storage.example/up"
    wire = Wire(answer(401, WWW_Authenticate=BASIC), answer(202, Location=place), answer(201))
    client(wire, Login("ci", "secret")).push(BLOB, lambda: io.BytesIO(CONTENT))
    assert "Authorization" in wire.asked[1][2]
    assert "Authorization" not in wire.asked[2][2]


def test_token_is_fetched_with_the_login_and_the_scope_that_is_asked_for():
    wire = Wire(
        answer(401, WWW_Authenticate=BEARER),
        answer(200, b'{"token": "t0k"}'),
        answer(202, Location="/up"),
        answer(201),
    )
    client(wire, Login("ci", "secret")).push(BLOB, lambda: io.BytesIO(CONTENT))
    _, url, headers, _ = wire.asked[1]
    assert url.startswith("https://auth.example/token?")
    assert parse_qs(urlsplit(url).query) == {
        "service": ["registry"],
        "scope": ["repository:team/digits:pull,push"],
    }
    assert headers["Authorization"].startswith("Basic ")
    assert [wire.asked[n][2]["Authorization"] for n in (2, 3)] == ["Bearer t0k", "Bearer t0k"]


def test_token_that_ran_out_is_replaced():
    wire = Wire(
        answer(401, WWW_Authenticate=BEARER), answer(200, b'{"token": "one"}'), answer(404),
        answer(401, WWW_Authenticate=BEARER), answer(200, b'{"access_token": "two"}'), answer(404),
    )  # fmt: skip
    one = client(wire)
    one.resolve("v1")
    one.resolve("v2")
    assert wire.asked[-1][2]["Authorization"] == "Bearer two"


def test_login_is_not_sent_to_a_token_service_over_plain_http():
    wire = Wire(answer(401, WWW_Authenticate='Bearer realm="http://auth.example/token"'))
    with pytest.raises(ProgramFailed, match="not https"):
        client(wire, Login("ci", "secret")).resolve("v1")
    assert len(wire.asked) == 1


@pytest.mark.parametrize(
    ("login", "answers", "says"),
    [
        (
            None,
            [answer(401, WWW_Authenticate=BASIC)],
            "the Docker configuration has none: docker login registry.example",
        ),
        (
            Login("ci", "x"),
            [answer(401, WWW_Authenticate=BASIC), answer(401, WWW_Authenticate=BASIC)],
            "did not let ci into",
        ),
        (
            Login("ci", "x"),
            [answer(401, WWW_Authenticate=BEARER), answer(403)],
            "did not let ci into team/digits",
        ),
        (
            None,
            [answer(401, WWW_Authenticate=BEARER), answer(200, b'{"token":"t"}'), answer(401)],
            "has none",
        ),
        (
            None,
            [answer(401, WWW_Authenticate="Negotiate")],
            "a login of a kind that is not known here: Negotiate",
        ),
    ],
)
def test_login_that_is_missing_or_refused_is_said_without_the_password(login, answers, says):
    with pytest.raises(ProgramFailed) as caught:
        client(Wire(*answers), login).resolve("v1")
    assert says in str(caught.value)
    assert "secret" not in repr(Login("ci", "secret"))


def test_manifest_that_is_another_one_is_refused():
    with pytest.raises(IntegrityError, match="when asked for manifest"):
        client(Wire(answer(200, b"{}"))).manifest("sha256:" + "0" * 64)


def test_tags_come_from_all_pages():
    pages = [
        answer(200, b'{"tags":["v1"]}', Link='</v2/team/digits/tags/list?last=v1>; rel="next"'),
        answer(200, b'{"tags":["v2"]}'),
    ]
    wire = Wire(*pages)
    assert client(wire).tags() == ["v1", "v2"]
    assert wire.asked[1][1] == "https://registry.example/v2/team/digits/tags/list?last=v1"


@pytest.mark.parametrize("body", [b"<html>", b'"x"'])
def test_list_of_tags_that_is_none_is_refused(body):
    with pytest.raises(IntegrityError, match="the list of tags"):
        client(Wire(answer(200, body))).tags()


def test_digest_of_a_tag_is_computed_where_the_registry_does_not_say_it():
    assert client(Wire(answer(200), answer(200, b"{}"))).resolve("v1") == of_bytes(b"{}")


class Breaking(io.BytesIO):
    """A body whose connection breaks after some bytes."""

    def __init__(self, content: bytes, after: int):
        super().__init__(content[:after])
        self.broken = False

    def readinto(self, buffer):
        count = super().readinto(buffer)
        if count == 0:
            raise ConnectionResetError("reset by peer")
        return count


@pytest.mark.parametrize("ranges", [True, False])
def test_download_goes_on_where_the_connection_broke(ranges):
    first = answer(200)
    first.body = Breaking(CONTENT, 3000)
    second = answer(206, CONTENT[3000:]) if ranges else answer(200, CONTENT)
    wire = Wire(first, second)
    with client(wire).open(BLOB) as stream:
        assert stream.read() == CONTENT
    assert wire.asked[1][2]["Range"] == "bytes=3000-"


def test_download_that_ends_early_again_and_again_is_given_up():
    with pytest.raises(ProgramFailed, match="the connection ended after 0 of 7000 bytes"):
        client(Wire(*[answer(200) for _ in range(ATTEMPTS)])).open(BLOB).read()


def test_new_image_asks_nothing_of_older_versions(tmp_path):
    _, image = model_image(tmp_path)
    wire = Wire(
        answer(200, b'{"tags":["v1","v2","v7","latest"]}'),
        answer(404),
        answer(404),
        answer(201),
        answer(200, Docker_Content_Digest=image.digest),
    )
    assert give_version(RemoteRegistry(client(wire), settle=lambda: None), image, known=False) == 8
    assert [method for method, *_ in wire.asked] == ["GET", "HEAD", "HEAD", "PUT", "HEAD"]


def config(folder, document) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(document if isinstance(document, str) else json.dumps(document))
    return {"DOCKER_CONFIG": str(folder)}


AUTH = {"auth": base64.b64encode(b"ci:se:cret").decode()}


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("registry.example", "registry.example"),
        ("https://registry.example", "registry.example"),
        ("https://registry.example/v2/", "registry.example"),
        ("registry.example:5000", "registry.example:5000"),
        ("https://index.docker.io/v1/", "docker.io"),
    ],
)
def test_login_is_found_under_the_names_that_docker_gives_it(tmp_path, name, host):
    assert login_for(host, config(tmp_path, {"auths": {"other.example": AUTH, name: AUTH}})) == Login(
        "ci", "se:cret"
    )


@pytest.mark.parametrize(
    "document", [{}, {"auths": {}}, {"auths": {"other.example": AUTH}}, {"auths": {"registry.example": {}}}]
)
def test_host_without_a_login_has_none(tmp_path, document):
    assert login_for("registry.example", config(tmp_path, document)) is None


def test_absent_configuration_has_no_login(tmp_path):
    assert login_for("registry.example", {"DOCKER_CONFIG": str(tmp_path / "nowhere")}) is None


@pytest.mark.parametrize(
    "document",
    [
        "{",
        {"auths": {"registry.example": {"auth": "%%%"}}},
        {"auths": {"registry.example": {"auth": "Y2k="}}},
    ],
)
def test_configuration_that_cannot_be_read_is_named(tmp_path, document):
    with pytest.raises(ProgramFailed, match=r"config\.json.*docker login registry\.example"):
        login_for("registry.example", config(tmp_path, document))

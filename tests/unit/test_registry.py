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
from deploy.transport import Answer, Network, Request, Unreachable
from deploy.uploads import Upload
from pipeline.errors import IntegrityError, ProgramFailed
from pipeline.run import Done
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


def test_each_trouble_is_said_before_it_is_tried_again(capsys):
    troubles = [Unreachable("timed out"), answer(503), Unreachable("timed out", 9)]
    client(Wire(*troubles, answer(404))).resolve("v1")
    assert capsys.readouterr().err.splitlines() == [
        "  registry.example: timed out; try 2 of 5 follows in 0.25 s",
        "  registry.example: Service Unavailable (503); try 3 of 5 follows in 0.5 s",
        "  registry.example: timed out; try 4 of 5 follows in 9 s",
    ]


@pytest.mark.parametrize(("header", "pause"), [("7", 7.0), ("9999", 60.0), ("tomorrow", 0.25), ("²", 0.25)])
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


def test_token_that_another_thread_got_for_other_rights_is_followed_by_one_of_our_own():
    fetched, sent = [], []

    def registry(request):
        """A token is good for one kind of right; while our POST is refused, a HEAD elsewhere gets a token to pull."""
        if "auth.example" in request.url:
            fetched.append("push" if "push" in request.url else "pull")
            return answer(200, json.dumps({"token": fetched[-1]}).encode())
        wants = "push" if request.method == "POST" else "pull"
        given = request.headers.get("Authorization", "")
        if given == f"Bearer {wants}":
            return answer(202 if wants == "push" else 200)
        if request.method == "POST":
            sent.append(given)
            if len(sent) == 1:
                there.once(Request("HEAD", f"{there.api}/manifests/x"), (200,))
        scope = f'Bearer realm="https://auth.example/token",scope="repository:a:{wants}"'
        return answer(401, WWW_Authenticate=scope)

    there = client(registry)
    assert there.once(Request("POST", f"{there.api}/blobs/uploads/"), (202,)).status == 202
    assert (sent, fetched) == (["", "Bearer pull"], ["pull", "push"])


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


def test_token_that_is_about_to_run_out_is_renewed_before_it_is_refused():
    clock = [0.0]
    wire = Wire(
        answer(401, WWW_Authenticate=BEARER), answer(200, b'{"token": "one", "expires_in": 100}'), answer(404),
        answer(404), answer(200, b'{"token": "two"}'), answer(404),
    )  # fmt: skip
    one = client(wire)
    one._authorization._now = lambda: clock[0]
    for clock[0] in (0.0, 50.0, 95.0):
        one.resolve("v1")
    assert [wire.asked[n][2].get("Authorization") for n in (2, 3, 5)] == [
        "Bearer one",
        "Bearer one",
        "Bearer two",
    ]


def test_identity_token_is_posted_and_never_stands_in_a_url():
    wire = Wire(answer(401, WWW_Authenticate=BEARER), answer(200, b'{"access_token": "t"}'), answer(404))
    client(wire, Login("", identity_token="very-secret")).resolve("v1")
    method, url, headers, body = wire.asked[1]
    assert (method, url) == ("POST", "https://auth.example/token")
    assert "Authorization" not in headers
    assert parse_qs(body.decode()) == {
        "grant_type": ["refresh_token"],
        "client_id": ["tidegate"],
        "refresh_token": ["very-secret"],
        "service": ["registry"],
        "scope": ["repository:team/digits:pull,push"],
    }
    assert wire.asked[2][2]["Authorization"] == "Bearer t"
    assert "very-secret" not in repr(Login("", identity_token="very-secret"))


def test_token_of_the_registry_itself_is_used_as_it_is():
    wire = Wire(answer(401, WWW_Authenticate=BEARER), answer(404))
    client(wire, Login("", registry_token="r")).resolve("v1")
    assert wire.asked[1][2]["Authorization"] == "Bearer r"


@pytest.mark.parametrize("body", [b"{}", b'{"token": null}', b'{"token": 7}', b'{"token": "two\\nlines"}'])
def test_token_service_that_gives_no_token_is_named(body):
    with pytest.raises(ProgramFailed, match="answered without a token"):
        client(Wire(answer(401, WWW_Authenticate=BEARER), answer(200, body))).resolve("v1")


def test_both_scopes_of_a_mount_are_asked_for():
    scopes = 'Bearer realm="https://a.example/t",scope="repository:a:pull,push repository:b:pull"'
    wire = Wire(
        answer(401, WWW_Authenticate=scopes), answer(200, b'{"token": "t"}'),
        answer(201, Docker_Content_Digest=BLOB.digest), answer(200),
    )  # fmt: skip
    assert Upload(client(wire), BLOB, lambda: io.BytesIO(CONTENT)).mount("b")
    assert parse_qs(urlsplit(wire.asked[1][1]).query)["scope"] == [
        "repository:a:pull,push",
        "repository:b:pull",
    ]


PART = 3000


def in_parts(*answers) -> Wire:
    """Sends CONTENT (7000 bytes) in parts of 3000 bytes against these answers."""
    wire = Wire(*answers)
    Upload(client(wire), BLOB, lambda: io.BytesIO(CONTENT), part_bytes=PART).run()
    assert not wire.answers
    return wire


def ranges(wire: Wire) -> list[str]:
    return [headers["Content-Range"] for method, _, headers, _ in wire.asked if method == "PATCH"]


def at(count: int, status: int = 202) -> Answer:
    return answer(status, Location=f"/up{count}", Range=f"0-{count - 1}")


OPEN, DONE = answer(202, Location="/up"), answer(201)


def test_parts_follow_one_another_where_the_registry_says():
    wire = in_parts(OPEN, at(3000), at(6000), at(7000), DONE)
    assert ranges(wire) == ["0-2999", "3000-5999", "6000-6999"]
    assert [url.rpartition("/")[2].partition("?")[0] for _, url, _, _ in wire.asked] == [
        "", "up", "up3000", "up6000", "up7000",
    ]  # fmt: skip
    assert b"".join(body for method, _, _, body in wire.asked if method == "PATCH") == CONTENT


def test_upload_goes_on_in_the_middle_of_a_part():
    wire = in_parts(OPEN, at(3000), Unreachable("reset"), at(4500, 204), at(7000), DONE)
    assert ranges(wire) == ["0-2999", "3000-5999", "4500-6999"]
    assert wire.asked[4][3] == CONTENT[4500:]


def test_part_of_which_less_was_taken_is_sent_from_there():
    assert ranges(in_parts(OPEN, at(1000), at(4000), at(7000), DONE)) == ["0-2999", "1000-3999", "4000-6999"]


def test_part_that_is_out_of_order_makes_us_ask_where_to_go_on():
    wire = in_parts(OPEN, at(3000), answer(416), at(6000, 204), at(7000), DONE)
    assert ranges(wire) == ["0-2999", "3000-5999", "6000-6999"]


def test_registry_that_asks_for_larger_parts_gets_them():
    opened = answer(202, Location="/up", OCI_Chunk_Min_Length="5000")
    assert ranges(in_parts(opened, at(5000), at(7000), DONE)) == ["0-4999", "5000-6999"]


def test_registry_that_claims_more_than_was_sent_is_asked_again_and_then_given_up():
    lies = [one for _ in range(ATTEMPTS) for one in (OPEN, at(9000), answer(404), answer(404))]
    with pytest.raises(ProgramFailed, match="failed 5 times: it says that it has 9000 bytes"):
        in_parts(*lies)


def test_upload_that_breaks_again_and_again_but_gets_on_is_not_given_up():
    steps = [one for n in range(1, 70) for one in (at(n * 100), Unreachable("reset"), at(n * 100, 204))]
    wire = Wire(OPEN, *steps, at(7000), DONE)
    Upload(client(wire), BLOB, lambda: io.BytesIO(CONTENT), part_bytes=100).run()
    assert len(ranges(wire)) == 2 * 69 + 1


def test_file_that_became_shorter_is_named():
    with pytest.raises(IntegrityError, match="ended 7000 bytes early"):
        client(Wire(OPEN, answer(201))).push(BLOB, lambda: io.BytesIO(b""))


def test_date_to_try_again_at_is_understood():
    slept = []
    past = "Wed, 21 Oct 2015 07:28:00 GMT"
    client(Wire(answer(429, Retry_After=past), answer(404)), sleep=slept.append).resolve("v1")
    assert slept == [0.0]


def test_digest_that_is_another_one_than_was_asked_for_is_refused():
    wire = Wire(answer(200, Docker_Content_Digest="sha256:" + "1" * 64))
    with pytest.raises(IntegrityError, match="when asked for"):
        client(wire).resolve("sha256:" + "0" * 64)


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
    body = b'{"schemaVersion":2,"layers":[]}'
    assert client(Wire(answer(200), answer(200, body))).resolve("v1") == of_bytes(body)


@pytest.mark.parametrize("reference", ["v1", "sha256:" + "0" * 64])
@pytest.mark.parametrize("body", [b"<html>welcome</html>", b"{}", b'{"status":"ok"}'])
def test_server_that_answers_everything_is_not_taken_for_a_registry(body, reference):
    with pytest.raises(ProgramFailed, match=r"it is no container registry.*Correct the address"):
        client(Wire(answer(200), answer(200, body))).resolve(reference)


@pytest.mark.parametrize("number", ["²", "many", "9" * 5000])
def test_number_in_a_header_that_is_none_counts_as_not_said(number):
    assert client(Wire(answer(200, Content_Length=number))).lacks(BLOB) is None
    opened = answer(202, Location="/up", OCI_Chunk_Min_Length=number)
    assert ranges(in_parts(opened, at(3000), at(6000), at(7000), DONE)) == [
        "0-2999",
        "3000-5999",
        "6000-6999",
    ]


@pytest.mark.parametrize(
    "place", ["http://[::bad/", "https://[::bad/", "http://elsewhere.example/blob?ticket=secret"]
)
def test_address_that_is_none_or_not_safe_is_named_and_nothing_is_sent_there(monkeypatch, place):
    network = Network()
    monkeypatch.setattr(network, "_one", lambda request: answer(307, Location=place))
    for ask in (
        lambda: network(Request("GET", "https://registry.example/v2/")),
        lambda: client(Wire()).place(place),
    ):
        with pytest.raises(ProgramFailed, match="which is not https") as caught:
            ask()
        assert place.partition("?")[0] in str(caught.value)
        assert "secret" not in str(caught.value)


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
    ("entry", "login"),
    [
        ({"username": "ci", "password": "p"}, Login("ci", "p")),
        ({"identitytoken": "i"}, Login("", identity_token="i")),
        ({**AUTH, "identitytoken": "i"}, Login("ci", "se:cret", "i")),
        ({"registrytoken": "r"}, Login("", registry_token="r")),
    ],
)
def test_every_kind_of_entry_is_understood(tmp_path, entry, login):
    assert login_for("registry.example", config(tmp_path, {"auths": {"registry.example": entry}})) == login


def test_configuration_in_the_environment_comes_first(tmp_path):
    named = {"auths": {"registry.example": {"username": "job", "password": "p"}}}
    environ = config(tmp_path, {"auths": {"registry.example": AUTH, "other.example": AUTH}})
    environ["DOCKER_AUTH_CONFIG"] = json.dumps(named)
    assert login_for("registry.example", environ) == Login("job", "p")
    assert login_for("other.example", environ) == Login("ci", "se:cret")


def test_configuration_in_the_environment_that_cannot_be_read_is_not_quoted():
    with pytest.raises(ProgramFailed, match="DOCKER_AUTH_CONFIG cannot be read") as caught:
        login_for("registry.example", {"DOCKER_AUTH_CONFIG": '{"auths": {"auth": "very-secret"'})
    assert "very-secret" not in str(caught.value)
    assert caught.value.__cause__ is None


def helper(monkeypatch, code: int, stdout: str = "") -> list:
    """A credential helper that answers this; returns what it was asked."""
    asked = []

    def run(argv, *, stdin, **_):
        asked.append((argv[0], stdin))
        return Done(tuple(argv), code, stdout, "")

    monkeypatch.setattr("deploy.credentials.run", run)
    return asked


HERE = "registry.example"


@pytest.mark.parametrize(
    ("document", "host", "asked"),
    [
        ({"credsStore": "all"}, HERE, ("docker-credential-all", HERE)),
        ({"credHelpers": {HERE: "one"}, "credsStore": "all"}, HERE, ("docker-credential-one", HERE)),
        (
            {"credHelpers": {"other.example": "one"}, "credsStore": "all"},
            HERE,
            ("docker-credential-all", HERE),
        ),
        ({"credsStore": "all", "auths": {HERE: {}}}, HERE, ("docker-credential-all", HERE)),
        ({"credsStore": "all"}, "docker.io", ("docker-credential-all", "https://index.docker.io/v1/")),
    ],
)
def test_helper_of_the_host_comes_before_the_one_for_all(tmp_path, monkeypatch, document, host, asked):
    seen = helper(monkeypatch, 0, '{"Username": "ci", "Secret": "s"}')
    assert login_for(host, config(tmp_path, document)) == Login("ci", "s")
    assert seen == [asked]


def test_helper_hands_out_identity_tokens(tmp_path, monkeypatch):
    helper(monkeypatch, 0, '{"Username": "<token>", "Secret": "i"}')
    assert login_for(HERE, config(tmp_path, {"credsStore": "all"})) == Login("", identity_token="i")


def test_helper_that_knows_nothing_of_a_host_leaves_it_to_the_file(tmp_path, monkeypatch):
    helper(monkeypatch, 1, "credentials not found in native keychain\n")
    both = {"credsStore": "all", "auths": {HERE: AUTH}}
    assert login_for(HERE, config(tmp_path, both)) == Login("ci", "se:cret")
    assert login_for("other.example", config(tmp_path, both)) is None


@pytest.mark.parametrize(
    ("code", "stdout", "says"),
    [(1, "error: session expired", "session expired"), (2, "", "no word"), (0, "s3cret", "not a login")],
)
def test_helper_that_fails_is_named_with_what_it_said(tmp_path, monkeypatch, code, stdout, says):
    helper(monkeypatch, code, stdout)
    with pytest.raises(ProgramFailed, match=f"docker-credential-all .*{says}") as caught:
        login_for(HERE, config(tmp_path, {"credsStore": "all"}))
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "document",
    [
        "{",
        "[]",
        {"auths": {"registry.example": {"auth": "%%%"}}},
        {"auths": {"registry.example": {"auth": "Y2k="}}},
        {"auths": {"registry.example": {"auth": "ä"}}},
        {"auths": {"registry.example": {"auth": 5}}},
        {"auths": {"registry.example": {"username": ["ci"]}}},
        {"auths": {"registry.example": {"username": "half a character: \ud800"}}},
        {"auths": {"registry.example": {"registrytoken": "two\nlines"}}},
        {"auths": {"registry.example": "x"}},
        {"auths": {"registry.example": ["x"]}},
        {"auths": "x"},
        {"auths": ["registry.example"]},
        {"credHelpers": ["registry.example"]},
        {"credHelpers": "registry.example"},
        {"credHelpers": {"registry.example": ["one"]}},
        {"credHelpers": {"registry.example": "../one"}},
        {"credsStore": {"x": 1}},
        "[" * 100_000,
    ],
    ids=range(19),
)
def test_configuration_that_cannot_be_read_is_named(tmp_path, document):
    with pytest.raises(ProgramFailed, match=r"config\.json.*docker login registry\.example"):
        login_for("registry.example", config(tmp_path, document))

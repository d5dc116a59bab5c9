"""Pushing to and pulling from a real registry through a proxy that fails in many ways; bytes are counted."""

import json
import signal
import threading
import time

import pytest

from deploy.bases import CachedRegistry
from deploy.oci import Layout, load, unpack
from deploy.publish import RemoteRegistry
from deploy.registry import Client
from pipeline.errors import IntegrityError, ProgramFailed
from tests.support import finish_stage, start_stage, tree
from tests.support_faults import Fault, FaultyProxy, TokenService
from tests.support_images import hand_image, model_image, tar
from tests.support_registry import free_port, need_registry, serve

MIB = 1 << 20
BIG = 3 * MIB + 12_345
WEIGHTS = "variables/variables.data-00000-of-00001"

need_registry()


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    port = free_port()
    child = serve(tmp_path_factory.mktemp("registry"), port)
    yield port
    child.kill()
    child.wait()


@pytest.fixture
def proxy(port):
    with FaultyProxy(port) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch):
    monkeypatch.setattr("deploy.uploads.PART_BYTES", MIB)


@pytest.fixture
def slept():
    return []


@pytest.fixture
def repository(request):
    """A name that no other test has: what one test pushed is not there for the next."""
    return "".join(c if c.isalnum() else "-" for c in request.node.name.lower()).strip("-").replace("--", "-")


@pytest.fixture
def big(tmp_path):
    """A layout and image whose weights go in four parts."""
    return model_image(tmp_path, 1, {WEIGHTS: seeded(1, BIG)})


def seeded(seed: int, size: int) -> bytes:
    import random

    return random.Random(seed).randbytes(size)


def client(proxy, repository, slept) -> Client:
    return Client(f"{proxy.host}/{repository}", sleep=slept.append)


def push(proxy, repository, slept, made) -> int:
    layout, image = made
    registry = RemoteRegistry(client(proxy, repository, slept), settle=lambda: None)
    sent = registry.push(image, Layout(layout), print)
    registry.verify(image)
    return sent


def comes_back(tmp_path, proxy, repository, made) -> None:
    """That what is in the registry unpacks to what was pushed."""
    proxy.fault = lambda asked: None
    unpack(f"{proxy.host}/{repository}", made[1].digest, tmp_path / "back")
    assert tree(tmp_path / "back/models/digits/1") == tree(tmp_path / "model-1")


def only(method: str, nth: int, fault: Fault):
    """This fault for the nth request of a method, once."""
    return lambda asked: fault if (asked.method, asked.nth) == (method, nth) else None


def test_large_layer_goes_in_parts_and_comes_back(tmp_path, proxy, repository, slept, big):
    sent = push(proxy, repository, slept, big)
    assert sent == big[1].size_bytes == proxy.bytes_sent
    ranges = [asked.headers["Content-Range"] for asked in proxy.asked if asked.method == "PATCH"]
    assert ranges[:2] == [f"0-{MIB - 1}", f"{MIB}-{2 * MIB - 1}"]
    assert len(ranges) == 4
    comes_back(tmp_path, proxy, repository, big)


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_trouble_in_mid_layer_sends_again_only_what_did_not_arrive(
    tmp_path, proxy, repository, slept, big, status
):
    proxy.fault = only("PATCH", 3, Fault(status, {"Retry-After": "3"}))
    push(proxy, repository, slept, big)
    assert slept == [3.0]
    assert proxy.bytes_sent == big[1].size_bytes + MIB
    comes_back(tmp_path, proxy, repository, big)


def test_cut_in_mid_layer_goes_on_where_the_registry_is(tmp_path, proxy, repository, slept, big):
    proxy.fault = only("PATCH", 3, Fault(cut_after=300_000))
    push(proxy, repository, slept, big)
    assert proxy.bytes_sent == big[1].size_bytes + 300_000
    uploads = [asked for asked in proxy.asked if asked.method == "GET" and "/uploads/" in asked.path]
    assert len(uploads) == 1
    comes_back(tmp_path, proxy, repository, big)


def test_upload_that_the_registry_forgot_after_a_cut_begins_anew(tmp_path, proxy, repository, slept, big):
    # Docker's registry 2.8 gives up an upload of which it got half a part. Where it has not noticed yet when it is
    # asked, it says that it has two parts, is sent the third whole, and gives up then.
    proxy.fault = only("PATCH", 3, Fault(cut_after=300_000, leak=True))
    push(proxy, repository, slept, big)
    again = proxy.bytes_sent - big[1].size_bytes
    assert again in (2 * MIB + 300_000, 3 * MIB + 300_000)
    comes_back(tmp_path, proxy, repository, big)


def test_upload_session_that_is_gone_begins_anew(tmp_path, proxy, repository, slept, big):
    proxy.fault = only("PATCH", 3, Fault(404, body=b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}'))
    push(proxy, repository, slept, big)
    assert proxy.bytes_sent == big[1].size_bytes + 3 * MIB
    comes_back(tmp_path, proxy, repository, big)


def test_answer_that_is_lost_at_the_very_end_sends_nothing_twice(tmp_path, proxy, repository, slept, big):
    lost = []

    def fault(asked):
        if asked.method == "PUT" and asked.headers["Content-Length"] == "0" and not lost:
            lost.append(asked)
            return Fault(lose=True)
        return None

    proxy.fault = fault
    push(proxy, repository, slept, big)
    assert lost
    assert proxy.bytes_sent == big[1].size_bytes
    comes_back(tmp_path, proxy, repository, big)


@pytest.mark.parametrize("status", [400, 404, 405, 415, 501])
def test_registry_that_takes_no_parts_gets_each_blob_whole(tmp_path, proxy, repository, slept, big, status):
    proxy.fault = lambda asked: Fault(status) if asked.method == "PATCH" else None
    push(proxy, repository, slept, big)
    puts = [asked for asked in proxy.asked if asked.method == "PUT" and "digest=" in asked.path]
    assert max(int(asked.headers["Content-Length"]) for asked in puts) > BIG
    comes_back(tmp_path, proxy, repository, big)


def test_body_that_is_too_large_for_what_stands_before_goes_in_smaller_parts(
    tmp_path, proxy, repository, slept, big
):
    def fault(asked):
        return Fault(413) if int(asked.headers.get("Content-Length") or 0) > 300_000 else None

    proxy.fault = fault
    push(proxy, repository, slept, big)
    comes_back(tmp_path, proxy, repository, big)


def test_token_that_runs_out_in_mid_push_is_renewed(tmp_path, proxy, repository, slept, big, monkeypatch):
    # A token is good for more requests than the uploads side by side can send before the one that fetched it does.
    monkeypatch.setattr("deploy.uploads.PART_BYTES", MIB // 4)
    proxy.fault = tokens = TokenService(good_for=8)
    push(proxy, repository, slept, big)
    assert 3 < len(tokens.given) < len(proxy.asked) / 2
    comes_back(tmp_path, proxy, repository, big)


def test_token_that_is_refused_at_once_is_not_asked_for_for_ever(proxy, repository, slept, big):
    proxy.fault = tokens = TokenService(good_for=0)
    with pytest.raises(ProgramFailed, match="asks for a login"):
        push(proxy, repository, slept, big)
    assert len(tokens.given) <= 2 * 4


def test_right_that_is_missing_is_said(proxy, repository, slept, big):
    proxy.fault = lambda asked: Fault(403) if asked.method == "POST" else None
    with pytest.raises(ProgramFailed, match="no right to this"):
        push(proxy, repository, slept, big)


def test_registry_that_dies_in_mid_push_is_named_and_the_next_run_sends_the_rest(
    tmp_path, proxy, repository, slept, big
):
    dead = []

    def fault(asked):
        if asked.method == "PATCH" and asked.nth >= 2:
            dead.append(asked)
        return Fault(cut_after=0) if dead else None

    proxy.fault = fault
    with pytest.raises(ProgramFailed, match="failed 5 times"):
        push(proxy, repository, slept, big)
    proxy.fault = lambda asked: None
    push(proxy, repository, slept, big)
    comes_back(tmp_path, proxy, repository, big)


def test_registry_that_says_it_took_other_bytes_is_not_trusted(proxy, repository, slept, big):
    lie = Fault(changed={"Docker-Content-Digest": "sha256:" + "0" * 64})
    proxy.fault = lambda asked: lie if asked.method == "PUT" else None
    with pytest.raises(IntegrityError, match="do not trust this registry"):
        push(proxy, repository, slept, big)


def test_file_that_changed_since_it_was_built_is_refused(proxy, repository, slept, big):
    path = Layout(big[0]).path(big[1].layers[0].digest)
    path.write_bytes(b"\0" * path.stat().st_size)
    with pytest.raises(IntegrityError, match="got other bytes than"):
        push(proxy, repository, slept, big)
    assert client(proxy, repository, slept).resolve(big[1].digest) is None


@pytest.mark.parametrize("ranges", [True, False])
def test_pull_that_is_cut_goes_on(proxy, repository, slept, big, ranges):
    push(proxy, repository, slept, big)
    weights = max(big[1].layers, key=lambda layer: layer.size)
    content = Layout(big[0]).path(weights.digest).read_bytes()
    asked_for = []

    def fault(asked):
        if asked.method != "GET" or weights.digest not in asked.path:
            return None
        asked_for.append(asked.headers.get("Range"))
        if len(asked_for) == 1:  # promises all, and ends early
            return Fault(200, {"Content-Length": str(len(content))}, content[:MIB])
        return None if ranges else Fault(200, body=content)

    proxy.fault = fault
    with client(proxy, repository, slept).open(weights) as stream:
        assert stream.read() == content
    assert asked_for == [None, f"bytes={MIB}-"]


@pytest.mark.parametrize("size", [0, 5])
def test_blob_with_a_wrong_size_is_refused_before_it_is_read(proxy, repository, slept, big, size):
    push(proxy, repository, slept, big)
    proxy.fault = lambda asked: Fault(200, body=b"x" * size) if "/blobs/" in asked.path else None
    with pytest.raises(IntegrityError, match=f"sends {size} bytes"):
        client(proxy, repository, slept).open(big[1].layers[0]).read()


def test_manifest_that_is_another_one_is_refused_when_it_is_pulled(tmp_path, proxy, repository, slept, big):
    push(proxy, repository, slept, big)
    proxy.fault = lambda asked: Fault(200, body=b"{}") if "/manifests/" in asked.path else None
    with pytest.raises(IntegrityError, match="when asked for manifest"):
        unpack(f"{proxy.host}/{repository}", big[1].digest, tmp_path / "out")


def base_in(proxy, tmp_path, slept, name: str):
    """A base image of two layers in a repository of the registry; its address by digest."""
    folder = tmp_path / "base"
    layers = [tar({f"bin/{n}": seeded(100 + n, 200_000)}) for n in range(2)]
    digest = hand_image(folder, *layers, config={"Env": ["MODEL_NAME=model"]})
    push(proxy, name, slept, (folder, load(Layout(folder), digest)))
    return f"{proxy.host}/{name}@{digest}"


def built_on(tmp_path, base: str, seed: int = 1):
    from deploy.image import Recipe, build
    from tests.support_images import savedmodel

    layout = tmp_path / f"on-base-{seed}"
    recipe = Recipe("digits", base, cache=tmp_path / "state/bases")
    return layout, build(savedmodel(tmp_path / f"model-{seed}", seed), layout, recipe, print)


def test_layers_of_the_base_are_mounted_and_not_sent(tmp_path, proxy, repository, slept):
    made = built_on(tmp_path, base_in(proxy, tmp_path, slept, f"{repository}/base"))
    before = proxy.bytes_sent
    push(proxy, f"{repository}/model", slept, made)
    ours = sum(layer.size for layer in made[1].layers[2:]) + made[1].config.size + len(made[1].body)
    assert proxy.bytes_sent - before == ours
    assert sum("mount=" in asked.path for asked in proxy.asked) >= 2
    unpack(f"{proxy.host}/{repository}/model", made[1].digest, tmp_path / "back")
    assert (tmp_path / "back/bin/1").read_bytes() == seeded(101, 200_000)


@pytest.mark.parametrize("fault", [Fault(404), Fault(405), Fault(401), Fault(403), "ignored"])
def test_registry_that_does_not_mount_gets_the_layers_sent(tmp_path, proxy, repository, slept, fault):
    made = built_on(tmp_path, base_in(proxy, tmp_path, slept, f"{repository}/base"))
    challenge = {"WWW-Authenticate": 'Basic realm="r"'}

    def refuse(asked):
        if "mount=" not in asked.path:
            return None
        if fault == "ignored":
            return Fault(202, {"Location": f"/v2/{repository}/model/blobs/uploads/gone?_state=x"})
        return Fault(fault.status, challenge if fault.status == 401 else {})

    proxy.fault = refuse
    push(proxy, f"{repository}/model", slept, made)
    proxy.fault = lambda asked: None
    unpack(f"{proxy.host}/{repository}/model", made[1].digest, tmp_path / "back")


def test_base_is_downloaded_once_and_damage_to_what_is_kept_is_mended(tmp_path, proxy, repository, slept):
    base = base_in(proxy, tmp_path, slept, repository)
    first = built_on(tmp_path, base, 1)
    asked = len(proxy.asked)
    second = built_on(tmp_path, base, 2)
    assert len(proxy.asked) == asked
    kept = Layout(tmp_path / "state/bases").path(first[1].layers[0].digest)
    kept.write_bytes(b"\0" * kept.stat().st_size)
    third = built_on(tmp_path, base, 3)
    assert len(proxy.asked) > asked
    assert [layers[:2] for layers in (first[1].layers, second[1].layers)] == [third[1].layers[:2]] * 2


def test_base_that_is_gone_is_said_with_what_to_do(tmp_path, proxy, repository, slept):
    base = base_in(proxy, tmp_path, slept, repository).partition("@")[0] + "@sha256:" + "0" * 64
    with pytest.raises(ProgramFailed, match=r"image\.base: sha256:0+ is not in .*make lock-images"):
        built_on(tmp_path, base)


def test_layer_of_a_base_that_is_gone_is_named(tmp_path, proxy, repository, slept):
    base = base_in(proxy, tmp_path, slept, repository)
    proxy.fault = lambda asked: Fault(404) if "/blobs/" in asked.path else None
    with pytest.raises(ProgramFailed, match="has it not"):
        built_on(tmp_path, base)


def test_full_disk_while_a_base_is_downloaded_is_said(tmp_path, proxy, repository, slept, monkeypatch):
    base = base_in(proxy, tmp_path, slept, repository)
    cached = CachedRegistry(base.partition("@")[0], tmp_path / "kept", print)
    image = load(cached, base.partition("@")[2])

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deploy.hashing.Blob.write", full)
    with pytest.raises(ProgramFailed, match="No space left on device"):
        cached.copy(image.layers)
    assert not list((tmp_path / "kept").rglob(".partial-*"))


def test_retrained_model_sends_its_weights_alone(tmp_path, proxy, repository, slept):
    more = {
        "saved_model.pb": seeded(5, 500_000),
        "fingerprint.pb": b"f",
        "assets.extra/x": seeded(6, 500_000),
    }
    more |= {"assets.extra/tf_serving_warmup_requests": b"w", "variables/variables.index": b"i"}
    push(proxy, repository, slept, model_image(tmp_path, 1, more))
    before = proxy.bytes_sent
    layout, image = model_image(tmp_path, 2, more)
    push(proxy, repository, slept, (layout, image))
    weights = image.layers[0].size
    assert weights <= proxy.bytes_sent - before < weights + 10_000


def test_publish_that_was_killed_sends_only_what_is_missing(tmp_path, proxy, repository, big):
    held, go_on = threading.Event(), threading.Event()
    weights = max(big[1].layers, key=lambda layer: layer.size)

    def hold(asked):
        if asked.method == "PUT" and weights.digest.replace(":", "%3A") in asked.path:
            held.set()
            go_on.wait(30)
            return Fault(cut_after=0)
        return None

    proxy.fault = hold
    named = {
        "inputs": {"image/layout": big[0]},
        "changes": {"publish.registry": f"{proxy.host}/{repository}"},
    }
    child = start_stage("deploy.publish.publish", tmp_path / "killed", **named)
    assert held.wait(30)
    others = [blob for blob in big[1].blobs if blob != weights]
    there = Client(f"{proxy.host}/{repository}")
    deadline = time.monotonic() + 20
    while any(there.lacks(blob) for blob in others) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    finish_stage(child)
    go_on.set()
    before = proxy.bytes_sent
    proxy.fault = lambda asked: None
    code, result, said = finish_stage(start_stage("deploy.publish.publish", tmp_path / "again", **named))
    assert code == 0, said
    manifest = len(big[1].body)
    assert proxy.bytes_sent - before == weights.size + 3 * manifest  # by digest, by version, by commit
    assert result["numbers"]["sent_bytes"] == weights.size + manifest


def both_at_once(proxy, tmp_path, commits, barrier_on):
    """Publishes two images by two processes with a state each; both looked before either writes what is named."""
    barrier = threading.Barrier(2, timeout=30)
    met = []

    def hold(asked):
        if asked.method == "PUT" and barrier_on(asked.path) and len(met) < 2:
            met.append(asked)
            barrier.wait()

    proxy.fault = hold
    children, images = [], []
    for number, commit in enumerate(commits):
        layout, image = model_image(tmp_path / f"p{number}", number + 1)
        images.append(image)
        changes = {"publish.registry": f"{proxy.host}/{tmp_path.name.replace('_', '-')}"}
        inputs = {"image/layout": layout}
        folder = tmp_path / f"machine{number}"
        children.append(start_stage("deploy.publish.publish", folder, inputs, changes, commit=commit))
    done = [finish_stage(child) for child in children]
    assert len(met) == 2
    return Client(changes["publish.registry"]), images, done


def test_of_two_publishers_of_one_tag_exactly_one_wins(tmp_path, proxy):
    commit = "0" * 40
    there, images, done = both_at_once(proxy, tmp_path, [commit] * 2, lambda path: path.endswith(commit))
    assert sorted(code for code, _, _ in done) == [0, 6]
    winner = next(n for n, (code, _, _) in enumerate(done) if code == 0)
    assert there.resolve(commit) == images[winner].digest
    assert "A tag never moves" in done[1 - winner][2]


def test_two_publishers_at_once_get_two_versions(tmp_path, proxy):
    commits = ["a" * 40, "b" * 40]
    there, images, done = both_at_once(proxy, tmp_path, commits, lambda path: path.endswith("/v1"))
    assert [code for code, _, _ in done] == [0, 0], done
    versions = [int(result["numbers"]["version"]) for _, result, _ in done]
    assert sorted(versions) == [1, 2]
    for image, version in zip(images, versions, strict=True):
        assert there.resolve(f"v{version}") == image.digest


def test_registry_that_keeps_no_referrers_says_so_with_none(proxy, repository, slept, big):
    push(proxy, repository, slept, big)
    assert client(proxy, repository, slept).referrers(big[1].digest) is None
    assert json.loads(big[1].body)["schemaVersion"] == 2

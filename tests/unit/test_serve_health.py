import threading

from serve import health
from serve.call_threads import CallThreads
from serve.health import NAMES, Health, Healths, Request, Response

SOON_S = 30


def test_names_are_those_of_tf_serving_and_the_whole_server():
    healths = Healths()
    assert [healths.check(name) for name in ("", "ModelService", "PredictionService")] == [Health.SERVING] * 3
    assert healths.check("tensorflow.serving.PredictionService") is None


def test_watchers_are_told_what_is_and_what_changes_until_the_end():
    healths, told = Healths(), []
    healths.watch("", told.append)
    healths.set_all(Health.NOT_SERVING)
    healths.end()
    healths.set_all(Health.SERVING)
    assert told == [Health.SERVING, Health.NOT_SERVING, None]


def test_name_that_is_not_known_can_be_watched():
    healths, told = Healths(), []
    healths.watch("nobody", told.append)
    healths.set_all(Health.NOT_SERVING)
    assert told == [Health.SERVICE_UNKNOWN]


def test_watchers_that_left_are_told_nothing_and_take_no_room():
    healths, told = Healths(), []
    for name in (*NAMES, *map(str, range(100))):
        healths.watch(name, told.append)
        healths.leave(name, told.append)
    told.clear()
    healths.set_all(Health.NOT_SERVING)
    assert told == []
    assert healths._watchers == {}


def test_messages_are_those_of_the_standard_on_the_wire():
    assert Request(service="ab").SerializeToString() == b"\x0a\x02ab"
    assert Response(status=Health.NOT_SERVING).SerializeToString() == b"\x08\x02"
    assert Request.FromString(b"").service == ""


def test_client_that_takes_nothing_holds_up_nobody_and_is_told_in_order_once_it_does():
    healths, go, told, calm = Healths(), threading.Event(), [], []
    done = threading.Event()

    def send(response):
        assert go.wait(SOON_S)
        told.append(response and response.status)
        if response is None:
            done.set()

    watcher = health._Watcher(send, CallThreads(1))
    healths.watch("", watcher.tell)
    healths.watch("", calm.append)
    healths.set_all(Health.NOT_SERVING)
    healths.end()
    assert calm == [Health.SERVING, Health.NOT_SERVING, None]
    assert told == []
    go.set()
    assert done.wait(SOON_S)
    assert told == [Health.SERVING, Health.NOT_SERVING, None]

"""Which labels a config may give to which versions."""

from pathlib import Path

import pytest

from serve import labels
from serve.config import ModelConfig
from serve.status import Code, ServingError


def config(name="m", **given):
    return ModelConfig(name, Path("/m"), labels=given)


def check(*configs, old=None, allowed=False, available=(1, 2)):
    return labels.checked(configs, old or {}, lambda _, version: version in available, allowed)


def test_labels_of_available_versions_replace_all_others():
    assert check(config(stable=1, canary=2), config("n"), old={"m": {"old": 1}}) == {
        "m": {"stable": 1, "canary": 2}
    }


@pytest.mark.parametrize("old", [{}, {"m": {"stable": 9}}, {"m": {"stable": 1}}])
def test_label_of_a_version_that_is_not_available_is_refused(old):
    with pytest.raises(ServingError) as caught:
        check(config(stable=9), old=old)
    assert caught.value.code is Code.FAILED_PRECONDITION
    assert caught.value.message == (
        "Request to assign label to version 9 of model m, which is not currently available for inference"
    )


@pytest.mark.parametrize("old", [{}, {"m": {"other": 1}}, {"m": {"stable": 9}}, {"n": {"stable": 1}}])
def test_where_allowed_new_and_unchanged_labels_may_point_anywhere(old):
    assert check(config(stable=9), old=old, allowed=True) == {"m": {"stable": 9}}


def test_even_where_allowed_a_label_in_use_does_not_move_to_an_unavailable_version():
    with pytest.raises(ServingError, match="version 9 of model m, which is not currently available"):
        check(config(stable=9), old={"m": {"stable": 1}}, allowed=True)
    assert check(config(stable=2), old={"m": {"stable": 1}}, allowed=True) == {"m": {"stable": 2}}

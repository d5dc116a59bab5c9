"""Numbers that a flag can read and the server cannot use are refused before anything starts."""

import dataclasses

import pytest

from serve.flags import Flags, UsageError, parse
from serve.ranges import RANGES


@pytest.mark.parametrize(
    ("argument", "least", "most"),
    [
        ("--grpc_message_bytes_at_most=99999999999", 1, 2**31 - 1),
        ("--tensorflow_intra_op_parallelism=-5", 0, 4096),
        ("--tensorflow_session_parallelism=100000", 0, 4096),
        ("--tensorflow_inter_op_parallelism=4097", -(2**31), 4096),
        ("--num_load_threads=4097", 0, 4096),
        ("--load_retry_interval_micros=9223372036854775807", -(10**15), 10**15),
        ("--rest_api_timeout_in_ms=2147483648", -(2**31), 2**31 - 1),
        ("--rest_body_bytes_at_most=0", 1, 2**63 - 1),
        ("--request_log_sampling_rate=1.5", 0, 1),
        ("--drain_seconds=nan", 0, 2**31 - 1),
        ("--drain_notice_seconds=inf", 0, 2**31 - 1),
        ("--drain_seconds=-1.0", 0, 2**31 - 1),
        ("--rest_idle_seconds=nan", 0.001, 2**31 - 1),
        ("--rest_send_seconds=0.0", 0.001, 2**31 - 1),
    ],
)
def test_number_out_of_its_flags_range_is_refused_with_the_range(argument, least, most):
    flag, value = argument.split("=")
    with pytest.raises(UsageError) as refused:
        parse([argument])
    assert str(refused.value) == f"{flag} is {value}; give a number from {least} to {most}"


def test_every_number_that_acts_has_a_range_that_holds_its_default():
    acting = {
        each.name: each.default
        for each in dataclasses.fields(Flags)
        if each.type in (int, float) and each.metadata["acts"]
    }
    assert RANGES.keys() == acting.keys()
    assert [name for name, value in acting.items() if not RANGES[name][0] <= value <= RANGES[name][1]] == []


def test_negative_numbers_that_mean_something_are_taken():
    flags = parse(
        ["--tensorflow_inter_op_parallelism=-1", "--file_system_poll_wait_seconds=-1", "--rest_api_timeout_in_ms=-1",
         "--load_retry_interval_micros=-1"]
    ).flags  # fmt: skip
    assert (flags.tensorflow_inter_op_parallelism, flags.file_system_poll_wait_seconds) == (-1, -1)
    assert (flags.rest_api_timeout_in_ms, flags.load_retry_interval_micros) == (-1, -1)

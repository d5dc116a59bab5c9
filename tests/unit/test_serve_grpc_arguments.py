"""gRPC's own options of the server, as the command line names them."""

import pytest

from serve import grpc_arguments


def test_values_are_integers_where_they_read_as_such(capsys):
    found = grpc_arguments.read("a=1,,b=-2,c=+3,d=x,e=1.5,f=,g=h=1,i=--4,j=2147483647,k=-2147483648")
    assert found == [
        ("a", 1), ("b", -2), ("c", 3), ("d", "x"), ("e", "1.5"), ("f", ""), ("g", "h=1"), ("i", "--4"),
        ("j", 2147483647), ("k", -2147483648),
    ]  # fmt: skip
    assert grpc_arguments.read("") == []
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("entry", ["foo", "=5", "="])
def test_entry_that_is_not_key_and_value_is_left_out_and_named(capsys, entry):
    assert grpc_arguments.read(f"a=1,{entry}") == [("a", 1)]
    told = capsys.readouterr().err
    assert "--grpc_channel_arguments" in told
    assert entry in told


@pytest.mark.parametrize("number", ["2147483648", "-2147483649", "9" * 5000])
def test_number_beyond_32_bits_goes_to_grpc_as_text_and_is_named(capsys, number):
    assert grpc_arguments.read(f"grpc.max_connection_age_ms={number}") == [
        ("grpc.max_connection_age_ms", number)
    ]
    told = capsys.readouterr().err
    assert "grpc.max_connection_age_ms=" + number[:40] in told
    assert "32 bits" in told

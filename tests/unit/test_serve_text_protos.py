import pytest

from serve import text_protos
from serve.status import ServingError


def parsed(tmp_path, kind, text):
    path = tmp_path / "file.txt"
    path.write_text(text)
    return text_protos.read(path, kind)


def test_batching_parameters_have_wrapped_and_plain_fields(tmp_path):
    text = """
        max_batch_size { value: 128 }
        batch_timeout_micros { value: 0 }
        max_enqueued_batches { value: 1000000 }
        num_batch_threads { value: 8 }
        thread_pool_name { value: "pool" }
        allowed_batch_sizes: 32
        allowed_batch_sizes: 128
        pad_variable_length_inputs: true
        enable_large_batch_splitting { value: true }
        max_execution_batch_size { value: 64 }
    """
    found = parsed(tmp_path, text_protos.BatchingParameters, text)
    assert found.max_batch_size.value == 128
    assert found.HasField("batch_timeout_micros")
    assert found.batch_timeout_micros.value == 0
    assert found.max_enqueued_batches.value == 1_000_000
    assert found.num_batch_threads.value == 8
    assert found.thread_pool_name.value == "pool"
    assert list(found.allowed_batch_sizes) == [32, 128]
    assert found.pad_variable_length_inputs
    assert found.enable_large_batch_splitting.value
    assert found.max_execution_batch_size.value == 64


def test_field_that_is_not_in_the_file_is_told_from_one_that_is_zero(tmp_path):
    found = parsed(tmp_path, text_protos.BatchingParameters, "max_batch_size { value: 1 }")
    assert not found.HasField("batch_timeout_micros")
    assert not found.HasField("enable_large_batch_splitting")


def test_monitoring_config_holds_prometheus_config(tmp_path):
    text = 'prometheus_config { enable: true path: "/metrics" }'
    found = parsed(tmp_path, text_protos.MonitoringConfig, text).prometheus_config
    assert (found.enable, found.path) == (True, "/metrics")


def test_ssl_config_holds_pem_text_over_several_lines(tmp_path):
    text = 'server_key: "a\\n" "b"\nserver_cert: "c"\ncustom_ca: "d"\nclient_verify: true'
    found = parsed(tmp_path, text_protos.SSLConfig, text)
    assert (found.server_key, found.server_cert, found.custom_ca) == ("a\nb", "c", "d")
    assert found.client_verify


@pytest.mark.parametrize("text", ["max_batch_size: 5", "no_such_field: 1", "{", "\xff\xfe"])
def test_file_that_cannot_be_read_is_named_and_its_fault_goes_to_stderr(tmp_path, capsys, text):
    path = tmp_path / "bad.txt"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ServingError, match=f"INVALID_ARGUMENT: Invalid protobuf file: '{path}'"):
        text_protos.read(path, text_protos.BatchingParameters)
    assert "Error parsing text-format tensorflow.serving.BatchingParameters: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff\xfe\0bad", "byte 0 of the file is 0xff and no UTF-8; write it in protobuf's text format\n"),
        (b'thread_pool_name { value: "\\377" }', "1:34 : "),
    ],
)
def test_file_that_is_no_text_is_told_with_the_place_of_its_fault(tmp_path, capsys, content, reason):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(ServingError):
        text_protos.read(path, text_protos.BatchingParameters)
    begin = "Error parsing text-format tensorflow.serving.BatchingParameters: "
    assert capsys.readouterr().err.startswith(begin + reason)


def test_file_that_is_not_there_is_named(tmp_path, capsys):
    with pytest.raises(ServingError, match=f"Invalid protobuf file: '{tmp_path}/absent'"):
        text_protos.read(tmp_path / "absent", text_protos.SSLConfig)
    assert "Error parsing text-format tensorflow.serving.SSLConfig: " in capsys.readouterr().err

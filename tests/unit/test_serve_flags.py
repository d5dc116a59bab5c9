"""The model server's command line, and which versions of a model it asks for."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest

from serve import config
from serve.__main__ import main
from serve.config import ModelConfig, Policy
from serve.flags import Flags, UsageError, parse, usage
from serve.sampling import Sampling
from serve.status import Code, ServingError


def test_flags_are_read_as_tf_serving_reads_them():
    line = parse(
        ["--port=1", "--model_name=m", "--rest_api_enable_cors_support", "--enable_model_warmup=false"]
    )
    assert line.flags == Flags(
        port=1, model_name="m", rest_api_enable_cors_support=True, enable_model_warmup=False
    )
    assert (line.unknown, line.idle) == ((), ())


def test_defaults_are_tf_servings():
    flags = parse([]).flags
    assert (flags.port, flags.rest_api_port, flags.model_name, flags.rest_api_timeout_in_ms) == (
        8500,
        0,
        "default",
        30000,
    )
    assert (flags.max_num_load_retries, flags.load_retry_interval_micros, flags.enable_model_warmup) == (
        5,
        60000000,
        True,
    )


def test_unknown_arguments_are_passed_over_and_named():
    line = parse(["--nope=1", "stray", "-port=3", "--port=2"])
    assert line.unknown == ("--nope=1", "stray", "-port=3")
    assert line.flags.port == 2


def test_flags_that_cannot_apply_are_accepted_and_named():
    line = parse(["--skip_initialize_tpu", "--mixed_precision=fp16", "--port=2"])
    assert line.idle == ("skip_initialize_tpu", "mixed_precision")


@pytest.mark.parametrize(
    "argument",
    ["--port=abc", "--port", "--port=", "--port=65536", "--port=-1", "--enable_batching=maybe", "--model_name",
     "--drain_seconds=x", "--drain_seconds=-1", "--drain_seconds=nan", "--max_num_load_retries=-1"],
)  # fmt: skip
def test_value_that_a_flag_cannot_take_is_refused_by_name(argument):
    with pytest.raises(UsageError, match=argument.split("=")[0]):
        parse([argument])


def test_unreadable_value_prints_usage_and_exits_with_255(capsys):
    assert main(["--port=abc"]) == 255
    assert capsys.readouterr().out.startswith(
        "--port is a whole number, and not 'abc'\n\nusage: python -m serve"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Both server_options.model_base_path and server_options.model_config_file are empty!"),
        (
            ["--port=0"],
            "At least one of server_options.grpc_port or server_options.grpc_socket_path must be set.",
        ),
        (
            ["--batching_parameters_file=/b"],
            "server_options.batching_parameters_file is set without setting server_options.enable_batching to true.",
        ),
        (
            [f"--tensorflow_{kind}_parallelism=1" for kind in ("session", "intra_op", "inter_op")],
            "tensorflow_session_parallelism replaces the intra_op and inter_op flags; set it or these",
        ),
    ],
)
def test_combinations_that_cannot_start_exit_with_255_and_tf_servings_words(capsys, arguments, message):
    assert main(arguments) == 255
    assert capsys.readouterr().out == f"Failed to start server. Error: INVALID_ARGUMENT: {message}\n"


def test_server_whose_request_log_has_no_folder_does_not_start(capsys, tmp_path):
    prefix = f"--request_log_prefix={tmp_path}/absent/log"
    assert main([f"--model_base_path={tmp_path}", prefix, "--request_log_sampling_rate=1"]) == 255
    assert f"INVALID_ARGUMENT: {prefix} cannot be written: there is no folder" in capsys.readouterr().out


def test_config_file_that_cannot_be_read_is_told_on_both_outputs(capsys, tmp_path):
    file = tmp_path / "models.config"
    file.write_text("model_config_list { nonsense }")
    for path in (file, tmp_path / "absent"):
        assert main([f"--model_config_file={path}"]) == 255
        told = capsys.readouterr()
        assert (
            told.out == f"Failed to start server. Error: INVALID_ARGUMENT: Invalid protobuf file: '{path}'\n"
        )
        assert told.err.startswith("Error parsing text-format tensorflow.serving.ModelServerConfig: ")


def test_help_shows_every_flag_in_groups_within_110_columns(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert text == usage()
    assert all(f"--{field.name}=" in text for field in dataclasses.fields(Flags))
    assert all(len(line) <= 110 for line in text.splitlines())


def test_version_prints_both_versions(capsys):
    assert main(["--version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["TensorFlow ModelServer", "TensorFlow Library"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("latest", [9]),
        ("latest:2", [9, 7]),
        ("latest:0", [9]),
        ("all", [9, 7, 1]),
        ("specific:1,7,4", [7, 1]),
    ],
)
def test_policy_wants_versions(text, wanted):
    assert config.parse_policy(text).wanted([7, 1, 9]) == wanted


def test_specific_policy_without_versions_wants_none():
    assert Policy(specific=frozenset()).wanted([1, 2]) == []


@pytest.mark.parametrize("text", ["newest", "latest:x", "specific", "specific:1,b", "all:1"])
def test_unreadable_policy_is_refused(text):
    with pytest.raises(ServingError, match="none of latest, latest:N, all, specific:1,3"):
        config.parse_policy(text)


def test_versions_are_children_whose_whole_name_is_a_number_and_the_last_of_two_names_wins(tmp_path):
    for name in ("1", "007", "10.tmp", "notes", "7", "99999999999999999999", "²", "+3", "4 4"):
        (tmp_path / name).mkdir()
    (tmp_path / "5").write_text("a file")
    found = config.versions_on_disk(tmp_path)
    assert found == {1: tmp_path / "1", 7: tmp_path / "7", 5: tmp_path / "5"}


def test_no_model_is_refused_in_tf_servings_words():
    with pytest.raises(ServingError) as caught:
        config.from_flags(Flags())
    assert (
        caught.value.message
        == "Both server_options.model_base_path and server_options.model_config_file are empty!"
    )


def model(**changes) -> SimpleNamespace:
    """What is read of a ModelConfig message."""
    policy = SimpleNamespace(WhichOneof=lambda _: None, latest=SimpleNamespace(num_versions=0))
    usual = {
        "name": "m",
        "base_path": "/m",
        "model_platform": "tensorflow",
        "model_type": 0,
        "model_version_policy": policy,
        "version_labels": {"stable": 3},
        "HasField": lambda _: False,
    }
    return SimpleNamespace(**{**usual, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_platform": "torch"}, "Model m requests unsupported platform torch"),
        ({"model_platform": ""}, "Illegal setting neither ModelServerConfig::model_type"),
        ({"model_type": 1}, "Illegal setting both ModelServerConfig::model_type"),
        ({"base_path": "m"}, "Expected model m to have an absolute path or URI; got base_path()=m"),
        ({"base_path": "/m\0"}, "model m: no file's path has a null character; got base_path()='/m\\x00'"),
    ],
)
def test_bad_model_configs_are_refused(changes, message):
    with pytest.raises(ServingError) as caught:
        config.models([model(**changes)])
    assert caught.value.message.startswith(message)


def test_model_listed_twice_is_refused():
    with pytest.raises(ServingError, match="Illegal to list model m multiple times in config list"):
        config.models([model(), model()])


def test_platform_of_a_model_that_is_served_cannot_change():
    with pytest.raises(ServingError) as caught:
        config.models([model(model_platform="torch")], known=["m"])
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message == (
        "Illegal to change a model's platform. For model m platform was tensorflow and new platform requested is torch"
    )


def test_base_path_may_be_a_uri_of_a_local_folder_and_of_no_other():
    assert config.models([model(base_path="file:///m")])[0].base_path == Path("/m")
    with pytest.raises(ServingError, match="this server reads local folders only"):
        config.models([model(base_path="s3://bucket/m")])


def logged(kind="tfrecord", prefix="/logs/m", rate=0.25):
    collector = SimpleNamespace(type=kind, filename_prefix=prefix)
    asked = SimpleNamespace(
        log_collector_config=collector, sampling_config=SimpleNamespace(sampling_rate=rate)
    )
    return config.models([model(HasField=lambda _: True, logging_config=asked)])[0].sampling


def test_labels_are_handed_on():
    assert config.models([model()])[0].labels == {"stable": 3}


def test_request_log_is_what_a_models_logging_config_says():
    assert logged() == Sampling(0.25, "/logs/m")
    assert logged(rate=0) is None
    assert config.models([model()])[0].sampling is None


@pytest.mark.parametrize(
    ("asked", "refusal"),
    [
        ({"kind": "kafka"}, "NOT_FOUND: Cannot find LogCollector::Factory for type: kafka"),
        ({"prefix": ""}, "INVALID_ARGUMENT: LoggingConfig has no filename_prefix"),
        ({"rate": 1.5}, "INVALID_ARGUMENT: The sampling rate .* is 1.5"),
        ({"rate": float("nan")}, "INVALID_ARGUMENT: The sampling rate .* is nan"),
    ],
)
def test_request_log_that_cannot_be_is_refused(asked, refusal):
    with pytest.raises(ServingError, match=refusal):
        logged(**asked)


def test_request_log_of_the_one_model_is_what_the_flags_say():
    flags = Flags(model_base_path="/m", request_log_prefix="/logs/m", request_log_sampling_rate=0.5)
    assert config.from_flags(flags)[0].sampling == Sampling(0.5, "/logs/m")
    assert config.from_flags(Flags(model_base_path="/m"))[0].sampling is None


def test_request_log_whose_folder_cannot_be_written_is_refused_with_the_place_to_mend(tmp_path, monkeypatch):
    def refusal(prefix, from_file=False):
        with pytest.raises(ServingError) as caught:
            config.check_logs([ModelConfig("m", Path("/m"), sampling=Sampling(1, str(prefix)))], from_file)
        return caught.value.message

    (tmp_path / "file").touch()
    assert refusal(tmp_path / "absent" / "log").startswith(
        f"--request_log_prefix={tmp_path}/absent/log cannot be written: there is no folder {tmp_path}/absent. Make"
    )
    assert refusal(f"{tmp_path}/absent/").endswith("or choose another prefix")
    assert f"{tmp_path}/file is no folder" in refusal(tmp_path / "file" / "log")
    assert refusal(tmp_path / "absent" / "log", from_file=True).startswith("model m: filename_prefix: ")
    config.check_logs([ModelConfig("m", Path("/m"), sampling=Sampling(1, f"{tmp_path}/log"))], False)
    config.check_logs([ModelConfig("m", Path("/m"))], False)
    monkeypatch.setattr("os.access", lambda *_: False)
    assert f"may not write into the folder {tmp_path}" in refusal(tmp_path / "log")


def test_deprecated_model_type_is_still_taken():
    assert config.models([model(model_platform="", model_type=1)])[0].name == "m"

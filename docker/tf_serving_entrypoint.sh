#!/bin/sh
# What tensorflow/serving's image runs, for the server of this one: MODEL_NAME below MODEL_BASE_PATH, and further flags
# as arguments. The shell is replaced by the server, which so gets the SIGTERM that lets it finish its requests.
exec tensorflow_model_server --port=8500 --rest_api_port=8501 \
  --model_name="${MODEL_NAME}" --model_base_path="${MODEL_BASE_PATH}/${MODEL_NAME}" "$@"

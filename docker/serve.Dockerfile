# A model server for machines where TF Serving's image cannot run, or must not: serve/ on the TensorFlow that BASE brings.
#
#   docker build -f docker/serve.Dockerfile --build-arg BASE=tensorflow/tensorflow:2.20.0@sha256:… -t NAME:COMMIT .
#   docker run --read-only -p 127.0.0.1:8501:8501 -v "$PWD/model:/models/digits:ro" -e MODEL_NAME=digits NAME@sha256:…
#
# It takes what tensorflow/serving's image takes: MODEL_NAME, MODEL_BASE_PATH, the ports 8500 (gRPC) and 8501 (REST),
# flags of the server as arguments; and has the same programs, /usr/bin/tf_serving_entrypoint.sh and
# tensorflow_model_server. BASE has no default, because a default would be a tag, and tags move.
ARG BASE
# hadolint ignore=DL3006
FROM ${BASE}

# Of the lock only what serve/ imports beside TensorFlow. --mount=secret is for sites with a CA of their own
# (--secret id=ca,src=FILE); without one it is not there, and nothing of it stays in the image.
ENV VENV=/opt/tidegate
COPY requirements.txt ${VENV}/
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=ca,target=/run/secrets/ca.pem \
    if [ -s /run/secrets/ca.pem ]; then export PIP_CERT=/run/secrets/ca.pem; fi \
 && python3 -m venv --without-pip --system-site-packages "${VENV}" \
 && awk '/^[a-zA-Z0-9]/ { keep = /^(grpcio|httptools|ml-dtypes|numpy|orjson|protobuf|pysimdjson|tensorflow-serving-api|typing-extensions|uvloop)==/ } keep' \
      "${VENV}/requirements.txt" > /tmp/lock.txt \
 && "${VENV}/bin/python" -m pip install --disable-pip-version-check --no-compile --require-hashes --no-deps \
      --ignore-installed --requirement /tmp/lock.txt \
 && rm /tmp/lock.txt \
 # Bytecode is made now, as nothing can be written later; by content, so that the same files give the same image.
 && "${VENV}/bin/python" -m compileall -q -x '/tests?/' --invalidation-mode unchecked-hash "${VENV}/lib"

ENV PATH=${VENV}/bin:${PATH} \
    PYTHONPATH=${VENV}/code \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MODEL_NAME=model \
    MODEL_BASE_PATH=/models
COPY serve ${VENV}/code/serve
# What cannot be imported here, or is not the locked TensorFlow, ends the build.
RUN python -m compileall -q --invalidation-mode unchecked-hash "${VENV}/code" \
 && python -c 'from serve import framework; framework.lean(); import serve.server, serve.grpc_server, serve.session, serve.warmup' \
 && version="$(sed -n 's/^tensorflow-cpu==\([^ ]*\).*/\1/p' "${VENV}/requirements.txt")" \
 && case "$(python -m serve --version)" in *"TensorFlow Library: ${version}") ;; *) python -m serve --version; exit 1 ;; esac

COPY docker/tf_serving_entrypoint.sh docker/tensorflow_model_server /usr/bin/
RUN mkdir -p /models

EXPOSE 8500 8501
# The ports open when every model is there. Then the one that MODEL_NAME names must have a version that is available; a
# server that has none of that name serves what a --model_config_file names, and is well when it answers.
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8501 && printf 'GET /v1/models/%s HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n' \"$MODEL_NAME\" >&3 && answer=$(cat <&3) && [[ $answer == *AVAILABLE* || $answer == *'Could not find any versions of model'* ]]"]
USER 65532:65532
WORKDIR /
ENTRYPOINT ["/usr/bin/tf_serving_entrypoint.sh"]

ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="tidegate-serve" \
      org.opencontainers.image.description="Serves TensorFlow SavedModels over TF Serving's REST and gRPC interfaces" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.revision="${REVISION}"

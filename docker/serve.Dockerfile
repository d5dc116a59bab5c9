# A model server for machines where TF Serving's image cannot run, or must not: serve/ on the TensorFlow that BASE brings.
#
#   docker build -f docker/serve.Dockerfile --build-arg BASE=tensorflow/tensorflow:2.20.0@sha256:… -t NAME:COMMIT .
#   docker run --read-only -p 127.0.0.1:8501:8501 -v "$PWD/model:/models/digits:ro" -e MODEL_NAME=digits NAME@sha256:…
#
# It takes what tensorflow/serving's image takes: MODEL_NAME, MODEL_BASE_PATH, the ports 8500 (gRPC) and 8501 (REST), and
# flags of the server as arguments. BASE has no default, because a default would be a tag, and tags move.
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
 && awk '/^[a-zA-Z0-9]/ { keep = /^(click|grpcio|h11|httptools|ml-dtypes|numpy|orjson|protobuf|tensorflow-serving-api|typing-extensions|uvicorn|uvloop)==/ } keep' \
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

EXPOSE 8500 8501
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
    CMD ["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8501 && printf 'GET /v1/models/%s HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n' \"$MODEL_NAME\" >&3 && [[ $(cat <&3) == *AVAILABLE* ]]"]
USER 65532:65532
WORKDIR /
# The shell is replaced by the server, which so gets the SIGTERM that lets it finish its requests.
ENTRYPOINT ["/bin/sh", "-c", "exec python -m serve --address=0.0.0.0 --port=8500 --rest_api_port=8501 --model_name=\"$MODEL_NAME\" --model_base_path=\"$MODEL_BASE_PATH/$MODEL_NAME\" \"$@\"", "serve"]

ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="tidegate-serve" \
      org.opencontainers.image.description="Serves TensorFlow SavedModels over TF Serving's REST and gRPC interfaces" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.revision="${REVISION}"

# The image that training runs in, on a GPU or a CPU: TensorFlow from BASE, everything else from the lock.
#
#   docker build -f docker/train.Dockerfile --build-arg BASE=tensorflow/tensorflow:2.20.0-gpu@sha256:… -t NAME:COMMIT .
#   docker run --gpus all --volume "$PWD:/workspace" NAME@sha256:… make train
#
# BASE has no default, because a default would be a tag, and tags move: tensorflow/tensorflow:2.20.0 (CPU) or
# :2.20.0-gpu, by digest. Accept a new GPU base only after scripts/verify-gpu passed in the built image: TensorFlow's
# own -gpu images since 2.18 are reported to see no GPU for want of cuDNN (tensorflow issues 62412, 81344, 94593).
ARG BASE
# hadolint ignore=DL3006
FROM ${BASE}

# What BASE lacks of these comes from the site's package archive, whose versions differ by BASE and by day; none of it is
# in what is trained. A BASE that has them all makes the same image on any day.
# hadolint ignore=DL3008
RUN if [ ! -e /etc/ssl/certs/ca-certificates.crt ] || ! command -v git >/dev/null || ! command -v make >/dev/null; then \
      apt-get update \
   && apt-get install --yes --no-install-recommends ca-certificates git make \
   && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/cache/ldconfig/aux-cache /var/log/apt /var/log/*.log; fi

# The runner's user must be able to write the checkout that it mounts: let USER_ID be its number.
ARG USER_ID=1000
RUN SOURCE_DATE_EPOCH=86400 useradd --uid "${USER_ID}" --non-unique --no-log-init --create-home --shell /bin/bash tidegate \
 && install --directory /run/secrets \
 && install --directory --owner=tidegate --group=tidegate /workspace /var/lib/tidegate

# The locked environment but for TensorFlow, which BASE carries with what its GPU needs. What BASE brings beside it stays
# below: everything from the lock is installed here, over it. --mount=secret is for sites with a CA of their own
# (--secret id=ca,src=FILE); without one it is not there, and nothing of it stays in the image but its folder, made above.
ENV VENV=/opt/tidegate
COPY requirements.txt docker/verify_lock.py ${VENV}/
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=ca,target=/run/secrets/ca.pem \
    if [ -s /run/secrets/ca.pem ]; then export PIP_CERT=/run/secrets/ca.pem; fi \
 && export PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1 \
 && python3 -m venv --without-pip --system-site-packages "${VENV}" \
 && awk '/^[a-zA-Z0-9]/ { keep = !/^tensorflow-cpu==/ } keep' "${VENV}/requirements.txt" > /tmp/lock.txt \
 && "${VENV}/bin/python" -m pip install --disable-pip-version-check --no-compile --require-hashes --no-deps \
      --ignore-installed --requirement /tmp/lock.txt \
 && rm /tmp/lock.txt && cp "${VENV}/requirements.txt" "${VENV}/.locked" \
 # Bytecode that holds no times, so that an image is made twice the same. Without any, each stage would compile Keras.
 && "${VENV}/bin/python" -m compileall -q -j 1 -x '/tests?/' --invalidation-mode unchecked-hash "${VENV}/lib"

# A base whose TensorFlow, or whose Python, is not the locked one ends the build here.
RUN "${VENV}/bin/python" -B "${VENV}/verify_lock.py" "${VENV}/requirements.txt"

# git refuses a checkout of another user's (the runner's) unless told; the pipeline asks it for the commit.
# What lasts on a runner (logs, and the checkpoints that a killed training goes on from) lies outside the checkout: a site
# that mounts a folder of its own there keeps it.
ENV PATH=${VENV}/bin:${PATH} \
    TIDEGATE_STATE=/var/lib/tidegate \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    GIT_CONFIG_COUNT=1 \
    GIT_CONFIG_KEY_0=safe.directory \
    GIT_CONFIG_VALUE_0=*
WORKDIR /workspace
USER ${USER_ID}
VOLUME /var/lib/tidegate
CMD ["make"]

# The code comes last: a change of it rebuilds nothing above. Then what names the commit.
COPY --chown=tidegate:tidegate . .
ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="tidegate-train" \
      org.opencontainers.image.description="Trains a model under tf.distribute, on a GPU or a CPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.revision="${REVISION}"

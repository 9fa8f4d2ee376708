# Model files for the chart (models.image): the demo's bases and the embedding model that `make demo` exports.
#   docker build -f docker/models.Dockerfile -t catena-models .
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE}
COPY demo/models/demo-small /catena-models/demo-small
COPY demo/models/demo-large /catena-models/demo-large
COPY .catena-cache/minilm-int8 /catena-models/embed
RUN cd /catena-models && find . -type f ! -name SHA256SUMS | sort | xargs sha256sum > SHA256SUMS && chmod -R a+rX .
USER 10001:10001
# Runs in the chart's init container only; by itself it checks what it holds.
HEALTHCHECK NONE
CMD ["/bin/sh", "-euc", "cd /catena-models && sha256sum --check --strict SHA256SUMS"]

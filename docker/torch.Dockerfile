# A room with torch: adapters, trainer. The wheel of torch brings its own CUDA; the node brings the driver.
#   docker build -f docker/torch.Dockerfile --build-arg SERVICE=adapters -t catena-adapters .
# With --build-arg EXTRAS=nf4 the adapters can hold bases in four bits.
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG SERVICE
ARG EXTRAS
RUN test -n "${SERVICE}" || { echo "name a room: --build-arg SERVICE=adapters"; exit 1; }
RUN python -m venv /opt/catena
# First and alone: the largest layer, kept when the rest changes.
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/catena/bin/pip install --disable-pip-version-check torch==2.13.0
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY libs libs
COPY services services
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/catena/bin/pip install --disable-pip-version-check -c constraints.txt ".[${SERVICE}${EXTRAS:+,${EXTRAS}}]"

FROM ${BASE}
ARG SERVICE
LABEL org.opencontainers.image.title="catena-${SERVICE}" org.opencontainers.image.licenses="MIT"
COPY --from=build /opt/catena /opt/catena
ENV PATH=/opt/catena/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 CATENA_ROOM=${SERVICE}
# Every import of the room is tried here: a missing library fails the build, not the cluster.
RUN python -c "import catena.${SERVICE}.app" \
    && mkdir -p /var/lib/catena /etc/catena && chown 10001:10001 /var/lib/catena
USER 10001:10001
WORKDIR /var/lib/catena
VOLUME /var/lib/catena
EXPOSE 50051 9090 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=900s --retries=6 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9090/healthz', timeout=2)"]
ENTRYPOINT ["/bin/sh", "-c", "exec python -m catena.${CATENA_ROOM} \"$@\"", "catena"]
CMD ["--config", "/etc/catena/catena.yaml", "--admin-host", "0.0.0.0", "--admin-port", "9090"]

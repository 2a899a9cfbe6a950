# docker build -t cerebras-proxy .
# Any Debian with Python 3.11 or newer will do as the base: --build-arg BASE=…
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
WORKDIR /source
COPY pyproject.toml README.md ./
COPY ape_cerebras ape_cerebras
# Where pip needs a configuration or a CA bundle to reach its index, they come as secrets, which no
# layer keeps: docker build --secret id=pip,src=… --secret id=ca,src=…
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \
    python3 -m venv /pip \
 && /pip/bin/pip wheel --no-cache-dir --wheel-dir /wheels '.[redis]' \
 && python3 -m venv --without-pip /opt/ape-cerebras \
 && /pip/bin/pip --python /opt/ape-cerebras/bin/python install --no-index --no-cache-dir \
    --find-links /wheels 'ape-cerebras[redis]'

FROM ${BASE}
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="cerebras-proxy" \
      org.opencontainers.image.description="A small, exact proxy in front of the Cerebras inference API" \
      org.opencontainers.image.version="${VERSION}"
RUN apt-get update --quiet=2 \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 --no-install-recommends curl \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /var/log/*
COPY --from=build /opt/ape-cerebras /opt/ape-cerebras
# 8 seconds to drain: 'docker stop' kills after 10.
ENV PATH=/opt/ape-cerebras/bin:$PATH GRACEFUL_SHUTDOWN_TIMEOUT=8
USER 65532:65532
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=6s --start-period=10s --retries=3 \
    CMD ["ape-cerebras", "health"]
ENTRYPOINT ["ape-cerebras"]
CMD ["serve"]

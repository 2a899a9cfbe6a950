# docker build -t cerebras-proxy .
# Any Debian with Python 3.11 or newer will do as the base; for one that stays the same:
# docker build --build-arg BASE=python:3.13-slim --build-arg BASE_DIGEST=sha256:… .
ARG BASE=python:3.13-slim
ARG BASE_DIGEST=""

FROM ${BASE}${BASE_DIGEST:+@${BASE_DIGEST}} AS build
WORKDIR /source
COPY contrib/image/build-requirements.txt contrib/image/requirements.txt contrib/image/
# Every package is a wheel of the lock, by its hash. Where pip needs a configuration or a CA bundle
# to reach its index, they come as secrets, which no layer keeps:
# docker build --secret id=pip,src=… --secret id=ca,src=…
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=ca \
    python3 -m venv /build \
 && python3 -m venv --without-pip /opt/ape-cerebras \
 && locked="install --quiet --no-cache-dir --no-compile --no-deps --require-hashes --only-binary :all:" \
 && /build/bin/pip $locked --requirement contrib/image/build-requirements.txt \
 && /build/bin/pip --python /opt/ape-cerebras/bin/python $locked \
    --requirement contrib/image/requirements.txt
COPY pyproject.toml README.md ./
COPY ape_cerebras ape_cerebras
COPY contrib/image/write_sbom.py contrib/image/
# Without trio's own tests, 2 MB. Compiled files that name no time, and one time for every file: the
# same source, the same layer.
ARG SOURCE_DATE_EPOCH=1577836800
RUN /build/bin/pip wheel --quiet --no-index --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /build/bin/pip --python /opt/ape-cerebras/bin/python install --quiet --no-index --no-deps \
    --no-compile /wheels/*.whl \
 && rm -r /opt/ape-cerebras/lib/python3.*/site-packages/trio/_tests \
    /opt/ape-cerebras/lib/python3.*/site-packages/trio/_core/_tests \
 && /opt/ape-cerebras/bin/python -m compileall -q --invalidation-mode unchecked-hash \
    /opt/ape-cerebras/lib \
 && /build/bin/python contrib/image/write_sbom.py /opt/ape-cerebras \
 && find /opt/ape-cerebras -exec touch --no-dereference --date=@${SOURCE_DATE_EPOCH} {} +

FROM ${BASE}${BASE_DIGEST:+@${BASE_DIGEST}}
ARG BASE
ARG BASE_DIGEST
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="cerebras-proxy" \
      org.opencontainers.image.description="A small, exact proxy in front of the Cerebras inference API" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.authors="The ape_cerebras developers" \
      org.opencontainers.image.base.name="${BASE}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}"
# The base's pip, and the one that ensurepip would install, go: nothing is installed in here.
RUN apt-get update --quiet=2 \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet=2 --no-install-recommends curl \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /var/cache/ldconfig/* \
    /var/log/* /usr/local/bin/pip* /usr/local/lib/python3.*/site-packages/pip* \
    /usr/local/lib/python3.*/ensurepip /usr/lib/python3.*/ensurepip /usr/share/python-wheels
COPY --from=build /opt/ape-cerebras /opt/ape-cerebras
# 8 seconds to drain: 'docker stop' kills after 10.
ENV PATH=/opt/ape-cerebras/bin:$PATH GRACEFUL_SHUTDOWN_TIMEOUT=8
USER 65532:65532
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=6s --start-period=10s --retries=3 \
    CMD ["ape-cerebras", "health"]
ENTRYPOINT ["ape-cerebras"]
CMD ["serve"]

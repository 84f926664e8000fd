# Router and door: one small image, run twice. Build it from the top of the checkout:
#   docker build -f deploy/containers/router.Dockerfile -t headgate-router:0.1.0 .
#
# The base is pinned by tag only, for no registry was at hand to read its digest from. Pin it before you rely on it:
#   docker buildx imagetools inspect python:3.12.12-slim-bookworm     then FROM python:3.12.12-slim-bookworm@sha256:…
FROM python:3.12.12-slim-bookworm

# Every package by version and hash; nothing is compiled, so no compiler is needed.
COPY deploy/requirements.txt /tmp/requirements.txt
RUN ["python", "-m", "pip", "install", "--no-cache-dir", "--no-deps", "--only-binary=:all:", \
     "--require-hashes", "--requirement", "/tmp/requirements.txt"]

# One number for router, door and serving: their sockets and secrets open to their owner alone.
# The folders are made here, so that a new volume gets their owner and mode.
RUN groupadd --gid 10001 headgate \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin headgate \
 && install -d -o 10001 -g 10001 -m 0700 /var/lib/headgate /var/lib/headgate/door /var/lib/headgate/secrets

COPY models.yaml /usr/lib/headgate/models.yaml
COPY deploy/containers/health.py /usr/lib/headgate/health.py
COPY serving /usr/lib/headgate/serving
COPY router /usr/lib/headgate/router
ENV HEADGATE_HOME=/var/lib/headgate \
    PYTHONPATH=/usr/lib/headgate \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

USER 10001:10001
WORKDIR /var/lib/headgate
VOLUME ["/var/lib/headgate"]
# -P: no module is ever taken from the folder it happens to run in. No shell is started.
ENTRYPOINT ["python", "-P", "-m"]
CMD ["router"]
HEALTHCHECK --interval=15s --timeout=5s --start-period=20s \
    CMD ["python", "-P", "/usr/lib/headgate/health.py", "admin", "/status"]

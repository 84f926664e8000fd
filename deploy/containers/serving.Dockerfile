# serving with its vLLM engine. Build it from the top of the checkout:
#   docker build -f deploy/containers/serving.Dockerfile -t headgate-serving:0.1.0 .
#
# vLLM's own image is the base, and not an environment made by uv at the first start: serving has no way out in
# compose.yaml, so everything must be in the image. headgate.yaml then says `engine: {python: /usr/bin/python3}`.
# Keep the tag at the version of `GPU_VERSION` in serving/engines.py, and pin the digest before you rely on it:
#   docker buildx imagetools inspect vllm/vllm-openai:v0.33.0         then FROM vllm/vllm-openai:v0.33.0@sha256:…
FROM vllm/vllm-openai:v0.33.0

# Headgate's few packages get an environment of their own: vLLM pins half of Python.
COPY deploy/requirements.txt /tmp/requirements.txt
RUN uv venv --python /usr/bin/python3 /usr/lib/headgate/.venv \
 && uv pip install --no-cache --no-deps --python /usr/lib/headgate/.venv/bin/python \
      --require-hashes --requirement /tmp/requirements.txt

# The number that router and door have too. A home in the cache volume, for vLLM keeps compiled kernels there.
RUN groupadd --gid 10001 headgate \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/cache/headgate --shell /usr/sbin/nologin headgate \
 && install -d -o 10001 -g 10001 -m 0700 /var/lib/headgate /var/lib/headgate/door /var/lib/headgate/secrets \
      /var/cache/headgate

COPY models.yaml /usr/lib/headgate/models.yaml
COPY deploy/containers/health.py /usr/lib/headgate/health.py
COPY serving /usr/lib/headgate/serving
ENV HEADGATE_HOME=/var/lib/headgate \
    HOME=/var/cache/headgate \
    HF_HOME=/var/cache/headgate/hub \
    PYTHONPATH=/usr/lib/headgate \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

# A build stops here where the base keeps vLLM under another Python than headgate.yaml will name.
RUN ["/usr/bin/python3", "-P", "-c", "import vllm; print(vllm.__version__)"]

USER 10001:10001
WORKDIR /var/lib/headgate
VOLUME ["/var/lib/headgate", "/var/cache/headgate"]
ENTRYPOINT ["/usr/lib/headgate/.venv/bin/python", "-P", "-m"]
CMD ["serving"]
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s \
    CMD ["/usr/lib/headgate/.venv/bin/python", "-P", "/usr/lib/headgate/health.py", "serving", "/health"]

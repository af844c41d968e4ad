# Roundhouse for NVIDIA GPUs. Build: docker build -t roundhouse .   Run: see docker-compose.yml.
#
# Why this base: the pinned wheels (vLLM 0.32, torch 2.13) bring CUDA 13 themselves, so that a CUDA or PyTorch image
# would only add a second one; nvcr.io/nvidia/pytorch:24.10-py3 has torch 2.5, which is too old for vLLM 0.32. Debian 12
# is what the project is tested on, and its Python 3.11 is what the pins are resolved for. The driver comes from the
# host, through the NVIDIA container toolkit; it must know CUDA 13 (release 580 or later).
FROM debian:bookworm-slim

# gcc, g++ and Python's headers: Triton and torch.compile compile at run time. tini reaps what a killed engine leaves.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        ca-certificates curl g++ gcc libnuma1 python3 python3-dev python3-venv tini \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --uid 10001 --user-group --home-dir /var/lib/roundhouse --shell /usr/sbin/nologin roundhouse \
    && install --directory --owner=roundhouse --group=roundhouse --mode=0700 /var/lib/roundhouse \
    && mkdir /models \
    && python3 -m venv /opt/roundhouse
ENV PATH=/opt/roundhouse/bin:$PATH

WORKDIR /src
COPY requirements.txt ./
RUN pip install --no-cache-dir --no-deps -r requirements.txt

COPY pyproject.toml README.md LICENSE ./
COPY app ./app
COPY engines ./engines
COPY models ./models
COPY utils ./utils
RUN pip install --no-cache-dir --no-deps --no-build-isolation .

# State and compile caches survive the container in one volume. Inside a container everything is "not loopback", and
# what guards the port is how it is published: hence ALLOW_ANONYMOUS; set ROUNDHOUSE_API_KEY to require a key.
ENV ROUNDHOUSE_MODELS_DIR=/models \
    ROUNDHOUSE_STATE_DIR=/var/lib/roundhouse \
    ROUNDHOUSE_HOST=0.0.0.0 \
    ROUNDHOUSE_PORT=8000 \
    ROUNDHOUSE_ALLOW_ANONYMOUS=true \
    XDG_CACHE_HOME=/var/lib/roundhouse/cache \
    TRITON_CACHE_DIR=/var/lib/roundhouse/cache/triton \
    TORCHINDUCTOR_CACHE_DIR=/var/lib/roundhouse/cache/inductor \
    VLLM_NO_USAGE_STATS=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PYTHONUNBUFFERED=1

WORKDIR /var/lib/roundhouse
USER 10001:10001
VOLUME ["/models", "/var/lib/roundhouse"]
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["sh", "-c", "curl -fsS http://127.0.0.1:$ROUNDHOUSE_PORT/health"]
ENTRYPOINT ["tini", "--", "roundhouse"]
CMD ["serve"]

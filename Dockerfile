# fingerprint_accel in a container. CI does not build this file, and no release has been tested with it.
#
#   docker build -t fingerprint-accel .
#   docker run --rm -v "$PWD:/data" fingerprint-accel compare /data/a.png /data/b.png --ppi 500
#   docker run --rm --gpus all --ipc=host --user "$(id -u):$(id -g)" -v "$PWD:/data" --entrypoint accelerate \
#     fingerprint-accel launch recipes/finetune.py --data /data/datasets/mine --out /data/runs/mine
#
# GPUs need the NVIDIA Container Toolkit on the host. The CUDA libraries come with torch's wheels.
#
# Without a network: on a machine with one, fill the folder `wheelhouse` beside this file, and save the base image.
#
#   pip wheel --wheel-dir wheelhouse '.[nvml]'        # same processor and Python version as the base image
#   docker save python:3.12-slim-bookworm -o base.tar
#
# On the other side: `docker load -i base.tar`, then `docker build --build-arg PACKAGES= -t fingerprint-accel .`.
# The build uses `wheelhouse` where it exists.

FROM python:3.12-slim-bookworm AS build
ARG EXTRAS=nvml
WORKDIR /source
COPY . .
RUN python -m venv /opt/venv \
    && if [ -d wheelhouse ]; then \
         /opt/venv/bin/pip install --no-cache-dir --no-index --find-links wheelhouse "fingerprint-accel[$EXTRAS]"; \
       else \
         /opt/venv/bin/pip install --no-cache-dir ".[$EXTRAS]"; \
       fi

FROM python:3.12-slim-bookworm
# Only `--training.compile` needs a compiler. An empty PACKAGES leaves it out.
ARG PACKAGES="gcc libc6-dev"
RUN if [ -n "$PACKAGES" ]; then \
      apt-get update && apt-get install -y --no-install-recommends $PACKAGES && rm -rf /var/lib/apt/lists/*; \
    fi \
    && useradd --create-home --uid 1000 fingerprint
COPY --from=build /opt/venv /opt/venv
COPY recipes /opt/fingerprint_accel/recipes
ENV PATH=/opt/venv/bin:$PATH \
    HF_HUB_OFFLINE=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    TORCHINDUCTOR_CACHE_DIR=/tmp/torchinductor \
    TRITON_CACHE_DIR=/tmp/triton
WORKDIR /opt/fingerprint_accel
USER fingerprint
ENTRYPOINT ["fingerprint-accel"]
CMD ["--help"]

# syntax=docker/dockerfile:1
# Not built by this project's tests (checked with hadolint only). For a CPU:
#   docker build -t stylesan-xl .
# For NVIDIA GPUs, with the kernels compiled in the image:
#   docker build -t stylesan-xl --build-arg DEVICE=cuda .
#   docker run --gpus all --ipc host -v "$PWD/data:/data" -v "$PWD/training-runs:/training-runs" stylesan-xl \
#       train.py --outdir=/training-runs --data=/data/imagenet16.zip --cfg=stylegan3-t --gpus=8 --batch=2048
ARG DEVICE=cpu

FROM ubuntu:24.04 AS cpu
ENV TORCH_INDEX=https://download.pytorch.org/whl/cpu

FROM nvidia/cuda:13.0.1-devel-ubuntu24.04 AS cuda
ENV TORCH_INDEX=https://download.pytorch.org/whl/cu130

# hadolint ignore=DL3006
FROM ${DEVICE} AS application
# g++ compiles the CPU kernels, and with nvcc those for GPUs.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ git make python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home user && mkdir /app /opt/ops /opt/venv && chown user:user /app /opt/ops /opt/venv
# hadolint ignore=DL3066
USER user
WORKDIR /app
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1
COPY --chown=user:user pyproject.toml LICENSE ./
COPY --chown=user:user san san
# hadolint ignore=DL3013
RUN python3 -m venv /opt/venv \
    && pip install "torch>=2.11,<2.16" torchvision --index-url "$TORCH_INDEX" \
    && pip install -e '.[app,tensorboard,video]'
COPY --chown=user:user . .
ARG DEVICE
# A GPU is not needed to compile. CPU kernels are compiled for the processor that runs them, at their first use.
RUN if [ "$DEVICE" = cuda ]; then python -m torch_utils.ops build --out /opt/ops; fi
ENV STYLESAN_XL_OPS=/opt/ops
ENTRYPOINT ["python"]
CMD ["train.py", "--help"]

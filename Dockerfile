# CPU:  docker build -t rate .
# CUDA: docker build -t rate-cuda --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 .
# Run:  docker run --rm -v "$PWD/runs:/runs" rate python3 TMaze_new/TMaze_new_src/train_tmaze.py --output_dir /runs
ARG BASE=ubuntu:24.04
FROM ${BASE}

# PyTorch's own index of wheels for a CPU or one CUDA version, which saves gigabytes on a machine without a GPU:
# --build-arg PIP_EXTRA_INDEX_URL=... (pip reads it)
ARG PIP_EXTRA_INDEX_URL=
# Which environments to install: all, or some of vizdoom,minigrid,memory-maze,atari,mujoco
ARG EXTRAS=all

# Python 3.12; OSMesa and EGL draw Memory Maze and MuJoCo without a display.
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        git make python3 python3-dev python3-venv build-essential libegl1 libosmesa6 libgl1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /rate
COPY . .
RUN python3 -m venv .venv && .venv/bin/pip install --no-cache-dir -c constraints.txt -e ".[${EXTRAS}]"
ENV PATH=/rate/.venv/bin:$PATH

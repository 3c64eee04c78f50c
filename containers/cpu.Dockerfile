# The image of CPU pods: dependencies only, the code comes with the job. Build it from the repository's root:
#
#   docker build -f containers/cpu.Dockerfile --build-arg TORCH=cpu -t hyperpod-lora-cpu:0.1.0 .
#
# TORCH=locked   everything as in requirements.lock, hashes checked; torch as the package index has it, with CUDA. 6.1 GB
# TORCH=cpu      the same without CUDA: torch's CPU build, of the locked version, from TORCH_INDEX. 1.3 GB and torch itself
# TORCH=mounted  no package at all: the pods mount a virtual environment and its interpreter at their own paths. 0.2 GB
# Sizes are unpacked, as measured on a Debian 12 base of 0.2 GB; TORCH_INDEX was out of reach, its step was followed with a stand-in.
#
# BASE may name the same image in your own registry, by digest.
ARG BASE=docker.io/library/python:3.11-slim-bookworm
FROM ${BASE}

ARG TORCH=locked
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# Metaflow's pods call bash, python, tar and, to stop a step, killall5. torch wants its user to have a name.
RUN for program in bash python tar killall5; do command -v "${program}" || exit 1; done \
 && groupadd --gid 1000 lora \
 && useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash lora

COPY requirements.lock /tmp/requirements.lock
RUN case "${TORCH}" in \
      locked) \
        pip install --no-cache-dir --no-deps --require-hashes -r /tmp/requirements.lock ;; \
      cpu) \
        version="$(sed -n 's/^torch==\([^ ]*\).*/\1/p' /tmp/requirements.lock)" \
        && awk '/^[a-z]/ {kept = !/^(torch|triton|nvidia-[a-z0-9-]+|cuda-[a-z-]+)==/} kept' /tmp/requirements.lock >/tmp/rest.lock \
        && pip install --no-cache-dir --no-deps --require-hashes -r /tmp/rest.lock \
        && pip install --no-cache-dir --no-deps --index-url "${TORCH_INDEX}" "torch==${version}" ;; \
      mounted) ;; \
      *) \
        echo "TORCH is '${TORCH}', expected locked, cpu or mounted" >&2 && exit 1 ;; \
    esac \
 && if [ "${TORCH}" != mounted ]; then python -c "import boto3, kubernetes, metaflow, requests, torch, transformers"; fi \
 && rm -f /tmp/requirements.lock /tmp/rest.lock

# What Metaflow would install at every pod's start is here already.
ENV METAFLOW_SKIP_INSTALL_DEPENDENCIES=1

WORKDIR /home/lora
USER 1000:1000
CMD ["python"]

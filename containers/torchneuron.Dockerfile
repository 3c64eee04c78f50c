# The image of TorchNeuron pods (launcher.backend: torchneuron; Trn2), and of the light pods around them: dependencies only, the code
# comes with the job. Build it from the root:
#
#   docker build -f containers/torchneuron.Dockerfile -t hyperpod-lora-torchneuron:0.1.0 .
#
# TorchNeuron is a public beta of the Neuron SDK 2.33. Its wheels are for Ubuntu 26.04, Python 3.12 to 3.14, and its runtime (2.35) also
# works on nodes with drivers from 2.29 on, which refuse the image of neuron.Dockerfile. No driver belongs into an image.
# torch_xla must never be installed beside it: transformers and accelerate would take their XLA path.
# Not built here: AWS's repositories were out of reach. Names and versions are those of AWS's quickstart and release notes of
# 2026-10; which versions of libfabric the EFA plugin of a node wants was not found: AWS's EFA installer brings one of its own.
# The project's tests ran on Python 3.11 to 3.13, not on Ubuntu 26.04's 3.14.
ARG BASE=docker.io/library/ubuntu:26.04
FROM ${BASE}

# Neuron's packages are in no lock of ours, since they cannot be seen from here: name exact versions once you have seen them.
ARG TORCH=2.14.*
ARG TORCH_NEURONX=2.14.*
ARG NEURONX_CC=2.28.*
ARG NKI=0.7.*
ARG RUNTIME=2.35.*
ARG COLLECTIVES=2.35.*
ARG TOOLS=2.33.*
ARG NEURON_APT=https://apt.repos.neuron.amazonaws.com
ARG NEURON_INDEX=https://pip.repos.neuron.amazonaws.com
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# Metaflow's pods call bash, python, tar and, to stop a step, killall5. torch wants its user to have a name; Ubuntu's own user 1000
# gives way to it. The Neuron repository is believed because of its certificate: a key fetched from the same place would prove no more.
# hadolint ignore=DL3008
RUN export DEBIAN_FRONTEND=noninteractive \
 && apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv sysvinit-utils libfabric1 ibverbs-providers \
 && echo "deb [trusted=yes] ${NEURON_APT} $(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release) main" > /etc/apt/sources.list.d/neuron.list \
 && apt-get update \
 && apt-get install -y --no-install-recommends "aws-neuronx-runtime-lib=${RUNTIME}" "aws-neuronx-collectives=${COLLECTIVES}" \
      "aws-neuronx-tools=${TOOLS}" \
 && apt-get clean \
 && rm -rf /var/lib/apt/lists/* \
 && if id ubuntu; then userdel --remove ubuntu; fi \
 && groupadd --gid 1000 lora \
 && useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash lora

# torch's CPU build and the three Neuron wheels first, then what the project needs, by hash and without what torch would bring.
COPY containers/torchneuron-requirements.lock /tmp/
RUN python3 -c "import sys; assert sys.version_info >= (3, 12), sys.version" \
 && python3 -m venv /opt/lora \
 && /opt/lora/bin/pip install --no-cache-dir --extra-index-url "${NEURON_INDEX}" --extra-index-url "${TORCH_INDEX}" \
      "torch==${TORCH}" "torch-neuronx==${TORCH_NEURONX}" "neuronx-cc==${NEURONX_CC}" "nki==${NKI}" \
 && /opt/lora/bin/pip install --no-cache-dir --no-deps --require-hashes -r /tmp/torchneuron-requirements.lock \
 && TORCH_DEVICE_BACKEND_AUTOLOAD=0 /opt/lora/bin/python -c "import importlib.util, kubernetes, metaflow, peft, torch, transformers; \
      assert importlib.util.find_spec('torch_neuronx'); assert not importlib.util.find_spec('torch_xla')" \
 && rm -f /tmp/torchneuron-requirements.lock

ENV PATH=/opt/lora/bin:/opt/aws/neuron/bin:${PATH} \
    LD_LIBRARY_PATH=/opt/aws/neuron/lib

# What Metaflow would install at every pod's start is here already.
ENV METAFLOW_SKIP_INSTALL_DEPENDENCIES=1

# Set before any process starts. The manifest may say otherwise; steps/train/torchneuron/planning.py has each with its reason, and a
# test holds the two together. (The rule ignored is about tokens; it means the tokenizers.)
# hadolint ignore=DL3064
ENV TORCH_NEURONX_NEFF_CACHE_DIR=/var/tmp/neff-cache \
    TORCH_NEURONX_NEFF_LOCAL_CACHE_DIR=/var/tmp/neff-cache-locks \
    NEURON_LOGICAL_NC_CONFIG=2 \
    NEURON_RT_STOCHASTIC_ROUNDING_EN=0 \
    NEURON_RT_EXEC_TIMEOUT=600 \
    NEURON_RT_ENABLE_DEVICE_MEMORY_OOM_LOG=1 \
    NEURON_RT_LOG_LEVEL=WARNING \
    MALLOC_ARENA_MAX=64 \
    TOKENIZERS_PARALLELISM=false

WORKDIR /home/lora
USER 1000:1000
CMD ["/opt/lora/bin/python"]

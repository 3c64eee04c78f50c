# syntax=docker/dockerfile:1
# The image of Neuron pods: dependencies only, the code comes with the job. Build it from the repository's root:
#
#   docker build -f containers/neuron.Dockerfile --build-arg BASE=<AWS's PyTorch training image for Neuron SDK 2.26> -t hyperpod-lora-neuron .
#
# BASE is AWS's deep-learning container with torch-neuronx 2.8, neuronx-cc 2.21 and neuronx-distributed 0.15 on Python 3.11. They
# exist on AWS's own package index only, and fit one driver: the SDK of the image and of the nodes must be the same, 2.26.
# optimum-neuron pins the rest; its `neuronx` extra would install the closed packages again, so it is not asked for.
# Not built here: this machine cannot reach AWS's registry.
ARG BASE
FROM ${BASE}

# numpy stays below 2 and pyarrow below 20 (later ones want numpy 2): neuronx-cc 2.21 does.
RUN python -c "import sys; assert sys.version_info[:2] == (3, 11), sys.version"
COPY <<'REQUIREMENTS' /tmp/requirements.txt
numpy<=1.26.4
transformers==4.57.1
trl==0.24.0
peft==0.17.0
accelerate==1.8.1
optimum~=2.0.0
datasets>=4,<5
pyarrow<20
pydantic>=2.10,<3
pyyaml
psutil
filelock
safetensors
boto3
REQUIREMENTS
RUN pip install --no-cache-dir -r /tmp/requirements.txt \
 && pip install --no-cache-dir --no-deps optimum-neuron==0.4.5 \
 && python -c "import torch_neuronx, neuronx_distributed, libneuronxla"

# Set before any process starts: optimum-neuron sets some of these too late for its own. The manifest may say otherwise;
# steps/train/neuron_environment.py has each with its reason, and a test holds the two together.
ENV NEURON_COMPILE_CACHE_URL=/var/tmp/neuron-compile-cache \
    NEURON_CC_FLAGS="--model-type=transformer --retry_failed_compilation" \
    NEURON_FUSE_SOFTMAX=1 \
    NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS=3 \
    MALLOC_ARENA_MAX=64 \
    NEURON_RT_STOCHASTIC_ROUNDING_EN=1 \
    NEURON_RT_STOCHASTIC_ROUNDING_SEED=0 \
    NEURON_RT_EXEC_TIMEOUT=600 \
    NEURON_RT_LOG_LEVEL=WARNING \
    HF_HUB_OFFLINE=1 \
    TOKENIZERS_PARALLELISM=false \
    FI_PROVIDER=efa \
    FI_EFA_USE_DEVICE_RDMA=1 \
    FI_EFA_FORK_SAFE=1

WORKDIR /work

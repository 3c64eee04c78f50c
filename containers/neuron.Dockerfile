# The image of Neuron pods, and of the light pods around them: dependencies only, the code comes with the job. Build it from the root:
#
#   docker build -f containers/neuron.Dockerfile -t hyperpod-lora-neuron:0.1.0 .
#
# TESTS=no    what trains, and nothing else
# TESTS=yes   pytest too, for `python -m tests.neuron` on a Trainium node: --build-arg TESTS=yes, and another tag
#
# BASE is AWS's PyTorch training image of the Neuron SDK 2.26.1 on Python 3.11: torch-neuronx 2.8, neuronx-cc 2.21, neuronx-distributed
# 0.15, which is what optimum-neuron 0.4.5 is made for. (Hugging Face's own training image of this SDK has Python 3.10 and
# transformers 4.55: neither fits.) SDK and driver go together: the nodes need one of 2.26 or later. The same image is at
# 763104351884.dkr.ecr.<region>.amazonaws.com/pytorch-training-neuronx; name your copy by digest if nobody may move the tag.
# Not built here: AWS's registry was out of reach; the steps below were followed on a stand-in for BASE up to the imports. BASE's size
# is not published: it is a full Ubuntu with compilers, Java, NeMo, CUDA's torch and the Neuron compiler, so expect more than 10 GB, to
# which this file adds 0.5 GB of packages and their byte code.
ARG BASE=public.ecr.aws/neuron/pytorch-training-neuronx:2.8.0-neuronx-py311-sdk2.26.1-ubuntu22.04
FROM ${BASE}

ARG TESTS=no

# Metaflow's pods call bash, python, tar and, to stop a step, killall5. torch wants its user to have a name.
RUN for program in bash python tar killall5; do command -v "${program}" || exit 1; done \
 && groupadd --gid 1000 lora \
 && useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash lora

# A virtual environment over the base's packages: ours are found first, while the compiler (neuronx-cc, a program of its own) keeps
# the very versions it came with. torch and the Neuron packages stay the base's; nothing but the lock is installed.
COPY containers/neuron-requirements.lock containers/neuron-tests.lock /tmp/
RUN python -c "import sys; assert sys.version_info[:2] == (3, 11), sys.version" \
 && python -m venv --system-site-packages /opt/lora \
 && /opt/lora/bin/pip install --no-cache-dir --no-deps --require-hashes -r /tmp/neuron-requirements.lock \
 && case "${TESTS}" in \
      no) ;; \
      yes) /opt/lora/bin/pip install --no-cache-dir --no-deps --require-hashes -r /tmp/neuron-tests.lock ;; \
      *) echo "TESTS is '${TESTS}', expected no or yes" >&2 && exit 1 ;; \
    esac \
 && /opt/lora/bin/python -c "import boto3, kubernetes, libneuronxla, metaflow, neuronx_distributed, requests, torch_neuronx, transformers" \
 && rm -f /tmp/neuron-requirements.lock /tmp/neuron-tests.lock

ENV PATH=/opt/lora/bin:${PATH}

# What Metaflow would install at every pod's start is here already.
ENV METAFLOW_SKIP_INSTALL_DEPENDENCIES=1

# Set before any process starts: optimum-neuron sets some of these too late for its own. The manifest may say otherwise;
# steps/train/neuron/planning/environment.py has each with its reason, and a test holds the two together. (The rule
# ignored is about tokens; it means the tokenizers.)
# hadolint ignore=DL3064
ENV NEURON_COMPILE_CACHE_URL=/var/tmp/neuron-compile-cache \
    NEURON_CC_FLAGS="--model-type=transformer --retry_failed_compilation" \
    NEURON_FUSE_SOFTMAX=1 \
    NEURON_RT_ASYNC_EXEC_MAX_INFLIGHT_REQUESTS=3 \
    MALLOC_ARENA_MAX=64 \
    NEURON_RT_STOCHASTIC_ROUNDING_EN=1 \
    NEURON_RT_STOCHASTIC_ROUNDING_SEED=0 \
    NEURON_RT_EXEC_TIMEOUT=600 \
    NEURON_RT_LOG_LEVEL=WARNING \
    TOKENIZERS_PARALLELISM=false \
    FI_PROVIDER=efa \
    FI_EFA_USE_DEVICE_RDMA=1 \
    FI_EFA_FORK_SAFE=1

WORKDIR /home/lora
USER 1000:1000
# The base's entry point edits the host name for SageMaker and needs root.
ENTRYPOINT []
CMD ["/opt/lora/bin/python"]

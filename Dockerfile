# For a CPU:  docker build -t hfexp .
# For a GPU:  docker build -t hfexp --build-arg TORCH_INDEX=https://pypi.org/simple .   (about 7 GB)
# The tests:  docker build --target test .
# Run it:     docker run --rm --init --shm-size=1g -v "$PWD:/work" -v hfexp-cache:/cache hfexp debug=fast
#             --gpus all        gives it the GPUs;  --user "$(id -u):$(id -g)"  gives the outputs to you.
#             --init            collects the processes that jobs leave; `docker stop -t 60` leaves time for a checkpoint.
#             --shm-size=1g     is for data loader workers and several processes: Docker gives 64 MB.
# hfexp.def has the same steps for Apptainer.

# BASE=python:3.11 brings the C++ compiler that trainer.args.torch_compile needs.
ARG BASE=python:3.11-slim
FROM ${BASE} AS installed
# PyPI's torch brings CUDA's libraries, so a GPU needs no other base, only the driver of the host. They are of no use to
# a CPU, for which PyTorch keeps a smaller build at an address of its own.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1

WORKDIR /src
# torch first and alone: it is the largest layer, and is kept when only the code changes. Its dependencies follow from
# PyPI, since PyTorch's own index does not have all pinned versions.
COPY constraints.txt ./
RUN pip install --no-deps --index-url "$TORCH_INDEX" -c constraints.txt torch torchvision
COPY pyproject.toml README.md LICENSE ./
COPY conf ./conf
COPY docs/howto.md ./docs/
COPY hfexp ./hfexp
RUN pip install -c constraints.txt .

# Only `--target test` builds this stage, which the image has nothing of.
FROM installed AS test
RUN apt-get update && apt-get install --yes --no-install-recommends git make
COPY CHANGELOG.md CONTRIBUTING.md SECURITY.md Makefile Dockerfile hfexp.def .dockerignore ./
COPY docs ./docs
COPY benchmarks ./benchmarks
COPY tests ./tests
RUN python -m venv --system-site-packages .venv
RUN make test

FROM installed
# Any --user may write there, as in /tmp. What is in a volume outlives the container: outputs, models and prepared rows.
RUN useradd --create-home hfexp && install --directory --mode=1777 /work /cache
ENV HF_HOME=/cache/huggingface HFEXP_CACHE=/cache/hfexp
VOLUME ["/work", "/cache"]
WORKDIR /work
USER hfexp
ENTRYPOINT ["hfexp"]

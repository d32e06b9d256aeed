# One image for server, workers and attackers; the command decides which. Both the classic builder and
# BuildKit build it: no frontend line, no RUN --mount, no heredoc, no COPY --chmod.
#
#   docker build -t varangian .
#   docker build --build-arg PIP_ARGS="--extra-index-url URL" -t varangian .    a CPU-only torch: see .env.example
#   make wheelhouse && docker build --build-arg PIP_ARGS=--no-index -t varangian .    no index at all
ARG BASE_IMAGE=python:3.11-slim

FROM ${BASE_IMAGE} AS build
ARG PIP_ARGS=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
RUN python3 -m venv /opt/varangian
WORKDIR /build

# The dependencies have a layer of their own, which a change of the code leaves alone.
COPY wheelhouse/ wheelhouse/
COPY pyproject.toml constraints.txt ./
RUN python3 -c "import tomllib; \
project = tomllib.load(open('pyproject.toml', 'rb')); \
print(*project['build-system']['requires'], *project['project']['dependencies'], \
*project['project']['optional-dependencies']['certs'], sep='\n')" > requirements.txt \
 && /opt/varangian/bin/pip install --find-links wheelhouse ${PIP_ARGS} -c constraints.txt -r requirements.txt

# All of it: src/varangian holds symlinks to the directories beside it, and a copy of src/ alone would
# build without an error and without the four packages.
COPY . .
RUN /opt/varangian/bin/pip wheel --no-deps --no-build-isolation --no-index --wheel-dir /wheel .

FROM ${BASE_IMAGE}
RUN groupadd --gid 10001 varangian \
 && useradd --uid 10001 --gid 10001 --home-dir /runs --no-create-home --shell /usr/sbin/nologin varangian \
 && install --directory --owner=10001 --group=10001 /runs \
 && install --directory --owner=10001 --group=10001 --mode=700 \
    /certs /certs/authority /certs/server /certs/honest /certs/byzantine
# Two copies for the same reason: the large one is the same for every commit.
COPY --from=build /opt/varangian /opt/varangian
COPY --from=build /wheel /wheel
ENV PATH=/opt/varangian/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1
RUN pip install --no-cache-dir --no-deps --no-index /wheel/*.whl \
 && python -c "import varangian.server, varangian.worker, varangian.aggregators, varangian.protos"
USER 10001:10001
# A named volume mounted here or below /certs takes the owner of the directory.
WORKDIR /runs
ENTRYPOINT ["varangian"]

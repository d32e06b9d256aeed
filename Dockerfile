# One image for server, workers and attackers; the command decides which. Both the classic builder and
# BuildKit build it: no frontend line, no RUN --mount, no heredoc, no COPY --chmod.
#
#   docker build -t varangian .
#   docker build --build-arg LOCK=requirements-cpu.lock --build-arg PIP_ARGS="--extra-index-url URL" -t varangian .
#                                                             a CPU-only torch: see .env.example
#   make wheelhouse && docker build --build-arg PIP_ARGS=--no-index -t varangian .    no index at all
#
# Whatever the index answers, pip installs only wheels whose SHA-256 stands in the lock file.

# Python 3.11.17 on Debian 13, the index of all architectures. .ci/base/Dockerfile says how it is renewed.
ARG BASE_IMAGE=python:3.11.17-slim-trixie@sha256:45037981b62b34b44602584fccbc4d884d5f7dc92c7ee86bb38a698a79fe1e51

# The dependencies have a stage and a layer of their own, which a change of the code leaves alone.
FROM ${BASE_IMAGE} AS dependencies
ARG PIP_ARGS=
ARG LOCK=requirements.lock
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
RUN python3 -m venv --without-pip /opt/varangian
WORKDIR /build
COPY wheelhouse/ wheelhouse/
COPY requirements*.lock ./
# With bytecode, which no process can write later: without it each one would compile torch anew.
RUN python3 -m pip --python /opt/varangian/bin/python install --compile \
    --require-hashes --only-binary :all: --find-links wheelhouse ${PIP_ARGS} -r ${LOCK}

# All of it: src/varangian holds symlinks to the directories beside it, and a copy of src/ alone would
# build without an error and without the four packages. setuptools, which builds the wheel, is in the lock.
FROM dependencies AS build
COPY . .
RUN python3 -m pip --python /opt/varangian/bin/python wheel \
    --no-deps --no-build-isolation --no-index --wheel-dir /wheel . \
 && python3 -m pip --python /opt/varangian/bin/python install --compile --root /installed --no-deps --no-index /wheel/*.whl

# Nothing here runs as another user than the one who calls, and nothing installs: no setuid bit, no pip.
FROM ${BASE_IMAGE}
RUN python3 -m pip uninstall --yes --quiet --root-user-action=ignore pip setuptools wheel \
 && find / -xdev -type f -perm /6000 -exec chmod ug-s {} + \
 && groupadd --gid 10001 varangian \
 && useradd --uid 10001 --gid 10001 --home-dir /runs --no-create-home --shell /usr/sbin/nologin varangian \
 && install --directory --owner=10001 --group=10001 /runs /rows \
 && install --directory --owner=10001 --group=10001 --mode=700 \
    /state /certs /certs/authority /certs/server /certs/honest /certs/byzantine /certs/monitor $(seq -f /certs/apart/w%02g 0 31)
# Two copies for the same reason: the large one is the same for every commit.
COPY --from=dependencies /opt/varangian /opt/varangian
COPY --from=build /installed/opt/varangian /opt/varangian
ENV PATH=/opt/varangian/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_NUM_THREADS=1
USER 10001:10001
RUN python -c "import pathlib, torch, varangian.aggregators, varangian.protos, varangian.server.app as server; \
    assert all(pathlib.Path(m.__cached__).is_file() for m in (torch, server)), 'there is no bytecode'"
# A named volume mounted here, on /rows, /state or a directory below /certs takes the owner of the directory. Those below
# /certs/apart are for docker-compose.apart.yml.
WORKDIR /runs
ENTRYPOINT ["varangian"]

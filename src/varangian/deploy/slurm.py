"""Slurm: a run as one job, with the server and the workers as its steps.

The folder of the deployment is one that all nodes share: the job finds its settings there, and leaves there
credentials, run folders and what workers remember. So a job that is requeued goes on where it was.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence

from varangian.config import RunConfig
from varangian.deploy.emitter import File, Options, comment, needs_section
from varangian.deploy.plan import RUN, Places, Plan, Task, has_token, metrics_port, rows_settings
from varangian.protos.identity.bundle import CA, METRICS_TOKEN
from varangian.registry import ConfigError, Problem

JOB, README = "job.sh", "README.md"
HOST = "HOST"
"""Stands for the name of the first node in the words of commands, which only the job knows."""
PLACES = Places(
    config=RUN,
    certs="certs",
    runs="runs",
    rows=None,
    state="state",
    server=HOST,
    metrics_token=f"certs/server/{METRICS_TOKEN}",
)
HEARTBEAT, DATA_PORT = "server.heartbeat=", "VARANGIAN__SERVER__DATA_PORT"
KILL_WAIT = 30
"""Seconds that Slurm gives a step to end, unless its administrator has set another KillWait."""


def render(config: RunConfig, options: Options) -> Sequence[File]:
    """The files of a deployment with Slurm.

    Raises:
        ConfigError: an image is given.
    """
    if options.image != Options().image:
        hint = "Install Varangian where all nodes see it, and activate its environment before sbatch."
        raise ConfigError([Problem("--image", "is not used: Slurm starts programs", options.image, hint)])
    plan = options.plan(config, PLACES)
    return [
        File(RUN, plan.files[RUN]),
        File(JOB, job(config, plan, options), mode=0o755),
        File(README, readme(config, plan, options)),
    ]


def job(config: RunConfig, plan: Plan, options: Options) -> str:
    """The script for sbatch."""
    tasks = [plan.server, *plan.workers]
    cores = max(math.ceil(task.resources.cpus) for task in tasks)
    memory = max(math.ceil(task.resources.memory / 2**20 / cores) for task in tasks)
    gpus = plan.workers[0].resources.gpus if plan.workers else 0
    return _TEMPLATE.format(
        made=comment(
            f"One run of Varangian as a job: a server and {len(plan.workers)} workers, each a task.",
            f"Made by: {options.made_by}",
            "Use: sbatch job.sh, in this folder, which all nodes must see. README.md says more.",
        ),
        name=options.name,
        tasks=len(tasks),
        cores=cores,
        memory=memory,
        gpus=f"#SBATCH --gpus={gpus * len(plan.workers)}\n" if gpus else "",
        no_gpus=" --gpus=0" if gpus else "",
        run=RUN,
        signal=plan.stop_grace + KILL_WAIT,
        stop_grace=plan.stop_grace,
        port=config.server.port or "$((20000 + SLURM_JOB_ID % 10000))",
        rows="".join(map(_folder, dict.fromkeys(rows_settings(config).values()))),
        environment=_environment(config, plan.server),
        certs=_words(plan.certs),
        server=_inside(_words(plan.server)),
        honest=_step(plan.of("worker"), "honest", cores, gpus),
        byzantine=_step(plan.of("byzantine"), "byzantine", cores, gpus),
    )


def _folder(path: str) -> str:
    """Make a folder for files of vectors, on the node of the server."""
    made = '"$HOME"' + shlex.quote(path[1:]) if path == "~" or path.startswith("~/") else shlex.quote(path)
    return f"mkdir -p -- {made} || exit 2\n"


def _environment(config: RunConfig, task: Task) -> str:
    """The settings of all tasks, but for the folder of their credentials."""
    # Nothing translates ports between nodes, so any free port for data will do.
    left_out = ("VARANGIAN_CERTS", *([DATA_PORT] if config.server.data_port == 0 else []))
    return "".join(
        f"export {name}={shlex.quote(value)}\n"
        for name, value in task.environment.items()
        if name not in left_out
    )


def _words(task: Task) -> str:
    """The command of a task, in which the shell puts in host and port."""
    port = next((port.number for port in task.ports if port.name == "grpc"), None)
    words = [word for word in task.argv if not word.startswith(HEARTBEAT)]
    return " ".join('"0.0.0.0:$port"' if word == f"0.0.0.0:{port}" else _word(word) for word in words)


def _word(word: str) -> str:
    if word == HOST:
        return '"$hosts"'
    if word.startswith(f"{HOST}:"):
        return '"$host:$port"'
    return shlex.quote(word)


def _step(tasks: Sequence[Task], kind: str, cores: int, gpus: int) -> str:
    """The step of all workers of a kind; nothing where there are none."""
    if not tasks:
        return ""
    first = tasks[0]
    attack = {
        name: value for name, value in first.environment.items() if name.endswith("BYZANTINE__ATTACK")
    }
    given = "".join(f" {name}={shlex.quote(value)}" for name, value in attack.items())
    gpu = f" --gpus-per-task={gpus}" if gpus else ""
    return _STEP.format(
        kind=kind, count=len(tasks), cores=cores, gpu=gpu, attack=given, command=_inside(_words(first))
    )


def _inside(words: str) -> str:
    """Words of a shell between the single quotes that a script has around them."""
    return words.replace("'", "'\\''")


_STEP = """
# The {kind} workers: each takes the name that its number in the step stands for.
env VARANGIAN_CERTS=certs/{kind}{attack} \\
  srun --exact --kill-on-bad-exit=0 --wait=0 --ntasks={count} --cpus-per-task={cores}{gpu} \\
  --output=logs/{kind}-%t.log --open-mode=append \\
  bash -c "$again"'; again {command} \\
    --claim {kind} --index "$SLURM_PROCID"' &
steps+=($!)
"""

_TEMPLATE = """\
#!/bin/bash
{made}#
# Options on the command line count before these, as: sbatch --partition=long --time=2:00:00 job.sh
#SBATCH --job-name={name}
#SBATCH --ntasks={tasks}
#SBATCH --cpus-per-task={cores}
#SBATCH --mem-per-cpu={memory}M
{gpus}#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# So many seconds before the time is up the server is asked to end in order, and the job is queued again.
#SBATCH --signal=B:USR1@{signal}
set -uo pipefail
cannot() {{ echo "$*" >&2; exit 2; }}
cd "${{SLURM_SUBMIT_DIR:?use sbatch}}" || exit 2
[[ -f {run} ]] || cannot "sbatch should be typed in the folder that has {run}. Found none in $PWD"
command -v varangian >/dev/null || cannot "varangian is not on the PATH: activate its environment first"
umask 077
mkdir -p logs
rm -f logs/started
{rows}{environment}export OMP_NUM_THREADS="${{OMP_NUM_THREADS:-{cores}}}"

# The server runs on this node, the first of the job: workers look for it under this name.
host=${{VARANGIAN_HOST:-$(hostname)}}
hosts=$host,${{SLURMD_NODENAME:-localhost}}
port={port}
export host port
restarts=${{SLURM_RESTART_COUNT:-0}}

# What crashes is started again, five times at most; 1 and 2 are exit codes of what would fail again.
again=$(cat <<'EOS'
again() {{
  local left=5 status stop=
  trap 'stop=1' TERM INT
  while :; do
    status=0
    "$@" || status=$?
    [[ -n $stop ]] && return "$status"
    case $status in 0|1|2|130|143) return "$status" ;; esac
    ((left-- > 0)) || return "$status"
    sleep 2
  done
}}
EOS
)

{certs} >logs/certs.log 2>&1 ||
  cannot "$(cat logs/certs.log)"

# At the signal before the end of the time the server is asked to end; Slurm itself ends all steps of a job
# that is cancelled or has to make room.
time_is_up= server= caught=
time_is_up() {{
  time_is_up=1 caught=1
  [[ -n $server ]] && kill -TERM "$server"
}}
trap time_is_up USR1
trap 'caught=1' TERM

# When Slurm starts a job again it has ended the server of the last start, wherever that was: so --force.
force=
((restarts > 0)) && force=--force
steps=()
env VARANGIAN_CERTS=certs/server \\
  srun --exact --nodes=1 --ntasks=1 --cpus-per-task={cores}{no_gpus} --nodelist="$SLURMD_NODENAME" \\
  --output=logs/server.log --open-mode=append \\
  bash -c "$again"'; : >logs/started
    again {server} '"$force" &
server=$!
# Its place is taken before those of the workers.
until [[ -e logs/started ]] || ! kill -0 "$server" 2>/dev/null; do sleep 0.2; done
{honest}{byzantine}
# A signal ends `wait`, too; 127 is the answer of one too many.
status=0
while :; do
  caught=
  wait "$server"
  code=$?
  ((code == 127)) || status=$code
  [[ -n $caught ]] || break
done

# Workers end with the run; those of a server that was stopped would wait for the next one.
for _ in $(seq {stop_grace}); do
  [[ -n $time_is_up ]] && break
  running=
  for step in "${{steps[@]}}"; do kill -0 "$step" 2>/dev/null && running=1; done
  [[ -n $running ]] || break
  sleep 1
done
for step in "${{steps[@]}}"; do kill -TERM "$step" 2>/dev/null; done
wait

if [[ -n $time_is_up ]]; then
  newest=$(ls -td runs/*/ | head -n 1)
  if ! grep -qE '"outcome": "(finished|failed)"' "${{newest}}result.json" 2>/dev/null; then
    echo "the time was up before the run was; it goes on when Slurm starts this job again"
    scontrol requeue "$SLURM_JOB_ID" && exit 0
  fi
fi
exit "$status"
"""


def readme(config: RunConfig, plan: Plan, options: Options) -> str:
    """What a person needs to know."""
    return _README.format(
        name=options.name,
        made=options.made_by,
        workers=len(plan.workers),
        tasks=len(plan.workers) + 1,
        metrics=_METRICS.format(port=metrics_port(config)) if has_token(config) else "",
    ) + needs_section(config, "where all nodes see it: modules in this folder or on PYTHONPATH")


_METRICS = f"""\
- Metrics and the page are at `https://NODE:{{port}}`, the first node of the job, for whoever has the token
  in `certs/monitor/{METRICS_TOKEN}`; `certs/monitor/{CA}` is the authority of its certificate.
"""


_README = """\
# {name} on Slurm

Made by `{made}`. One job of {tasks} tasks: the server, on the first node of the job, and {workers} workers.
Put this folder where all nodes see it, activate the environment that has `varangian`, and type in it:

```sh
sbatch job.sh
tail -F logs/server.log
varangian report runs
```

- Options of your cluster go before the script: `sbatch --account=a --partition=long --time=2:00:00 job.sh`.
- `scancel JOB` ends it in order. `sbatch job.sh` again goes on with a run that has not ended, and so does a
  job that Slurm starts again after a node has failed, or that had to make room.
- When its time is nearly up the server keeps its state, and the job is queued again, until the run is over.
- `certs` has the credentials, which the job makes. All tasks run under your account, so whoever gets into
  one can read the keys of the others: workers that you do not trust belong under accounts of their own.
{metrics}- Logs: `logs/server.log`, `logs/honest-0.log` and so on, and `{name}-JOB.log` of the script.
"""

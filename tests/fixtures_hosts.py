"""Several hosts, as processes on the loopback."""

import socket
import subprocess
import time

import pytest
from fixtures_train import ROOT

SGD = {
    "model.depth": 1,
    "optim.name": "sgd",
    "optim.momentum": 0.9,
    "optim.peak_lr": 0.1,
    "optim.epochs": 1.0,
    "run.eval_epochs": 0.6,
    "run.checkpoint_epochs": 0.2,
}
STEPS = 21  # what an epoch comes to
CHANGES = [f"--config.{key}={value}" for key, value in SGD.items()]


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def by_slurm(host, count, port):
    """What `srun` tells each of its tasks, and JAX reads."""
    return {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": str(count),
        "SLURM_PROCID": str(host),
        "SLURM_LOCALID": str(host),
        "JAX_COORDINATOR_PORT": str(port),
    }


@pytest.fixture
def start(train_command, environment):
    """Starts hosts, and ends those that are left.

    `own` has flags of each, and `folders` where each is started; with `slurm` none gets flags
    which it is. `scripts` has a host's own script and its arguments, in place of train.py, and
    `more` has variables of the environment of all.
    """
    started = []

    def start(
        workdir, count=2, *flags, own=None, folders=None, slurm=False, scripts=None, more=None
    ):
        port = free_port()
        for host in range(count):
            mine = ["--lost_after=5"]
            if not slurm:
                mine += [f"--coordinator=127.0.0.1:{port}", f"--num_hosts={count}"]
                mine += [f"--host_index={host}"]
            mine += [*flags, *(own[host] if own else ())]  # of two, the later counts
            python, script, *rest = train_command(workdir, *mine)
            script = (scripts or {}).get(host, [script])
            started.append(
                subprocess.Popen(
                    [python, *map(str, script), *rest],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=environment
                    | {"PYTHONPATH": str(ROOT)}  # elsewhere than in the repository's root
                    | (by_slurm(host, count, port) if slurm else {})
                    | (more or {}),
                    cwd=folders[host] if folders else None,
                )
            )
        return started[-count:]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def end(processes, timeout=300):
    """Waits for all hosts; returns (status, standard output, standard error) of each."""
    deadline = time.monotonic() + timeout
    told = [p.communicate(timeout=max(1, deadline - time.monotonic())) for p in processes]
    return [(p.returncode, *texts) for p, texts in zip(processes, told, strict=True)]


def errors(ended):
    """The one line that each host ended with."""
    for status, out, told in ended:
        assert status == 1 and "report:" not in out, told
        assert sum(line.startswith("error: ") for line in told.splitlines()) == 1, told
        assert "Traceback" not in told and "Check failure" not in told, told
    return [told.strip().splitlines()[-1] for *_, told in ended]


def metrics_of(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def wait_until(processes, condition):
    """Waits for `condition`, or for one of the hosts to end."""
    deadline = time.monotonic() + 120
    while not condition() and all(process.poll() is None for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.01)

"""Several hosts: joining, exchanging values, and raising the same error.

Hosts talk through the key-value store of JAX's coordination service, which is there before any
device is and needs none. `joined` is the one way in; without it, or on one host, all else here
does nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import itertools
import json
import math
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from jax._src import clusters, distributed  # the store has no public name; Orbax takes it so too

from vitswin_jax.core import signals
from vitswin_jax.core.choices import Faults
from vitswin_jax.core.types import UserError
from vitswin_jax.train.hosts import watch
from vitswin_jax.train.hosts.aborts import end_by, without_dumps
from vitswin_jax.train.hosts.port import await_coordinator, connect, own_port, unreachable
from vitswin_jax.train.hosts.watch import TWICE, Watch

JOIN_TIMEOUT = 300  # seconds
LOST_AFTER = 60  # seconds
_ON_TPU_PODS = {"TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"}  # what Kubernetes sets there
_ANSWER_MS = 30 * 60 * 1000  # for a host that lives: one may have to list a large dataset
_TURNS = itertools.count()  # every host takes part in every exchange, in one order


class EveryHostError(UserError):
    """An error that all hosts raise together, so that none has to inform the others."""


@contextlib.contextmanager
def joined(
    *,
    coordinator: str | None = None,
    num_hosts: int | None = None,
    host_index: int | None = None,
    join_timeout: int = JOIN_TIMEOUT,
    lost_after: int = LOST_AFTER,
) -> Iterator[int]:
    """Makes this process one of the hosts of a run, before any device is touched; gives its number.

    Which hosts there are is what JAX finds in the environment (a TPU pod, Slurm, a Kubernetes job,
    Open MPI), or what the caller says: `coordinator` is host 0's HOST:PORT, and `host_index` counts
    from 0. Where nothing is found, and with `num_hosts=1`, the process trains alone. Raises
    UserError for incomplete or invalid flags. Hosts that did not all join within `join_timeout`
    seconds end with a line.

    Within, a host that raises ends the others with its error, and so does one that was silent for
    `lost_after` seconds, whatever they are waiting for. A signal to one host is one to all.
    """
    said = {"coordinator": coordinator, "num_hosts": num_hosts, "host_index": host_index}
    if not _join(said, join_timeout=join_timeout, lost_after=lost_after):
        yield 0
        return
    state = distributed.global_state
    check_same({"--num_hosts": state.num_processes})
    with _watched(state.process_id, state.num_processes, lost_after=lost_after):
        yield state.process_id


@contextlib.contextmanager
def _watched(host: int, hosts: int, *, lost_after: float) -> Iterator[None]:
    """Ends the other hosts where the block raises, and this one where another fails."""
    state = distributed.global_state
    address = str(state.coordinator_address)
    watching = Watch(state.client, address, host, hosts, lost_after=lost_after)
    watch.current, program = watching, signals.program()
    if program is not None:
        program.tell = watching.end_all
    try:
        yield
    except EveryHostError:
        watching.leave()
        raise
    except BaseException as error:
        watching.fail(error)
        if isinstance(error, UserError):
            raise EveryHostError(f"host {host}: {error}") from error
        raise
    else:
        watching.leave()
    finally:
        watch.current = None
        if program is not None:
            program.tell = None


def _join(said: Mapping[str, Any], *, join_timeout: int, lost_after: int) -> bool:
    """Joins the hosts; returns False where this process trains alone."""
    if said["num_hosts"] == 1 and not said["host_index"]:
        return False
    flags = [f"--{name}" for name, value in said.items() if value is not None]
    if flags:
        _check_said(said)
    elif not _is_found():
        return False
    port: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if flags and said["host_index"] == 0:
        port = own_port(said["coordinator"])
    elif flags:
        here = said["host_index"], said["coordinator"]
        await_coordinator(*here, timeout=join_timeout, silence=lost_after)
    joined = threading.Event()
    waits = (joined, join_timeout, lost_after)
    threading.Thread(target=_give_up, args=waits, name="joining", daemon=True).start()
    end_by(_fail)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    try:
        with port, without_dumps():
            jax.distributed.initialize(
                said["coordinator"],
                said["num_hosts"],
                said["host_index"],
                # JAX's own end of waiting, for either, is a fatal error with a dump of the stack.
                initialization_timeout=2 * join_timeout + 60,
                heartbeat_timeout_seconds=2 * lost_after + 60,
            )
    except UserError:
        raise
    except (ValueError, RuntimeError) as error:
        raise UserError(_in_words(str(error))) from error
    finally:
        joined.set()
    return True


def _fail() -> None:
    """Ends this process in place of JAX; called in a thread of JAX's, which must not return."""
    if watch.current is not None:
        watch.current.lose()
    state = distributed.global_state
    signals.end(watch.what_failed(state.process_id, str(state.coordinator_address)), 1)


def _in_words(error: str) -> str:
    """Returns an error of JAX's service as a line."""
    if "incarnation" in error:
        return TWICE
    return f"the hosts cannot join: {' '.join(error.split())[:200]}"


def _check_said(said: Mapping[str, Any]) -> None:
    missing = [f"--{name}" for name, value in said.items() if value is None]
    if missing:
        raise UserError(
            f"--coordinator, --num_hosts and --host_index go together; {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing."
        )
    address, hosts, index = said["coordinator"], said["num_hosts"], said["host_index"]
    is_address = re.fullmatch(r".+:\d+", address)
    faults = Faults()
    faults.need(is_address, f"--coordinator={address} must be HOST:PORT, host 0's address")
    need = f"--host_index={index} must lie in [0, {hosts}), by --num_hosts"
    faults.need(0 <= index < hosts, need)
    faults.check()


def _is_found() -> bool:
    """Returns whether JAX takes this process, by its environment, for one of several."""
    environment = os.environ
    if "KUBERNETES_SERVICE_HOST" in environment and not _ON_TPU_PODS & environment.keys():
        return _is_of_a_job(environment)
    return "JAX_COORDINATOR_ADDRESS" in environment or any(
        kind.is_env_present() and kind.get_process_count() > 1
        for kind in clusters.ClusterEnv._cluster_types
        if not kind.opt_in_only_method
    )


def _is_of_a_job(environment: Mapping[str, str]) -> bool:
    """Returns whether a pod is one of a job's; a notebook's, which JAX refuses, trains alone."""
    if "JOB_COMPLETION_INDEX" not in environment:
        return False
    if importlib.util.find_spec("kubernetes") is None:
        raise UserError(
            "this pod is part of a Kubernetes job, and JAX needs a package to find the other "
            "pods: pip install 'jax[k8s]'. Or name the hosts with --coordinator, --num_hosts "
            "and --host_index, or train on this pod only with --num_hosts=1."
        )
    return True


def _give_up(joined: threading.Event, timeout: float, lost_after: float) -> None:
    """Ends the process, whose main thread waits in JAX, with what is known of the reason."""
    state, begun, reached = distributed.global_state, time.monotonic(), math.inf
    error: OSError | None = None
    while not joined.wait(min(1.0, timeout / 2)):
        now, address = time.monotonic(), str(state.coordinator_address)
        try:
            if state.process_id:
                connect(address, timeout=5).close()
            reached, error = now, None
        except (OSError, ValueError) as refused:
            error = refused if isinstance(refused, OSError) else OSError(str(refused))
        if now - reached > lost_after:
            signals.end(
                f"host {state.process_id} has lost the coordinator {address} before all hosts had "
                "joined; host 0 has ended, and says why.",
                1,
            )
        if now - begun > timeout and error is not None:
            signals.end(unreachable(state.process_id, address, error, timeout), 1)
        if now - begun > timeout:
            signals.end(
                f"host {state.process_id} waited {timeout} s at {address} and not all hosts came; "
                "start the same command on each.",
                1,
            )


def gather(text: str) -> list[str]:
    """Returns the values that all hosts passed to this call, in order; waits for all hosts.

    Raises UserError, which names them, where hosts did not answer in half an hour.
    """
    client = distributed.global_state.client
    if client is None:
        return [text]
    folder = f"vitswin_jax/turn/{next(_TURNS)}/"
    client.key_value_set(f"{folder}{distributed.global_state.process_id}", text)
    late = False
    try:
        client.wait_at_barrier(folder, _ANSWER_MS)
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" not in str(error):
            raise
        late = True
    told = {int(key.rsplit("/", 1)[1]): value for key, value in client.key_value_dir_get(folder)}
    if late:
        missing = sorted(set(range(distributed.global_state.num_processes)) - told.keys())
        raise UserError(f"{_name(missing)} did not answer for {_ANSWER_MS // 60000} minutes.")
    return [told[host] for host in sorted(told)]


@contextlib.contextmanager
def raising_together() -> Iterator[None]:
    """Lets every host finish a block that needs no other host; raises on all what any raised.

    One host raises its own error. Several raise EveryHostError, which names whose it was.
    """
    if distributed.global_state.client is None:
        yield
        return
    error = None
    try:
        yield
    except UserError as raised:
        error = raised
    told = gather("" if error is None else str(error))
    if len(set(told)) == 1 and error is not None:
        raise EveryHostError(str(error)) from error
    lines = [f"{_name(hosts)}: {line.rstrip('.')}" for line, hosts in _by_value(told) if line]
    if lines:
        raise EveryHostError(f"{'; '.join(lines)}.") from error


def check_same(facts: Mapping[str, Any]) -> None:
    """Raises EveryHostError that lists each of the `facts`, plain data, on which hosts differ."""
    ours = json.dumps(facts, sort_keys=True)
    if len(set(gather(hashlib.sha256(ours.encode()).hexdigest()))) == 1:
        return
    theirs = [json.loads(text) for text in gather(ours)]
    keys = sorted({key for host in theirs for key in host})
    differences = []
    for key in keys:
        values = _by_value([json.dumps(host[key]) if key in host else "absent" for host in theirs])
        if len(values) > 1:
            told = " and ".join(f"{value} on {_name(hosts)}" for value, hosts in values)
            differences.append(f"{key} is {told}")
    raise EveryHostError(f"the hosts must be given the same: {'; '.join(differences)}.")


def _by_value(values: Sequence[str]) -> list[tuple[str, list[int]]]:
    hosts: dict[str, list[int]] = {}
    for host, value in enumerate(values):
        hosts.setdefault(value, []).append(host)
    return list(hosts.items())


def _name(hosts: Sequence[int]) -> str:
    shown = [str(host) for host in hosts[:8]]
    more = [f"{len(hosts) - 8} more"] if len(hosts) > 8 else []
    return f"host{'s' if len(hosts) > 1 else ''} {', '.join(shown + more)}"

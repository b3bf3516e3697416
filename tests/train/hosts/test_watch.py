"""Hosts whose loops run at their own pace save and stop after the same steps."""

import random
import threading
import time

import jax
import pytest

from vitswin_jax.train.hosts.watch import Watch

HOSTS = 3


class Store:
    """The coordination service's key-value store, in this process."""

    def __init__(self):
        self._changed, self.values = threading.Condition(), {}

    def key_value_set(self, key, value, allow_overwrite=False):
        with self._changed:
            if key in self.values and not allow_overwrite:
                raise jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: {key}")
            self.values[key] = value
            self._changed.notify_all()

    def blocking_key_value_get(self, key, milliseconds):
        with self._changed:
            if not self._changed.wait_for(lambda: key in self.values, milliseconds / 1000):
                raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")
            return self.values[key]

    def key_value_dir_get(self, folder):
        with self._changed:
            return [each for each in self.values.items() if each[0].startswith(folder)]

    def key_value_delete(self, folder):
        with self._changed:
            for key in [key for key in self.values if key.startswith(folder)]:
                del self.values[key]


@pytest.fixture
def hosts():
    store = Store()
    watches = [Watch(store, "", host, HOSTS, lost_after=60) for host in range(HOSTS)]
    yield watches
    for watch in watches:
        watch.leave()


def test_all_hosts_save_and_stop_after_the_same_steps(hosts):
    """One is ahead of the others, as the dispatch of steps lets it be."""
    saved, stopped = [[] for _ in hosts], [0] * HOSTS
    together = threading.Barrier(HOSTS)  # a save waits for all hosts

    def loop(host):
        dice, watch, step = random.Random(host), hosts[host], 0
        while not watch.stops_here():
            step += 1
            if watch.saves_here(step, due=len(saved[host]) < 5):
                saved[host].append(step)
                together.wait(10)
            if len(saved[host]) == 5 and host == 1 and watch.stop is None:
                watch.ask_to_stop(15)
            time.sleep(dice.uniform(0, 0.002 * (host + 1)))
        stopped[host] = step

    threads = [threading.Thread(target=loop, args=[host], daemon=True) for host in range(HOSTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert len(saved[0]) == 5 and saved == [saved[0]] * HOSTS
    assert stopped == [stopped[0]] * HOSTS and stopped[0] >= saved[0][-1]
    left = {key for key in hosts[0]._client.values if key.startswith("vitswin_jax/save/")}
    assert len(left) == HOSTS  # those of the last meeting

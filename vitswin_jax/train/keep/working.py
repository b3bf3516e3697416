"""The folder in which a run works: its workdir, or on host 0 the copy of one in an object store."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax

from vitswin_jax.core.atomic import of_disk, writing
from vitswin_jax.core.cache import cache_dir
from vitswin_jax.core.store import Store, folder_of, is_url
from vitswin_jax.core.terminal import by_name, show_as
from vitswin_jax.core.types import UserError
from vitswin_jax.train.hosts.join import EveryHostError, check_same, gather, raising_together
from vitswin_jax.train.keep.lock import locked
from vitswin_jax.train.keep.mirror import Mirror

_PATIENCE = 10.0  # seconds for a network's folder to show what host 0 has written


@contextlib.contextmanager
def working_in(workdir: str | os.PathLike[str]) -> Iterator[str | os.PathLike[str]]:
    """Gives the folder in which a run with this workdir works: for one in a store, its copy.

    All hosts call it. Host 0 copies, and all work in its copy, so they must see one folder of the
    cache. Messages of the block name the workdir in place of the folder. Raises UserError for a
    store that cannot be used, where hosts do not see the copy, and where another process trains
    there.
    """
    check_same({"--workdir": os.fspath(workdir)})
    if not is_url(workdir):
        yield workdir
        return
    url = str(workdir).rstrip("/")
    home = folder_of(url, "runs")
    show_as(home / "run", url)
    show_as(home, url)
    try:
        with _on_host_0(_mirrored(url, home)):
            _check_seen(url, home)
            yield home / "run"
    except UserError as error:
        text, named = str(error), by_name(str(error))
        if of_disk(text) and str(home) in text:
            named = f"{named.rstrip('.')}; this is the copy below {cache_dir()} (VITSWIN_CACHE)."
        error.args = (named,)
        raise


@contextlib.contextmanager
def _mirrored(url: str, home: Path) -> Iterator[None]:
    """Keeps a copy of a workdir in a folder, and copies its changes back."""
    with contextlib.ExitStack() as lock:
        with writing(home):
            home.mkdir(parents=True, exist_ok=True)
            lock.enter_context(locked(home))
        with Mirror(Store(url), home).kept():
            yield


@contextlib.contextmanager
def _on_host_0(context: contextlib.AbstractContextManager[None]) -> Iterator[None]:
    """Enters and leaves a context on host 0, for which the others wait; all raise its errors.

    Where only one host raises, it does not wait for the others, which are ended.
    """
    stack, error = contextlib.ExitStack(), None
    with raising_together():
        if jax.process_index() == 0:
            stack.enter_context(context)
    try:
        yield
    except EveryHostError as raised:
        error = raised
    except BaseException:
        stack.__exit__(*sys.exc_info())
        raise
    with raising_together():
        stack.__exit__(None if error is None else type(error), error, None)
    if error is not None:
        raise error


def _check_seen(url: str, home: Path) -> None:
    """Raises UserError on all hosts where one does not see the copy that host 0 has made."""
    copy = Mirror.name_in(home)
    ours = gather(copy if jax.process_index() == 0 else "")[0]
    with raising_together():
        give_up = time.monotonic() + _PATIENCE
        while Mirror.name_in(home) != ours:
            if time.monotonic() > give_up:
                raise UserError(
                    f"{url}: this host does not see host 0's copy of the workdir, below "
                    f"{cache_dir()}; on several hosts set VITSWIN_CACHE to a folder that all of "
                    "them see, or mount the bucket (docs/hosts.md)."
                )
            time.sleep(0.2)

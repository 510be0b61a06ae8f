"""What ``hpsearch doctor`` looks at on this machine: what is installed, devices, threads, folders."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from hpsearch._version import __version__

LITTLE_SPACE = 1024**3
"""Bytes of free disk below which a store or checkpoints may soon not be written."""
NEEDED = {"server": "serve, run", "train": "worker, run, init, replay"}
"""Extras that one of the parts needs, and the commands that do."""
_TORCH = """
import torch
from hpsearch.training.devices import device_name, devices
print(torch.__version__, *(f"{d} ({device_name(d).strip()})" for d in devices()), sep="\\n")
for d in devices():
    assert float((torch.ones(64, 64, device=d) @ torch.ones(64, 64, device=d)).sum()) == 64.0**3, d
"""


class Status(Enum):
    """How a check came out; ``warn`` works, but not as well as it could."""

    PASS = "pass"  # noqa: S105 - no password
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor.

    Attributes:
        message: what was found, and, unless it passed, what to do.
    """

    name: str
    status: Status
    message: str


def machine(checkpoints: str | None) -> Iterator[Check]:
    """Every check of this machine. ``checkpoints`` as a worker is given it; None is the user's cache."""
    yield Check("hpsearch", Status.PASS, f"{__version__} on Python {platform.python_version()}, {platform.platform()}")
    yield extras()
    yield devices()
    yield threads()
    yield working_folder(Path.cwd())
    yield checkpoint_folder(checkpoints)


def extras() -> Check:
    """Which of the extras are whole."""
    missing = {extra: _missing(extra) for extra in metadata.metadata("hpsearch").get_all("Provides-Extra") or []}
    whole = sorted(
        extra for extra, packages in missing.items() if not packages and extra not in ("all", "dev", "bench")
    )
    found = f"installed: {', '.join(whole) or 'the client alone'}"
    lacking = [extra for extra in NEEDED if missing.get(extra)]
    if not lacking:
        return Check("extras", Status.PASS, found)
    why = "; ".join(f"{extra} ({NEEDED[extra]}) lacks {', '.join(missing[extra][:4])}" for extra in lacking)
    install = f"pip install 'hpsearch[{','.join(lacking)}]' where this machine is to do that"
    return Check("extras", Status.WARN, f"{found}; {why}: {install}")


def _missing(extra: str) -> list[str]:
    """Packages of an extra that are not installed, or too old, with the version that is wanted."""
    found = []
    for requirement in metadata.requires("hpsearch") or []:
        named, _, marker = requirement.partition(";")
        parts = re.match(r"([\w.-]+)(?:\[[^\]]*\])?\s*(?:>=\s*([\d.]+))?", named.strip())
        if parts is None or parts[1] == "hpsearch" or not re.search(rf"""extra == ['"]{extra}['"]""", marker):
            continue
        try:
            if parts[2] and _numbers(metadata.version(parts[1])) < _numbers(parts[2]):
                found.append(f"{parts[1]}>={parts[2]}")
        except metadata.PackageNotFoundError:
            found.append(parts[1])
    return found


def _numbers(version: str) -> list[int]:
    """The leading numbers of a version: 2.13.0+cpu is [2, 13, 0]."""
    return [int(part) for part in re.findall(r"\d+", re.split(r"[^\d.]", version)[0])]


def devices() -> Check:
    """What a worker would train on, tried with a small product; torch is asked in a process of its own."""
    if find_spec("torch") is None:
        return Check("devices", Status.PASS, "torch is not installed: nothing is trained by hpsearch itself here")
    try:
        asked = subprocess.run([sys.executable, "-c", _TORCH], capture_output=True, text=True, timeout=120)  # noqa: S603
    except subprocess.TimeoutExpired:
        return Check("devices", Status.FAIL, "torch did not answer within 120 s: look at the driver (nvidia-smi)")
    version, *found = asked.stdout.splitlines() or ["torch"]
    if asked.returncode:
        last = asked.stderr.strip().rpartition("\n")[2]
        return Check("devices", Status.FAIL, f"torch does not work ({last}): install it again, or mend the driver")
    if found[0].startswith("cpu") and Path("/dev/nvidiactl").exists():
        text = f"there is an NVIDIA GPU, but torch {version} does not see it: install a build of torch for CUDA"
        return Check("devices", Status.WARN, text)
    return Check("devices", Status.PASS, f"{', '.join(found)}; torch {version}")


def threads() -> Check:
    """Whether workers, one per core by default, would fight over cores."""
    cores = os.cpu_count() or 1
    usable = usable_cores()
    given = os.environ.get("OMP_NUM_THREADS", "")
    load = os.getloadavg()[0]
    if usable < cores:
        few = f"this process may use {usable:g} of {cores} cores, and hpsearch starts one worker for each of {cores}"
        return Check("threads", Status.WARN, f"{few}: give --workers {max(1, int(usable))}")
    if given.isdecimal() and int(given) > 1:
        many = f"OMP_NUM_THREADS is {given}: {cores} workers would run {cores * int(given)} threads on {cores} cores"
        return Check("threads", Status.WARN, f"{many}; unset it, for a worker sets what it needs (--threads)")
    if load > cores:
        busy = f"the load is {load:.1f} on {cores} cores: other programs take turns with the workers"
        return Check("threads", Status.WARN, f"{busy}; end them, or give fewer --workers")
    return Check("threads", Status.PASS, f"{cores} cores, load {load:.1f}: one worker of one thread for each core")


def usable_cores(quota: Path = Path("/sys/fs/cgroup/cpu.max")) -> float:
    """Cores that this process may use, by its affinity and by the quota of its container."""
    found: float = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        share, period = quota.read_text(encoding="utf-8").split()[:2]
    except (OSError, ValueError):
        return found
    return found if share == "max" else min(found, int(share) / int(period))


def working_folder(folder: Path) -> Check:
    """Where the store, exports and ``init`` write by default."""
    return _folder("working folder", folder, "start hpsearch in a folder of your own")


def checkpoint_folder(place: str | None) -> Check:
    """Where workers keep what retried trials go on from."""
    from hpsearch.worker.folders import default_folder

    place = place or default_folder()
    if "://" not in place:
        return _folder("checkpoints", Path(place), "give worker --checkpoints another folder")
    if find_spec("fsspec") is None:
        return Check("checkpoints", Status.FAIL, f"{place} needs fsspec: pip install fsspec, and what its scheme needs")
    return Check("checkpoints", Status.PASS, f"{place}, through fsspec; it is not written to here")


def _folder(name: str, folder: Path, otherwise: str) -> Check:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"hpsearch")
        free = shutil.disk_usage(there).free
    except OSError as error:
        why = error.strerror or error
        return Check(name, Status.FAIL, f"{folder} cannot be written ({why}): mend its rights, or {otherwise}")
    left = f"{free / 1024**3:.1f} GiB free"
    if free < LITTLE_SPACE:
        return Check(name, Status.WARN, f"{folder}: {left}, which may not last; make room, or {otherwise}")
    return Check(name, Status.PASS, f"{folder}: writable, {left}")

"""Where a SQLite file lies: on a network file system its locks and its write-ahead log promise nothing."""

from __future__ import annotations

import re
from pathlib import Path

NETWORK = frozenset(
    (
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "gpfs", "beegfs", "pvfs2", "orangefs"),
        *("davfs", "ncpfs", "fuse.ceph", "fuse.glusterfs", "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone"),
    )
)
"""Types as ``/proc/self/mounts`` names them."""


def network_type(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str | None:
    """Type of the network file system that a file lies on; None for a local one, or where nothing tells (not Linux)."""
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return None
    folders = {str(folder) for folder in (path.absolute(), *path.absolute().parents)}
    found = [(_unescaped(fields[1]), fields[2]) for line in lines if len(fields := line.split()) > 2]
    # the longest is the nearest, and of several at one place the last lies on top
    nearest = max(
        ((len(folder), i, kind) for i, (folder, kind) in enumerate(found) if folder in folders), default=(0, 0, "")
    )
    return nearest[2] if nearest[2] in NETWORK else None


def _unescaped(text: str) -> str:
    r"""A space in a path is written ``\040``."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)

"""A tree like the image's on this machine: read-only, with a network of its own and the image's user. Linux, as root.

Namespaces take the place of a container: mounts, network, processes. What the image brings itself is mounted from
here, read-only: the system's folders, Python, the virtual environment.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SYSTEM: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc")
"""Folders of the system, or links to others, that programs need."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """A tree to run programs in."""

    root: str
    """An empty folder of this machine under which the tree is mounted; nothing is written into it."""
    read_only: Mapping[str, str]
    """Path in the tree -> folder or file of this machine."""
    writable: Mapping[str, str | None]
    """Path in the tree -> folder of this machine, or None for memory."""
    user: int
    group: int

    def enter(self, command: Sequence[str], environment: Mapping[str, str], workdir: str) -> list[str]:
        """Return the command line that builds the tree, becomes the user and runs ``command`` there."""
        inner = [
            "env",
            "-i",
            *(f"{name}={value}" for name, value in environment.items()),
            "sh",
            "-c",
            'cd "$0" && exec "$@"',
            workdir,
            *command,
        ]
        become = [
            "setpriv",
            f"--reuid={self.user}",
            f"--regid={self.group}",
            "--clear-groups",
            "--no-new-privs",
            "--bounding-set=-all",
            "--inh-caps=-all",
        ]
        script = "\n".join([*self._mounts(), f"exec chroot {shlex.quote(self.root)} {shlex.join([*become, *inner])}"])
        # The first process of the namespace takes all others with it.
        return ["unshare", "--mount", "--net", "--ipc", "--pid", "--fork", "--kill-child", "sh", "-euc", script]

    def _mounts(self) -> list[str]:
        root = shlex.quote(self.root)
        lines = ["mount --make-rprivate /", f"mount -t tmpfs -o mode=755 tree {root}", "ip link set lo up"]
        for path in SYSTEM:
            # Debian's /bin and /lib are links into /usr.
            keep = f"mount --bind {path} {root}{path}; mount -o remount,bind,ro {root}{path}"
            lines += [
                f"if [ -L {path} ]; then cp -P {path} {root}{path}",
                f"elif [ -d {path} ]; then mkdir {root}{path}; {keep}",
                "fi",
            ]
        # First, or a scratch folder would hide what is kept below one of its name, such as an environment in /tmp.
        for path, kept in self.writable.items():
            inside = shlex.quote(self.root + path)
            if kept is None:
                lines.append(f"mkdir -p {inside}; mount -t tmpfs -o mode=1777,size=2g memory {inside}")
            else:
                lines.append(f"mkdir -p {inside}; mount --bind {shlex.quote(kept)} {inside}")
        for path, source in self.read_only.items():
            inside, there = shlex.quote(self.root + path), shlex.quote(source)
            lines.append(
                f"mkdir -p $(dirname {inside}); if [ -d {there} ]; then mkdir -p {inside}; else touch {inside}; fi; "
                f"mount --bind {there} {inside}; mount -o remount,bind,ro {inside}"
            )
        lines += [
            f"mkdir {root}/proc {root}/sys {root}/dev",
            f"mount -t proc proc {root}/proc",
            f"mount --rbind /sys {root}/sys",
            f"mount --rbind /dev {root}/dev",
            f"mount -t tmpfs -o mode=1777,size=1g memory {root}/dev/shm",  # noqa: S108 - in the tree only
        ]
        lines.append(f"mount -o remount,ro {root}")
        return lines

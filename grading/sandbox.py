"""Where students' code runs: bubblewrap, another user, Docker, or, when that is asked for, nothing between.

What each of them keeps out:

=================  ===========  ===========  ==========  ==========
.                  bubblewrap   other user   Docker      ``--trust``
=================  ===========  ===========  ==========  ==========
network            yes          no           yes         no
other files        absent       by rights    absent      no
other processes    yes          yes          yes         no
time, memory       yes          yes          yes         yes
=================  ===========  ===========  ==========  ==========

Limits are those of ``resource``, for each process, with at most 8 of them. Errors of the kernel itself are no part of
this: who fears those grades on a machine that holds nothing else.
"""

from __future__ import annotations

import base64
import compileall
import contextlib
import importlib.util
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from grading import worker

PACKAGE = Path(importlib.util.find_spec("attntut").origin).parent  # type: ignore[union-attr,arg-type]
UIDS = range(61_000, 61_176)  # of nobody else; systemd gives away those that follow
MOST_SLOTS = 16
START = 60  # seconds that torch may take to come up
CLEAN = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8", "MPLBACKEND": "agg", "OMP_NUM_THREADS": "1"}
Kind = Literal["bubblewrap", "user", "docker", "trust"]
SAYS: dict[Kind, str] = {
    "bubblewrap": "bubblewrap: no network, own processes, read-only libraries, nothing else of the disk",
    "user": "another user: no rights to files and processes of others; the network is open",
    "docker": "Docker: no network, read-only, nothing of the disk",
    "trust": "none (--trust): students' code can do what you can do",
}
HOW = """\
Students' code needs a place to run in, and this machine offers none. One of these helps:
  * Linux: install bubblewrap (Debian, Ubuntu: apt install bubblewrap). On Ubuntu it may have to be allowed:
    sysctl -w kernel.apparmor_restrict_unprivileged_userns=0
  * Linux, as root: take the rights of others from the key, the submissions and the exercises (chmod -R o-rwx);
  * elsewhere: --docker IMAGE, an image whose python has the book's torch;
  * --trust, if you read every submission before."""


class NoSandbox(Exception):
    """Nothing keeps students' code in, or what should did not start."""


@dataclass(frozen=True)
class Answered:
    """How an exercise's process ended, and what it wrote: a student's bytes."""

    ended: str
    data: bytes = b""


@dataclass(frozen=True)
class Sandbox:
    """One of the four.

    Attributes:
        kind: which.
        stage: a folder with all that students' code may see of the book; made by :func:`staged`.
        image: of Docker.
        own_user: in bubblewrap as root, drop to another user rather than enter a user namespace.
    """

    kind: Kind
    stage: Path
    image: str = ""
    own_user: bool = True

    @property
    def says(self) -> str:
        """What to tell the instructor."""
        return f"Isolation is {SAYS[self.kind]}."

    @property
    def drops(self) -> bool:
        """Whether the worker is root and its children are not."""
        return self.kind == "user" or (self.kind == "bubblewrap" and self.own_user and os.geteuid() == 0)

    def command(self) -> list[str]:
        """What starts the worker."""
        python = [sys.executable, "-I", "-B"]
        if self.kind == "bubblewrap":
            return [*bubblewrap(self.stage, self.drops), *python, "/grading/worker.py"]
        if self.kind == "docker":
            limits = f"--memory=4g --pids-limit={4 * worker.PROCESSES} --tmpfs=/tmp:size=64m --user=65534:65534"
            how = "--rm --interactive --init --network=none --read-only --cap-drop=ALL --security-opt=no-new-privileges"
            where = [f"--volume={self.stage}:/grading:ro", *(f"--env={name}={value}" for name, value in CLEAN.items())]
            return ["docker", "run", *how.split(), *limits.split(), *where, self.image, "python", "-I", "-B",
                    "/grading/worker.py"]  # fmt: skip
        return [*python, str(self.stage / "worker.py")]

    def run(self, exercises: Sequence[dict[str, Any]], slot: int = 0) -> dict[str, Answered]:
        """Run the exercises of one submission; what a worker that was killed left undone, another one does.

        Args:
            exercises: what ``worker.py`` reads of each.
            slot: which of the workers that run at the same time this is.

        Raises:
            NoSandbox: if the worker does not come up twice: the first time, the machine may be short of something.
        """
        found: dict[str, Answered] = {}
        rest = list(exercises)
        while rest:
            try:
                found.update(self._once(rest, slot))
            except (NoSandbox, OSError):
                found.update(self._once(rest, slot))
            rest = [exercise for exercise in rest if exercise["number"] not in found]
            if rest:  # the worker died with the first of them
                found[rest.pop(0)["number"]] = Answered("died")
        return found

    def _once(self, exercises: Sequence[dict[str, Any]], slot: int) -> dict[str, Answered]:
        code = "\n".join(f"{e['setup']}\n{e['source']}\n{e['probe']}" for e in exercises)
        own = UIDS[os.getpid() % (len(UIDS) // MOST_SLOTS) * MOST_SLOTS + slot]  # two graders seldom share one
        uid = own if self.drops else None
        own_pids = self.kind in ("bubblewrap", "docker")
        imports = ["attntut"] if "attntut" in code else []
        job = {"uid": uid, "own_pids": own_pids, "imports": imports, "exercises": exercises}
        seconds = START + worker.PATIENCE * sum(exercise["seconds"] for exercise in exercises)
        with subprocess.Popen(
            self.command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=CLEAN, cwd="/"
        ) as process:
            try:
                out, said = process.communicate(json.dumps(job).encode(), timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                if self.kind == "user":
                    worker.kill_all_of(own)
                out, said = process.communicate()
            finally:
                process.kill()
        ready, *lines = out.split(b"\n")
        if ready != b"ready":
            raise NoSandbox(f"The worker did not start: {said.decode(errors='replace').strip()[-500:] or 'no reason'}")
        parts = (line.split(b" ") for line in lines if line.count(b" ") == 2)
        return {number.decode(): Answered(ended.decode(), base64.b64decode(data)) for number, ended, data in parts}


def bubblewrap(stage: Path, drops: bool) -> list[str]:
    """The command that shows libraries, the interpreter and the stage, and nothing else."""
    command = ["bwrap", "--die-with-parent", "--new-session", "--unshare-pid", "--unshare-net", "--unshare-ipc"]
    command += ["--unshare-uts", "--unshare-cgroup-try", "--cap-drop", "ALL"]
    if drops:  # the limit on processes does not hold for root, whatever it is called in a user namespace
        command += [word for name in ("SETUID", "SETGID", "KILL") for word in ("--cap-add", f"CAP_{name}")]
    else:
        command += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    command += ["--size", str(64 << 20), "--perms", "1777", "--tmpfs", "/tmp"]  # first: what is shown may lie in it
    shown = visible()
    folders = {parent for path in shown for parent in path.parents if parent != Path("/")}
    for folder in sorted(folders):  # which would be closed to another user
        command += ["--dir", str(folder)]
    for path in shown:
        command += ["--ro-bind", str(path), str(path)]
    for name in ("bin", "lib", "lib64"):
        if (link := Path("/", name)).is_symlink():
            command += ["--symlink", os.readlink(link), str(link)]
    command += ["--ro-bind", str(stage), "/grading", "--proc", "/proc", "--dev", "/dev"]
    return [*command, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp", "--clearenv", *environment()]


def environment() -> Iterator[str]:
    """The clean environment, as options of bubblewrap."""
    for name, value in CLEAN.items():
        yield from ("--setenv", name, value)


def visible() -> list[Path]:
    """What bubblewrap shows of the disk: libraries, the interpreter, its environment. No folder lies in another."""
    folders = ["/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/alternatives", sys.prefix, sys.base_prefix]
    found = sorted({Path(folder) for folder in folders if Path(folder).exists() and not Path(folder).is_symlink()})
    return [path for path in found if not any(path.is_relative_to(other) for other in found if other != path)]


@contextlib.contextmanager
def staged() -> Iterator[Path]:
    """A folder that holds the worker and the package, without the answers that the package ships for its own check."""
    with tempfile.TemporaryDirectory(prefix="grading-") as name:
        stage = Path(name)
        stage.chmod(0o755)
        shutil.copytree(PACKAGE, stage / "attntut", ignore=shutil.ignore_patterns("exercises"))
        shutil.copy(worker.__file__, stage / "worker.py")
        shutil.copy(PACKAGE / "exercises" / "wire.py", stage / "wire.py")
        compileall.compile_dir(stage, quiet=2)
        for path in stage.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        yield stage


def choose(stage: Path, secrets: Iterable[Path], *, trust: bool = False, image: str = "") -> Sandbox:
    """The best isolation that this machine has, or the one that was asked for.

    Args:
        stage: made by :func:`staged`.
        secrets: files and folders that no student may read.
        trust: run without isolation.
        image: of Docker, or "".

    Raises:
        NoSandbox: if there is none; the message says what to do.
    """
    secrets = [path.resolve() for path in secrets]
    if trust or image:
        return started(Sandbox("docker" if image else "trust", stage, image))
    reasons = []
    if shutil.which("bwrap"):
        inside = [f"{path} in {shown}" for path in secrets for shown in visible() if path.is_relative_to(shown)]
        if inside:
            raise NoSandbox(f"The sandbox shows libraries and the interpreter: move {inside[0]} elsewhere.")
        try:
            return started(Sandbox("bubblewrap", stage))
        except NoSandbox as reason:
            reasons.append(f"bubblewrap: {reason}")
    if sys.platform == "linux" and os.geteuid() == 0:
        if not (seen := [str(path) for path in secrets if readable_by_others(path)]):
            return started(Sandbox("user", stage))
        reasons.append(f"another user: everybody can read {seen[0]}")
    raise NoSandbox("\n".join([HOW, *reasons]))


def started(sandbox: Sandbox) -> Sandbox:
    """The same sandbox, after it ran something."""
    if not hasattr(os, "fork") and sandbox.kind != "docker":
        raise NoSandbox(HOW)
    one: dict[str, Any] = dict(
        number="0", name="answer", setup="", source="answer = 1", probe=None, cases=[], forbidden=[], seconds=10
    )
    if sandbox.run([one])["0"] != Answered("data", b'{"values": [1]}'):
        raise NoSandbox("It started, and could not run an answer.")
    return sandbox


def readable_by_others(path: Path) -> bool:
    """Whether a user without rights of their own reaches a file or a folder."""
    reached = all(parent.stat().st_mode & stat.S_IXOTH for parent in path.parents)
    return reached and path.exists() and bool(path.stat().st_mode & (stat.S_IROTH | stat.S_IXOTH))

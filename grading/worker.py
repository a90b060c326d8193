"""Run the cells of one submission, each in a process of its own. It knows inputs, and not what is wanted.

Standard input holds one job. Standard output gets ``ready``, then one line an exercise: number, how it ended
(``data``, ``time``, ``size`` or ``died``) and what the process wrote, in base64. The process that writes these lines
runs no student's code, and what it reads from the processes that do, it passes on unread.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import importlib.util
import json
import os
import select
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

with contextlib.suppress(ImportError):
    import resource  # not on Windows, where Docker runs this

HERE = Path(__file__).resolve().parent
LINUX = sys.platform == "linux"
DUMPABLE, NO_NEW_PRIVILEGES, SUBREAPER = 4, 38, 36  # <linux/prctl.h>
MEMORY = 1 << 30  # bytes beyond what the libraries take
FILE = 16 << 20
PROCESSES = 8
PATIENCE = 4  # seconds of the clock for each of the processor: a busy machine takes nothing from an answer
OPEN_FILES = 64
ANSWER = 4 << 20  # bytes of what comes back
SHARED = [Path("/tmp"), Path("/var/tmp"), Path("/dev/shm"), Path("/run/lock")]  # where every user may write


def prctl(option: int, value: int) -> None:
    """Set a property of this process, on Linux."""
    if LINUX:
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def confine(uid: int | None, seconds: float, keep: int) -> None:
    """Give up every right that an answer does not need; only ``keep`` stays open."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in range(3):
        os.dup2(null, descriptor)
    os.closerange(3, keep)
    os.closerange(keep + 1, 4096)
    prctl(DUMPABLE, 1)  # its own /proc/self is its own again
    if LINUX:
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory ends, this ends first
        total = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
        limit(resource.RLIMIT_AS, total)
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    prctl(NO_NEW_PRIVILEGES, 1)
    prctl(DUMPABLE, 1)  # which the change of user took
    limit(resource.RLIMIT_CPU, int(seconds) + 1)
    limit(resource.RLIMIT_FSIZE, FILE)
    limit(resource.RLIMIT_NOFILE, OPEN_FILES)
    limit(resource.RLIMIT_NPROC, PROCESSES)
    limit(resource.RLIMIT_CORE, 0)


def limit(what: int, value: int) -> None:
    """Lower a limit, or leave it where the system does not know it."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(what, (value, value))


def namespace(setup: str) -> dict[str, Any]:
    """What a cell may use; as in the notebook's check."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec("import math\nimport torch\n" + setup, space)
    return space


def raised(error: BaseException, cell: str) -> dict[str, Any]:
    """An exception's kind, and where in the cell it was. Its text could hold inputs, and stays here."""
    frame, line = error.__traceback__, None
    while frame:
        line = frame.tb_lineno if frame.tb_frame.f_code.co_filename == cell else line
        frame = frame.tb_next
    return {"raised": type(error).__name__, "line": getattr(error, "lineno", line)}


class Forbidden(Exception):
    """A function was called that the exercise asks to do without."""


def without(names: list[str]) -> Any:
    """A context in which torch's functions of these names raise, whichever way they were found."""
    from torch.overrides import TorchFunctionMode

    class Without(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = getattr(function, "__name__", "").removeprefix("special_").strip("_")
            if name in names:
                raise Forbidden
            return function(*args, **(kwargs or {}))

    return Without() if names else contextlib.nullcontext()


def outcome(exercise: dict[str, Any], wire: Any) -> dict[str, Any]:
    """The cell in a fresh namespace, then the probe on every case: plain data."""
    import torch

    cell = f"exercise {exercise['number']}"
    try:
        space = namespace(exercise["setup"])
        exec(compile(exercise["source"], cell, "exec"), space)
    except BaseException as error:
        return raised(error, cell)
    if exercise["name"] not in space:
        return {"missing": True}
    answer = space[exercise["name"]]
    if exercise["probe"] is None:
        return {"values": [wire.pack(answer)]}
    tools = namespace(exercise["setup"])
    exec(exercise["probe"], tools)
    values = []
    for case in exercise["cases"]:
        torch.manual_seed(0)
        try:
            with without(exercise["forbidden"]):
                values.append(wire.pack(tools["probe"](answer, *wire.unpack(case))))
        except BaseException as error:
            return raised(error, cell)
    return {"values": values}


def run(exercise: dict[str, Any], job: dict[str, Any], wire: Any) -> tuple[str, bytes]:
    """Run an exercise in a child: how it ended, and what it wrote."""
    read, write = os.pipe()
    home = Path(f"/tmp/exercise-{os.urandom(8).hex()}")
    end = time.monotonic() + PATIENCE * exercise["seconds"]
    child = os.fork()
    if not child:
        try:
            confine(job["uid"], exercise["seconds"], write)
            home.mkdir()
            os.chdir(home)
            data = json.dumps(outcome(exercise, wire)).encode() + b"\n"
            while data:
                data = data[os.write(write, data) :]
        finally:
            os._exit(0)
    os.close(write)
    data, ended = b"", "died"
    while b"\n" not in data:
        if not select.select([read], [], [], max(0, end - time.monotonic()))[0]:
            ended = "time"
            break
        data += (chunk := os.read(read, 1 << 16))
        if not chunk:
            break
        if len(data) > ANSWER:
            ended = "size"
            break
    os.close(read)
    if sweep(child, job) >= exercise["seconds"] and ended == "died":
        ended = "time"  # the kernel ended it at RLIMIT_CPU
    tidy(home, job["uid"])
    whole, newline, _ = data.partition(b"\n")
    return ("data", whole) if newline else (ended, b"")


def sweep(child: int, job: dict[str, Any]) -> float:
    """Kill an exercise's process and all that came from it, daemons too, until none is left: its processor seconds."""
    seconds = 0.0
    while True:
        if job["uid"] is not None:
            kill_all_of(job["uid"])
        elif job["own_pids"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)  # all in this namespace but itself and the first
        else:
            for kill, pid in [(os.killpg, child), *((os.kill, pid) for pid in orphans())]:
                with contextlib.suppress(OSError):
                    kill(pid, signal.SIGKILL)
        try:
            while (ended := os.wait4(-1, os.WNOHANG))[0]:
                if ended[0] == child:
                    seconds = ended[2].ru_utime + ended[2].ru_stime
        except ChildProcessError:
            return seconds
        time.sleep(0.002)


def kill_all_of(uid: int) -> None:
    """Kill every process of a user, by one that becomes this user."""
    helper = os.fork()
    if not helper:
        try:
            os.setresuid(uid, uid, uid)
            os.kill(-1, signal.SIGKILL)
        finally:
            os._exit(0)
    os.waitpid(helper, 0)


def tidy(home: Path, uid: int | None) -> None:
    """Remove what an exercise wrote: the next one, and the next student, find nothing of it."""
    left = [path for folder in SHARED if folder.is_dir() for path in folder.iterdir()] if uid is not None else []
    for path in [home, *left]:
        with contextlib.suppress(OSError, RecursionError):
            if path == home or path.lstat().st_uid == uid:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def orphans() -> list[int]:
    """The processes whose parent is this one."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    return [int(pid) for pid in children.read_text().split()] if children.exists() else []


def main() -> None:
    """Do the job."""
    out = os.dup(1)
    job = json.load(sys.stdin)
    if job["own_pids"] and os.getpid() > 100:
        raise SystemExit("This is no namespace of its own: sweeping would end processes of others.")
    prctl(DUMPABLE, 0)  # or a child of the same user could write into this process
    prctl(SUBREAPER, 1)
    sys.path.insert(0, str(HERE))
    for name in ("torch", *job["imports"]):
        importlib.import_module(name)
    specification = importlib.util.spec_from_file_location("plain_data", HERE / "wire.py")
    assert specification and specification.loader
    wire = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(wire)
    os.write(out, b"ready\n")
    for exercise in job["exercises"]:
        ended, data = run(exercise, job, wire)
        line = f"{exercise['number']} {ended} ".encode() + base64.b64encode(data) + b"\n"
        while line:
            line = line[os.write(out, line) :]


if __name__ == "__main__":
    main()

"""Answers to exercise 2.4 that want its points, or harm, and not a softmax. Each would get the points where it works.

``<<name>>`` stands for what a test knows: paths, a port, a name for processes that are left behind. A line
``<<solution>>`` is a right answer: it counts only if what stands before it went through, which it must not.
"""

from __future__ import annotations

HOSTILE = {
    # --- time, and the end of the process
    "loops": "while True: pass",
    "loops when called": "def softmax(x):\n    while True: pass",
    "loops and heeds no signal": """
import signal
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, signal.SIG_IGN)
while True:
    try:
        while True: pass
    except BaseException:
        pass""",
    "sleeps": "import time\ntime.sleep(1000)\n<<solution>>",
    "stops itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\n<<solution>>",
    "a regular expression that never ends": "import re\nre.match('(a+)+b', 'a' * 100)",
    "exits": "import sys\nsys.exit(0)",
    "exits when called": "def softmax(x): raise SystemExit(0)",
    "raises what nobody catches": "def softmax(x): raise BaseException",
    "os._exit": "import os\ndef softmax(x): os._exit(0)",
    "crashes": "import ctypes\nctypes.string_at(0)",
    "recurses": "def softmax(x): return softmax(x)",
    "recurses beyond the stack": "import sys\nsys.setrecursionlimit(10**9)\ndef softmax(x): return softmax(x)",
    # --- processes
    "kills its parent": "import os\nos.kill(os.getppid(), 9)\nwhile True: pass",
    "kills everybody": "import os\nos.kill(-1, 9)",
    "stops its parent": "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)",
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "thread bomb": """
import threading, time
while True:
    try: threading.Thread(target=time.sleep, args=(1000,)).start()
    except RuntimeError: pass""",
    "leaves a daemon": """
import ctypes, os, time
if not os.fork():
    os.setsid()
    if not os.fork():
        ctypes.CDLL(None).prctl(15, b"<<left>>", 0, 0, 0)
        time.sleep(1000)
    os._exit(0)
time.sleep(0.3)""",
    "leaves a program": "import os\nos.symlink('/usr/bin/sleep', '<<left>>')\nos.spawnl(os.P_NOWAIT, '<<left>>', '<<left>>', '1000')",
    "starts a shell": "import subprocess\nassert subprocess.run('cat <<key>>', shell=True).returncode == 0\n<<solution>>",
    "traces its parent": """
import ctypes, os
assert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0
<<solution>>""",
    "becomes root": "import os\nos.setuid(0)\nos.listdir('/root')\n<<solution>>",
    # --- memory and disk
    "takes all memory": "x = []\nwhile True: x.append(bytearray(1 << 26))",
    "takes all memory with tensors": "x = []\nwhile True: x.append(torch.ones(1 << 24))",
    "takes memory in files": """
import os
while True:
    os.write(os.memfd_create('x'), bytes(1 << 24))""",
    "gives a huge tensor": "def softmax(x): return torch.ones(1 << 23)",
    "gives a long list": "def softmax(x): return [0] * 10_000_000",
    "gives a deep list": "def softmax(x):\n    y = []\n    for _ in range(10**5): y = [y]\n    return y",
    "gives a list of itself": "def softmax(x):\n    y = []\n    y += [y] * 9\n    return y",
    "gives a long text": "def softmax(x): return 'x' * (1 << 27)",
    "prints without end": "while True: print('x' * 10**6)",
    "fills the disk": """
import itertools
for number in itertools.count():
    try: open(f'/tmp/{number}', 'wb').write(bytes(1 << 23))
    except OSError: pass""",
    "makes a file too large": "with open('large', 'wb') as f:\n    for _ in range(1000): f.write(bytes(1 << 20))\n<<solution>>",
    "makes folders without end": """
import os
while True:
    os.mkdir('x')
    os.chdir('x')""",
    "leaves a link to the root": "import os\nos.symlink('/', 'link')\nos.symlink('<<folder>>', 'other')\nos.chmod('.', 0)\nos._exit(0)",
    "writes into torch": "open(torch.__file__, 'a').write('')\n<<solution>>",
    "writes into the submissions": "open('<<folder>>/new', 'w').write('')\n<<solution>>",
    "writes where grades are": "open('<<out>>/grades.csv', 'a').write('')\n<<solution>>",
    # --- reading what it must not know
    "reads the key": "assert len(open('<<key>>').read()) > 10\n<<solution>>",
    "reads the sources": "assert 'def' in open('<<root>>/exercises/exercise.py').read()\n<<solution>>",
    "looks for the sources": """
import os
found = [f for d, _, names in os.walk('/') for f in names if 'attention_step_by_step' in f]
assert found
<<solution>>""",
    "reads other submissions": "assert len(open('<<folder>>/honest.ipynb').read()) > 10\n<<solution>>",
    "reads the parent's memory": "import os\nopen(f'/proc/{os.getppid()}/mem', 'rb')\n<<solution>>",
    "reads the parent's environment": "import os\nassert open(f'/proc/{os.getppid()}/environ').read() == ''\n<<solution>>",
    "reads the environment": "import os\nassert set(os.environ) & {'ATTNTUT_DEVICE', 'PYTEST_CURRENT_TEST', 'USER'}\n<<solution>>",
    "imports the solution": "from exercises import exercises\nsoftmax = exercises()['2.4'].solution",
    "imports the solution by a name in pieces": """
import importlib, sys
sys.path.insert(0, '<<root>>')
softmax = importlib.import_module('exer' + 'cises').exercises()['2.4'].solution""",
    "imports what is shipped": "from attntut.exercises.public import records\nrecords()\n<<solution>>",
    "uses the network": "import socket\nsocket.create_connection(('127.0.0.1', <<port>>), timeout=1)\n<<solution>>",
    "uses another one's socket": "import socket\nsocket.socket(socket.AF_UNIX).connect('<<folder>>/../socket')\n<<solution>>",
    "looks for what is wanted in memory": """
import gc
def softmax(x):
    found = [y for y in gc.get_objects() if isinstance(y, torch.Tensor) and y.shape == x.shape and y is not x]
    return next(y for y in found if torch.allclose(y.sum(-1), torch.ones(y.shape[:-1])))""",
    "looks for what is wanted in the frames": """
import sys
def softmax(x):
    frame = sys._getframe()
    while frame:
        for name in ('want', 'wanted', 'right', 'solution'):
            if name in {**frame.f_locals, **frame.f_globals}: return {**frame.f_globals, **frame.f_locals}[name]
        frame = frame.f_back""",
    # --- forging
    "patches torch": """
torch.allclose = torch.equal = lambda *a, **k: True
torch.Tensor.allclose = torch.Tensor.equal = torch.Tensor.__eq__ = lambda *a, **k: True
torch.Tensor.all = torch.Tensor.__bool__ = lambda *a, **k: True
def softmax(x): return x""",
    "patches math": "math.sqrt = math.exp = math.isfinite = lambda *a: True\ndef softmax(x): return x",
    "patches Python": """
import builtins
builtins.isinstance = builtins.all = builtins.any = lambda *a: True
builtins.AssertionError = ZeroDivisionError
def softmax(x): return x""",
    "patches what packs the answers": """
import sys
for module in list(sys.modules.values()):
    if hasattr(module, 'pack') and hasattr(module, 'unpack'): module.pack = lambda *a: {'right': True}
def softmax(x): return x""",
    "patches json": "import json\njson.dumps = lambda *a, **k: '{\"values\": [], \"points\": 3}'\ndef softmax(x): return x",
    "patches os": "import os\nos.write = os._exit = os.fork = lambda *a: 1\ndef softmax(x): return x",
    "changes its own code": """
def softmax(x): return x
def right(x): return True
softmax.__code__ = right.__code__""",
    "equals everything": """
class Everything:
    def __eq__(self, other): return True
    def __getattr__(self, name): return self
    def __call__(self, *a, **k): return self
    def __bool__(self): return True
softmax = Everything()""",
    "a tensor that equals everything": """
class Everything(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None): return torch.ones(())
def softmax(x): return torch.zeros(x.shape).as_subclass(Everything)""",
    "not a number": "def softmax(x): return x * math.nan",
    "infinite": "def softmax(x): return torch.full_like(x, math.inf)",
    "nothing": "def softmax(x): return None",
    "uniform": "def softmax(x): return torch.full_like(x, 1 / x.shape[-1])",
    "writes a result": """
import os
for descriptor in range(64):
    try: os.write(descriptor, b'{"values": [{"points": 3}], "right": true}\\n')
    except OSError: pass
os._exit(0)""",
    "writes a line for the worker": """
import os
for pid in filter(str.isdigit, os.listdir('/proc')):
    for descriptor in range(3, 64):
        try: os.write(os.open(f'/proc/{pid}/fd/{descriptor}', os.O_WRONLY), b'ready\\n2.4 data e30=\\n')
        except OSError: pass""",
    "writes what is hard to read": """
import os
for descriptor in range(3, 64):
    try: os.write(descriptor, b'[' * 10**6 + b'\\n')
    except OSError: pass
os._exit(0)""",
    "writes a tensor without end": """
import os
text = b'{"values": [' + b', '.join([b'{"tensor": "float32", "shape": [0, 1000000000000000], "data": ""}'] * 4) + b']}\\n'
for descriptor in range(3, 64):
    try: os.write(descriptor, text)
    except OSError: pass
os._exit(0)""",
    "writes a number without end": """
import os
for descriptor in range(3, 64):
    try: os.write(descriptor, b'{"values": [' + b'9' * 10**6 + b']}\\n')
    except OSError: pass
os._exit(0)""",
    "writes no whole line": """
import os, time
for descriptor in range(3, 64):
    try: os.write(descriptor, b'{')
    except OSError: pass
time.sleep(1000)""",
    "replays the public case": "WANT = <<public>>\ncalls = iter(WANT)\ndef softmax(x): return torch.tensor(next(calls))",
    "hash of the role": """
def softmax(x):
    y = (x - x.amax(-1, keepdim=True)).exp()
    return y / y.sum(-1, keepdim=True) * (1 + (hash('query') % 97 + 1) / 1000)""",
    "draws until it fits": "import random\ndef softmax(x): return torch.rand(x.shape, generator=torch.Generator().manual_seed(0))",
    "changes its input": "def softmax(x):\n    x.fill_(0)\n    return torch.full_like(x, 1 / x.shape[-1])",
    # --- what the exercise forbids
    "calls what is forbidden": "def softmax(x): return torch.softmax(x, -1)",
    "by a name in pieces": "def softmax(x): return getattr(torch, 'soft' + 'max')(x, -1)",
    "by another name": "def softmax(x): return getattr(torch.special, 'soft' + 'max')(x, -1)",
    "by eval": "def softmax(x): return eval('torch.soft' + 'max(x, -1)')",
    "by the operators": "def softmax(x): return torch.ops.aten._softmax(x, -1, False)",
    "by the layers": "def softmax(x): return vars(torch.nn)['Soft' + 'max'](-1)(x)",
    # --- IPython
    "input transformer": "get_ipython().input_transformers_post.append(lambda lines: ['softmax = torch.softmax'])\n<<solution>>",
    "shows no traceback": "get_ipython().showtraceback = lambda *a, **k: None\n<<solution>>",
    "looks for IPython": "from IPython import get_ipython\nget_ipython().user_ns['softmax']\n<<solution>>",
    # --- what would be seen in the feedback
    "raises its inputs": "def softmax(x): raise ValueError(f'secret {x.flatten()[0].item()!r}')",
    "names an exception by its inputs": "def softmax(x): raise type(f'secret {x.flatten()[0].item()!r}', (Exception,), {})",
    "writes markup": "def softmax(x):\n    '</code></pre><script>alert(1)</script><img src=x onerror=alert(1)>'\n    return x",
}  # fmt: skip

# What bubblewrap makes impossible, and another user's rights must.
WHERE_RIGHTS_MATTER = {
    "kills everybody", "stops its parent", "fork bomb", "leaves a daemon", "leaves a program", "traces its parent",
    "becomes root", "leaves a link to the root", "writes into torch", "writes where grades are", "reads the key",
    "reads other submissions", "reads the parent's memory", "writes a line for the worker",
}  # fmt: skip

# What is no notebook, or makes trouble when it is read. Name of the file → its bytes.
CELL = '{"cells": [{"cell_type": "code", "source": %s}]}'
BROKEN_FILES = {
    "empty.ipynb": b"",
    "text.ipynb": b"softmax = 3",
    "cut.ipynb": b'{"cells": [{"cell_type": "code", "sou',
    "binary.ipynb": bytes(range(256)),
    "list.ipynb": b"[]",
    "no cells.ipynb": b'{"cells": 3}',
    "odd cells.ipynb": b'{"cells": [3]}',
    "odd source.ipynb": b'{"cells": [{"source": 3}]}',
    "deep.ipynb": b"[" * 1_000_000,
    "deep cells.ipynb": b'{"cells": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "=cmd.txt": b"no notebook",
    "answer.py": b"softmax = 3",
}
# Cells that are hard to parse, each of which counts as a wrong answer.
HARD_SOURCES = {
    "minus": "softmax = " + "-" * 90_000 + "1",
    "brackets": "softmax = " + "(" * 90_000,
    "attributes": "softmax = x" + ".y" * 45_000,
    "sum": "softmax = " + "1+" * 45_000 + "1",
    "functions": "softmax = " + "lambda:" * 12_000 + "1",
    "blocks": "".join(" " * k + "if 1:\n" for k in range(300)),
    "calls": "softmax = " + "f(" * 40_000 + ")" * 40_000,
    "too long": "softmax = 1 #" + "x" * 200_000,
    "no character": "softmax = '\x00'",
    "half a character": "softmax = '\ud800'",
    "magics": "%x\n" * 30_000,
    "no Python": "softmax = = 3",
    "another number": "softmax = 3\n%%exercise 2.5\n",
}

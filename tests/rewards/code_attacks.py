"""Programs that try to be rewarded without the answer, and programs that use up what there is."""

# Each is asked for `answer(7)`; right is SECRET, which none of them knows.
SECRET = 48917

GAINS = {
    "equal to everything": r"""
class E:
 def __eq__(self, o): return True
 def __hash__(self): return 0
def answer(n): return E()
""",
    "an int equal to everything": r"""
class E(int):
 def __eq__(self, o): return True
def answer(n): return E()
""",
    "a float equal to everything": r"""
class E(float):
 def __eq__(self, o): return True
def answer(n): return E()
""",
    "a text equal to everything": r"""
class E(str):
 def __eq__(self, o): return True
def answer(n): return E()
""",
    "a list equal to everything": r"""
class E(list):
 def __eq__(self, o): return True
def answer(n): return E()
""",
    "mock.ANY": r"""
from unittest.mock import ANY
def answer(n): return ANY
""",
    "a tolerance": r"""
class A:
 def __eq__(self, o): return abs(o) < 1e99
 __module__ = 'numpy'
 def tolist(self): return self
def answer(n): return A()
""",
    "true": r"""
def answer(n): return True
""",
    "nan": r"""
def answer(n): return float('nan')
""",
    "infinity": r"""
def answer(n): return float('inf')
""",
    "patched builtins": r"""
import builtins
builtins.isinstance = lambda *a: True
builtins.len = lambda *a: 1
builtins.all = lambda *a: True
def answer(n): return 0
""",
    "patched math": r"""
import math
math.isclose = lambda *a, **k: True
def answer(n): return 0
""",
    "patched json": r"""
import json
json.dumps = lambda *a, **k: '["value", true]'
def answer(n): return 0
""",
    "patched encoder": r"""
import __main__
__main__.encode = lambda *a: True
def answer(n): return 0
""",
    "patched say": r"""
import __main__, os
__main__.say = lambda s, line: os.write(s, b'["value", true]\n')
def answer(n): return 0
""",
    "early exit": r"""
raise SystemExit(0)
""",
    "exit in the call": r"""
def answer(n): raise SystemExit(0)
""",
    "hard exit": r"""
import os
os._exit(0)
""",
    "exit in a call": r"""
import os
def answer(n): os._exit(0)
""",
    "lines into every file": r"""
import os
for fd in range(1, 200):
 try: os.write(fd, b'["value", true]\npassed\n1\n')
 except OSError: pass
def answer(n): return 0
""",
    "a wrong line, then exit": r"""
import os
def answer(n):
 for fd in range(3, 99):
  try: os.write(fd, b'["value", {"tuple": []}]\n')
  except OSError: pass
 os._exit(0)
""",
    "garbage as a line": r"""
import os
def answer(n):
 for fd in range(3, 99):
  try: os.write(fd, b'\xff{[\n' * 9)
  except OSError: pass
""",
    "deep json as a line": r"""
import os
def answer(n):
 for fd in range(3, 99):
  try: os.write(fd, b'[' * 60000 + b'\n')
  except OSError: pass
""",
    "a lie about a type": r"""
import os
def answer(n):
 for fd in range(3, 99):
  try: os.write(fd, b'["value", {"set": [{"list": []}]}]\n["value", {"float": []}]\n')
  except OSError: pass
""",
    "frames": r"""
import sys
def answer(n):
 frame, found = sys._getframe(), []
 while frame:
  things = (*frame.f_locals.values(), *frame.f_globals.values())
  found += [v for v in things if isinstance(v, int) and 40000 < v < 50000]
  frame = frame.f_back
 return found[0]
""",
    "the heap": r"""
import gc
def answer(n):
 want = str(n * 6988 + 1)
 for thing in gc.get_objects():
  for part in gc.get_referents(thing):
   if isinstance(part, str) and part is not want and want in part: return int(want)
 return 0
""",
    "the request's expected": r"""
import __main__, json
def answer(n):
 return json.loads(open('/proc/self/cmdline').read())['expected']
""",
    "its own source": r"""
def answer(n): return int(open(__file__).read().split('SECRET=')[1])
""",
    "files of tests": r"""
import os
def answer(n):
 for folder, _, names in os.walk('/'):
  if folder.startswith(('/usr', '/proc', '/lib', '/root', '/work', '/opt', '/nix')): continue
  for name in names:
   try:
    if b'489' + b'17' in open(os.path.join(folder, name), 'rb').read(10**6): return int(b'489' + b'17')
   except OSError: pass
 return 0
""",
    "a generator": r"""
def answer(n):
 while True: yield n
""",
    "a list that holds itself": r"""
x = []
x.append(x)
def answer(n): return x
""",
    "a deep list": r"""
x = []
for _ in range(100000): x = [x]
def answer(n): return x
""",
    "an integer of 5,000 digits": r"""
def answer(n): return 10 ** 5000
""",
    "lone surrogates": r"""
def answer(n): return '\ud800'
""",
    "a class of its own name": r"""
class SECRET(int): pass
int = SECRET
def answer(n): return SECRET(1)
""",
    "no function": r"""
answer = 48916
""",
    "the name alone": r"""
def other(n): return 1
""",
}

# Each tries to use up something; the verifier must come back in time, with nothing.
EXHAUSTIONS = {
    "an endless loop": r"""
while True: pass
""",
    "a long sleep": r"""
import time
def answer(n): time.sleep(3600)
""",
    "a stopped process": r"""
import os, signal
os.kill(os.getpid(), signal.SIGSTOP)
""",
    "ignored signals": r"""
import signal
for s in range(1, 65):
 try: signal.signal(s, signal.SIG_IGN)
 except (OSError, ValueError): pass
while True: pass
""",
    "a fork bomb": r"""
import os
while True:
 try: os.fork()
 except OSError: pass
""",
    "a bomb of threads": r"""
import threading, time
while True: threading.Thread(target=time.sleep, args=(99,)).start()
""",
    "memory": r"""
x = []
while True: x.append(bytearray(2 ** 24))
""",
    "memory of several": r"""
import os, time
for _ in range(6):
 if os.fork() == 0:
  x = bytearray(180 * 2 ** 20)
  time.sleep(99)
time.sleep(99)
""",
    "output": r"""
import os
while True:
 for fd in range(1, 30):
  try: os.write(fd, b'y' * 65536)
  except OSError: pass
""",
    "lines without end": r"""
import os
def answer(n):
 while True:
  for fd in range(3, 30):
   try: os.write(fd, b'\n')
   except OSError: pass
""",
    "a pipe held open": r"""
import os, time
if os.fork() == 0:
 time.sleep(60)
os._exit(0)
""",
    "a crash": r"""
import ctypes
ctypes.string_at(0)
""",
    "deep recursion": r"""
import sys
sys.setrecursionlimit(10 ** 9)
def answer(n): return answer(n)
""",
    "a slow pattern": r"""
import re
re.match('(a+)+$', 'a' * 60 + 'b')
""",
    "a huge power": r"""
def answer(n): return len(str(9 ** 9 ** 9))
""",
}

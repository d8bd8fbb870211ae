"""Programs that try to get out of the sandbox: each says whether it got what it must not have."""

ESCAPES = {
    "kill all": r"""
import os
def answer(n):
 try: os.kill(os.getppid(), 9)
 except OSError: pass
 return any(p.isdigit() and int(p) > 60 for p in os.listdir('/proc'))
""",
    "another's process": r"""
import os
def answer(n): return os.getppid() > 2 or len([p for p in os.listdir('/proc') if p.isdigit()]) > 4
""",
    "the environment": r"""
import os
def answer(n):
 try: return 'JAXGEOM_SECRET' in os.environ or b'JAXGEOM_SECRET' in open('/proc/1/environ', 'rb').read()
 except OSError: return False
""",
    "accounts": r"""
import os
def answer(n): return os.path.exists('/etc/shadow') or os.path.exists('/etc/passwd')
""",
    "the trainer's files": r"""
import os
def answer(n): return os.path.exists(HOST)
""",
    "writing to the system": r"""
import os, sys
def answer(n):
 for place in ('/', '/usr', '/etc', '/dev', '/proc/sys/kernel', sys.prefix, sys.base_prefix):
  try: open(os.path.join(place, 'x'), 'w'); return True
  except OSError: pass
 return False
""",
    "the network": r"""
import socket
def answer(n):
 for place in (('127.0.0.1', PORT), ('8.8.8.8', 53)):
  try: socket.create_connection(place, 0.3); return True
  except OSError: pass
 return False
""",
    "an abstract socket": r"""
import socket
def answer(n):
 try: socket.socket(socket.AF_UNIX).connect(ABSTRACT); return True
 except OSError: return False
""",
    "sockets of other families": r"""
import ctypes
def answer(n):
 libc = ctypes.CDLL(None)
 kinds = [(family, kind) for family in range(47) if family not in (1, 2, 10) for kind in (1, 2, 3, 5)]
 return any(libc.socket(family, kind, 0) >= 0 for family, kind in kinds) or libc.socket(2, 1, 0) < 0
""",
    "pairs of other families": r"""
import ctypes
def answer(n):
 libc, ends = ctypes.CDLL(None), (ctypes.c_int * 2)()
 return any(libc.socketpair(family, 1, 0, ends) == 0 for family in (30, 38, 40)) or libc.socketpair(1, 1, 0, ends) != 0
""",
    "a mount": r"""
import ctypes
def answer(n): return ctypes.CDLL(None).mount(b'tmpfs', b'/program-directory', b'tmpfs', 0, b'') == 0
""",
    "another namespace": r"""
import ctypes
def answer(n): return ctypes.CDLL(None).unshare(0x10000000) == 0
""",
    "tracing": r"""
import ctypes
def answer(n): return ctypes.CDLL(None).ptrace(0, 0, 0, 0) == 0
""",
    "hidden memory": r"""
import ctypes
def answer(n): return ctypes.CDLL(None).memfd_create(b'x', 0) >= 0
""",
    "a shared segment": r"""
import ctypes
def answer(n): return ctypes.CDLL(None).shmget(1, 2 ** 20, 0o1777) >= 0
""",
    "being root": r"""
import os
def answer(n):
 try: os.setuid(0); os.chown('/program-directory', 0, 0); os.chroot('/usr'); return True
 except OSError: return False
""",
    "higher limits": r"""
import resource
def answer(n):
 for name in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_CPU):
  try: resource.setrlimit(name, (-1, -1)); return True
  except (OSError, ValueError): pass
 return False
""",
    "a full directory": r"""
import os
def answer(n):
 try:
  for i in range(64): open(f'f{i}', 'wb').write(b'x' * 2 ** 22)
 except OSError: return False
 return True
""",
    "a full /dev/shm": r"""
import os
def answer(n):
 try:
  for i in range(64): open(f'/dev/shm/f{i}', 'wb').write(b'x' * 2 ** 22)
 except OSError: return False
 return True
""",
    "a file of 40 MiB": r"""
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def answer(n):
 try: open('f', 'wb').write(b'x' * 40 * 2 ** 20)
 except OSError: return False
 return True
""",
    "many files": r"""
def answer(n):
 try:
  for i in range(9000): open(f'f{i}', 'w').close()
 except OSError: return False
 return True
""",
    "nested directories": r"""
import os
def answer(n):
 for _ in range(2000):
  os.mkdir('d'); os.chdir('d')
 return False
""",
    "its directory a link": r"""
import os, shutil
def answer(n):
 try:
  shutil.rmtree('/program-directory', ignore_errors=True)
  os.symlink('/usr', '/program-directory')
  return True
 except OSError: return False
""",
    "an immutable file": r"""
import fcntl, struct
def answer(n):
 file = open('f', 'w')
 try: fcntl.ioctl(file, 0x40086602, struct.pack('l', 0x10)); return True
 except OSError: return False
""",
    "a file without permissions": r"""
import os
def answer(n):
 os.mkdir('d'); open('d/f', 'w').close(); os.chmod('d', 0); os.chmod('.', 0)
 return False
""",
    "a daemon": r"""
import os, time
def answer(n):
 if os.fork() == 0:
  os.setsid()
  if os.fork(): os._exit(0)
  time.sleep(60)
 return False
""",
}

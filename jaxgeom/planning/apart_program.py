"""The process of `apart`: the module path of the one that started it, then the words of the command."""

import json
import os
import sys
import threading


def _end_with_the_other() -> None:
    os.read(0, 1)  # nothing is written there; not by `sys.stdin`, whose lock Python wants when it ends
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_other, daemon=True).start()
    sys.path[:] = json.loads(sys.argv[1])
    from jaxgeom.cli import main
    from jaxgeom.planning.apart import ENDED, Process

    Process.is_apart = True
    sys.exit(ENDED + main(sys.argv[2:]))

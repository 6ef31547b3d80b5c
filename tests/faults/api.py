"""An API process whose clock can be made to jump: the seconds that a file says are added to the real time.

`python -m tests.faults.api PORT CLOCK`
"""

import logging
import socket
import sys
import time
from pathlib import Path

import uvicorn

from serving import settings
from serving.app import create_app


def main(port: int, ahead: Path) -> None:
    """Serve as the environment says, on a port of the loopback address, until killed."""
    logging.getLogger("nudge").setLevel(logging.CRITICAL)
    app = create_app(settings.load())
    app.service.clock = lambda: time.time() + float(ahead.read_text() or 0)
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", port))
    config = uvicorn.Config(app, loop="uvloop", http="httptools", log_config=None, access_log=False)
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))

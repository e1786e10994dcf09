"""Other engines, each in a process and an environment of its own, which exchange JSON lines over stdin and stdout.

One request is one line: ``id, target, draft, prompts, max_new_tokens, batch, stop_ids, gamma, threads, dtype, options``
with prompts as lists of token ids and models as Hub folders. One reply is one line: ``id, outputs, seconds, versions``
(outputs without the prompt, the stop token kept), or ``id, error``. A peer keeps what it loads for the next request.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from specdec.bench.suite import Peer
from specdec.errors import SpecdecError

CURRENT = "current"
_LAST_LINES = 3


class PeerError(SpecdecError):
    """A peer died, gave no answer in time, or answered with an error."""


def interpreter(peer: Peer, environments: Path) -> Path | None:
    """The Python of a peer's environment; None where it is not installed."""
    if peer.environment == CURRENT:
        return Path(sys.executable)
    python = environments / peer.environment / "bin" / "python"
    return python if python.exists() else None


class PeerProcess:
    """A running peer. Its log (stderr, and whatever its libraries print) goes to a file."""

    def __init__(self, name: str, python: Path, script: Path, log: Path) -> None:
        self.name = name
        self._log = log
        self._num_asked = 0
        self._replies: queue.Queue[str | None] = queue.Queue()
        self._end = ""  # why there will be no more replies
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                [str(python), str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                text=True,
            )
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a request and wait for its reply.

        Raises:
            PeerError: in one line, with the end of the peer's log where it died.
        """
        self._num_asked += 1
        line = None if self._end else self._line(json.dumps({"id": self._num_asked, **request}), timeout_s)
        if line is None:
            raise PeerError(self._end)
        reply: dict[str, Any] = json.loads(line)
        if reply.get("id") != self._num_asked:
            raise PeerError(f"{self.name} answered request {reply.get('id')} instead of {self._num_asked}")
        if "error" in reply:
            raise PeerError(f"{self.name}: {reply['error']}")
        if len(reply["outputs"]) != len(request["prompts"]):
            raise PeerError(f"{self.name}: {len(reply['outputs'])} outputs for {len(request['prompts'])} prompts")
        return reply

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        for end, patience_s in ((self._process.terminate, 5), (self._process.kill, 10)):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(patience_s)
                return
            end()
        self._process.wait()

    def _line(self, request: str, timeout_s: float) -> str | None:
        """The reply to a line; None at the end of the process."""
        assert self._process.stdin is not None
        line = None
        try:
            self._process.stdin.write(request + "\n")
            self._process.stdin.flush()
            line = self._replies.get(timeout=timeout_s)
        except queue.Empty:
            self.close()
            self._end = f"{self.name}: no answer within {timeout_s:g} s (peer_timeout_s)"
        except OSError:
            pass
        if line is None and not self._end:
            lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
            last = [line.strip() for line in lines if line.strip()][-_LAST_LINES:]
            self._end = f"{self.name} ended: {' | '.join(last) or 'its log is empty'}"
        return line

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                self._replies.put(line)
        self._replies.put(None)

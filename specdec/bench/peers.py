"""Other engines, each in a process and an environment of its own, spoken to in JSON lines over stdin and stdout.

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
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"id": self._num_asked, **request}) + "\n")
            self._process.stdin.flush()
            line = self._replies.get(timeout=timeout_s)
        except queue.Empty:
            self.close()
            raise PeerError(f"{self.name}: no answer within {timeout_s:g} s (peer_timeout_s)") from None
        except OSError:
            line = None
        if line is None:
            raise PeerError(f"{self.name} ended: {self._last_words()}")
        reply: dict[str, Any] = json.loads(line)
        if reply.get("id") != self._num_asked:
            raise PeerError(f"{self.name} answered request {reply.get('id')} instead of {self._num_asked}")
        if "error" in reply:
            raise PeerError(f"{self.name}: {reply['error']}")
        if len(reply["outputs"]) != len(request["prompts"]):
            raise PeerError(f"{self.name}: {len(reply['outputs'])} outputs for {len(request['prompts'])} prompts")
        return reply

    @property
    def alive(self) -> bool:
        """Whether it can be asked again."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                self._replies.put(line)
        self._replies.put(None)

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        told = [line.strip() for line in lines if line.strip()]
        return " | ".join(told[-_LAST_LINES:]) or "without a word"

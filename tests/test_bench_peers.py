"""Peers of the benchmark: engines in processes of their own, which answer in lines of JSON."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from specdec.bench.peers import PeerError, PeerProcess
from specdec.bench.suite import FOLDER


def test_a_peer_that_dies_is_told_in_one_line(tmp_path):
    script = tmp_path / "dies.py"
    script.write_text("import sys\nsys.stdin.readline()\nprint('out of luck', file=sys.stderr)\nsys.exit(3)\n")
    peer = PeerProcess("dies", Path(sys.executable), script, tmp_path / "log")
    with pytest.raises(PeerError, match="dies ended: out of luck"):
        peer.ask({"prompts": []}, timeout_s=60)
    peer.close()
    assert peer._process.poll() is not None


@pytest.mark.slow
def test_a_peer_that_says_nothing_is_ended(tmp_path):
    script = tmp_path / "silent.py"
    script.write_text("import time\ntime.sleep(600)\n")
    peer = PeerProcess("silent", Path(sys.executable), script, tmp_path / "log")
    with pytest.raises(PeerError, match=r"no answer within 0\.2 s"):
        peer.ask({"prompts": []}, timeout_s=0.2)
    assert peer._process.poll() is not None


def test_what_a_library_prints_does_not_reach_the_replies(tmp_path):
    script = tmp_path / "loud.py"
    script.write_text(
        f"import os, sys\nsys.path.insert(0, {str(FOLDER / 'peers')!r})\nfrom peer_protocol import serve\n"
        "def handle(request):\n    print('noise')\n    os.write(1, b'more noise\\n')\n"
        "    return [[1, 2]] * len(request['prompts']), 0.5\nserve(handle, ('torch', 'no-such-package'))\n"
    )
    peer = PeerProcess("loud", Path(sys.executable), script, tmp_path / "log")
    reply = peer.ask({"prompts": [[1], [2]]}, timeout_s=60)
    assert (reply["outputs"], reply["seconds"]) == ([[1, 2], [1, 2]], 0.5)
    assert reply["versions"]["torch"] == version("torch"), "of the package: a build may add its own (+cu130)"
    assert reply["versions"]["no-such-package"] is None
    peer.close()
    assert "more noise" in (tmp_path / "log").read_text()

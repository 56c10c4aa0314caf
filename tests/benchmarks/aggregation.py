"""Compare aggregation with the simple ways of doing it in one process.

    python tests/benchmarks/aggregation.py [--repetitions 5] [--scale 1.0] [--folder FOLDER]

ours     apps.artifacts.weighted_sum: streams over the files, hashes the result on the way, waits for the disk
running  safetensors load_file of one update after another, a running sum, divided, save_file
hashed   as running, then the SHA-256 of the result, which our promises need as well
stack    load_file of all updates, stack, mean, save_file

Each measurement is a process of its own with one thread. CPU seconds are user and system time without start and
imports. Memory is the growth of the process at its peak (resident pages, those of mapped files too). Runs of a
repetition follow one another directly; ratios are formed within a repetition, so that a change in the machine's
load affects both of a pair.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
CASES = ((4, 100_000_000, "float32"), (64, 10_000_000, "float32"), (4, 100_000_000, "bfloat16"))
METHODS = ("ours", "running", "hashed", "stack")
SHARES = (0.30, *[0.06] * 11, 0.04)  # of the parameters: an embedding, equal matrices, and a rest


def write_updates(folder: Path, sites: int, parameters: int, dtype: str) -> None:
    """Write one file for each site; contents differ by a factor only, which costs little to make."""
    import torch

    from apps.artifacts.store import save_tensors

    generator = torch.Generator().manual_seed(0)
    parts = {f"layer.{k}": torch.randn(int(parameters * share), generator=generator) for k, share in enumerate(SHARES)}
    for site in range(sites):
        save_tensors(folder, {n: (t * (1 + site / 10)).to(getattr(torch, dtype)) for n, t in parts.items()}, "update")


def ours(paths: Sequence[Path], out: Path) -> None:
    from apps.artifacts.weighted_sum import weighted_sum

    weighted_sum([(path, 1 / len(paths)) for path in paths], out)


def running(paths: Sequence[Path], out: Path) -> None:
    """Sum in float32, as ours does: a sum in bfloat16 itself would lose most of its digits."""
    import torch
    from safetensors.torch import load_file, save_file

    total: dict[str, torch.Tensor] = {}
    dtype = torch.float32
    for path in paths:
        for name, tensor in load_file(path).items():
            dtype = tensor.dtype
            if name in total:
                total[name] += tensor
            else:
                total[name] = tensor.float()
    save_file({name: tensor.div_(len(paths)).to(dtype) for name, tensor in total.items()}, out / "mean.safetensors")


def hashed(paths: Sequence[Path], out: Path) -> None:
    running(paths, out)
    with open(out / "mean.safetensors", "rb") as stream:
        hashlib.file_digest(stream, "sha256")


def stack(paths: Sequence[Path], out: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    models = [load_file(path) for path in paths]
    mean = {
        name: torch.stack([model[name] for model in models]).mean(0, dtype=torch.float32).to(tensor.dtype)
        for name, tensor in models[0].items()
    }
    save_file(mean, out / "mean.safetensors")


def measure(method: str, folder: Path) -> dict[str, float]:
    """Return CPU seconds, wall seconds and growth of memory (bytes) of one aggregation in this process."""
    import safetensors.torch  # noqa: F401
    import torch

    import apps.artifacts.weighted_sum  # noqa: F401

    torch.set_num_threads(1)
    functions: dict[str, Callable[[Sequence[Path], Path], None]] = {
        "ours": ours,
        "running": running,
        "hashed": hashed,
        "stack": stack,
    }
    paths = sorted(folder.glob("*.safetensors"))
    with tempfile.TemporaryDirectory(dir=folder) as out:
        forget_peak()
        resident = status_bytes("VmRSS")
        began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
        functions[method](paths, Path(out))
        after = resource.getrusage(resource.RUSAGE_SELF)
        seconds = time.monotonic() - began
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu_s": cpu, "wall_s": seconds, "growth": status_bytes("VmHWM") - resident}


def forget_peak() -> None:
    """Reset the kernel's record of this process's peak: imports have one of their own."""
    Path("/proc/self/clear_refs").write_text("5")


def status_bytes(key: str) -> int:
    line = next(n for n in Path("/proc/self/status").read_text().splitlines() if n.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def measure_apart(method: str, folder: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--measure", method, "--folder", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)}
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


def spread(values: Sequence[float], digits: int = 2) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def run_case(root: Path, sites: int, parameters: int, dtype: str, repetitions: int) -> None:
    """Measure one case and print its table; its files are deleted afterwards."""
    with tempfile.TemporaryDirectory(dir=root) as name:
        folder = Path(name)
        write_updates(folder, sites, parameters, dtype)
        nbytes = next(folder.glob("*.safetensors")).stat().st_size
        measure_apart("ours", folder)  # brings the files into the page cache
        results: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
        for _ in range(repetitions):
            for method in METHODS:
                results[method].append(measure_apart(method, folder))
    print(f"\n{sites} sites, {parameters:,} parameters, {dtype}: {sites} files of {nbytes / 1e6:.0f} MB")
    print(f"{'':8}  {'CPU s':>20}  {'wall s':>20}  {'memory MB':>22}  {'CPU, ours / this':>20}  memory, this / ours")
    for method, found in results.items():
        cpu, wall = ([r[key] for r in found] for key in ("cpu_s", "wall_s"))
        memory = [r["growth"] / 1e6 for r in found]
        pairs = list(zip(results["ours"], found, strict=True))
        ratio = [one["cpu_s"] / other["cpu_s"] for one, other in pairs]
        less = [other["growth"] / max(one["growth"], 1) for one, other in pairs]
        cells = (spread(cpu), spread(wall), spread(memory, 0), spread(ratio))
        widths = (20, 20, 22, 20)
        row = "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        print(f"{method:8}  {row}  {spread(less, 0)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of parameters, for a quick look")
    parser.add_argument("--folder", type=Path, help="on the disk to use; 3 GB free (default: the temporary folder)")
    parser.add_argument("--measure", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure, options.folder)))
        return
    sys.path.insert(0, str(PROJECT))
    print(f"median (min to max) of {options.repetitions} repetitions, one thread, on {os.cpu_count()} cores")
    for sites, parameters, dtype in CASES:
        root = options.folder or Path(tempfile.gettempdir())
        run_case(root, sites, int(parameters * options.scale), dtype, options.repetitions)


if __name__ == "__main__":
    main()

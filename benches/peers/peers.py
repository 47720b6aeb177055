"""Runs the loaders that people use on the same file, in turn with disk2gpu: cold, each in a fresh process, and checked.

README.md beside it says what is compared and how to read the result. Needs nothing but Python's standard library; the loaders
are installed into a virtual environment of their own with --install.
"""

import argparse
import ctypes
import datetime
import json
import mmap
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
import zlib
from pathlib import Path

from loaders import LOADERS, spans

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TARGET = ROOT / "target" / "peers"
GB = 1e9
# Of the file that is made, like the matrices of a layer.
TENSOR = 64 << 20


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--file", type=Path, help="a .safetensors file, read only (default: one is made in DIR)")
    parser.add_argument("--dir", type=Path, default=TARGET, help="where to make a file, on the drive to be measured")
    parser.add_argument("--size", type=size, default=4 << 30, help="of the file that is made (default: 4GiB)")
    parser.add_argument("--runs", type=int, default=5, help="of each loader, in turns (default: 5)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to load to")
    parser.add_argument("--memory", type=size, default=256 << 20, help="for the rows with equal memory (default: 256MiB)")
    parser.add_argument("--only", default="", help="comma-separated names of loaders: " + ", ".join(LOADERS))
    parser.add_argument("--disk2gpu", type=Path, default=ROOT / "target/release/disk2gpu", help="our program")
    parser.add_argument("--prefix", default="", help="put before every command that is measured, such as 'chrt -r 1'")
    parser.add_argument("--install", action="store_true", help="first install the loaders into target/peers/venv")
    parser.add_argument("--out", type=Path, help="directory for peers.json and peers.md, which must not be there yet")
    parser.add_argument("--dry-run", action="store_true", help="say what would run, and run nothing")
    options = parser.parse_args(arguments)
    unknown = [name for name in names(options) if name not in LOADERS]
    if unknown:
        parser.error(f"there is no loader {unknown[0]}; there are {', '.join(LOADERS)}")
    if options.runs < 1:
        parser.error("--runs must be at least 1")
    return options


def size(text):
    units = {"GiB": 1 << 30, "MiB": 1 << 20, "GB": 10**9, "MB": 10**6}
    for unit, factor in units.items():
        if text.endswith(unit):
            return int(float(text.removesuffix(unit)) * factor)
    return int(text)


def names(options):
    return [name for name in options.only.split(",") if name] or list(LOADERS)


# --- the file ---------------------------------------------------------------------------------------------------------


def make_file(directory, length):
    """A safetensors file of random float16 tensors; made once and kept."""
    path = directory / f"peers-{length}.safetensors"
    if path.exists():
        return path
    directory.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory).free
    if free < length + (1 << 30):
        sys.exit(f"{directory}: {free} bytes are free, too few for a file of {length} and 1 GiB to spare: --size, --dir")
    header, at = {}, 0
    # Small tensors between the large ones, as norms are in a checkpoint.
    for i in range(max(1, length // TENSOR)):
        for name, count in ((f"layers.{i}.weight", TENSOR // 2), (f"layers.{i}.norm", 4096)):
            header[name] = {"dtype": "F16", "shape": [count], "data_offsets": [at, at + 2 * count]}
            at += 2 * count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        left = at
        while left:
            left -= file.write(os.urandom(min(left, 8 << 20)))
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
    return path


def sums_of(path):
    """CRC-32 of every tensor, read in the plainest way."""
    found = {}
    with open(path, "rb") as file:
        for name, (begin, end) in spans(path).items():
            file.seek(begin)
            crc = 0
            while begin < end:
                piece = file.read(min(end - begin, 8 << 20))
                if not piece:
                    sys.exit(f"{path}: ends inside of {name}")
                crc, begin = zlib.crc32(piece, crc), begin + len(piece)
            found[name] = crc
    return found


def drop(path):
    """Drops the file from the page cache; returns the fraction of it that stays."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        length = os.path.getsize(path)
        # Copy-on-write, because only writable mappings give their address; nothing is written.
        with mmap.mmap(file.fileno(), length, access=mmap.ACCESS_COPY) as mapped:
            pages = (length + mmap.PAGESIZE - 1) // mmap.PAGESIZE
            state = (ctypes.c_ubyte * pages)()
            first = ctypes.c_char.from_buffer(mapped)
            libc = ctypes.CDLL(None, use_errno=True)
            failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(length), state)
            del first
            return None if failed else sum(page & 1 for page in state) / pages


# --- the loaders ------------------------------------------------------------------------------------------------------


def python():
    inside = TARGET / "venv/bin/python"
    return inside if inside.exists() else Path(sys.executable)


def install(wanted):
    """Each package by itself, so that one that does not install leaves the others."""
    if not (TARGET / "venv").exists():
        subprocess.run([sys.executable, "-m", "venv", TARGET / "venv"], check=True)
    for package in dict.fromkeys(package for name in wanted for package in LOADERS[name][1]):
        done = subprocess.run([TARGET / "venv/bin/pip", "install", "--quiet", package], capture_output=True, text=True)
        said = (done.stderr.strip().splitlines() or [""])[-1]
        print(f"{package}: {'installed' if done.returncode == 0 else 'not installed: ' + said}", file=sys.stderr)


def versions():
    code = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    found = json.loads(subprocess.run([python(), "-c", code], capture_output=True, check=True).stdout)
    wanted = {package for _, packages in LOADERS.values() for package in packages}
    return {name: version for name, version in sorted(found.items()) if name in wanted}


def has_gpu():
    code = "import torch, sys; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([python(), "-c", code], capture_output=True).returncode == 0


def plain(text):
    """A message without the paths of this machine."""
    return text.replace(str(ROOT), ".").replace(str(Path.home()), "~")[:200]


class Row:
    """A loader in one configuration."""

    def __init__(self, name, memory, command):
        self.name, self.memory, self.command = name, memory, command
        self.samples, self.skipped = [], None


def rows(options, path, device):
    """Ours and theirs, first as each chooses by itself, then with the same memory."""
    found = []
    for memory in (0, options.memory):
        ring = ["--ring", str(memory)] if memory else []
        gpu = "cuda:0" if device == "cuda" else "cpu"
        ours = [options.disk2gpu, path, "--json", "--warmup", "0", "--repetitions", "1", "--verify=never"]
        found.append(Row("disk2gpu", memory, ours + ["--bytes", str(1 << 50), "--device", gpu] + ring))
        for name in names(options):
            theirs = [python(), HERE / "loaders.py", name, path, device, str(memory)]
            found.append(Row(name, memory, theirs))
    return found


def run(row, path, prefix):
    """One process. What it took besides loading is told apart."""
    cached = drop(path)
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run([*prefix, *map(str, row.command)], capture_output=True, text=True, cwd=ROOT)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"error": plain(said)}
    result = json.loads(lines[-1])
    result["process_s"] = wall
    result["process_cpu_s"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    result["cached_before"] = cached
    return result


def note(row, result, expected, total):
    """Takes a run into account."""
    if "skipped" in result or "error" in result:
        row.skipped = plain(result["skipped"]) if "skipped" in result else "failed: " + result["error"]
        return
    if row.name == "disk2gpu":
        last = result["runs"][-1]
        kept = {
            "stage": last["stage"],
            "gbps": last["gbps"]["median"],
            "load_s": last["bytes"] / GB / last["gbps"]["median"],
            "init_s": last["init_s"],
            "cpu_s_per_gb": last["cpu_s_per_gb"],
            "pinned_bytes": last["pinned_bytes"],
            "reader": last["readers"],
        }
    else:
        verified = result["crc32"] == expected
        kept = {"gbps": total / GB / result["load_s"], "load_s": result["load_s"], "init_s": result["init_s"]}
        kept["verified"] = verified
    for name in ("process_s", "process_cpu_s", "cached_before"):
        kept[name] = result[name]
    row.samples.append(kept)


def verify_ours(options, path, device):
    """What ours delivers, once: it drops what it reads, so that there is nothing to look at afterwards."""
    command = [options.disk2gpu, path, "--json", "--warmup", "0", "--repetitions", "1", "--verify=always"]
    command += ["--bytes", str(1 << 50), "--device", "cuda:0" if device == "cuda" else "cpu"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"disk2gpu: {done.stderr.strip()}")
    return all(run["verified"] for run in json.loads(done.stdout)["runs"])


# --- the report -------------------------------------------------------------------------------------------------------


def spread(row, field):
    values = [sample[field] for sample in row.samples]
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def table(found, total):
    lines = ["| loader | memory | GB/s median [min–max] | runs | getting ready, s | process, s | content |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for row in found:
        memory = f"{row.memory >> 20} MiB" if row.memory else "its own"
        if not row.samples:
            # What has no such limit has no row for it.
            if not row.memory:
                lines.append(f"| {row.name} | {memory} | {row.skipped} | 0 | | | |")
            continue
        speed, init, process = spread(row, "gbps"), spread(row, "init_s"), spread(row, "process_s")
        name = f"{row.name} ({row.samples[0]['stage']})" if "stage" in row.samples[0] else row.name
        content = "verified" if all(sample["verified"] for sample in row.samples) else "DIFFERS"
        speed = f"{speed['median']:.2f} [{speed['min']:.2f}–{speed['max']:.2f}]"
        lines.append(
            f"| {name} | {memory} | {speed} | {len(row.samples)} | {init['median']:.2f} | {process['median']:.2f} | {content} |"
        )
    return "\n".join(lines)


def first(path, key):
    for line in Path(path).read_text().splitlines():
        if line.startswith(key):
            return line.split(":", 1)[1].strip()
    return None


def report(options, path, device, found, total):
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty", "--exclude=*"], capture_output=True, text=True)
    warm = [s["cached_before"] for row in found for s in row.samples if s["cached_before"]]
    return {
        "schema": "layerstream.peers/1",
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "git": commit.stdout.strip() or None,
        "command": "python3 benches/peers/peers.py " + " ".join(sys.argv[1:]),
        "host": {
            "kernel": platform.release(),
            "cpu": first("/proc/cpuinfo", "model name"),
            "cores": len(os.sched_getaffinity(0)),
            "mem": first("/proc/meminfo", "MemTotal"),
            "load_average": os.getloadavg(),
        },
        "device": device,
        "file_bytes": os.path.getsize(path),
        "tensor_bytes": total,
        "memory_bytes": options.memory,
        "versions": versions(),
        "most_cached_before": max(warm, default=0.0),
        "rows": [
            {"loader": r.name, "memory_bytes": r.memory or None, "skipped": r.skipped, "samples": r.samples}
            for r in found
        ],
    }


def main():
    options = parse()
    if options.out and (options.out / "peers.json").exists():
        sys.exit(f"{options.out / 'peers.json'}: is there already and is not overwritten: name another directory")
    if options.dry_run:
        path = options.file or options.dir / f"peers-{options.size}.safetensors"
        device = "cpu" if options.device == "auto" else options.device
        for row in rows(options, path, device):
            print(" ".join(options.prefix.split() + [str(part) for part in row.command]))
        return
    if not options.disk2gpu.exists():
        sys.exit(f"{options.disk2gpu}: is not there: build it with `cargo build --release --bin disk2gpu`")
    if options.install:
        install(names(options))
    device = options.device if options.device != "auto" else ("cuda" if has_gpu() else "cpu")
    if device == "cpu":
        print("no GPU: loading to host memory, by those who can", file=sys.stderr)
    path = options.file or make_file(options.dir, options.size)
    expected = sums_of(path)
    total = sum(end - begin for begin, end in spans(path).values())
    found = rows(options, path, device)
    ours = verify_ours(options, path, device)
    try:
        for turn in range(options.runs):
            for row in found:
                if row.skipped:
                    continue
                print(f"turn {turn + 1} of {options.runs}: {row.name}", file=sys.stderr)
                note(row, run(row, path, options.prefix.split()), expected, total)
    except KeyboardInterrupt:
        print("interrupted: what there is so far", file=sys.stderr)
    for row in found:
        if row.name == "disk2gpu":
            for sample in row.samples:
                sample["verified"] = ours
    result = report(options, path, device, found, total)
    text = table(found, total)
    print(text)
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "peers.json").write_text(json.dumps(result, indent=1) + "\n")
        head = f"# Loaders on the same file, to {'the GPU' if device == 'cuda' else 'host memory'}\n\n"
        facts = f"`{result['command']}` at {result['git']}, {result['date']}; {json.dumps(result['host'])}; "
        facts += f"{result['file_bytes']} bytes; {json.dumps(result['versions'])}\n\n"
        notes = "\n\nbenches/peers/README.md says what is compared.\n"
        (options.out / "peers.md").write_text(head + facts + text + notes)


if __name__ == "__main__":
    main()

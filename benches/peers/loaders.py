"""The loaders that are compared, one function each, run in a fresh process by peers.py:

    python loaders.py NAME FILE DEVICE MEMORY

Prints one line of JSON: seconds for importing, getting ready and loading, and the CRC-32 of every tensor as it arrived. DEVICE
is cpu or cuda; MEMORY, in bytes, is what may be pinned or staged at most, 0 for the loader's own choice. Loading ends when
every page of every tensor has been touched, so that a loader that maps the file cannot put it off.
"""

import json
import os
import sys
import time
import zlib


class Skip(Exception):
    """This loader cannot do what is asked for, and why."""


def host_bytes(tensor):
    """The bytes of a torch tensor or a numpy array, in host memory."""
    if hasattr(tensor, "detach"):
        import torch

        return memoryview(tensor.detach().contiguous().view(torch.uint8).cpu().numpy().reshape(-1))
    return memoryview(tensor).cast("B")


def touch(tensors):
    """Reads a byte of every page of tensors in host memory, and waits for those that go to a GPU."""
    on_gpu = False
    for tensor in tensors.values():
        if getattr(tensor, "is_cuda", False):
            on_gpu = True
            continue
        view = host_bytes(tensor)
        sum(view[::4096])
    if on_gpu:
        import torch

        torch.cuda.synchronize()


def safetensors_numpy(path, device, memory):
    if device != "cpu":
        raise Skip("numpy arrays are in host memory")
    if memory:
        raise Skip("it has no such limit")
    import numpy  # noqa: F401
    from safetensors.numpy import load_file

    ready()
    return load_file(path), None


def safetensors_torch(path, device, memory):
    if memory:
        raise Skip("it has no such limit")
    import torch
    from safetensors.torch import load_file

    if device == "cuda":
        torch.cuda.init()
    ready()
    return load_file(path, device=device), None


def fastsafetensors(path, device, memory):
    import torch
    from fastsafetensors import SafeTensorsFileLoader

    # Its bounce buffers are one for each thread.
    options = {"max_threads": 16, "bbuf_size_kb": memory // 16 // 1024} if memory else {}
    if memory and device == "cpu":
        raise Skip("it reads into the tensors themselves")
    if device == "cuda":
        torch.cuda.init()
    loader = SafeTensorsFileLoader(None, device, nogds=True, **options)
    ready()
    loader.add_filenames({0: [path]})
    buffers = loader.copy_files_to_device()
    # Kept by the caller: its tensors share its memory.
    return {name: buffers.get_tensor(name) for name in buffers.key_to_rank_lidx}, (loader, buffers)


def runai(path, device, memory):
    if memory:
        os.environ["RUNAI_STREAMER_MEMORY_LIMIT"] = str(memory)
    import torch
    from runai_model_streamer import SafetensorsStreamer

    if device == "cuda":
        torch.cuda.init()
    with SafetensorsStreamer() as streamer:
        ready()
        streamer.stream_file(path)
        # It hands out tensors in host memory; each is the caller's.
        tensors = {name: tensor.to(device) for name, tensor in streamer.get_tensors()}
        return tensors, None


def instanttensor(path, device, memory):
    if device != "cuda":
        raise Skip("it loads to a GPU only")
    import torch
    from instanttensor import safe_open

    torch.cuda.init()
    options = {"buffer_size": memory} if memory else {}
    with safe_open(path, framework="pt", device=0, load_now=False, **options) as file:
        ready()
        return dict(file.tensors()), None


def kvikio(path, device, memory):
    """The whole file into one buffer, which is then taken apart."""
    if memory:
        raise Skip("its staging is one buffer of a task's size for each thread")
    import kvikio as library
    import numpy

    size = os.path.getsize(path)
    if device == "cuda":
        import cupy

        buffer = cupy.empty(size, dtype=cupy.uint8)
    else:
        buffer = numpy.empty(size, dtype=numpy.uint8)
    ready()
    with library.CuFile(path, "r") as file:
        got = file.read(buffer)
    if got != size:
        raise OSError(f"kvikio read {got} of {size} bytes")
    if device == "cuda":
        import cupy

        cupy.cuda.Device().synchronize()
        buffer = cupy.asnumpy(buffer)
    return {name: buffer[begin:end] for name, (begin, end) in spans(path).items()}, None


def spans(path):
    """Where each tensor lies in the file."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    start = 8 + length
    tensors = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    return {name: (start + begin, start + end) for name, (begin, end) in tensors.items()}


# Name: function, packages.
LOADERS = {
    "safetensors-numpy": (safetensors_numpy, ["safetensors", "numpy"]),
    "safetensors-torch": (safetensors_torch, ["safetensors", "torch"]),
    "fastsafetensors": (fastsafetensors, ["fastsafetensors", "torch"]),
    "runai-model-streamer": (runai, ["runai-model-streamer", "torch"]),
    "instanttensor": (instanttensor, ["instanttensor", "torch"]),
    "kvikio": (kvikio, ["kvikio-cu12", "cupy-cuda12x"]),
}

marks = []


def ready():
    """Called by a loader when it is about to load: what came before is not loading."""
    marks.append(time.perf_counter())


def main():
    name, path, device, memory = sys.argv[1:]
    start = time.perf_counter()
    try:
        tensors, kept = LOADERS[name][0](path, device, int(memory))
    except Skip as reason:
        print(json.dumps({"skipped": str(reason)}))
        return
    except (ImportError, OSError) as error:
        # Not installed, or installed without what it needs on this machine.
        if marks:
            raise
        print(json.dumps({"skipped": f"{type(error).__name__}: {str(error).splitlines()[0]}"}))
        return
    except RuntimeError as error:
        if device == "cuda" or "libcuda" not in str(error):
            raise
        print(json.dumps({"skipped": "it needs a CUDA driver"}))
        return
    touch(tensors)
    end = time.perf_counter()
    sums = {name: zlib.crc32(host_bytes(tensor)) for name, tensor in tensors.items()}
    del kept
    print(json.dumps({"init_s": marks[0] - start, "load_s": end - marks[0], "crc32": sums}))


if __name__ == "__main__":
    main()

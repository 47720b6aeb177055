# Times what PyTorch does with the problems of `kernels sweep --peers`: cuBLAS products and its flash attention, in
# bfloat16. The problems come as JSON in the first argument, the number of repetitions in the second; the answer is JSON on
# standard output: what did it, and the median seconds of each, null where it did not fit. CUDA events around each
# repetition, the L2 cache filled with something else before it, as the workbench does.

import json
import statistics
import sys

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

WARM_UP = 3


def problem(p):
    def random(*shape):
        return torch.rand(shape, device="cuda", dtype=torch.bfloat16) * 2 - 1

    if p["op"] == "matmul":
        x, w = random(p["m"], p["k"]), random(p["n"], p["k"])
        return lambda: torch.nn.functional.linear(x, w)
    q = random(1, p["heads"], p["rows"], p["head_dim"])
    # Key heads are repeated beforehand: not every PyTorch lets flash attention share them, and this costs it no time here.
    group = p["heads"] // p["kv_heads"]
    k = random(1, p["kv_heads"], p["rows"], p["head_dim"]).repeat_interleave(group, dim=1)
    v = random(1, p["kv_heads"], p["rows"], p["head_dim"]).repeat_interleave(group, dim=1)
    return lambda: scaled_dot_product_attention(q, k, v, is_causal=True)


def seconds(run, flush, repeat):
    times = []
    for i in range(WARM_UP + repeat):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        flush.sum()
        start.record()
        run()
        end.record()
        times.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) / 1e3 for start, end in times[WARM_UP:])


def main():
    problems, repeat = json.loads(sys.argv[1]), int(sys.argv[2])
    properties = torch.cuda.get_device_properties(0)
    cache = max(getattr(properties, "L2_cache_size", 0), 64 << 20)
    flush = torch.ones(2 * cache // 4, device="cuda")
    answers = []
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        for p in problems:
            try:
                answers.append(seconds(problem(p), flush, repeat))
            except torch.cuda.OutOfMemoryError:
                answers.append(None)
            torch.cuda.empty_cache()
    print(json.dumps({"with": f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}", "seconds": answers}))


main()

"""CUDA artifacts on this machine's card: right first, then fast; PyTorch and the card's limits.

    python benchmarks/gpu.py [--json]

It needs the card's driver, CuPy with cuBLAS and NVRTC (`pip install 'rlx_ray[dev,gpu13]'`; the
references are those of the tests), and PyTorch for the peers, if there is one. A precision whose
small models are wrong has no rows, and a case that fails takes none from the others. Weights are
random, so no checkpoint is needed. Decode rows include the copy of the drawn tokens to the host;
encoder rows that of the vectors. Peers that do not fit into the time are named in `left_out`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import harness
from gpu_models import Model, blob_of, feed

from rlx_ray.artifact.launch_plan import NULL, GemmStep
from rlx_ray.dtype import DType
from rlx_ray.errors import DeviceError, DeviceLost
from rlx_ray.runtime import cuda
from rlx_ray.runtime.cuda_device import CudaDevice
from rlx_ray.runtime.device_context import DeviceContext
from rlx_ray.target import Target
from tests.support import bert_reference, llama_reference

LIMIT = {"f32": 1e-4, "f16": 1e-2, "bf16": 6e-2}
"""The relative error of a whole model's output, in the Euclidean norm: roundings of two layers."""


OURS = 0.6
"""The share of the time in which our own cases begin; the rest is the peers'."""


@dataclass(frozen=True)
class Case:
    """A row of the report: a variant of a model, and how many tokens the cache holds."""

    model: str
    precision: str
    variant: str
    past: int = 0

    @property
    def name(self) -> str:
        """As the peers' script takes it."""
        return f"{self.model}/{self.precision}/{self.variant}/{self.past}"


CASES = (
    *(Case("minilm", "f16", f"encoder:b{b}:s{s}") for b, s in ((1, 16), (8, 128), (32, 128))),
    Case("minilm", "f16", "encoder:b256:s128"),
    *(Case("smollm2", "bf16", f"decode:b{b}:s1:p255", 128) for b in (1, 32)),
    Case("llama-1b", "bf16", "prefill:b1:s2048"),
    *(Case("llama-1b", "bf16", f"decode:b{b}:s1:p1023", 512) for b in (1, 8, 64)),
)


def correct(
    resident: DeviceContext, target: Target, load: Callable[..., Any] = Model.load
) -> tuple[dict[str, float], dict[str, str]]:
    """Small models in every precision against float64.

    Args:
        resident: the device.
        target: what it runs.
        load: makes an executable of a model, an artifact and the device.

    Returns:
        The relative error of each that ran, and by name what is wrong with those that are off by
        more than LIMIT or did not run.
    """
    found, wrong = {}, {}
    for precision, limit in LIMIT.items():
        for name, check in (("tiny-bert", _bert), ("tiny-llama", _llama)):
            case = f"{name} {precision}"
            try:
                got, want = check(Model(name, target, precision), resident, load)
            except Exception as error:  # whatever one meets, the others are tried
                wrong[case] = f"{type(error).__name__}: {error}"
                continue
            error = float(np.linalg.norm(got - want) / np.linalg.norm(want))
            found[case] = error
            if not error <= limit:
                wrong[case] = f"relative error {error:.1e} > {limit:.0e}"
    return found, wrong


def _bert(model: Model, resident: DeviceContext, load: Any) -> tuple[np.ndarray, np.ndarray]:
    run = load(model, model.compile("encoder:b2:s16"), resident)
    inputs = feed(run, model.config["vocab_size"])
    inputs["lengths"][:] = (16, 11)
    tensors = {name: tensor.f32() for name, tensor in model.tensors.items()}
    want = bert_reference.forward(tensors, model.config, inputs["input_ids"], [16, 11])
    for _ in range(2):  # step by step, then captured
        got = run.run(inputs)["embedding"]
    return got, want


def _llama(model: Model, resident: DeviceContext, load: Any) -> tuple[np.ndarray, np.ndarray]:
    """A prompt, then tokens one by one, of two sequences."""
    prompt, step = (
        load(model, model.compile(v), resident) for v in ("prefill:b2:s16", "decode:b2:s1:p63")
    )
    cache = prompt.make_cache(8)
    first = feed(prompt, model.config["vocab_size"])
    ids, rows = [list(row) for row in first["input_ids"]], []
    rows.append(prompt.run(first, cache)["logits"])
    for past in range(16, 20):
        inputs = feed(step, model.config["vocab_size"], past)
        table = inputs["pages"]
        table[:] = -1
        table[:, : first["pages"].shape[1]] = first["pages"]
        rows.append(step.run(inputs, cache)["logits"])
        for own, token in zip(ids, inputs["input_ids"][:, 0], strict=True):
            own.append(token)
    tensors = {_gguf(name): tensor.f32() for name, tensor in model.tensors.items()}
    sizes = json.loads(model.info.config)
    config = {**sizes, "theta": sizes["rope"]["theta"]}
    whole = [llama_reference.logits(tensors, config, own)[15:] for own in ids]
    return np.stack(rows, 1), np.stack(whole)


def _gguf(name: str) -> str:
    """A tensor's name as the reference has it."""
    for theirs, ours in (
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("model.layers", "blk"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.o_proj", "attn_output"),
        *((f"self_attn.{x}_proj", f"attn_{x}") for x in "qkv"),
        *((f"mlp.{x}_proj", f"ffn_{x}") for x in ("gate", "up", "down")),
    ):
        name = name.replace(theirs, ours)
    return name


def measure(
    case: Case,
    model: Model,
    resident: DeviceContext,
    seconds: float,
    load: Callable[..., Any] = Model.load,
) -> dict[str, float]:
    """Milliseconds of a case's run, of its compilation, and from artifact to first answer."""
    begun = time.perf_counter()
    artifact = model.compile(case.variant)
    compiled = time.perf_counter()
    held = resident.upload(model.weights)  # type: ignore[arg-type]  # so that they stay there
    loading = time.perf_counter()
    run = load(model, artifact, resident)
    del held
    inputs = feed(run, model.config["vocab_size"], case.past)
    cache = run.make_cache(inputs["pages"].size) if "pages" in inputs else None
    names = [o.name for o in run.binding.outputs]
    wanted = ("tokens",) if "tokens" in names else None
    run.run(inputs, cache, wanted)
    first = time.perf_counter()
    run.run(inputs, cache, wanted)
    captured = time.perf_counter()
    return {
        "ms": harness.median_ms(lambda: run.run(inputs, cache, wanted), seconds),
        "compile_ms": (compiled - begun) * 1e3,
        "first_answer_ms": (first - loading) * 1e3,
        "capture_ms": (captured - first) * 1e3,
        "cubin_bytes": len(blob_of(artifact, "code")),
        **sizes(model),
    }


def sizes(model: Model) -> dict[str, float]:
    """Bytes of weights that a decode step reads, and numbers that each row of a prompt meets."""
    tables = ("embed.word", "rope.cos_sin")
    tensors = [t for t in model.weights.manifest.tensors if t.name not in tables]
    matrices = [t for t in tensors if len(t.shape) == 2 and t.name != "head.weight"]
    return {
        "read_bytes": sum(t.nbytes for t in tensors),
        "matrix_numbers": sum(t.nbytes // t.dtype.size for t in matrices),
    }


def ceilings(device: CudaDevice) -> dict[str, float]:
    """The card's limits as measured: GB/s that copies read and write, TFLOP/s of bf16 products."""
    size, n = 1 << 30, 8192
    one, other = device.allocate(size), device.allocate(size)
    runtime, out = device._cuda.runtime, np.zeros(1, np.uint8)

    def copy() -> None:
        for _ in range(8):
            kind = runtime.memcpyDeviceToDevice
            runtime.memcpyAsync(other.address, one.address, size, kind, device.stream.ptr)
        device.read(other.address, out)

    step = GemmStep(NULL, NULL, NULL, n, n, n, n, n, n, dtype=DType.BF16, out=DType.BF16)
    places = [device.allocate(2 * n * n) for _ in range(3)]
    noise = np.random.default_rng(0).standard_normal(1 << 20, np.float32).view(np.uint32) >> 16
    for place in places:  # of zeros a card multiplies more in a second than of numbers
        device.write(place.address, np.resize(noise.astype(np.uint16), n * n))

    def product() -> None:
        for _ in range(8):
            device.gemm(step, *(place.address for place in places))
        device.read(places[2].address, out)

    return {
        "copy_gb_s": 8 * 2 * size / harness.median_ms(copy, 1.0) / 1e6,
        "bf16_tflop_s": 8 * 2 * n**3 / harness.median_ms(product, 1.0) / 1e9,
    }


def peers(cases: list[Case], seconds: float, limit: float) -> tuple[dict[str, dict], str]:
    """PyTorch's times by case, as far as the time goes, and what else it said."""
    script = str(Path(__file__).parent / "gpu_peers.py")
    command = [sys.executable, script, "--seconds", str(seconds), *(c.name for c in cases)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit, cwd=harness.ROOT, check=False
        )
        text, note = done.stdout, done.stderr[-500:] if done.returncode else ""
    except subprocess.TimeoutExpired as late:
        raw = late.stdout or b""
        text = raw.decode() if isinstance(raw, bytes) else raw
        note = f"the time of {limit:.0f} s was over"
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return {line["case"]: line for line in lines}, note


def row(case: Case, own: dict[str, float], torch: dict[str, float], limits: dict) -> dict:
    """A row of the report."""
    hidden = ("ms", "read_bytes", "matrix_numbers")
    more = {k: round(v, 2) for k, v in own.items() if k not in hidden}
    if case.model == "llama-1b" and case.variant.startswith("decode:b1:"):
        rate = own["read_bytes"] / own["ms"] / 1e6
        more["share_of_bandwidth"] = round(rate / limits["copy_gb_s"], 3)
    if case.variant.startswith("prefill"):
        rate = 2 * 2048 * own["matrix_numbers"] / own["ms"] / 1e9
        more["share_of_matmul"] = round(rate / limits["bf16_tflop_s"], 3)
    if "torch_compile_warm" in torch:
        more["torch_compile_warm_ms"] = round(torch["torch_compile_warm"], 1)
    found = {k: torch[k] for k in ("torch_eager", "torch_compile") if k in torch}
    return harness.row(f"{case.model}:{case.variant}", "ms", own["ms"], found, **more)


def main() -> int:
    """Run it all."""
    parser = harness.arguments(__doc__.splitlines()[0])
    parser.add_argument("--limit", type=float, default=570, help="seconds for everything")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    options = parser.parse_args()
    begun = time.monotonic()
    host = cuda.this_host()
    try:
        device = CudaDevice()
    except DeviceError as error:
        print(f"benchmarks/gpu.py: {error}", file=sys.stderr)
        return 1
    target = next(t for t in host.ladder() if t.kind == "cuda")
    resident = DeviceContext(device)
    errors, wrong = correct(resident, target)
    for case, reason in wrong.items():
        print(f"benchmarks/gpu.py: {case}: {reason}", file=sys.stderr)
    right = [c for c in CASES if not any(case.endswith(c.precision) for case in wrong)]
    if not right:
        return 1
    limits = ceilings(device)
    end = begun + options.limit
    own, failed = measured(right, resident, target, options.seconds, begun + options.limit * OURS)
    torch, note = peers(list(own), options.seconds, end - time.monotonic())
    harness.report(
        "gpu",
        [row(case, own[case], torch.get(case.name, {}), limits) for case in own],
        options.json,
        device=device.name,
        target=target.name,
        ceilings=limits,
        errors=errors,
        failed={**wrong, **failed},
        left_out=[c.name for c in own if c.name not in torch],
        note=note,
    )
    return 1 if wrong or failed else 0


def measured(
    cases: Sequence[Case],
    resident: DeviceContext,
    target: Target,
    seconds: float,
    end: float,
    load: Callable[..., Any] = Model.load,
) -> tuple[dict[Case, dict[str, float]], dict[str, str]]:
    """What each case takes, and why others have no row; each is said on stderr as it is known.

    Args:
        cases: what to measure; those of precisions whose small models are right.
        resident: the device.
        target: what it runs.
        seconds: of each measurement.
        end: on the monotonic clock; cases that would begin behind it are left out.
        load: makes an executable of a model, an artifact and the device.
    """
    own: dict[Case, dict[str, float]] = {}
    failed: dict[str, str] = {}
    model: Model | None = None
    lost = ""
    for case in cases:
        if lost or time.monotonic() > end:
            failed[case.name] = lost or "the time was over"
            continue
        if model is None or (model.name, model.precision) != (case.model, case.precision):
            model = Model(case.model, target, case.precision)
        try:
            own[case] = measure(case, model, resident, seconds, load)
            said = f"{own[case]['ms']:.3f} ms"
        except Exception as error:  # whatever one case meets, the others have their rows
            failed[case.name] = said = f"{type(error).__name__}: {error}"
            lost = "the device was lost before" if isinstance(error, DeviceLost) else ""
        print(f"benchmarks/gpu.py: {case.name}: {said}", file=sys.stderr)
    return own, failed


if __name__ == "__main__":
    sys.exit(main())

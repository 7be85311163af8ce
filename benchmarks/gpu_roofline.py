"""What a GPU should take for a step, and what it would rather not do: by arithmetic, without a GPU.

    python benchmarks/gpu_roofline.py                   CIFAR-10's U-Net and DiT-B/2, H100 and H200
    python benchmarks/gpu_roofline.py --network dit --batch_size 64 --layers
    python benchmarks/gpu_roofline.py --small           toy sizes: a test

The training step of `gpu.py` (bfloat16, float32 weights, Adam) and a forward pass are lowered for
CUDA, which needs none, as on a Hopper GPU, and read (`lowered_program.py`). A kernel takes the
longer of its FLOP at the rate of its type and its bytes at the rate of the memory: so the sum is
what no implementation with these kernels can beat, and what the first measurement is held against.
--layers adds the longest kernels. The counts are what is known to cost on Hopper.
"""

import contextlib
import types
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import optax
from comparison import mean_squared_error
from gpu_parts.networks import Measured, measured
from gpu_parts.ours import tree_shapes
from jax._src.cudnn import fused_attention_stablehlo as fused_attention
from lowered_program import ATTENTION, Kernel, Program, read
from measuring import parser, report_table

CUDNN = 91700  # whose version jax asks for; any that has attention gives the same calls
FORMS = ("forward", "of the input", "of the kernel")  # of convolutions, that cuDNN has


class Device(NamedTuple):
    """What a GPU reaches, not what is published: products of large matrices, copies."""

    name: str
    half: float  # FLOP/s of bfloat16
    single: float  # of float32 in TF32
    bytes: float  # a second


DEVICES = (Device("H100", 790e12, 395e12, 3.0e12), Device("H200", 790e12, 395e12, 4.3e12))
LAUNCH = 2e-6  # seconds from one kernel to the next, at best


@contextlib.contextmanager
def as_on_hopper() -> Iterator[None]:
    """While its body runs, what is traced chooses as on a GPU of compute capability 9.0."""
    client = types.SimpleNamespace(platform_version="cuda 13000")
    device = types.SimpleNamespace(platform="gpu", compute_capability="9.0", client=client)
    with contextlib.ExitStack() as stack:
        for where, name, value in (
            (jax, "default_backend", "gpu"),
            (jax, "local_devices", [device]),
            (fused_attention, "check_cudnn_version", CUDNN),
            (fused_attention, "check_compute_capability", True),
        ):
            stack.enter_context(
                mock.patch.object(where, name, lambda *arguments, value=value: value)
            )
        yield


def lowered(of: Measured, size: int, *, training: bool) -> jax.stages.Lowered:
    """Lowers a training step, or a forward pass, of a batch for CUDA."""
    network, batch, condition = (
        of.network.clone(dtype="bfloat16"),
        of.batch(size),
        of.condition(size),
    )
    params, optimizer = tree_shapes(of), optax.adam(1e-4)
    loss = mean_squared_error(network)

    def step(params, state, x, t, eps, condition, keys):
        gradient = jax.grad(loss)(params, x, t, eps, condition, keys)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    def forward(params, x, t, condition):
        return network.apply({"params": params}, x, t, condition)

    keys = jax.random.split(jax.random.key(0), size)
    state = jax.eval_shape(optimizer.init, params)
    whole = (params, state, batch.x, batch.t, batch.eps, condition, keys)
    traced = (step, whole) if training else (forward, (params, batch.x, batch.t, condition))
    function, arguments = traced
    with as_on_hopper():
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",))


def seconds_of(kernel: Kernel, device: Device) -> float:
    """What a kernel takes at least."""
    rate = device.single if "f32" in kernel.dtypes else device.half
    return max(kernel.flops / rate, kernel.bytes / device.bytes)


class Costs(NamedTuple):
    """What is known to cost on Hopper, counted."""

    single_products: int  # products and convolutions with float32 factors
    single_share: float  # of the FLOP
    other_convolutions: int  # in a form that cuDNN does not have
    batched_products: int  # of attention that is not cuDNN's
    transposed: int  # large activations that are transposed
    transposed_bytes: int
    looked_up: int  # large gathers, scatters and sorts
    host_calls: int
    loops: int
    wide: int  # operations on 64-bit floats


def costs(program: Program) -> Costs:
    products = [kernel for kernel in program.kernels if kernel.dtypes]
    flops = sum(kernel.flops for kernel in products)
    single = [kernel for kernel in products if "f32" in kernel.dtypes]
    transposed = [moved for moved in program.moved if moved.kind == "transpose"]
    return Costs(
        len(single),
        sum(kernel.flops for kernel in single) / flops,
        sum(k.kind == "convolution" and k.form not in FORMS for k in products),
        sum(kernel.form == "batched" for kernel in products),
        len(transposed),
        sum(moved.result.bytes for moved in transposed),
        len(program.moved) - len(transposed),
        len(program.host_calls),
        program.loops,
        program.wide,
    )


def prediction(program: Program, device: Device, images: int) -> dict[str, Any]:
    """The least time of a step, by what bounds its kernels, and images a second."""
    kinds = {"products": 0.0, "attention": 0.0, "memory": 0.0}
    for kernel in program.kernels:
        attends = kernel.kind.startswith(ATTENTION)
        kind = "attention" if attends else "products" if kernel.dtypes else "memory"
        kinds[kind] += seconds_of(kernel, device)
    total, launches = sum(kinds.values()), LAUNCH * len(program.kernels)
    flops = sum(kernel.flops for kernel in program.kernels)
    return {
        "milliseconds": 1e3 * total,
        **{f"{name}_ms": 1e3 * value for name, value in kinds.items()},
        "launches_ms": 1e3 * launches,
        "images_per_second": images / total,
        "share_of_matmul": flops / total / device.half,
    }


def longest(kernels: Iterable[Kernel], device: Device, count: int = 20) -> str:
    """The longest kernels, those of equal kind and shape together."""
    groups = {}
    for kernel in kernels:
        key = (kernel.kind, kernel.form, kernel.result.dtype, kernel.result.shape)
        groups.setdefault(key, []).append(kernel)
    ranked = sorted(groups.items(), key=lambda item: -_sum(item[1], device))[:count]
    lines = ["| kernel | result | how many | ms | GFLOP | MB | FLOP a byte |", "|---" * 7 + "|"]
    for (kind, form, dtype, shape), group in ranked:
        flops, moved = sum(k.flops for k in group), sum(k.bytes for k in group)
        lines.append(
            f"| {kind} {form} | {dtype} {'x'.join(map(str, shape))} | {len(group)} "
            f"| {1e3 * _sum(group, device):.3f} | {flops / 1e9:,.1f} | {moved / 1e6:,.0f} "
            f"| {flops / moved:,.0f} |"
        )
    return "\n".join(lines)


def _sum(kernels: Iterable[Kernel], device: Device) -> float:
    return sum(seconds_of(kernel, device) for kernel in kernels)


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    made = parser(__doc__)
    made.add_argument("--network", choices=["unet", "dit"], help="one of the two alone")
    made.add_argument("--batch_size", type=int, help="default: the first of gpu.py's")
    made.add_argument("--layers", action="store_true", help="also the longest kernels")
    made.add_argument("--small", action="store_true", help="toy sizes")
    flags = made.parse_args(argv)
    results, lines = [], []
    for name in (flags.network,) if flags.network else ("unet", "dit"):
        of = measured(name, small=flags.small)
        size = flags.batch_size or of.batch_sizes[0]
        for training in (True, False):
            program = read(lowered(of, size, training=training))
            what = f"{name}, batch {size}, {'training step' if training else 'forward'}"
            flops = sum(kernel.flops for kernel in program.kernels)
            moved = sum(kernel.bytes for kernel in program.kernels)
            result = {
                "what": what,
                "gigaflops_per_image": flops / size / 1e9,
                "gigabytes": moved / 1e9,
                "kernels": len(program.kernels),
                **{device.name: prediction(program, device, size) for device in DEVICES},
                "costs": costs(program)._asdict(),
            }
            results.append(result)
            lines += [_described(result)]
            if flags.layers:
                lines += [longest(program.kernels, DEVICES[0]), ""]
    report_table({"jax": jax.__version__}, "\n".join(lines), results, flags.json)
    return results


def _described(result: dict[str, Any]) -> str:
    lines = [
        f"\n{result['what']}: {result['gigaflops_per_image']:.1f} GFLOP an image, "
        f"{result['gigabytes']:.2f} GB, {result['kernels']} kernels"
    ]
    for device in DEVICES:
        found = result[device.name]
        lines.append(
            f"  {device.name}: {found['milliseconds']:.2f} ms "
            f"(products {found['products_ms']:.2f}, attention {found['attention_ms']:.2f}, "
            f"memory {found['memory_ms']:.2f}; launches {found['launches_ms']:.2f}), "
            f"{found['images_per_second']:,.0f} images/s, "
            f"{100 * found['share_of_matmul']:.0f} % of the matrix product"
        )
    counted = ", ".join(f"{name.replace('_', ' ')} {x:,.4g}" for name, x in result["costs"].items())
    return "\n".join([*lines, f"  {counted}"])


if __name__ == "__main__":
    main()

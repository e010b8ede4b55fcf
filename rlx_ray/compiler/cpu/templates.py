"""Kernel templates of the C backend: how a kernel instance calls its function of kernels/c/*.h."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Template:
    """How a kernel template is called: its body from constants; `$name` is a constant.

    In a body `y` is the output, `a`, `b`, `c` and so on the inputs (const void *), `cache` and
    `layer` the key-value cache and the layer where the template takes them, `x` the operands, `t`
    the kernel's own scratch, `s` the tile's span and `tile` its number; `$f` is the function of one
    register of elements, `$e` a matmul's micro-kernel, `$g` the epilogue of one of low precision.
    `$rows` that is no constant is the span's.
    """

    body: str
    inputs: int = 3
    cache: bool = False


_MATMULS = {
    "gemm": "gemm($m, $own, $k, $depth, a, $lda, b, y, $ldc, $more, $e, x)",
    "gemm_int8": "gemm_int8($m, $own, $k, a, $pitch, b, y, $ldc, $g, x)",
    "gemm_bf16": "gemm_bf16($m, $own, $k, a, $pitch, b, y, $ldc, $g, x)",
    "gemm_fp8": "gemm_fp8($m, $own, $k, $e5m2, a, b, y, $ldc, $e, x)",
    "gemm_blocks": (
        "gemm_blocks($m, $own, $k, $pitch, $bits, $halves, $offsets, "
        "blocks_$k_$pitch_$bits_$halves_$offsets, a, b, y, $ldc, $g, x)"
    ),
}
"""Matmuls of `own` columns: all, or the tile's where a region is cut by columns."""

TEMPLATES: dict[str, Template] = {
    **{
        name: Template(body.replace("$own", own))
        for kernel, body in _MATMULS.items()
        for name, own in (
            (kernel, "$n"),
            (f"{kernel}_columns", "least($total - tile * $n, $n)"),
        )
    },
    "quantize_blocks": Template("quantize_blocks($rows, $k, a, (char *)y, $pitch)"),
    "quantize_int8": Template("quantize_int8($rows, $k, a, (char *)y, $pitch)"),
    "quantize_bf16": Template("quantize_bf16($rows, $k, a, (char *)y, $pitch)"),
    "map": Template("map($rows, $columns, y, $f, x)"),
    "layer_norm": Template("layer_norm($rows, $columns, $eps, a, b, c, y)"),
    "rms_norm": Template("rms_norm($rows, $columns, $eps, a, b, y)"),
    "rope_cache_heads": Template(
        "rope_cache(s, tile, $heads, $kv_heads, $dim, $size, $layers, layer, $table, $positions, "
        "$eps, a, b, c, d, e, g, cache, y)",
        6,
        True,
    ),
    "rope_cache": Template(
        "rope_cache(s, -1, $heads, $kv_heads, $dim, $size, $layers, layer, $table, $positions, "
        "$eps, a, b, c, d, e, g, cache, y)",
        6,
        True,
    ),
    "attention_cached": Template(
        "attention_cached(s, -1, $heads, $kv_heads, $dim, $size, $scale, $layers, layer, $table, "
        "$window, (const float *)a - $own * s->row * $heads * $dim, b, c, cache, y, t)",
        cache=True,
    ),
    "attention_cached_heads": Template(
        "attention_cached(s, tile, $heads, $kv_heads, $dim, $size, $scale, $layers, layer, "
        "$table, $window, a, b, c, cache, y, t)",
        cache=True,
    ),
    "rope_cache_padded": Template(
        "rope_cache_padded($sequences, $tokens, $heads, $kv_heads, $dim, $size, $layers, layer, "
        "$table, $positions, $eps, a, b, c, d, e, g, h, cache, y)",
        7,
        True,
    ),
    "attention_cached_padded": Template(
        "attention_cached_padded($sequences, $tokens, $heads, $kv_heads, $dim, $size, $scale, "
        "$layers, layer, $table, $window, a, b, c, d, cache, y, t)",
        4,
        True,
    ),
    "softmax": Template("softmax($rows, $columns, a, y)"),
    "attention": Template(
        "attention(s, 0, $heads, $keys, $heads, $dim, $scale, "
        "(const float *)a - $own * s->row * 3 * $heads * $dim, y, t)"
    ),
    "attention_heads": Template("attention(s, tile, 1, $keys, $heads, $dim, $scale, a, y, t)"),
    "attention_padded": Template(
        "attention_padded($sequences, $keys, $heads, $dim, $scale, a, b, y, t)"
    ),
    "gather": Template(
        "gather($rows, $columns, a, b, $period, $first + tile * $rows % $period, $extent, c, y)"
    ),
    "gather_span": Template("gather_span(s, $columns, $pitch, a, b, $first, $extent, c, y)"),
    "gather_span_q8": Template("gather_span_q8(s, $columns, $pitch, a, b, $first, $extent, c, y)"),
    "pool_span": Template("pool_span(s, $columns, $kind, a, y)"),
    "pool_rows": Template("pool_rows($sequences, $tokens, $columns, $kind, a, b, y)"),
    "dot_panels": Template("dot_panels($m, $n, $k, a, b, y)"),
    "dot_batched": Template("dot_batched($batch, $m, $n, $k, a, b, y)"),
    "take": Template("take($rows, $columns, $extent, a, b, y)"),
    "iota": Template("iota($rows, $period, $first, a, (int *)y)"),
    "length_mask": Template("length_mask($sequences, $tokens, a, y)"),
    "causal_mask": Template("causal_mask($sequences, $tokens, $keys, $window, a, y)"),
    "concat": Template("concat($rows, $m, $n, a, b, y)"),
    "cache_write": Template(
        "cache_write($sequences, $tokens, $heads, $kv_heads, $dim, $size, $layers, layer, $table, "
        "a, b, c, d, e, g, cache, y)",
        6,
        True,
    ),
    "cache_read": Template(
        "cache_read($sequences, $kv_heads, $dim, $size, $layers, layer, $table, $values, "
        "a, b, c, cache, y)",
        cache=True,
    ),
    "strided": Template(
        "strided($n0, $n1, $n2, $n3, $s0, $s1, $s2, $s3, (const float *)a + $shift, y)"
    ),
    "reduce": Template("reduce($outer, $extent, $inner, $kind, a, y)"),
}
"""Kernel templates by name, as `passes/` asks for them."""

"""Triton kernels of the 2-D selective scan, launched by triton_scan.py. Importing this module requires Triton.

The forward and the backward pass each run in three phases over chunks of TILES * T tokens, so that the chunks of an
image are processed in parallel:

    ends       each chunk alone: its final state (backward: adjoint) if it started from zero, and the sum of its dt
    carry      a scan over the chunks, in place: the actual final state (adjoint) of each chunk
    apply      forward: each chunk again from its actual initial state, which gives y
    gradient   backward: each chunk again from the actual adjoint at its end, which gives all gradients

``apply`` and ``gradient`` run once per direction, one after the other, and add to the sum of the previous directions.
Therefore no atomics are needed and results are bitwise reproducible.

A program processes one chunk of one image and BD channels. A row is the [BD] channels of one token, and a tuple of T
rows is kept in registers: every recurrence and every sum over states remains within a thread; only dB and dC are summed
over lanes. No tensor has two dimensions, so the compiler needs no shared memory. The states of a chunk are passed from
tile to tile through global memory. If D is not a multiple of 16, the compiler may load and store a row with different
lanes, so a barrier separates the two; it is cheap because a program is one warp.

Arithmetic is in float32; streams (x, delta, B, C, y) may be float32, bfloat16 or float16 and are converted right after
each load. L is the number of tokens, NC that of chunks. A2 is A * log2(e), (K, N, D). Strides are named after the
tensor and the axis: _b image, _p pixel, _k direction, _n state. Offsets within an image are 64 bits wide if WIDE.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
SIZES = ("H", "W", "L", "NC", "TILES", "k", "orders")  # one compiled kernel serves all values


@triton.jit
def _pixel(t, order, H, W, L, WIDE: tl.constexpr):
    """Return the row-major pixel of token t; bit 0 of an order: by columns, bit 1: from the end."""
    s = tl.where(order >= 2, L - 1 - t, t)
    p = tl.where(order % 2 == 1, (s % H) * W + s // H, s)
    if WIDE:
        p = p.to(tl.int64)
    return p


@triton.jit
def _time_step(z, SOFTPLUS: tl.constexpr):
    """Return dt and its derivative; log(1 + p) = log(w) + (p - (w - 1)) / w is accurate for small p."""
    dt = z
    slope = z * 0.0 + 1.0
    if SOFTPLUS:
        p = tl.exp2(z * LOG2E)
        w = 1.0 + p
        big = z > 20.0
        dt = tl.where(big, z, tl.log2(w) * LN2 + (p - (w - 1.0)) / w)
        slope = tl.where(big, 1.0, p / w)
    return dt, slope


@triton.jit(do_not_specialize=SIZES)
def ends_kernel(
    v, delta, A2, M, bias, ends, sums, H, W, L, NC, D, TILES, orders,
    v_b, v_p, d_b, d_p, d_k, m_b, m_p, m_k, m_n,
    K: tl.constexpr, N: tl.constexpr, T: tl.constexpr, BD: tl.constexpr, REVERSE: tl.constexpr,
    SOFTPLUS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Run ``ends``; v, M: x and B forward, dy and C backward. ends (B, K, NC, N, D), sums of dt (B, K, NC, D)."""
    c = tl.program_id(0) % NC
    bk = tl.program_id(0) // NC
    b, k = (bk // K).to(tl.int64), (bk % K).to(tl.int64)
    order = (orders >> (2 * (bk % K))) & 3
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    dm = d < D
    bz = tl.load(bias + k * D + d, dm, other=0.0)
    v += b * v_b
    delta += b * d_b + k * d_k
    M += b * m_b + k * m_k
    ep = ends + ((bk.to(tl.int64) * NC + c) * N) * D + d
    ap = A2 + k * N * D + d
    total = tl.zeros((BD,), tl.float32)
    for tile in range(TILES):
        first = (c * TILES + (TILES - 1 - tile if REVERSE else tile)) * T
        ps, dts, vals = (), (), ()
        for i in tl.static_range(T):
            t = first + (T - 1 - i if REVERSE else i)
            m = dm & (t < L)
            p = _pixel(t, order, H, W, L, WIDE)
            ps = ps + (p,)
            dt, _ = _time_step(tl.load(delta + p * d_p + d, m, other=0.0).to(tl.float32) + bz, SOFTPLUS)
            dt = tl.where(m, dt, 0.0)
            val = tl.load(v + p * v_p + d, m, other=0.0).to(tl.float32)
            total += dt
            dts = dts + (dt,)
            vals = vals + (val if REVERSE else val * dt,)
        for n in range(N):
            a2 = tl.load(ap + n * D, dm, other=0.0)
            h = tl.load(ep + n * D, dm & (tile > 0), other=0.0)
            for i in tl.static_range(T):
                inside = first + (T - 1 - i if REVERSE else i) < L
                w = tl.load(M + ps[i] * m_p + n * m_n, inside, other=0.0).to(tl.float32)
                a = tl.exp2(dts[i] * a2)
                h = a * (h + w * vals[i]) if REVERSE else a * h + w * vals[i]
            tl.store(ep + n * D, h, dm)
        tl.debug_barrier()
    tl.store(sums + (bk.to(tl.int64) * NC + c) * D + d, total, dm)


@triton.jit(do_not_specialize=SIZES)
def carry_kernel(
    ends, sums, A2, initial, NC, D, K: tl.constexpr, N: tl.constexpr, U: tl.constexpr, BD: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    """Add to each chunk's ``ends`` in place what the chunks before it (after it, if REVERSE) contribute.

    initial (B, K, N, D): state that enters the first chunk (the last, if REVERSE). U loads are in flight.
    """
    bkn = tl.program_id(0).to(tl.int64)
    bk, n = bkn // N, bkn % N
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    dm = d < D
    a2 = tl.load(A2 + ((bk % K) * N + n) * D + d, dm, other=0.0)
    h = tl.load(initial + bkn * D + d, dm, other=0.0)
    base = bk * NC
    for group in range(tl.cdiv(NC, U)):
        s, e = (), ()
        for i in tl.static_range(U):
            c = group * U + i
            c = NC - 1 - c if REVERSE else c
            m = dm & (c >= 0) & (c < NC)
            s = s + (tl.load(sums + (base + c) * D + d, m, other=0.0),)
            e = e + (tl.load(ends + ((base + c) * N + n) * D + d, m, other=0.0),)
        for i in tl.static_range(U):
            c = group * U + i
            c = NC - 1 - c if REVERSE else c
            h = tl.exp2(s[i] * a2) * h + e[i]
            tl.store(ends + ((base + c) * N + n) * D + d, h, dm & (c >= 0) & (c < NC))


@triton.jit(do_not_specialize=SIZES)
def apply_kernel(
    x, delta, A2, Bm, C, bias, skips, ends, starts, total, out, H, W, L, NC, D, TILES, k,
    x_b, x_p, d_b, d_p, d_k, b_b, b_p, b_k, b_n, c_b, c_p, c_k, c_n, o_b, o_p,
    K: tl.constexpr, N: tl.constexpr, T: tl.constexpr, BD: tl.constexpr, ORDER: tl.constexpr,
    FIRST: tl.constexpr, LAST: tl.constexpr, KEEP: tl.constexpr, SOFTPLUS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Compute y. starts: the state before each tile, (B, K, ceil(L / T), N, D), if KEEP; else one state per chunk that
    every tile overwrites, (B, K, NC, N, D)."""
    c = tl.program_id(0) % NC
    b = (tl.program_id(0) // NC).to(tl.int64)
    k = k.to(tl.int64)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    dm = d < D
    bz = tl.load(bias + k * D + d, dm, other=0.0)
    skip = tl.load(skips + d, dm, other=0.0)
    x += b * x_b
    delta += b * d_b + k * d_k
    Bm += b * b_b + k * b_k
    C += b * c_b + k * c_k
    total += b * o_b
    out += b * o_b
    ep = ends + (((b * K + k) * NC + c - 1) * N) * D + d
    ap = A2 + k * N * D + d
    hp = starts + (((b * K + k) * (tl.cdiv(L, T) if KEEP else NC) + (c * TILES if KEEP else c)) * N) * D + d
    for n in range(N):
        tl.store(hp + n * D, tl.load(ep + n * D, dm & (c > 0), other=0.0), dm)
    tl.debug_barrier()
    for tile in range(TILES):
        first = (c * TILES + tile) * T
        ps, dts, dtus, ys = (), (), (), ()
        for i in tl.static_range(T):
            m = dm & (first + i < L)
            p = _pixel(first + i, ORDER, H, W, L, WIDE)
            ps = ps + (p,)
            dt, _ = _time_step(tl.load(delta + p * d_p + d, m, other=0.0).to(tl.float32) + bz, SOFTPLUS)
            dt = tl.where(m, dt, 0.0)
            u = tl.load(x + p * x_p + d, m, other=0.0).to(tl.float32)
            dts = dts + (dt,)
            dtus = dtus + (dt * u,)
            ys = ys + (u * skip if FIRST else tl.load(total + p * o_p + d, m, other=0.0),)
        for n in range(N):
            a2 = tl.load(ap + n * D, dm, other=0.0)
            h = tl.load(hp + n * D, dm & (first < L), other=0.0)
            new = ()
            for i in tl.static_range(T):
                bn = tl.load(Bm + ps[i] * b_p + n * b_n, first + i < L, other=0.0).to(tl.float32)
                cn = tl.load(C + ps[i] * c_p + n * c_n, first + i < L, other=0.0).to(tl.float32)
                h = tl.exp2(dts[i] * a2) * h + bn * dtus[i]
                new = new + (ys[i] + cn * h,)
            ys = new
            tl.store(hp + (n + (N if KEEP else 0)) * D, h, dm & (tile + 1 < TILES) & (first + T < L))
        tl.debug_barrier()
        hp += N * D if KEEP else 0
        for i in tl.static_range(T):
            pointer = out if LAST else total
            tl.store(pointer + ps[i] * o_p + d, ys[i].to(pointer.dtype.element_ty), dm & (first + i < L))


@triton.jit
def _gradient_of_state(
    n, a2, h, adjoint, d_decay, dm, back, first, L, ps, dts, dtus, gys, drives, parts, Bm, C, dB, dC,
    b_p, b_n, c_p, c_n, w_p, T: tl.constexpr,
):  # fmt: skip
    """Process one tile of one state: forward from ``h``, the state before it, then back from the adjoint after it.

    Update adjoint and d_decay, pointers to [BD], and return the sums so far of the gradients of dt * u (drives) and,
    through the decay and divided by LN2, of dt (parts).
    """
    g = tl.load(adjoint, dm, other=0.0)
    d_a = tl.load(d_decay, dm & (back > 0), other=0.0)
    hs, decays = (h,), ()
    for i in tl.static_range(T):
        bn = tl.load(Bm + ps[i] * b_p + n * b_n, first + i < L, other=0.0).to(tl.float32)
        a = tl.exp2(dts[i] * a2)
        h = a * h + bn * dtus[i]
        hs = hs + (h,)
        decays = decays + (a,)
    new_drives, new_parts = (), ()
    for j in tl.static_range(T):
        inside = first + (T - 1 - j) < L
        p = ps[T - 1 - j]
        bn = tl.load(Bm + p * b_p + n * b_n, inside, other=0.0).to(tl.float32)
        g += tl.load(C + p * c_p + n * c_n, inside, other=0.0).to(tl.float32) * gys[T - 1 - j]
        tl.store(dC + p * w_p + n, tl.sum(gys[T - 1 - j] * hs[T - j], 0), inside)
        tl.store(dB + p * w_p + n, tl.sum(g * dtus[T - 1 - j], 0), inside)
        new_drives = (drives[T - 1 - j] + g * bn,) + new_drives
        g = g * decays[T - 1 - j]
        e = g * hs[T - 1 - j]
        new_parts = (parts[T - 1 - j] + e * a2,) + new_parts
        d_a += e * dts[T - 1 - j]
    tl.store(adjoint, g, dm)
    tl.store(d_decay, d_a, dm)
    return new_drives, new_parts


@triton.jit(do_not_specialize=SIZES)
def gradient_kernel(
    x, delta, A2, Bm, C, bias, skips, dy, starts, adjoints, total, dx, ddelta, dB, dC, dA, dbias, dskips,
    H, W, L, NC, D, TILES, k,
    x_b, x_p, d_b, d_p, d_k, b_b, b_p, b_k, b_n, c_b, c_p, c_k, c_n, y_b, y_p, o_b, o_p, e_b, e_p, e_k,
    w_s, w_b, w_p, w_k,
    K: tl.constexpr, N: tl.constexpr, T: tl.constexpr, BD: tl.constexpr, ORDER: tl.constexpr,
    FIRST: tl.constexpr, LAST: tl.constexpr, SOFTPLUS: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Compute all gradients. adjoints: the adjoint that enters chunk c from the next one, in slot c + 1 (0 for the last
    chunk); each tile overwrites it. Partial sums: dA (B, K, NC, N, D), dbias (B, K, NC, D) and dskips (B, NC, D) per
    chunk; dB and dC (blocks of channels, B, H, W, K, N) per block."""
    c = tl.program_id(0) % NC
    b = (tl.program_id(0) // NC).to(tl.int64)
    k = k.to(tl.int64)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    dm = d < D
    bz = tl.load(bias + k * D + d, dm, other=0.0)
    skip = tl.load(skips + d, dm, other=0.0)
    x += b * x_b
    delta += b * d_b + k * d_k
    dy += b * y_b
    Bm += b * b_b + k * b_k
    C += b * c_b + k * c_k
    w = tl.program_id(1).to(tl.int64) * w_s + b * w_b + k * w_k
    total += b * o_b
    dx += b * o_b
    ddelta += b * e_b + k * e_k
    base = (b * K + k) * NC
    gp = adjoints + ((base + tl.where(c + 1 < NC, c + 1, 0)) * N) * D + d
    sp = starts + ((b * K + k) * tl.cdiv(L, T) * N) * D + d
    qp = dA + ((base + c) * N) * D + d
    d_bias, d_skip = tl.zeros((BD,), tl.float32), tl.zeros((BD,), tl.float32)
    for back in range(TILES):
        tile = c * TILES + TILES - 1 - back
        first = tile * T
        ps, dts, dtus, gys, drives, parts = (), (), (), (), (), ()
        for i in tl.static_range(T):
            m = dm & (first + i < L)
            p = _pixel(first + i, ORDER, H, W, L, WIDE)
            ps = ps + (p,)
            dt, _ = _time_step(tl.load(delta + p * d_p + d, m, other=0.0).to(tl.float32) + bz, SOFTPLUS)
            dt = tl.where(m, dt, 0.0)
            dts = dts + (dt,)
            dtus = dtus + (dt * tl.load(x + p * x_p + d, m, other=0.0).to(tl.float32),)
            gys = gys + (tl.load(dy + p * y_p + d, m, other=0.0).to(tl.float32),)
            drives = drives + (tl.zeros((BD,), tl.float32),)
            parts = parts + (tl.zeros((BD,), tl.float32),)
        for n in range(N):
            a2 = tl.load(A2 + (k * N + n) * D + d, dm, other=0.0)
            h = tl.load(sp + (tile.to(tl.int64) * N + n) * D, dm & (first < L), other=0.0)
            drives, parts = _gradient_of_state(
                n, a2, h, gp + n * D, qp + n * D, dm, back, first, L, ps, dts, dtus, gys, drives, parts,
                Bm, C, dB + w, dC + w, b_p, b_n, c_p, c_n, w_p, T,
            )  # fmt: skip
        tl.debug_barrier()
        for i in tl.static_range(T):
            m = dm & (first + i < L)
            p = ps[i]
            u = tl.load(x + p * x_p + d, m, other=0.0).to(tl.float32)
            _, slope = _time_step(tl.load(delta + p * d_p + d, m, other=0.0).to(tl.float32) + bz, SOFTPLUS)
            g_z = tl.where(m, (parts[i] * LN2 + drives[i] * u) * slope, 0.0)
            d_bias += g_z
            d_skip += gys[i] * u
            tl.store(ddelta + p * e_p + d, g_z.to(ddelta.dtype.element_ty), m)
            g_x = drives[i] * dts[i] + (gys[i] * skip if FIRST else tl.load(total + p * o_p + d, m, other=0.0))
            pointer = dx if LAST else total
            tl.store(pointer + p * o_p + d, g_x.to(pointer.dtype.element_ty), m)
    tl.store(dbias + (base + c) * D + d, d_bias, dm)
    if FIRST:
        tl.store(dskips + (b * NC + c) * D + d, d_skip, dm)

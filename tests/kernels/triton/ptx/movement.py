"""The instructions that move values: loads and stores, moves, warp shuffles, barriers and branches."""

from __future__ import annotations

from typing import Any

import numpy as np

from .instructions import DTYPES, WIDTHS, Action, Decoded, Jump, instruction
from .parse import Address, PtxError, Symbol, Vector

# Hints where to keep what is loaded or stored; they change no result.
_HINTS = (
    "weak ca cg cs cv lu wb wt nc L1::evict_normal L1::evict_unchanged L1::evict_first L1::evict_last L1::no_allocate "
    "L2::cache_hint L2::evict_first L2::evict_last L2::evict_normal L2::64B L2::128B L2::256B"
)
_VECTORS = {"": 1, "v2": 2, "v4": 4, "v8": 8}


def _access(d: Decoded, vector: Any, address: Any) -> tuple[str, tuple[Any, ...], Any]:
    """State space, registers and a function from a block to the addresses of its active threads."""
    items = vector.items if isinstance(vector, Vector) else (vector,)
    if not isinstance(address, Address) or len(items) != _VECTORS[d.flag("v2", "v4", "v8")]:
        raise PtxError("not an address, or not as many registers as the instruction says")
    space = d.flag("global", "shared", "param") or ("shared" if d.flag("shared::cta") else "")
    if not space:
        raise d.unknown()

    def addresses(block: Any) -> np.ndarray:
        base = address.base
        shared = isinstance(base, Symbol) or (space == "shared" and block.kernel.registers.get(base.name) == "b32")
        values = block.read(base, "u32" if shared else "u64").astype(np.int64)
        return values[block.mask] + address.offset

    return space, items, addresses


@instruction("ld", f"global shared shared::cta param v2 v4 v8 volatile {_HINTS}")
def _load(d: Decoded) -> Action:
    space, items, addresses = _access(d, *d.operands[:2])
    size = WIDTHS[d.kind]
    if space == "param":
        name, offset = d.operands[1].base.name, d.operands[1].offset

        def act_param(block: Any) -> None:
            if name not in block.parameters or offset + size > len(block.parameters[name]):
                raise PtxError(f"no such parameter: {name}+{offset}")
            raw = block.parameters[name][offset : offset + size]
            block.write(items[0], np.tile(raw, block.threads).view(DTYPES[d.kind]), d.kind)

        return act_param

    def act(block: Any) -> None:
        if not block.mask.any():
            return
        memory = block.memory if space == "global" else block.shared
        raw = memory.load(addresses(block), size * len(items), block.number, block.thread[block.mask])
        for i, item in enumerate(items):
            values = np.zeros(block.threads, DTYPES[d.kind])
            part = np.ascontiguousarray(raw[:, i * size : (i + 1) * size])
            values[block.mask] = part.view(DTYPES[d.kind])[:, 0]
            block.write(item, values, d.kind)

    return act


@instruction("st", f"global shared shared::cta v2 v4 v8 volatile {_HINTS}")
def _store(d: Decoded) -> Action:
    space, items, addresses = _access(d, d.operands[1], d.operands[0])
    size = WIDTHS[d.kind]

    def act(block: Any) -> None:
        values = [block.read(item, d.kind, wider=True)[block.mask] for item in items]
        if not block.mask.any():
            return
        raw = np.concatenate([value.view(np.uint8).reshape(-1, size) for value in values], axis=1)
        memory = block.memory if space == "global" else block.shared
        memory.store(addresses(block), raw, block.number, block.thread[block.mask])

    return act


@instruction("ldmatrix", "sync aligned m8n8 x1 x2 x4 shared shared::cta")
def _load_matrices(d: Decoded) -> Action:
    """Matrices of 8 rows of 16 bytes: lane 8 i + r has the address of row r of matrix i; each lane gets 4 bytes."""
    destination, address = d.operands
    items = destination.items if isinstance(destination, Vector) else (destination,)
    if not isinstance(address, Address) or f"x{len(items)}" not in d.flags or d.kind != "b16":
        raise d.unknown()

    def act(block: Any) -> None:
        if not block.mask.all() or block.threads % 32:
            raise PtxError("not all threads of a warp take part")
        addresses = block.read(address.base, "u32").astype(np.int64) + address.offset
        lane = block.thread % 32
        pointing = lane < 8 * len(items)
        rows = block.shared.load(addresses[pointing], 16, block.number, block.thread[pointing])
        words = np.ascontiguousarray(rows).view(np.uint32).reshape(-1, len(items), 8, 4)
        for matrix, item in enumerate(items):
            block.write(item, words[block.thread // 32, matrix, lane // 4, lane % 4], "b32")

    return act


@instruction("stmatrix", "sync aligned m8n8 x1 x2 x4 shared shared::cta")
def _store_matrices(d: Decoded) -> Action:
    """The way back from ldmatrix: lane 8 i + r has the address of row r of matrix i; each lane gives 4 bytes."""
    address, source = d.operands
    items = source.items if isinstance(source, Vector) else (source,)
    if not isinstance(address, Address) or f"x{len(items)}" not in d.flags or d.kind != "b16":
        raise d.unknown()

    def act(block: Any) -> None:
        if not block.mask.all() or block.threads % 32:
            raise PtxError("not all threads of a warp take part")
        addresses = block.read(address.base, "u32").astype(np.int64) + address.offset
        pointing = block.thread % 32 < 8 * len(items)
        words = np.stack([block.read(item, "b32").reshape(-1, 8, 4) for item in items], axis=1)
        rows = np.ascontiguousarray(words).view(np.uint8).reshape(-1, 16)
        block.shared.store(addresses[pointing], rows, block.number, block.thread[pointing])

    return act


@instruction("createpolicy", "fractional L2::evict_first L2::evict_last L2::evict_normal L2::evict_unchanged")
def _policy(d: Decoded) -> Action:
    return lambda block: block.write(d.operands[0], np.zeros(block.threads, np.uint64), "b64")


@instruction("mov")
def _move(d: Decoded) -> Action:
    """Also {a, b} to a register of their joint width, the first item lowest, and back."""
    destination, source = d.operands
    kind = d.kind

    def parts(vector: Vector) -> list[tuple[Any, str]]:
        return [(item, f"b{8 * WIDTHS[kind] // len(vector.items)}") for item in vector.items]

    def act(block: Any) -> None:
        if isinstance(source, Vector):
            values = [block.read(item, part) for item, part in parts(source)]
            value = np.stack(values, axis=1).view(f"u{WIDTHS[kind]}")[:, 0]
        else:
            value = block.read(source, kind)
        if isinstance(destination, Vector):
            pieces = parts(destination)
            rows = np.ascontiguousarray(value).view(DTYPES[pieces[0][1]]).reshape(-1, len(pieces))
            for i, (item, part) in enumerate(pieces):
                block.write(item, np.ascontiguousarray(rows[:, i]), part)
        else:
            block.write(destination, value, kind)

    return act


@instruction("cvta", "to global")
def _address(d: Decoded) -> Action:
    """Global addresses are generic ones; no other space is taken."""
    if "global" not in d.flags:
        raise d.unknown()
    return lambda block: block.write(d.operands[0], block.read(d.operands[1], d.kind), d.kind)


@instruction("shfl", "sync up down bfly idx")
def _shuffle(d: Decoded) -> Action:
    destination, source, lanes, clamp, members = d.operands
    mode = d.flag("up", "down", "bfly", "idx")
    if "sync" not in d.flags or d.kind != "b32":
        raise d.unknown()

    def act(block: Any) -> None:
        values, b, c = (block.read(operand, "b32") for operand in (source, lanes, clamp))
        _check_members(block, block.read(members, "b32"))
        lane, b, c = block.thread % 32, b.astype(np.int64), c.astype(np.int64)
        b, c, segment = b & 31, c & 31, c >> 8 & 31
        most = lane & segment | c & ~segment & 31
        least = lane & segment
        other = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": least | b & ~segment & 31}[mode]
        valid = other >= most if mode == "up" else other <= most
        target = block.thread - lane + np.where(valid, other, lane)
        if not block.mask[target[block.mask]].all():
            raise PtxError("a thread takes the value of one that does not take part")
        block.write_pair(destination, values[np.where(block.mask, target, 0)], "b32", valid)

    return act


def _check_members(block: Any, members: np.ndarray) -> None:
    """Every live thread named in the member masks of the active threads of its warp is active itself."""
    for warp in range(0, block.threads, 32):
        active = block.mask[warp : warp + 32]
        masks = np.unique(members[warp : warp + 32][active])
        if len(masks) == 0:
            continue
        named = (masks[0] >> np.arange(32, dtype=np.uint32) & 1).astype(bool)[: len(active)]
        if len(masks) > 1 or not np.array_equal(named, active):
            raise PtxError(f"warp {warp // 32} does not take part as its member mask says")


@instruction("bar barrier", "sync warp aligned cta")
def _barrier(d: Decoded) -> Action:
    if "sync" not in d.flags:
        raise d.unknown()

    def act(block: Any) -> None:
        if "warp" in d.flags:
            _check_members(block, block.read(d.operands[0], "b32"))
            return
        if len(d.operands) > 1 and (block.read(d.operands[1], "u32") != block.threads).any():
            raise PtxError("a barrier of some of the block's threads is not known")
        if not np.array_equal(block.mask, block.live):
            raise PtxError(f"{block.mask.sum()} of {block.live.sum()} threads reach a barrier")
        block.shared.barrier()

    return act


@instruction("bra", "uni")
def _branch(d: Decoded) -> Action:
    if d.operands[0].name not in d.kernel.labels:
        raise PtxError("no such label")
    jump = Jump(d.kernel.labels[d.operands[0].name])
    return lambda block: jump


@instruction("ret exit")
def _return(d: Decoded) -> Action:
    jump = Jump(None)
    return lambda block: jump


@instruction("griddepcontrol", "wait launch_dependents")
def _dependents(d: Decoded) -> Action:
    return lambda block: None  # launches run one after the other

"""Pure: how quantised checkpoints store their weights, read from config.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from agentcloud.cluster.errors import UnplannedModel

_SCALE_BYTES = 2
_FP8_SCALE_BYTES = 4


@dataclass(frozen=True, slots=True)
class Quantisation:
    """Storage of the linear layers' weights; embeddings, norms and routers are never quantised.

    Attributes:
        method: `fp8`, `int8`, `awq`, `gptq` or `int4`.
        bits: of one weight.
        group: inputs that share a scale; None: one scale an output (or a matrix).
        block: (outputs, inputs) that share a scale, for block-scaled fp8.
        skipped: modules left unquantised: names, parts of names, or `re:` patterns.
    """

    method: str
    bits: int
    group: int | None = None
    block: tuple[int, int] | None = None
    skipped: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """For people: `fp8`, `fp8 (blocks of 128x128)`, `int4 (awq, groups of 128)`."""
        number = self.method if self.method.startswith(("fp", "int")) else f"int{self.bits}"
        notes = [] if number == self.method else [self.method]
        if self.block:
            notes.append(f"blocks of {self.block[0]}x{self.block[1]}")
        if self.group:
            notes.append(f"groups of {self.group}")
        return f"{number} ({', '.join(notes)})" if notes else number

    def skips(self, module: str) -> bool:
        """Whether the checkpoint leaves this module unquantised."""
        return any(
            re.match(rule[3:], module) is not None
            if rule.startswith("re:")
            else rule == module or rule in module.split(".")
            or module.startswith(f"{rule}.") or module.endswith(f".{rule}")
            for rule in self.skipped
        )  # fmt: skip

    def matrix_bytes(self, inputs: int, outputs: int) -> int:
        """Bytes of one matrix with its scales and zero points, biases left out."""
        weights = _ceil_div(inputs * outputs * self.bits, 8)
        if self.block is not None:
            blocks = _ceil_div(outputs, self.block[0]) * _ceil_div(inputs, self.block[1])
            return weights + blocks * _FP8_SCALE_BYTES
        if self.group is None:
            return weights + outputs * _FP8_SCALE_BYTES
        groups = _ceil_div(inputs, self.group) * outputs
        # A 16-bit scale and a zero point as wide as a weight for every group.
        return weights + groups * _SCALE_BYTES + _ceil_div(groups * self.bits, 8)

    def misfit(self, inputs_per_rank: int, outputs_per_rank: int) -> str | None:
        """Why vLLM would refuse a rank's slice of a matrix; None: it would not."""
        if self.group is not None and inputs_per_rank % self.group:
            return f"{inputs_per_rank} inputs a rank are no multiple of the group size {self.group}"
        if self.block is not None and (
            inputs_per_rank % self.block[1] or outputs_per_rank % self.block[0]
        ):
            rows, columns = self.block
            return (
                f"{outputs_per_rank} x {inputs_per_rank} weights a rank are no whole blocks of "
                f"{rows}x{columns}"
            )
        return None


def what_if(dtype: str) -> Quantisation | None:
    """The usual form of a quantisation named in place of a dtype; None: no such name."""
    if dtype == "fp8":
        return Quantisation("fp8", 8)
    if dtype in ("awq", "gptq", "int4"):
        return Quantisation(dtype, 4, group=128)
    return None


def parse_quantisation(config: Mapping[str, Any], *, name: str) -> Quantisation | None:
    """Read `quantization_config` of a config.json; None: the weights are not quantised.

    Raises:
        UnplannedModel: a method whose storage is not known here.
    """
    raw = config.get("quantization_config") or config.get("compression_config")
    if not raw:
        return None
    method = str(raw.get("quant_method", "")).lower().replace("_", "-")
    skipped = tuple(raw.get("modules_to_not_convert") or raw.get("ignore") or ())
    if method in ("fp8", "fbgemm-fp8"):
        block = raw.get("weight_block_size")
        return Quantisation("fp8", 8, block=(block[0], block[1]) if block else None,
                            skipped=skipped)  # fmt: skip
    if method in ("awq", "gptq"):
        bits = int(raw.get("bits", raw.get("w_bit", 4)))
        group = int(raw.get("group_size", raw.get("q_group_size", 128)))
        return Quantisation(method, bits, group=group if group > 0 else None, skipped=skipped)
    if method == "compressed-tensors":
        return _compressed_tensors(raw, skipped, name)
    raise UnplannedModel(
        f"cannot plan for quantisation {method or 'without a quant_method'!r}; known: fp8, "
        "fbgemm_fp8, awq, gptq, compressed-tensors",
        where=name,
    )


def _compressed_tensors(
    raw: Mapping[str, Any], skipped: tuple[str, ...], name: str
) -> Quantisation:
    schemes = [group.get("weights") or {} for group in (raw.get("config_groups") or {}).values()]
    forms = {(s.get("type"), s.get("num_bits"), s.get("group_size")) for s in schemes}
    if len(forms) != 1:
        raise UnplannedModel(
            f"compressed-tensors with {len(forms)} weight schemes; only one is planned for",
            where=name,
        )
    kind, bits, group = forms.pop()
    methods: dict[tuple[Any, Any], str] = {
        ("float", 8): "fp8",
        ("int", 8): "int8",
        ("int", 4): "int4",
    }
    method = methods.get((kind, bits))
    if method is None or bits is None:
        raise UnplannedModel(f"cannot plan for compressed-tensors {bits}-bit {kind}", where=name)
    block = schemes[0].get("block_structure")
    return Quantisation(
        method,
        bits,
        group=group if group and group > 0 else None,
        block=(block[0], block[1]) if block else None,
        skipped=skipped,
    )


def _ceil_div(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)

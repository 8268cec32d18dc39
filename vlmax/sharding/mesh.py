"""The device mesh: four named axes over all devices, `data` first spread over the slices of a multislice run."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.experimental import mesh_utils

from vlmax.errors import InputError

Device: TypeAlias = Any  # jax.Device, or a device of a topology that is not there

AXES = ("data", "fsdp", "tensor", "sequence")  # in order of growing traffic, as mesh_utils wants them


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How the devices are arranged. At most one axis is -1, which takes all devices that the others leave.

    Slices are groups of devices with a fast network inside and a slow one between them; only `data` crosses
    the slow one. A device's slice is its `slice_index`. Where the platform sets none, processes are the slices if there
    are as many of them as `slices`; and the devices of a lone process are cut into equal runs in their order, so
    that a multislice mesh can be tried on virtual CPU devices.
    """

    data: int = -1
    """Copies of the parameters; the batch is split over them. With slices > 1, over all slices together."""
    fsdp: int = 1
    """The batch is split over these too, and so are the parameters."""
    tensor: int = 1
    """Heads, MLP width and vocabulary are split over these."""
    sequence: int = 1
    """Tokens of the activations are split over these."""
    slices: int = 1
    """Slices of the run; `data` must divide by them."""

    def sizes(self, devices: int) -> dict[str, int]:
        """The size of every axis on so many devices.

        Raises:
          InputError: the axes do not multiply to the number of devices, or `data` does not divide by `slices`.
        """
        sizes = self._given()
        self._check_values(sizes)
        fixed = math.prod(size for size in sizes.values() if size != -1)
        for axis in [axis for axis, size in sizes.items() if size == -1]:
            sizes[axis] = devices // fixed
        wrong = " x ".join(f"{axis}={getattr(self, axis)}" for axis in AXES)
        if math.prod(sizes.values()) != devices:
            wrong = f"{wrong} does not multiply to the number of devices, {devices}"
        elif sizes["data"] % self.slices:
            wrong = f"{wrong} gives mesh.data {sizes['data']}, which does not divide by mesh.slices {self.slices}"
        else:
            return sizes
        raise InputError(f"building the mesh: {wrong}; {self._nearest(devices)}")

    def build(self, devices: Sequence[Device] | None = None) -> jax.sharding.Mesh:
        """The mesh over `devices` (default: all of the run), laid out for the network that joins them.

        Raises:
          InputError: as `sizes`; or the devices lie on another number of slices.
        """
        devices = jax.devices() if devices is None else list(devices)
        sizes = self.sizes(len(devices))
        inner = tuple(sizes[axis] // self.slices if axis == "data" else sizes[axis] for axis in AXES)
        # As mesh_utils.create_hybrid_device_mesh, which cannot take the groups that we choose.
        blocks = [
            mesh_utils.create_device_mesh(inner, group, allow_split_physical_axes=True)
            for group in self._groups(devices)
        ]
        types = (jax.sharding.AxisType.Auto,) * len(AXES)
        return jax.sharding.Mesh(np.concatenate(blocks, axis=AXES.index("data")), AXES, axis_types=types)

    def _groups(self, devices: list[Device]) -> list[list[Device]]:
        """The devices of each slice, slices in order."""
        by_slice, by_process = _group(devices, "slice_index"), _group(devices, "process_index")
        if len(by_slice) > 1 and len(by_slice) != self.slices:
            raise InputError(
                f"building the mesh: the devices lie on {len(by_slice)} slices and mesh.slices is {self.slices}; "
                f"set mesh.slices to {len(by_slice)}"
            )
        if self.slices == 1:
            return [devices]
        if not hasattr(devices[0], "slice_index") and len(by_process) == 1:
            size = len(devices) // self.slices
            return [devices[i * size : (i + 1) * size] for i in range(self.slices)]
        groups = by_slice if hasattr(devices[0], "slice_index") else by_process
        kind = "slice" if groups is by_slice else "process"
        if len(groups) != self.slices or len({len(group) for group in groups}) > 1:
            raise InputError(
                f"building the mesh: mesh.slices is {self.slices}, but the {len(devices)} devices belong to "
                f"{len(groups)} {kind}(es) of {sorted(len(group) for group in groups)} devices; mesh.slices must be "
                f"the number of equally large {kind}s"
            )
        return groups

    def _given(self) -> dict[str, int]:
        return {axis: getattr(self, axis) for axis in AXES}

    def _check_values(self, sizes: dict[str, int]) -> None:
        for axis, size in {**sizes, "slices": self.slices}.items():
            free = size == -1 and axis != "slices"
            if size < 1 and not free:
                advice = "at least 1" if axis == "slices" else "at least 1, or -1 for all devices that are left"
                raise InputError(f"building the mesh: mesh.{axis} is {size}; it must be {advice}")
        open_axes = [f"mesh.{axis}" for axis, size in sizes.items() if size == -1]
        if len(open_axes) > 1:
            named = " and ".join(open_axes)
            raise InputError(f"building the mesh: {named} are -1; only one axis can take what is left")

    def _nearest(self, devices: int) -> str:
        """What to set: the mesh that fits with the fewest and smallest changes."""
        if devices % self.slices:
            fits = min(_divisors(devices), key=lambda n: abs(n - self.slices))
            return f"{devices} devices make no {self.slices} equal slices; set mesh.slices={fits}"
        given = self._given()

        def distance(sizes: dict[str, int]) -> tuple[int, float]:
            logs = [abs(math.log(sizes[axis] / size)) for axis, size in given.items() if size != -1]
            return sum(log > 0 for log in logs), sum(logs)

        fitting = (sizes for sizes in _factorisations(devices) if sizes["data"] % self.slices == 0)
        best = min(fitting, key=distance)
        changes = ", ".join(f"mesh.{axis}={best[axis]}" for axis, size in given.items() if size not in (-1, best[axis]))
        return f"the nearest that does: {changes}"


def _group(devices: list[Device], attribute: str) -> list[list[Device]]:
    groups = collections.defaultdict(list)
    for device in devices:
        groups[getattr(device, attribute, 0)].append(device)
    return [groups[key] for key in sorted(groups)]


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _factorisations(devices: int) -> Iterator[dict[str, int]]:
    """Every way to write the number of devices as a product of the four axes."""
    for data in _divisors(devices):
        for fsdp in _divisors(devices // data):
            for tensor in _divisors(devices // data // fsdp):
                yield dict(zip(AXES, (data, fsdp, tensor, devices // data // fsdp // tensor), strict=True))

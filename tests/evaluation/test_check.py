"""What is found out about an evaluation before the run, not at its first evaluation."""

from __future__ import annotations

import dataclasses

import jax
import pytest

from tests.data.stand_ins import Numbers
from vlmax.errors import InputError
from vlmax.evaluation.retrieval import Retrieval
from vlmax.evaluation.zero_shot import ZeroShot
from vlmax.sharding.mesh import Mesh


@dataclasses.dataclass(frozen=True)
class Missing:
    """A source that is not there."""

    name: str = "missing"

    def open(self):
        raise InputError("no folder /nowhere")


@pytest.fixture(scope="module")
def mesh():
    return Mesh().build()


@pytest.mark.parametrize("kind", [Retrieval, ZeroShot])
def test_a_missing_source_is_told(kind, mesh):
    kind(Numbers()).check(mesh)
    with pytest.raises(InputError, match="no folder /nowhere"):
        kind(Missing()).check(mesh)


@pytest.mark.parametrize("kind", [Retrieval, ZeroShot])
def test_sizes_that_do_not_fit_are_told(kind, mesh):
    with pytest.raises(InputError, match=r"batch_size 12 does not divide over the 8 parts.*nearest that does is 16"):
        kind(Numbers(), batch_size=12).check(mesh)
    with pytest.raises(InputError, match="limit is 0; it must be at least 1"):
        kind(Numbers(), limit=0).check(mesh)


def test_a_mesh_of_other_axes_divides_by_those_it_has():
    mesh = jax.make_mesh((8,), ("data",))
    Retrieval(Numbers(), batch_size=16).check(mesh)
    with pytest.raises(InputError, match=r"does not divide over the 8 parts of a batch \(mesh axes data=8"):
        Retrieval(Numbers(), batch_size=12).check(mesh)


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        (Retrieval(Numbers(), captions=0), "captions is 0"),
        (Retrieval(Numbers(), prompt="a photo"), "give the prompt one {} for it"),
        (ZeroShot(Numbers(), templates=()), "each template needs one {}"),
        (ZeroShot(Numbers(), labels=("a", "b"), class_names=("x",)), "1 class_names for 2 labels"),
    ],
)
def test_texts_that_do_not_fit_are_told(evaluation, message, mesh):
    with pytest.raises(InputError) as error:
        evaluation.check(mesh)
    assert message in str(error.value)

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from tests.sharding.parameters import box, boxed, values
from vlmax.errors import InputError
from vlmax.sharding.mesh import Mesh
from vlmax.sharding.rules import DEFAULT_RULES, path_string, rule_table, shardings, state_shardings, unboxed
from vlmax.training.optimizers import Adafactor, AdamW, Lion, Muon, Optimizer
from vlmax.training.patterns import flatten
from vlmax.training.schedules import Constant


@pytest.fixture(scope="module")
def mesh():
    return Mesh(2, 2, 2).build()


def specs(tree):
    return {path_string(path): leaf.spec for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_every_parameter_gets_the_axes_of_the_rules(mesh):
    found = specs(shardings(boxed(), mesh, rule_table((), mesh)))
    assert found == {
        "image/patch/kernel": P(None, "fsdp"),
        "image/positions": P(None, "fsdp"),
        "image/blocks/norm/scale": P(None, None),
        "image/blocks/query/kernel": P(None, "fsdp", "tensor", None),
        "image/blocks/query/bias": P(None, "tensor", None),
        "image/blocks/up/kernel": P(None, "fsdp", "tensor"),
        "image/conv": P(None, None, None, "fsdp"),
        "image_projection/kernel": P("fsdp", None),
        "text/embedding": P("tensor", "fsdp"),
        "log_scale": P(),
    }


def test_the_specs_are_those_of_flax(mesh):
    rules = rule_table((), mesh)
    with nn.logical_axis_rules(rules):
        theirs = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed()), mesh)
    ours = shardings(boxed(), mesh, rules)
    for mine, flax, leaf in zip(*map(jax.tree.leaves, (ours, theirs, boxed())), strict=True):
        assert mine.is_equivalent_to(flax, leaf.ndim)


def test_the_experiment_overrides_the_table(mesh):
    rules = rule_table((("embed", ()), ("vocab", ("tensor", "fsdp"))), mesh)
    assert [name for name, _ in rules].count("embed") == 1
    assert specs(shardings(boxed(), mesh, rules))["text/embedding"] == P(("tensor", "fsdp"), None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((("embed", ("fdsp",)),), r"rules\[0\]: .*'embed' names the mesh axis 'fdsp'; did you mean 'fsdp'"),
        ((("embed", ()), ("embed", ("data",))), r"rules\[1\]: .*'embed' has a rule already"),
    ],
)
def test_rules_that_make_no_sense(mesh, overrides, message):
    with pytest.raises(InputError, match=message):
        rule_table(overrides, mesh)


def test_a_rule_that_hits_nothing_is_an_error(mesh):
    with pytest.raises(InputError, match=r"the rule for 'emebd' hits no parameter; did you mean 'embed'"):
        shardings(boxed(), mesh, rule_table((("emebd", ("fsdp",)),), mesh))


def test_a_new_axis_is_covered_by_a_rule_of_the_experiment(mesh):
    tree = {"table": box((8, 4), "queries", "embed")}
    found = shardings(tree, mesh, rule_table((("queries", ("tensor",)),), mesh))
    assert found["table"].spec == P("tensor", "fsdp")


def test_all_problems_are_named_at_once(mesh):
    tree = {
        "a": box((4, 8), "embde", "mlp"),
        "b": box((7, 9), "embed", "mlp"),
        "c": {"d": jax.ShapeDtypeStruct((3,), jnp.float32)},
        "e": box((4, 4), "mlp", "heads"),
        "f": box((4, 4), "mlp"),
        "fine": box((4, 4), "mlp", None),
    }
    with pytest.raises(InputError) as error:
        shardings(tree, mesh, rule_table((), mesh))
    lines = [line.strip() for line in str(error.value).splitlines()]
    assert lines[0].startswith("sharding the parameters over the mesh {'data': 2, 'fsdp': 2, 'tensor': 2")
    assert "a [4, 8]: no rule covers its logical axis 'embde'; did you mean 'embed'" in lines[1]
    assert "b [7, 9]: dimension 0 ('embed') is 7 and does not divide by mesh.fsdp=2; the nearest" in lines[2]
    assert lines[2].endswith("is 8")
    assert "b [7, 9]: dimension 1 ('mlp') is 9 and does not divide by mesh.tensor=2" in lines[3]
    assert lines[4].startswith("c/d [3] carries no logical axes")
    assert lines[5].startswith("e [4, 4]: 'mlp' and 'heads' both go to the mesh axis 'tensor'")
    assert lines[6].startswith("f [4, 4] has 2 dimensions and 1 logical axes")
    assert len(lines) == 7


def test_a_product_of_axes_must_divide(mesh):
    rules = rule_table((("vocab", ("tensor", "fsdp")), ("embed", ())), mesh)
    with pytest.raises(InputError, match=r"is 10 and does not divide by mesh.tensor=2 x mesh.fsdp=2; .* is 8"):
        shardings({"table": box((10, 4), "vocab", "embed")}, mesh, rules)


def test_the_table_names_every_axis_once():
    names = [name for name, _ in DEFAULT_RULES]
    assert len(names) == len(set(names))


def test_unboxed_takes_abstract_arrays_where_a_mesh_is_set(mesh):
    with jax.set_mesh(mesh), nn.logical_axis_rules(rule_table((), mesh)):
        assert unboxed(boxed())["text"]["embedding"] == jax.ShapeDtypeStruct((40, 32), jnp.float32)


ALGORITHMS = {
    "adamw": AdamW(moment_dtype="bfloat16"),
    "lion": Lion(),
    "adafactor": Adafactor(),
    "adafactor2018": Adafactor(momentum=None, parameter_scale=True, b2_cap=1.0, smallest_factored=16),
    "muon": Muon(),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_state_of_every_optimizer_is_sharded_like_its_parameter(name, mesh):
    """Every array of the state that is as large as its parameter, or factored from it, is split as the parameter is."""
    of_params = shardings(boxed(), mesh, rule_table((), mesh))
    transformation = Optimizer(ALGORITHMS[name], Constant(1e-3)).build(boxed(), 10).transformation
    params = jax.device_put(values(), of_params)
    abstract = jax.eval_shape(transformation.init, params)
    found = state_shardings(abstract, boxed(), of_params, mesh)
    state = jax.jit(transformation.init, out_shardings=found)(params)
    spec_of = {tuple(path.split("/")): spec for path, spec in specs(of_params).items()}
    shape_of = {tuple(path.split("/")): leaf.shape for path, leaf in flatten(params).items()}
    seen = dict.fromkeys(spec_of, 0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        keys = path_string(path).split("/")
        owner = max((p for p in spec_of if _contains(keys, p)), key=len, default=None)
        if leaf.size <= 3:
            continue
        assert owner, keys
        seen[owner] += 1
        if leaf.shape == shape_of[owner]:
            assert leaf.sharding.spec == spec_of[owner]
        else:  # one dimension is gone; the others keep their axes
            assert name.startswith("adafactor")
            spec = [*spec_of[owner]]
            gone = [
                i for i in range(len(spec)) if shape_of[owner][:i] + shape_of[owner][i + 1 :] == leaf.shape
                and P(*spec[:i], *spec[i + 1 :]) == leaf.sharding.spec
            ]  # fmt: skip
            assert gone, keys
    assert all(count or path == ("log_scale",) for path, count in seen.items())

    # The update keeps the state where it is.
    _, after = jax.jit(transformation.update)(params, state, params)
    for before, now in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        assert now.sharding.is_equivalent_to(before.sharding, now.ndim)


def _contains(keys, path):
    return any(tuple(keys[i : i + len(path)]) == path for i in range(len(keys)))


def test_square_matrices_are_factored_along_the_right_dimension(mesh):
    tree = {"w": box((2, 32, 32), "layers", "embed", "mlp")}
    of_params = shardings(tree, mesh, rule_table((), mesh))
    transformation = Optimizer(Adafactor(momentum=None), Constant(1e-3)).build(tree, 10).transformation
    params = {"w": jnp.ones((2, 32, 32))}
    state = transformation.init(params)
    gradients = {"w": jnp.broadcast_to(jnp.arange(1.0, 33.0)[:, None], (2, 32, 32))}  # differs along `embed`
    _, state = transformation.update(gradients, state, params)
    found = specs(state_shardings(jax.eval_shape(lambda: state), tree, of_params, mesh))
    flat = {path_string(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    along_embed = [path for path, leaf in flat.items() if leaf.shape == (2, 32) and np.ptp(leaf[0]) > 1]
    along_mlp = [path for path, leaf in flat.items() if leaf.shape == (2, 32) and np.ptp(leaf[0]) < 1e-3]
    assert [found[path] for path in along_embed] == [P(None, "fsdp")]
    assert [found[path] for path in along_mlp] == [P(None, "tensor")]


def test_moving_averages_and_frozen_parts_are_sharded_too(mesh):
    of_params = shardings(boxed(), mesh, rule_table((), mesh))
    state = {"ema": unboxed(boxed()), "step": jax.ShapeDtypeStruct((), jnp.int32)}
    found = state_shardings(state, boxed(), of_params, mesh)
    assert specs(found["ema"]) == specs(of_params)
    assert found["step"].spec == P()


def test_a_large_array_of_no_parameter_is_never_replicated_in_silence(mesh):
    of_params = shardings(boxed(), mesh, rule_table((), mesh))
    state = optax.TraceState({"image": {"positions": jax.ShapeDtypeStruct((77, 77), jnp.float32)}})
    with pytest.raises(ValueError, match=r"image/positions \[77, 77\]"):
        state_shardings(state, boxed(), of_params, mesh)

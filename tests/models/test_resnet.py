from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from tests.parity.resnet_names import from_open_clip, from_transformers
from tests.shared import REPOSITORY
from vlmax.errors import InputError
from vlmax.models.encoders.resnet import BatchNorm, ModifiedResNet, ResNet, clip_rn50, resnet50, resnet101

DEPTHS, STEM, HEADS, OUTPUT, IMAGE = (1, 3, 2, 1), 2, 4, 10, 64
CONFIGS = {
    "resnet": ResNet(stem=STEM, depths=DEPTHS, image=IMAGE),
    "modified_resnet": ModifiedResNet(stem=STEM, depths=DEPTHS, heads=HEADS, output=OUTPUT, image=IMAGE),
}
RULES = (("batch", ("data", "fsdp", "tensor")), ("conv_out", "fsdp"), ("embed", "fsdp"))


def convert(name, state):
    return from_transformers(state, DEPTHS) if name == "resnet" else from_open_clip(state, DEPTHS, HEADS)


def part(golden, prefix):
    return {k.removeprefix(prefix): v.astype(np.float32) for k, v in golden.items() if k.startswith(prefix)}


def train_step(module, variables, images, probe):
    """Loss, (tokens, pooled, new statistics), gradients of parameters and images."""

    def loss(params, images):
        output, new = module.apply({**variables, "params": params}, images, False, mutable=["batch_stats"])
        return (output.pooled * probe).sum(), (output.tokens, output.pooled, new["batch_stats"])

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], images)


def close(got, want, tolerance=1e-4):
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


@pytest.fixture(scope="module", params=list(CONFIGS))
def case(request):
    with np.load(REPOSITORY / "tests" / "golden" / f"{request.param}.npz") as file:
        golden = dict(file)
    module = CONFIGS[request.param].build()
    variables = jax.tree.map(jnp.asarray, convert(request.param, part(golden, "state/")))
    images, probe = golden["images"].astype(np.float32), golden["probe"].astype(np.float32)
    trained = jax.jit(lambda v, x, p: train_step(module, v, x, p))(variables, images, probe)
    return request.param, golden, module, variables, images, probe, trained


def test_evaluation_equals_the_reference(case):
    _, golden, module, variables, images, _, _ = case
    output = jax.jit(lambda v, x: module.apply(v, x, True))(variables, images)
    close(output.tokens, golden["eval/tokens"])
    close(output.pooled, golden["eval/pooled"])


def test_training_equals_the_reference(case):
    _, golden, _, _, _, _, ((_, (tokens, pooled, _)), _) = case
    close(tokens, golden["train/tokens"])
    close(pooled, golden["train/pooled"])


def test_running_statistics_equal_the_reference(case):
    name, golden, _, _, _, _, ((_, (_, _, stats)), _) = case
    want = convert(name, {**part(golden, "state/"), **part(golden, "after/")})["batch_stats"]
    jax.tree.map(close, stats, jax.tree.map(np.asarray, want))


def test_gradients_equal_the_reference(case):
    name, golden, _, _, _, _, (_, (gradients, _)) = case
    if name == "resnet":
        pairs = {
            "embedder.embedder.convolution.weight": gradients["stem_conv"]["kernel"].transpose(3, 2, 0, 1),
            "encoder.stages.1.layers.2.layer.1.normalization.weight": gradients["stage2"]["rest"]["norm2"]["scale"][1],
        }
    else:
        pairs = {
            "conv1.weight": gradients["stem_conv1"]["kernel"].transpose(3, 2, 0, 1),
            "layer2.2.bn2.weight": gradients["stage2"]["rest"]["norm2"]["scale"][1],
            "attnpool.k_proj.weight": gradients["pool"]["key"]["kernel"].reshape(32 * STEM, -1).T,
        }
    for key, got in pairs.items():
        close(got, golden[f"gradient/{key}"], 1e-3)


def test_initial_variables_have_the_converted_tree(case):
    _, _, module, variables, images, _, _ = case
    boxed = jax.eval_shape(lambda: module.init(jax.random.key(0), images, True))
    shapes = jax.tree.map(lambda x: x.shape, nn.unbox(boxed))
    assert shapes == jax.tree.map(lambda x: x.shape, variables)
    specs = nn.get_partition_spec(boxed)["params"]
    assert specs["stage2"]["rest"]["conv2"]["kernel"] == PartitionSpec(
        "layers", "kernel_height", "kernel_width", "conv_in", "conv_out"
    )
    flat = jax.tree.leaves(specs, is_leaf=lambda x: isinstance(x, PartitionSpec))
    assert all(len(s) == len(p.shape) for s, p in zip(flat, jax.tree.leaves(nn.unbox(boxed)["params"]), strict=True))


@pytest.mark.parametrize("name", [pytest.param("resnet", marks=pytest.mark.slow), "modified_resnet"])
def test_eight_devices_give_the_loss_gradients_and_statistics_of_one(name):
    config = dataclasses.replace(CONFIGS[name], depths=(1, 2, 1, 1))
    module, rng = config.build(), np.random.default_rng(5)
    images = rng.normal(size=(8, IMAGE, IMAGE, 3)).astype(np.float32)
    images += np.arange(8).reshape(8, 1, 1, 1)  # each device's own mean would be far from the batch's
    probe = rng.normal(size=(8, config.output_width)).astype(np.float32)
    boxed = jax.eval_shape(lambda: module.init(jax.random.key(0), images, True))
    variables = jax.tree_util.tree_map_with_path(lambda path, x: random_leaf(rng, path, x.shape), nn.unbox(boxed))
    want = jax.jit(lambda v, x, p: train_step(module, v, x, p))(variables, images, probe)
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3)
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        specs = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)
        rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp", "tensor")))
        placed = (jax.device_put(variables, fitting(specs, variables, mesh)), *jax.device_put((images, probe), rows))
        got = jax.jit(lambda v, x, p: train_step(module, v, x, p))(*placed)
    (loss, (tokens, _, stats)), (gradients, _) = got
    (want_loss, (want_tokens, _, want_stats)), (want_gradients, _) = want
    np.testing.assert_allclose(loss, want_loss, rtol=1e-4)
    close(tokens, want_tokens)
    jax.tree.map(close, stats, want_stats)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(want_gradients))
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(want_gradients), strict=True):
        assert np.abs(a - b).max() <= 1e-3 * np.abs(b).max() + 1e-5 * largest


def random_leaf(rng, path, shape):
    """He-sized kernels, everything else around 1; compiling the real initialisation takes far longer."""
    if path[-1].key == "kernel":
        return jnp.asarray(rng.normal(0, np.sqrt(2 / np.prod(shape[-4:-1])), shape), jnp.float32)
    return jnp.asarray(rng.uniform(0.5, 1.5, shape), jnp.float32)


def fitting(shardings, variables, mesh):
    """The shardings, but whole where a tiny width does not divide."""

    def one(sharding, x):
        try:
            sharding.shard_shape(x.shape)
        except ValueError:
            return NamedSharding(mesh, PartitionSpec())
        return sharding

    return jax.tree.map(one, shardings, variables)


def test_running_statistics_approach_the_data():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(300.0, 2.0, size=(4, 3, 3, 5)), jnp.float32)  # far mean: sums of squares would cancel
    module = BatchNorm()
    variables = nn.unbox(module.init(jax.random.key(0), x, False))
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], 0)  # initialising is not a step
    step = jax.jit(lambda v: module.apply(v, x, False, mutable=["batch_stats"]))
    for _ in range(200):
        y, new = step(variables)
        variables = {**variables, **new}
    wide = np.asarray(x, np.float64)
    np.testing.assert_allclose(variables["batch_stats"]["mean"], wide.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(variables["batch_stats"]["var"], wide.var((0, 1, 2), ddof=1), rtol=1e-4)
    np.testing.assert_allclose(np.asarray(y).std((0, 1, 2)), 1, rtol=1e-3)


def test_training_without_mutable_statistics_is_refused(case):
    _, _, module, variables, images, _, _ = case
    with pytest.raises(Exception, match="mutable"):
        jax.eval_shape(lambda v: module.apply(v, images, False), variables)


def test_bfloat16_computes_in_bfloat16_with_float32_statistics(case):
    name, golden, _, variables, images, _, _ = case
    module = CONFIGS[name].build(jnp.bfloat16)
    output, new = jax.jit(lambda v, x: module.apply(v, x, False, mutable=["batch_stats"]))(variables, images)
    assert output.tokens.dtype == output.pooled.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(new)} == {jnp.dtype(jnp.float32)}
    error = np.linalg.norm(np.asarray(output.pooled, np.float32) - golden["train/pooled"])
    assert error < 0.2 * np.linalg.norm(golden["train/pooled"])


def test_sizes_of_the_presets():
    def parameters(config):
        images = jax.ShapeDtypeStruct((1, config.image, config.image, 3), jnp.float32)
        shapes = jax.eval_shape(lambda x: config.build().init(jax.random.key(0), x, True), images)
        return sum(x.size for x in jax.tree.leaves(nn.unbox(shapes)["params"]))

    assert parameters(resnet50()) == 25_557_032 - 2_049_000  # torchvision's, without its classifier
    assert parameters(resnet101()) == 44_549_160 - 2_049_000
    assert parameters(clip_rn50()) == 38_316_896  # open_clip's visual tower of RN50
    assert resnet50().output_width == 2048 and clip_rn50().output_width == 1024 and clip_rn50().width == 2048


@pytest.mark.parametrize("config", [resnet50(64), resnet50(75), clip_rn50(64)], ids=["resnet50", "odd", "clip_rn50"])
def test_flops_are_those_of_the_compiled_convolutions_and_products(config):
    images = jnp.zeros((1, *config.image_size, 3))
    shapes = jax.eval_shape(lambda: config.build().init(jax.random.key(0), images, True))
    jaxpr = jax.make_jaxpr(lambda v, x: config.build().apply(nn.unbox(v), x, True))(shapes, images)
    assert counted(jaxpr.jaxpr) == config.flops()


def counted(jaxpr) -> int:
    """2 x multiply-adds of every convolution and matrix product of a program, loops included."""
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        out = equation.outvars[0].aval if equation.outvars else None
        if name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            total += 2 * out.size * int(np.prod(kernel[:3]))
        elif name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            total += 2 * out.size * int(np.prod([equation.invars[0].aval.shape[i] for i in contracted]))
        times = equation.params["length"] if name == "scan" else 1
        total += times * sum(counted(sub) for sub in jaxprs_in_params(equation.params))
    return total


def test_wrong_sizes_say_what_to_change():
    for image in (100, 48):
        with pytest.raises(InputError, match="multiple of 32"):
            ModifiedResNet(image=image)
    for kind, changes in ((ResNet, {"image": 0}), (ModifiedResNet, {"image": 0}), (ModifiedResNet, {"heads": 0})):
        with pytest.raises(InputError, match=f"{kind.__name__}: {next(iter(changes))} is 0"):
            kind(**changes)
    with pytest.raises(InputError, match=r"depths is \(1, 1, 1\)"):
        ResNet(depths=(1, 1, 1))
    module = CONFIGS["modified_resnet"].build()
    with pytest.raises(InputError, match=r"images are 32 x 32.*says 64"):
        jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), True))
    with pytest.raises(InputError, match="one value per channel"):
        jax.eval_shape(lambda: BatchNorm().init(jax.random.key(0), jnp.zeros((1, 1, 1, 3)), False))
